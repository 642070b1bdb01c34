"""Segmentation of tumours and diagnosis, from the commands to what lies on disk, on phantoms."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import voxplain as vx
from voxplain.cli import app
from voxplain.datasets.phantom import TYPES
from voxplain.datasets.phantom_cohort import write_gliomas
from voxplain.datasets.tumour_masks import cohort
from voxplain.diagnosis import AGREEMENT, diagnose
from voxplain.io.bundle import build_network, load_model, save_model
from voxplain.metrics.overlap import dice
from voxplain.prediction import predict, predict_classes
from voxplain.studies import tumour_presets
from voxplain.studies.grading_presets import preset as grading_preset
from voxplain.studies.tumour_segmentation import figures, region_figures
from voxplain.studies.tumour_training import training_network, without_branch
from voxplain.tumour_regions import regions_in, regions_of

NAMES = ("glioblastoma", "astrocytoma", "oligodendroglioma")
CPU = vx.Compute(device="cpu", threads=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("types") / "phantoms"
    assert len(list(write_gliomas(out, n=4, seed=3, grades=TYPES))) == 4
    return out


@pytest.fixture(scope="module")
def trained(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("segmentation") / "run"
    words = ["train", "segmentation", "--data", str(made), "--dataset", "phantom", "--quick", "--threads", "1"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    return out, done.output


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt nothing, as a folder."""
    folder = tmp_path_factory.mktemp("classifier")
    card = grading_preset("quick", NAMES).card
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(card).eval()
    save_model(network, dataclasses.replace(card, training={"ids": ["Phantom_glioma_0001"]}), folder)
    return folder


def test_every_patient_is_segmented_by_a_network_that_has_not_seen_them(trained: tuple[Path, str], made: Path) -> None:
    out, said = trained
    cases = pd.read_csv(out / "cases.tsv", sep="\t")
    known = {case.id: case for case in cohort("phantom", made).cases}
    assert sorted(cases.loc[(cases["row"] == "network") & (cases["region"] == "WT"), "case"]) == sorted(known)
    assert "### WT, whole tumour" in said
    assert "84 scans" in said
    for line in cases[cases["row"] == "network"].to_dict("records"):
        assert line["case"] not in load_model(out / f"fold{line['fold']}").card.training_ids
    # Recomputed: the network as it lies on disk, and the expert's numbers of BraTS.
    line = cases[(cases["row"] == "network") & (cases["region"] == "TC")].iloc[0]
    case, model = known[line["case"]], load_model(out / f"fold{line['fold']}")
    found = predict_classes(model, case.scan(model.card.channels), compute=CPU)
    core = (found["non-enhancing"].probability >= 0.5) | (found["enhancing"].probability >= 0.5)
    assert line["Dice"] == pytest.approx(dice(core, np.isin(case.labels().data, (1, 4))), abs=1e-6)
    alone = predict(model, case.scan(model.card.channels), name="enhancing", compute=CPU)
    np.testing.assert_array_equal(alone.probability, found["enhancing"].probability)
    assert load_model(out / "final").card.training_ids == set(known)


def test_finished_folds_and_cases_are_kept_and_others_refused(trained: tuple[Path, str], made: Path, run) -> None:
    out, _ = trained
    before = {path: path.stat().st_mtime_ns for path in (*out.glob("fold*/*"), *out.glob("fold*/cases/*"))}
    words = ("train", "segmentation", "--data", str(made), "--dataset", "phantom", "--threads", "1", "--quick")
    assert run(*words, "--out", str(out))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for more, said in (
        (("--seed", "1"), "other cases or with other settings"),
        (("--outputs", "regions"), "other cases or with other settings"),
        (("--outputs", "all"), "--outputs is one of parts, regions"),
    ):
        code, _, error = run(*words, *more, "--out", str(out))
        assert code == 2
        assert said in " ".join(error.split())


