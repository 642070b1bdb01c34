"""The demo of lesions as a stranger runs it, with the shipped network."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import voxplain as vx
from voxplain.explain import InstanceGradCAMPlusPlus, InstanceSmoothGrad
from voxplain.io.nifti import read_map
from voxplain.metrics.overlap import dice
from voxplain.studies import demo_lesions


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_lesions, "_METHODS", (InstanceSmoothGrad(copies=1), InstanceGradCAMPlusPlus()))
        demo_lesions.run_lesion_demo(
            out, model=None, seed=0, compute=vx.Compute(device="cpu"), console=Console(file=said, width=200)
        )
    return out, said.getvalue()


def test_the_shipped_network_finds_the_made_lesions(ran: tuple[Path, str]) -> None:
    out, said = ran
    truth = vx.read_labels(out / "made-patient" / "made-patient_seg.nii.gz").data > 0
    probability = read_map(out / "probability.nii.gz")[0][0]
    found = dice(probability >= vx.load_model("ms-lesions").card.threshold, truth)
    assert found > 0.5
    assert f"Dice {found:.2f}" in said
    assert "phantom (software check)" in said
    table = pd.read_csv(out / "lesions.tsv", sep="\t", keep_default_na=False)
    assert (table["kind"] == "TP").sum() > 5


def test_the_map_lies_around_its_lesion_and_says_so(ran: tuple[Path, str]) -> None:
    out, said = ran
    (path,) = out.glob("instance-smoothgrad-lesion-*.json")
    number = json.loads(path.read_text())["lesion"]["number"]
    values = read_map(path.with_suffix(".nii.gz"))[0]
    lesion = vx.read_labels(out / "lesions.nii.gz").data == number
    assert f"lesion {number} of" in said
    assert values.shape[0] == 2
    # Brighter FLAIR inside of the lesion speaks for lesion, and what is far away has no part in it.
    assert values[0][lesion].mean() > 0
    peak = np.unravel_index(np.abs(values[0]).argmax(), values[0].shape)
    assert np.linalg.norm(np.argwhere(lesion) - peak, axis=1).min() < 10
    cam = read_map(next(out.glob("instance-grad-cam*-lesion-*[0-9].nii.gz")))[0]
    assert cam.min() >= 0
    assert (out / "report.html").stat().st_size > 1e6


def test_the_shipped_model_is_small_and_says_where_it_comes_from() -> None:
    folder = vx.shipped_models()["ms-lesions"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    card = vx.load_model("ms-lesions").card
    assert card.training_ids == {"patient07", "patient19"}
    assert "CC BY" in (folder / "README.md").read_text()
    assert "10.1007/s12021-017-9348-7" in card.description
