"""The instance study from end to end on made patients with a network that marks what is bright, in seconds."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import nn

import voxplain as vx
from voxplain.datasets.multiple_sclerosis import cases
from voxplain.io import bundle
from voxplain.io.bundle import load_model, save_model
from voxplain.io.nifti import read_map, save
from voxplain.lesions import find_lesions, instances
from voxplain.metrics.lesionwise import lesion_f1, lesion_precision, lesion_recall
from voxplain.studies import (
    instance,
    instance_experiments,
    instance_lesions,
    instance_patients,
    instance_presets,
)
from voxplain.studies.instance_cache import Cache, key_of
from voxplain.studies.instance_lesions import columns
from voxplain.studies.instance_patients import CLASSES, chosen, read_patient, with_spheres

CPU = vx.Compute(device="cpu", threads=1)
CHANNELS = ("flair", "t1")


def bright() -> nn.Module:
    """FLAIR far above white matter is lesion, T1 above it speaks against: (B, 2, X, Y, Z) -> (B, 2, X, Y, Z)."""
    network = nn.Sequential(nn.Conv3d(2, 1, kernel_size=3, padding=1), nn.ReLU(), nn.Conv3d(1, 2, kernel_size=1))
    with torch.no_grad():
        network[0].weight.fill_(0.01)
        network[0].weight[0, :, 1, 1, 1] = torch.tensor([0.8, -0.3])
        network[0].bias.fill_(-1.5)
        network[2].weight[:] = torch.tensor([0.0, 4.0]).reshape(2, 1, 1, 1, 1)
        network[2].bias[:] = torch.tensor([0.0, -2.0])
    return network


def write_model(folder: Path, *ids: str) -> Path:
    card = vx.Card(
        name="bright",
        channels=CHANNELS,
        classes=("background", "lesion"),
        absent=("background",),
        activation="softmax",
        threshold=0.3,
        normalisation="z-score",
        window=(48, 48, 48),
        factory="voxplain_bright:make",
        training={"ids": list(ids)} if ids else {},
    )
    return save_model(bright(), card, folder)


@pytest.fixture(scope="module", autouse=True)
def _factory() -> Iterator[None]:
    """What builds the network of a model folder; voxplain itself trusts none from elsewhere."""
    module = types.ModuleType("voxplain_bright")
    vars(module)["make"] = bright
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "voxplain_bright", module)
        patch.setattr(bundle, "_is_trusted", lambda _: True)
        yield


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("networks")
    write_model(root / "without-patient01", "patient02")
    write_model(root / "without-patient02", "patient01")
    write_model(root / "all", "patient01", "patient02")
    return root


@pytest.fixture(scope="module")
def ran(made_ms: Path, networks: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, str]:
    """A quick study with two real patients and a phantom."""
    out = tmp_path_factory.mktemp("study")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        quick = dataclasses.replace(instance_presets.PRESETS["quick"], phantoms=1, placed=2)
        patch.setitem(instance_presets.PRESETS, "quick", quick)
        summary = instance.study(
            *(load_model(networks / "all"), made_ms, out),
            networks=networks,
            size="quick",
            keep_maps=True,
            compute=CPU,
            console=Console(file=said, width=300),
        )
    return out, summary, said.getvalue()


def test_the_table_of_lesions_is_what_the_maps_say(
    ran: tuple[Path, pd.DataFrame, str], made_ms: Path, networks: Path
) -> None:
    out, _, _ = ran
    table = pd.read_csv(out / "lesions.tsv", sep="\t")
    assert set(columns(CHANNELS)) <= set(table.columns)
    assert list(table.columns[-6:]) == list(instance_lesions.REST)
    assert set(table["case"]) == {"patient01", "patient02", "made001"}
    main = table[table["row"] == "instance-smoothgrad"]
    assert set(main["kind"]) <= set(CLASSES)
    assert {"TP", "TN"} <= set(main["kind"])
    assert (main.groupby(["case", "kind"]).size() <= 2).all()
    (case,) = [case for case in cases(made_ms) if case.id == "patient01"]
    model = load_model(networks / "without-patient01")
    patient = read_patient(case, model, out, made=False, seed=0, compute=CPU)
    explainer = instance_presets.PRESETS["quick"].explainer
    for line in main[main["case"] == "patient01"].to_dict("records"):
        region = patient.lesions.labels.data == line["lesion"]
        probability = patient.prediction.probability[region]
        assert line["volume_mm3"] == pytest.approx(region.sum() * 8)
        assert line["mean_probability"] == pytest.approx(probability.mean(), abs=1e-5)
        assert line["max_probability"] == pytest.approx(probability.max(), abs=1e-5)
        key = instance_lesions.key_of_map(patient, explainer, region, seed=0)
        values = read_map(out / "maps" / f"{key}.nii.gz")[0]
        for name, of in zip(CHANNELS, values, strict=True):
            assert line[f"{name}_maximum"] == pytest.approx(of.max(), abs=1e-5)
            assert line[f"{name}_minimum"] == pytest.approx(of.min(), abs=1e-5)
            for sign, some in (("positive", of[of > 0.1]), ("negative", of[of < -0.1])):
                expected = np.median(some) if some.size else np.nan
                assert line[f"{name}_{sign}"] == pytest.approx(expected, abs=1e-5, nan_ok=True)
        total = np.abs(values).sum()
        if total:
            assert line["flair_share"] == pytest.approx(np.abs(values[0]).sum() / total, abs=1e-5)
        assert line["voxels_used"] == min(2, region.sum())
        assert line["passes"] == line["forward_passes"] + line["backward_passes"]


def test_classes_are_those_of_the_reference(made_ms: Path, networks: Path, tmp_path: Path) -> None:
    (case,) = [case for case in cases(made_ms) if case.id == "patient02"]
    patient = read_patient(case, load_model(networks / "all"), tmp_path, made=False, seed=0, compute=CPU)
    table, labels = patient.lesions.table, patient.lesions.labels.data
    assert patient.seen
    assert patient.kind == "seen"
    truth = case.tumour().data > 0
    predicted = patient.prediction.mask(0.3).data > 0
    for line in table.to_dict("records"):
        region = labels == line["lesion"]
        expected = {
            "TP": (truth[region].any(), predicted[region].all()),
            "FP": (not truth[region].any(), predicted[region].all()),
            "FN": (truth[region].all(), not predicted[region].any()),
            "TN": (not truth[region].any(), not predicted[region].any()),
        }[line["kind"]]
        assert all(expected), line
    spheres = table[table["kind"] == "TN"]
    assert len(spheres) == 10
    # Shells of voxels of 8 mm^3 come no nearer to 93.
    assert (abs(spheres["volume_mm3"] - 93) < 70).all()
    assert patient.counts["TN"] == 10


def test_detection_is_that_of_the_masks(ran: tuple[Path, pd.DataFrame, str], made_ms: Path) -> None:
    out, summary, _ = ran
    for case in cases(made_ms):
        probability = read_map(out / case.id / "prediction" / "probability.nii.gz")[0][0]
        reference = case.tumour()
        predicted, expert = (
            instances(vx.Labels(mask, reference.grid)).data for mask in (probability >= 0.3, reference.data > 0)
        )
        its = summary[(summary["table"] == "counts") & (summary["row"] == case.id)].set_index("metric")["value"]
        assert its["lesion precision"] == pytest.approx(lesion_precision(predicted, expert))
        assert its["lesion recall"] == pytest.approx(lesion_recall(predicted, expert))
        assert its["lesion F1"] == pytest.approx(lesion_f1(predicted, expert))


def test_every_table_is_there_with_its_kind(ran: tuple[Path, pd.DataFrame, str]) -> None:
    out, summary, said = ran
    expected = {
        *("counts", "sequences", "sides", "classes", "order", "tests", "plain rivals", "methods"),
        *("placements", "context"),
        *("errors-phantoms", "errors-patients", "errors-patient01", "errors-patient02"),
    }
    assert set(summary["table"]) == expected
    assert list(summary.columns) == ["table", "row", "metric", "kind", "value", "low", "high", "n"]
    assert set(summary.loc[summary["table"] != "errors-phantoms", "kind"]) == {"deployable"}
    phantoms = summary[summary["row"].str.startswith("made001")]
    assert len(phantoms)
    assert phantoms["row"].str.contains(r"phantom \(software check\)").all()
    assert not {"context", "placements"} & set(phantoms["table"])
    assert any(summary["row"].str.startswith("pooled, 2 patients/TP"))
    text = (out / "tables.md").read_text(encoding="utf-8")
    for words in (
        "004/TP",
        "1.997",
        "not independent",
        "p < 6e-65",
        "phantom (software check)",
        "smoke run",
        "no cross-validation",
    ):
        assert words in text, words
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "Is this lesion real?" in page
    assert "http" not in page.split("<body>")[1].replace("http-equiv", "")
    for name in ("violins.png", "context.png", "placements.tsv", "context.tsv", "facts.json", "scores.tsv"):
        assert (out / name).stat().st_size > 0, name
    assert "passes forward" in said
    facts = json.loads((out / "facts.json").read_text())
    assert facts["patients"]["made001"]["made"] is True
    # Medians are of the table's lines.
    lines = pd.read_csv(out / "lesions.tsv", sep="\t")
    its = lines[(lines["case"] == "patient01") & (lines["kind"] == "TP") & (lines["row"] == "instance-smoothgrad")]
    row = summary[(summary["table"] == "classes") & (summary["row"] == "patient01/TP")].set_index("metric")
    assert row.loc["maximum", "value"] == pytest.approx(its["flair_maximum"].median(), abs=1e-4)
    assert row.loc["maximum", "n"] == len(its)


def test_context_and_placements_are_of_the_lesions(ran: tuple[Path, pd.DataFrame, str]) -> None:
    out, _, _ = ran
    shown = pd.read_csv(out / "context.tsv", sep="\t")
    assert set(shown["mm"]) == {0.0, 5.0, 25.0, np.inf}
    assert set(shown["set"]) <= {"real, 30-300 mm3", "made, 90-120 mm3"}
    # The network looks one voxel far, and with all of it shown says what it says.
    lesions = pd.read_csv(out / "lesions.tsv", sep="\t")
    real = shown[shown["set"].str.startswith("real")]
    assert len(real)
    for line in real[real["mm"] >= 5].to_dict("records"):
        its = lesions[(lesions["case"] == line["case"]) & (lesions["lesion"] == line["lesion"])]
        if len(its):
            assert line["mean_probability"] == pytest.approx(its["mean_probability"].iloc[0], abs=1e-4)
    moved = pd.read_csv(out / "placements.tsv", sep="\t")
    assert set(moved["case"]) == {"patient01", "patient02"}
    assert set(moved["place"]) == {"original", "white matter", "outside the brain", "outside the brain, with 3 mm"}
    assert moved.loc[moved["place"] == "original", "detected"].eq(1).all()


def test_a_second_run_computes_nothing(
    ran: tuple[Path, pd.DataFrame, str], made_ms: Path, networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, summary, _ = ran
    quick = dataclasses.replace(instance_presets.PRESETS["quick"], phantoms=1, placed=2)
    monkeypatch.setitem(instance_presets.PRESETS, "quick", quick)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be computed again")

    monkeypatch.setattr(instance_patients, "predict", never)
    monkeypatch.setattr(vx.Explainer, "_explained", never)
    monkeypatch.setattr(instance_experiments, "probability_within", never)
    monkeypatch.setattr(instance_experiments.context, "probability_within", never)
    monkeypatch.setattr(instance_experiments.context, "paint_lesions", never)
    monkeypatch.setattr(instance_lesions, "pace_of", never)
    said = io.StringIO()
    again = instance.study(
        *(load_model(networks / "all"), made_ms, out),
        networks=networks,
        size="quick",
        keep_maps=True,
        compute=CPU,
        console=Console(file=said, width=300),
    )
    pd.testing.assert_frame_equal(again, summary)
    assert "0 gradients" in said.getvalue()


def test_what_was_explained_before_a_stop_is_kept(
    made_ms: Path, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(networks / "all")
    original, done = instance_lesions.map_statistics, []

    def stopping(why: vx.Explanation, region: np.ndarray) -> dict[str, object]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(original(why, region))
        return done[-1]

    monkeypatch.setattr(instance_lesions, "map_statistics", stopping)
    given = {"size": "quick", "compute": CPU, "console": Console(file=io.StringIO())}
    with pytest.raises(KeyboardInterrupt):
        instance.evaluate(model, made_ms / "patient01", tmp_path, **given)
    assert len(list((tmp_path / "maps").glob("*.json"))) == 3
    monkeypatch.setattr(instance_lesions, "map_statistics", original)
    summary = instance.evaluate(model, made_ms / "patient01", tmp_path, **given)
    table = pd.read_csv(tmp_path / "lesions.tsv", sep="\t")
    # The same as in one go: fewer lesions are then explained together, to rounding.
    fresh = instance.evaluate(model, made_ms / "patient01", tmp_path / "fresh", **given)
    np.testing.assert_allclose(summary["value"], fresh["value"], rtol=1e-4, atol=1e-6)
    assert set(table["row"]) == {"instance-smoothgrad"}
    assert list(table.columns) == list(columns(CHANNELS))
    assert set(summary["kind"]) == {"seen"}
    assert "context" not in set(summary["table"])
    assert "one patient: nothing is pooled" in (tmp_path / "tables.md").read_text()


def test_a_patient_without_a_mask_is_left_out_and_one_without_lesions_is_not(
    made_ms: Path, networks: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(made_ms / "patient01", data / "patient01")
    shutil.copytree(made_ms / "patient02", data / "patient02")
    (data / "patient02" / "consensus_gt.nii.gz").unlink()
    scan = vx.read(flair=data / "patient01" / "FLAIR.nii.gz")
    save(vx.Labels(np.zeros(scan.grid.shape), scan.grid), data / "patient01" / "consensus_gt.nii.gz")
    said = io.StringIO()
    summary = instance.evaluate(
        *(load_model(networks / "all"), data, tmp_path / "out"),
        size="quick",
        compute=CPU,
        console=Console(file=said, width=200),
    )
    assert "patient02 is left out: no expert mask" in said.getvalue()
    counts = summary[summary["table"] == "counts"].set_index("metric")["value"]
    assert counts["TP"] == counts["FN"] == 0
    empty = summary[(summary["table"] == "classes") & (summary["row"] == "patient01/TP")]
    assert (empty["n"] == 0).all()
    assert empty["value"].isna().all()
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| patient01/TP | seen | - | - | 0 |" in text
    assert "patient02 is left out" in text


def test_a_model_that_finds_nothing(made_ms: Path, networks: Path, tmp_path: Path) -> None:
    model = load_model(networks / "all")
    blind = bright()
    with torch.no_grad():
        blind[2].bias[:] = torch.tensor([0.0, -50.0])
    summary = instance.study(
        *(vx.Model(blind, model.card), made_ms / "patient01", tmp_path / "out"),
        size="quick",
        compute=CPU,
        console=Console(file=io.StringIO()),
    )
    counts = summary[summary["table"] == "counts"].set_index("metric")["value"]
    assert counts["TP"] == counts["FP"] == 0
    assert counts["FN"] > 0
    context = summary[summary["table"] == "context"].set_index(["row", "metric"])
    assert context.loc[("patient01/real, 30-300 mm3", "lesions"), "n"] == 0
    assert "placements" not in set(summary["table"])
    assert (tmp_path / "out" / "report.html").is_file()


def test_what_cannot_be_studied(made_ms: Path, networks: Path, tmp_path: Path) -> None:
    given = {"size": "quick", "compute": CPU, "console": Console(file=io.StringIO())}
    model = load_model(networks / "all")
    with pytest.raises(vx.InputError, match="found no patient"):
        instance.evaluate(model, networks, tmp_path / "out", **given)
    data = tmp_path / "data"
    shutil.copytree(made_ms / "patient01", data / "patient01")
    (data / "patient01" / "consensus_gt.nii.gz").unlink()
    with pytest.raises(vx.InputError, match="patient01: no expert mask"):
        instance.evaluate(model, data, tmp_path / "out", **given)
    with pytest.raises(vx.InputError, match="--preset is one of"):
        instance.evaluate(model, made_ms, tmp_path / "out", **(given | {"size": "huge"}))
    with pytest.raises(vx.InputError, match=r"no finished network .*without-patient01; run `voxplain train"):
        instance.study(model, made_ms, tmp_path / "out", networks=tmp_path, **given)
    write_model(tmp_path / "seen" / "without-patient01", "patient01")
    with pytest.raises(vx.InputError, match="has seen patient01"):
        instance.study(model, made_ms, tmp_path / "out", networks=tmp_path / "seen", **given)
    with pytest.raises(vx.InputError, match="whole volumes"):
        instance.study(load_model("tumour-hemisphere"), made_ms, tmp_path / "out", **given)


def test_lesions_are_drawn_by_class() -> None:
    table = pd.DataFrame({"lesion": range(1, 21), "kind": ["TP"] * 12 + ["FP"] * 3 + ["TN"] * 5})
    found = chosen(table, most=4, seed=1)
    kinds = table.set_index("lesion").loc[found, "kind"].value_counts().to_dict()
    assert kinds == {"TP": 4, "FP": 3, "TN": 4}
    assert found == sorted(set(found))
    assert found == chosen(table, most=4, seed=1)
    assert chosen(table, most=None, seed=0) == list(range(1, 21))
    assert chosen(table, most=None, seed=0, kinds=("FP",)) == [13, 14, 15]


def test_spheres_come_after_the_lesions() -> None:
    grid = vx.Grid((6, 6, 6), np.diag([1.0, 1, 2, 1]))
    mask, spheres = np.zeros((2, 6, 6, 6), dtype=int)
    mask[0, 0, :4] = 1
    spheres[4, 4, 0:2], spheres[2, 2, 3] = 1, 2
    probability = np.random.default_rng(0).uniform(0, 1, (6, 6, 6))
    lesions = find_lesions(vx.Labels(mask, grid), probability=probability, reference=vx.Labels(mask, grid))
    found = with_spheres(lesions, vx.Labels(spheres, grid), probability)
    assert found.table["kind"].tolist() == ["TP", "TN", "TN"]
    assert found.table["volume_mm3"].tolist() == [8, 4, 2]
    assert found.table["mean_probability"].iloc[1] == pytest.approx(probability[4, 4, 0:2].mean())
    assert found.table["max_probability"].iloc[2] == pytest.approx(probability[2, 2, 3])
    assert found.table["z_mm"].tolist() == [3, 1, 6]
    assert found.labels.data[4, 4, 0] == 2
    nothing = vx.Labels(np.zeros((6, 6, 6)), grid)
    assert with_spheres(lesions, nothing, probability) is lesions
    alone = with_spheres(find_lesions(nothing), vx.Labels(spheres, grid), probability)
    assert alone.numbers == (1, 2)


def test_the_cache_gives_back_what_was_put_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.get("a") is None
    cache.put("a", {"x": np.float64(1.5), "y": [1, np.nan, np.inf], "z": {"w": np.int64(3), "v": "word"}})
    found = cache.get("a")
    assert found is not None
    assert found["x"] == 1.5
    assert found["y"][0] == 1
    assert np.isnan(found["y"][1])
    assert found["y"][2] == np.inf
    assert found["z"] == {"w": 3, "v": "word"}
    cache.path("a").write_text("{")
    assert cache.get("a") is None
    one, other = vx.InstanceSmoothGrad(copies=3), vx.InstanceSmoothGrad(copies=4)
    assert key_of("map", one) == key_of("map", vx.InstanceSmoothGrad(copies=3))
    assert key_of("map", one) != key_of("map", other)
    assert key_of("map", vx.Occlusion()) != key_of("map", vx.RelevanceMap())