def test_the_branch_is_gone_and_the_rest_is_the_same() -> None:
    """What MONAI's network with its branch says in evaluation is what the network without it says."""
    chosen = tumour_presets.preset("quick")
    network = training_network(chosen, 0).eval()
    kept = without_branch(network, chosen.card)
    image = torch.randn(1, 4, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(kept(image), network(image)[0])
    assert any("vae" in name for name in network.state_dict())
    assert not any("vae" in name for name in kept.state_dict())


def test_the_paper_preset_is_the_papers() -> None:
    chosen = tumour_presets.preset("paper")
    assert chosen.card.window == (160, 192, 128)
    assert (chosen.settings.epochs, chosen.settings.batch_size, chosen.settings.reconstruction) == (300, 1, 0.1)
    assert chosen.card.classes == ("oedema", "non-enhancing", "enhancing")
    network = build_network(chosen.card)
    assert sum(weight.numel() for weight in network.parameters()) == 18_798_627
    # One step of the same network on a reduced volume.
    small = dataclasses.replace(chosen, card=dataclasses.replace(chosen.card, window=(32, 32, 16)))
    learning = training_network(small, 0).train()
    output, branch = learning(torch.randn(1, 4, 32, 32, 16))
    assert output.shape == (1, 3, 32, 32, 16)
    (output.mean() + 0.1 * branch).backward()
    assert learning.vae_fc1.weight.grad is not None
    assert learning.convInit.conv.weight.grad is not None


def test_the_shipped_segmenter_is_what_its_preset_gives() -> None:
    chosen, shipped = tumour_presets.preset("phantom"), load_model("phantom-tumour-parts").card
    left_out = {"name", "description", "training", "weights_fingerprint"}
    declared, given = (
        {name: value for name, value in card.to_dict().items() if name not in left_out}
        for card in (chosen.card, shipped)
    )
    assert given == declared
    assert shipped.training["settings"] == dataclasses.asdict(chosen.settings)
    assert shipped.training["variational_branch"] is chosen.variational is False


@pytest.mark.parametrize("name", tumour_presets.PRESETS)
@pytest.mark.parametrize("outputs", tumour_presets.OUTPUTS)
def test_every_preset_gives_a_map_per_class(name: str, outputs: str) -> None:
    card = tumour_presets.preset(name, outputs).card
    with torch.no_grad():
        assert build_network(card).eval()(torch.zeros(1, 4, 32, 32, 32)).shape == (1, 3, 32, 32, 32)


def test_figures_of_regions(made: Path) -> None:
    case = cohort("phantom", made).cases[0]
    scan, parts = case.scan(), case.parts(("oedema", "necrotic", "enhancing")).data
    truth = regions_in(parts)
    perfect = region_figures(truth, truth, scan)
    assert list(perfect) == ["WT", "TC", "ET"]
    for found in perfect.values():
        assert (found["Dice"], found["HD95 (mm)"], found["lesion F1"], found["volume error (ml)"]) == (1, 0, 1, 0)
    empty = region_figures({"WT": np.zeros_like(truth["WT"])}, truth, scan)["WT"]
    assert (empty["Dice"], empty["lesion F1"]) == (0, 0)
    assert np.isnan(empty["HD95 (mm)"])
    assert empty["volume error (ml)"] == pytest.approx(-truth["WT"].sum() * scan.grid.voxel_volume / 1000)
    lines = [
        {"case": "a", "patient": "a", "row": "network", "region": "WT"} | perfect["WT"],
        {"case": "b", "patient": "b", "row": "network", "region": "WT"} | empty,
    ]
    table = figures(pd.DataFrame(lines)).set_index("metric")
    assert table.loc["Dice", ["value", "n"]].tolist() == [0.5, 2]
    assert table.loc["HD95 (mm)", ["value", "n"]].tolist() == [0.0, 1]


def test_diagnosis_on_the_command_line(
    trained: tuple[Path, str], classifier: Path, made: Path, tmp_path: Path, run
) -> None:
    segmenter, scan = trained[0] / "fold0", made / "Phantom_glioma_0001"
    words = ("diagnose", "--classifier", str(classifier), "--segmenter", str(segmenter), "--threads", "1")
    code, said, _ = run(*words, "--scan", str(scan), "--out", str(tmp_path / "out"))
    assert code == 0
    assert "not for diagnosis" in said
    out = tmp_path / "out"
    content = json.loads((out / "diagnosis.json").read_text())
    assert sum(content["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert content["class"] == max(content["probabilities"], key=content["probabilities"].get)
    assert content["seen"] == {"classifier": True, "segmenter": content["seen"]["segmenter"]}
    assert content["not_for_diagnosis"] is True
    # The masks are those of the segmenter, on the scan's own grid.
    case = next(case for case in cohort("phantom", made).cases if case.id == scan.name)
    image, model = case.scan(), load_model(segmenter)
    found = {name: one.probability for name, one in predict_classes(model, image, compute=CPU).items()}
    for region, name in (("WT", "whole-tumour"), ("TC", "tumour-core"), ("ET", "enhancing-tumour")):
        lying = nibabel.load(out / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(lying.dataobj) > 0, regions_of(found, 0.5)[region])
        np.testing.assert_allclose(lying.affine, image.grid.affine)
    table = pd.read_csv(out / "agreement.tsv", sep="\t", keep_default_na=False)
    assert tuple(table.columns) == AGREEMENT
    assert table["map"].tolist() == [
        "features.denseblock1", "features.transition1", "features.denseblock2", "random-map", "edge-detector",
    ]  # fmt: skip
    # A map in the folder is what `voxplain explain` finds there.
    why = vx.GradCAM(layer="features.denseblock1")(
        load_model(classifier), image, target=vx.ClassScore(content["class"]), compute=CPU
    )
    lying = np.asarray(nibabel.load(out / "maps/grad-cam-features.denseblock1.nii.gz").dataobj).reshape(why.total.shape)
    np.testing.assert_allclose(lying, why.total, rtol=1e-5, atol=1e-6 * why.total.max())
    head = image.foreground()
    tumour = regions_of(found, 0.5)["WT"]
    values = np.where(head, why.total, 0)
    assert float(table.loc[0, "mass_inside"]) == pytest.approx(values[tumour].sum() / values.sum(), rel=1e-3)
    page = (out / "report.html").read_text()
    for words_of_page in ("not for diagnosis", "The classifier learnt from this scan", "denseblock2", "control"):
        assert words_of_page in page.replace("The classifier and the segmenter learnt", "The classifier learnt")
    assert (out / "depths.png").read_bytes().startswith(b"\x89PNG")
    # The folder of maps is one that the other commands read.
    code, said, _ = run("report", str(out / "maps"))
    assert code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--method": "occlusion"}, "--method is one of grad-cam, grad-cam++, hires-cam, layer-cam, score-cam"),
        ({"--colours": "rainbow"}, "--colours is uniform or paper"),
        ({"--segmenter": "classifier"}, "a network that segments tumours has the classes oedema, non-enhancing"),
        ({"--classifier": "segmenter"}, "the classifier says one of several classes (softmax) of whole volumes"),
    ],
)
def test_what_diagnosis_refuses(
    trained: tuple[Path, str], classifier: Path, made: Path, tmp_path: Path, run, change: dict[str, str], said: str
) -> None:
    folders = {"classifier": str(classifier), "segmenter": str(trained[0] / "fold0")}
    options = {"--classifier": folders["classifier"], "--segmenter": folders["segmenter"]} | {
        option: folders.get(value, value) for option, value in change.items()
    }
    words = [word for pair in options.items() for word in pair]
    scan = made / "Phantom_glioma_0001"
    code, _, error = run("diagnose", *words, "--scan", str(scan), "--threads", "1", "--out", str(tmp_path / "out"))
    assert code == 2
    assert said in " ".join(error.split())


def test_a_missing_sequence_is_named(
    trained: tuple[Path, str], classifier: Path, made: Path, tmp_path: Path, run
) -> None:
    folder = made / "Phantom_glioma_0001"
    files = [f"--{name}={folder / f'{folder.name}_{name}.nii.gz'}" for name in ("flair", "t1", "t2")]
    words = ("diagnose", "--classifier", str(classifier), "--segmenter", str(trained[0] / "fold0"))
    code, _, error = run(*words, *files, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "missing: t1ce" in " ".join(error.split())


def test_without_a_tumour_nothing_is_said_of_the_evidence(classifier: Path, made: Path) -> None:
    """A segmenter that marks nothing, and a scan whose axes run otherwise."""
    card = tumour_presets.preset("quick").card
    network = build_network(card).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.startswith("conv_final"):
                weight.zero_()
        network.conv_final[2].conv.bias.fill_(-9.0)
    scan = cohort("phantom", made).cases[1].scan()
    scan = scan.on(scan.grid.reoriented("PIR"))
    found = diagnose(load_model(classifier), vx.Model(network, card), scan, compute=CPU)
    assert not found.regions["WT"].data.any()
    assert "finds no tumour" in found.sentence
    assert set(found.agreement["place"]) == {""}
    assert (found.agreement["mass_inside"] == 0).all()
    assert found.empty_slices["slices"] == found.empty_slices["of"] > 0
