"""The demo of grading as a stranger runs it, with the shipped networks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import voxplain as vx
from voxplain.metrics.overlap import dice
from voxplain.studies.demo import run_demo


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo")
    said = io.StringIO()
    console = Console(file=said, width=200)
    run_demo(out, kind="grading", seed=0, compute=vx.Compute(device="cpu"), console=console)
    return out, said.getvalue()


def test_the_shipped_networks_class_and_segment_a_made_patient(ran: tuple[Path, str]) -> None:
    out, said = ran
    content = json.loads((out / "diagnosis.json").read_text())
    record = json.loads((out / "made-patient" / "phantom.json").read_text())
    assert record["grade"] == "G"
    assert content["class"] == "glioblastoma"
    assert "made patient, glioblastoma" in said
    truth = vx.read_labels(out / "made-patient" / "made-patient_seg.nii.gz").data > 0
    found = dice(vx.read_labels(out / "whole-tumour.nii.gz").data > 0, truth)
    assert found > 0.6
    assert f"Dice {found:.2f}" in said
    assert "not for diagnosis" in said


def test_the_page_says_what_it_is(ran: tuple[Path, str]) -> None:
    out, said = ran
    page = (out / "report.html").read_text()
    assert "not for diagnosis" in page
    assert "phantom (software check)" in page
    assert "The classifier&#39;s evidence lies" in page
    assert str(out / "report.html") in said


def test_the_made_patient_is_none_of_those_that_were_learnt_from() -> None:
    for name in ("phantom-grading", "phantom-tumour-parts"):
        card = vx.load_model(name).card
        assert "made-patient" not in card.training_ids
        assert np.all([case.startswith("Phantom_glioma_") for case in card.training_ids])
        assert "phantom (software check)" in card.training["data"]
