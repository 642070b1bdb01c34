"""The demo as a stranger runs it: a made tumour found on its side, honest figures, and a page that shows them."""

import io
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

import voxplain as vx
from voxplain.metrics.overlap import dice
from voxplain.results import read_results
from voxplain.studies.demo import run_demo


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo")
    said = io.StringIO()
    run_demo(out, seed=0, compute=vx.Compute(device="cpu"), console=Console(file=said, width=120))
    return out, said.getvalue()


def test_the_half_with_the_tumour_is_told_from_the_clear_one(ran):
    out, said = ran
    truth = nib.load(out / "made-scan" / "made-scan_seg.nii.gz")
    tumour_x = nib.affines.apply_affine(truth.affine, np.argwhere(np.asarray(truth.dataobj) > 0))[:, 0]
    side, other = ("left", "right") if tumour_x.mean() < 0 else ("right", "left")
    probabilities = dict(re.findall(r"(left|right) half: tumour with probability ([\d.]+)", said))
    assert float(probabilities[side]) > 0.9
    assert float(probabilities[other]) < 0.1


def test_figures_are_those_of_the_files_and_carry_their_kind(ran):
    out, said = ran
    truth = vx.read_labels(out / "made-scan" / "made-scan_seg.nii.gz").data > 0
    assert "phantom (software check)" in said
    for result in read_results(out):
        found = re.search(rf"{result.name} +deployable ([\d.]+)", said)
        assert found is not None
        assert float(found[1]) == pytest.approx(dice(result.mask.data > 0, truth), abs=0.005)
        assert float(found[1]) > 0.3
    for row, kind in (("intensity/flair", "deployable"), ("relevance-map/best-grouping", "oracle")):
        assert re.search(rf"{row} +{kind} +[\d.]+", said)


def test_the_page_is_there_and_says_that_the_scan_is_made(ran):
    out, said = ran
    page = (out / "report.html").read_text(encoding="utf-8")
    assert str(out / "report.html") in said.replace("\n", "")
    assert "phantom (software check)" in page
    assert len(page) < 8_000_000
    for kind in ("deployable", "oracle"):
        assert f'class="kind {kind}"' in page


def test_results_replay_and_name_their_scan(ran):
    out, _ = ran
    provenance = json.loads((out / "relevance-map.json").read_text(encoding="utf-8"))
    scan = vx.read(out / "made-scan")
    assert provenance["scan"]["fingerprint"] == scan.fingerprint
    assert set(provenance["sources"]) == set(scan.channels)
    assert provenance["seen"] is False
