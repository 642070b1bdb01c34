"""`voxplain predict` and `voxplain explain --lesion`: a made head with lesions, a network that sees bright FLAIR."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.networks.nets import UNet

import voxplain as vx
from voxplain.commands import report as report_command
from voxplain.explain import cam
from voxplain.prediction import predict, read_prediction

Run = Callable[..., tuple[int, str, str]]
AFFINE = np.array([[-1.0, 0, 0, 17], [0, -1, 0, 22], [0, 0, 1.5, -20], [0, 0, 0, 1]])
SHAPE = (36, 40, 24)
# Corner and size of the lesions, the last one at the scan's border: 90, 36, 27 and 18 mm^3 of voxels of 1.5 mm^3.
LESIONS = (((10, 12, 10), (5, 4, 3)), ((22, 20, 8), (4, 3, 2)), ((16, 28, 12), (3, 3, 2)), ((0, 20, 12), (2, 3, 2)))


def save(data: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def network(channels: int = 2) -> torch.nn.Module:
    """A U-Net whose first feature is FLAIR above 3, and whose last layer makes that the lesion's logit."""
    arguments = {"channels": (2, 2), "strides": (1,), "act": "relu", "norm": None}
    made = UNet(3, channels, 2, **arguments).eval()
    first, bottom, last = (module for module in made.modules() if isinstance(module, torch.nn.modules.conv._ConvNd))
    with torch.no_grad():
        for module in (first, bottom, last):
            module.weight.zero_()
            module.bias.zero_()
        first.weight[0, :, 1, 1, 1] = torch.tensor([1.0, -0.25][:channels])
        first.weight[0, 0] += 0.005
        first.bias[0] = -3
        last.weight[0, 1, 1, 1, 1] = 4
        last.bias[1] = -4
    return made


def card(**fields: object) -> vx.Card:
    return vx.Card(
        **{
            "name": "bright",
            "channels": ("flair", "t1"),
            "classes": ("background", "lesion"),
            "absent": ("background",),
            "activation": "softmax",
            "threshold": 0.3,
            "normalisation": "z-score",
            "factory": "monai.networks.nets:UNet",
            "arguments": {
                "spatial_dims": 3, "in_channels": 2, "out_channels": 2, "channels": [2, 2], "strides": [1],
                "act": "relu", "norm": None,
            },
        }
        | fields
    )  # fmt: skip


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLAIR.nii.gz, T1.nii.gz, a reference of other labels that has one lesion more, and two models."""
    folder = tmp_path_factory.mktemp("head")
    middle = np.array([17.5, 19.5, 11.5])
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    brain = (((index - middle) / (middle + 0.6)) ** 2).sum(axis=-1) < 1
    rng = np.random.default_rng(1)
    flair, t1 = (np.where(brain, rng.normal(1, 0.05, SHAPE), 0) for _ in range(2))
    reference = np.zeros(SHAPE, dtype=np.int16)
    for number, (corner, size) in enumerate(LESIONS):
        box = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
        flair[box] += 1.5
        t1[box] -= 0.5
        if number != 2:
            reference[box] = 10 * number + 2
    reference[14:18, 8:12, 16:18] = 7  # 48 mm^3 that nobody sees
    save(flair.astype(np.float32), folder / "FLAIR.nii.gz")
    save(t1.astype(np.float32), folder / "T1.nii.gz")
    save(reference, folder / "gt.nii.gz")
    vx.save_model(network(), card(), folder / "whole")
    vx.save_model(network(), card(window=(16, 16, 16), overlap=0.5), folder / "windows")
    return folder


def files(head: Path, model: str = "windows") -> list[object]:
    return ["--model", head / model, "--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz", "--device", "cpu"]


def table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "lesions.tsv", sep="\t")


# predict


@pytest.mark.parametrize("model", ["whole", "windows"])
def test_predict_writes_what_the_network_says(run: Run, head: Path, tmp_path: Path, model: str) -> None:
    code, out, err = run("predict", *files(head, model), "--reference", head / "gt.nii.gz", "--out", tmp_path)
    assert code == 0, err
    assert "4 lesions, 0.17 ml: 3 true, 1 false positives; 1 of the reference missed" in out
    found = table(tmp_path)
    assert found["kind"].fillna("").tolist() == ["TP", "TP", "FP", "TP", "FN"]
    assert found["volume_mm3"].tolist() == [90.0, 36.0, 27.0, 18.0, 48.0]
    probability, labels = (nib.load(tmp_path / f"{name}.nii.gz") for name in ("probability", "lesions"))
    assert probability.get_data_dtype() == np.float32
    for image in (probability, labels):
        np.testing.assert_array_equal(image.affine, AFFINE)
    labels = np.asarray(labels.dataobj)
    for number, (corner, size) in zip((1, 2, 3, 4), LESIONS, strict=True):
        box = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
        assert (labels[box] == number).all()
    content = json.loads((tmp_path / "prediction.json").read_text())
    assert content["passes"]["forward"] == (1 if model == "whole" else 4 * 4 * 2)
    assert (content["threshold"], content["smallest_mm3"], content["seen"]) == (0.3, 5.0, None)
    assert content["lesions"] == {"TP": 3, "FP": 1, "FN": 1}
    assert content["versions"]["torch"]
    # By hand, without windows: a network of such small reach says the same in them but at their borders.
    scan = vx.read(flair=head / "FLAIR.nii.gz", t1=head / "T1.nii.gz")
    values = scan.data
    inputs = [np.where(v != 0, (v - v[v != 0].mean()) / v[v != 0].std(), 0) for v in values.astype(np.float64)]
    with torch.no_grad():
        expected = network()(torch.tensor(np.array(inputs, dtype=np.float32))[None]).softmax(dim=1)[0, 1].numpy()
    np.testing.assert_allclose(np.asarray(probability.dataobj), expected, atol=1e-4 if model == "whole" else 0.02)


def test_options_of_predict(run: Run, head: Path, tmp_path: Path) -> None:
    code, _, err = run("predict", *files(head), "--out", tmp_path, "--threshold", 0.9, "--smallest", 30)
    assert code == 0, err
    assert (table(tmp_path)["volume_mm3"] >= 30).all()
    assert table(tmp_path)["kind"].isna().all()
    # Another threshold needs no pass.
    code, out, _ = run("predict", *files(head), "--out", tmp_path, "--target", "lesion")
    assert code == 0
    assert "taken" in out
    assert len(table(tmp_path)) == 4
    assert json.loads((tmp_path / "prediction.json").read_text())["threshold"] == 0.3
    code, out, _ = run("predict", *files(head, "whole"), "--out", tmp_path)
    assert "taken" not in out


def test_the_scan_may_lie_otherwise_than_the_card_asks(head: Path) -> None:
    """Orientation and spacing of the card are seen to, and undone."""
    scan = vx.read(flair=head / "FLAIR.nii.gz", t1=head / "T1.nii.gz")
    compute = vx.Compute(device="cpu")
    plain = predict(vx.Model(network(), card()), scan, compute=compute)
    assert plain.probability.dtype == np.float32
    turned = predict(vx.Model(network(), card(orientation="RAS")), scan, compute=compute)
    # The network's first layer looks the same way in all directions.
    np.testing.assert_allclose(turned.probability, plain.probability, atol=1e-5)
    coarse = predict(vx.Model(network(), card(spacing=(2, 2, 3))), scan, compute=compute)
    assert coarse.grid.matches(scan.grid)
    inside = plain.probability > 0.5
    assert coarse.probability[inside].mean() > 5 * coarse.probability[~inside].mean()
    with pytest.raises(vx.InputError, match="a threshold is a probability"):
        plain.mask(1.5)


def test_which_class_is_segmented(head: Path) -> None:
    scan = vx.read(flair=head / "FLAIR.nii.gz", t1=head / "T1.nii.gz")
    several = vx.Model(network(), card(absent=()))
    with pytest.raises(vx.InputError, match=r"of which 2 say that something is there; name the one .*--target"):
        predict(several, scan)
    assert predict(several, scan, name="lesion").name == "lesion"
    with pytest.raises(vx.InputError, match="no class 'tumour'; it has background, lesion"):
        predict(several, scan, name="tumour")


def test_a_prediction_is_taken_for_its_own_model_and_scan_alone(head: Path, tmp_path: Path, run: Run) -> None:
    run("predict", *files(head), "--out", tmp_path)
    scan = vx.read(flair=head / "FLAIR.nii.gz", t1=head / "T1.nii.gz")
    model = vx.load_model(head / "windows")
    assert read_prediction(tmp_path, model, scan, "lesion") is not None
    assert read_prediction(tmp_path, model, scan, "background") is None
    assert read_prediction(tmp_path, vx.Model(network(), card(window=(16, 16, 24))), scan, "lesion") is None
    other = vx.Scan(scan.data + 1, scan.grid, scan.channels)
    assert read_prediction(tmp_path, model, other, "lesion") is None
    assert read_prediction(tmp_path / "nowhere", model, scan, "lesion") is None
    (tmp_path / "prediction.json").write_text("{")
    assert read_prediction(tmp_path, model, scan, "lesion") is None


# explain


def test_one_lesion(run: Run, head: Path, tmp_path: Path) -> None:
    code, out, err = run("explain", "instance-grad-cam++", *files(head), "--lesion", 2, "--out", tmp_path)
    assert code == 0, err
    name = "instance-grad-cam++-lesion-002"
    assert {path.name for path in tmp_path.iterdir()} == {
        *("probability.nii.gz", "prediction.json", "lesions.nii.gz", "lesions.tsv"),
        *(f"{name}.nii.gz", f"{name}-mask.nii.gz", f"{name}.json"),
    }
    values = np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj)
    mask = np.asarray(nib.load(tmp_path / f"{name}-mask.nii.gz").dataobj)
    labels = np.asarray(nib.load(tmp_path / "lesions.nii.gz").dataobj)
    np.testing.assert_array_equal(mask > 0, labels == 2)
    assert labels[np.unravel_index(values.argmax(), values.shape)] == 2
    found = table(tmp_path)
    assert found["peak_all"].notna().tolist() == [False, True, False, False]
    assert found["peak_all"][1] == pytest.approx(values.max(), rel=1e-4)
    assert f"peak all {values.max():.3g}" in out
    content = json.loads((tmp_path / f"{name}.json").read_text())
    # Another one later: the table keeps what is known of the first.
    assert run("explain", "instance-grad-cam++", *files(head), "--lesion", 4, "--out", tmp_path)[0] == 0
    assert table(tmp_path)["peak_all"].notna().tolist() == [False, True, False, True]
    assert content["mask"]["rule"] == "lesion"
    assert content["target"]["label"] == 2
    assert content["lesion"]["labels"] == "lesions.nii.gz"


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("guided-backprop", ["--sequences", "each"]),
        ("relevance-map", ["--segments", 20, "--mask", "top:1"]),
        ("occlusion", ["--partition", "cubes:12", "--stride", 12]),
        ("lime", ["--samples", 40, "--segments", 10]),
        ("grad-cam", ["--layer", "model.0", "--mask", "fixed:0.01"]),
        ("layer-cam", ["--layer", "model.0"]),
    ],
)
def test_any_method_explains_a_lesion(run: Run, head: Path, tmp_path: Path, method: str, more: list[object]) -> None:
    code, _, err = run("explain", method, *files(head), "--lesion", 1, "--out", tmp_path, *more)
    assert code == 0, err
    content = json.loads((tmp_path / f"{method}-lesion-001.json").read_text())
    values = np.asarray(nib.load(tmp_path / f"{method}-lesion-001.nii.gz").dataobj)
    channels = ["flair", "t1"] if method == "guided-backprop" else ["all"]
    columns = [name for name in table(tmp_path).columns if name.startswith("peak_")]
    assert columns == [f"peak_{channel}" for channel in channels]
    for index, column in enumerate(columns):
        one = values[..., index] if len(columns) > 1 else values
        peak = one.ravel()[np.abs(one).argmax()]
        assert table(tmp_path)[column][0] == pytest.approx(peak, rel=1e-4)
    rule = more[more.index("--mask") + 1] if "--mask" in more else "lesion"
    assert content["mask"]["rule"] == rule


def test_all_lesions_are_resumed_and_missed_ones_are_among_them(
    run: Run, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after two of five; the next run does the other three."""
    asked = ["explain", "instance-grad-cam++", *files(head), "--reference", head / "gt.nii.gz", "--out", tmp_path]
    calls: list[int] = []
    whole = cam.ClassActivationMap._relevance

    def counted(self: cam.ClassActivationMap, probe: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, probe)

    monkeypatch.setattr(cam.ClassActivationMap, "_relevance", counted)
    code, _, err = run(*asked)
    assert code == 130
    assert "what is finished is kept" in err
    assert table(tmp_path)["peak_all"].notna().tolist() == [True, True, False, False, False]
    calls += [1] * 10
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*-lesion-00[12]*")}
    assert len(before) == 6
    code, out, err = run(*asked)
    assert code == 0, err
    assert "2 of 5 lesions are explained already, and kept" in out
    assert "5 lesions explained" in out
    assert len(calls) == 13 + 3
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*-lesion-00[12]*")}
    assert table(tmp_path)["peak_all"].notna().all()
    # Another seed, other options or another mask are not the same.
    for more in (["--seed", 1], ["--alpha", "monai"], ["--mask", "otsu"], ["--layer", "model.0"]):
        _, out, _ = run(*asked, "--lesion", 1, *more)
        assert "explained already" not in out
        run(*asked, "--lesion", 1)


def test_no_lesion_is_an_empty_result(run: Run, head: Path, tmp_path: Path) -> None:
    asked = [*files(head), "--smallest", 1000, "--out", tmp_path / "out"]
    for command in (["predict"], ["explain", "instance-grad-cam++"], ["explain", "occlusion", "--lesion", "all"]):
        code, out, err = run(*command, *asked)
        assert code == 0, err
        assert "no lesion was found" in out
        assert len(table(tmp_path / "out")) == 0
        assert list(table(tmp_path / "out").columns)[:2] == ["lesion", "kind"]
        assert not np.asarray(nib.load(tmp_path / "out" / "lesions.nii.gz").dataobj).any()
    code, _, err = run("report", tmp_path / "out")
    assert code == 2
    assert "no lesion was found" in err


# What is refused


def shifted(head: Path, folder: Path, name: str) -> Path:
    moved = AFFINE.copy()
    moved[0, 3] += 1
    return save(np.asarray(nib.load(head / name).dataobj), folder / name, moved)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--lesion", "9"], "there is no lesion 9; there are lesions 1 to 4"),
        (["--lesion", "0"], "there is no lesion 0"),
        (["--lesion", "first"], "--lesion is the number of a lesion, or all; got 'first'"),
        (["--smallest", "-1"], "smallest is a volume in mm^3"),
        (["--threshold", "2"], "a threshold is a probability between 0 and 1"),
        (["--target", "tumour"], "no class 'tumour'; it has background, lesion"),
        (["--alpha", "other"], "alpha is one of paper, monai"),
        (["--layer", "nowhere"], "the network has no layer 'nowhere'"),
    ],
)
def test_options_that_are_refused(run: Run, head: Path, tmp_path: Path, more: list[str], said: str) -> None:
    code, _, err = run("explain", "instance-grad-cam++", *files(head), "--out", tmp_path, *more)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_references_that_are_refused(run: Run, head: Path, tmp_path: Path) -> None:
    halves = np.asarray(nib.load(head / "gt.nii.gz").dataobj) / 2 + 0.25
    wrong = {
        "lies on another grid than the scan: same shape": shifted(head, tmp_path, "gt.nii.gz"),
        "is no expert mask: labels are whole numbers": save(halves.astype(np.float32), tmp_path / "soft.nii.gz"),
        "is no expert mask: there is no file": tmp_path / "missing.nii.gz",
    }
    for said, path in wrong.items():
        for command in (["predict"], ["explain", "instance-grad-cam++"]):
            code, _, err = run(*command, *files(head), "--reference", path, "--out", tmp_path / "out")
            assert code == 2
            assert said in err


def test_sequences_on_different_grids_are_refused(run: Run, head: Path, tmp_path: Path) -> None:
    t1 = shifted(head, tmp_path, "T1.nii.gz")
    given = ["--model", head / "windows", "--flair", head / "FLAIR.nii.gz", "--t1", t1, "--out", tmp_path / "out"]
    for command in (["predict"], ["explain", "instance-grad-cam++"]):
        code, _, err = run(*command, *given)
        assert code == 2
        assert "flair and t1 differ: same shape and spacing, but up to 1 mm apart" in err


@pytest.mark.parametrize("model", ["whole", "windows"])
def test_a_network_that_segments_needs_a_lesion(run: Run, head: Path, tmp_path: Path, model: str) -> None:
    code, _, err = run("explain", "guided-backprop", *files(head, model), "--out", tmp_path)
    assert code == 2
    assert "--lesion N" in err
    assert err.count("\n") == 1


def test_options_of_lesions_without_a_lesion(run: Run, head: Path, tmp_path: Path) -> None:
    code, _, err = run("explain", "occlusion", *files(head, "whole"), "--out", tmp_path, "--threshold", 0.5)
    assert code == 2
    assert "--threshold speaks of lesions: add --lesion N" in err


def test_a_classifier_has_no_lesions(run: Run, head: Path, tmp_path: Path, tiny_model: vx.Model) -> None:
    folder = vx.save_model(tiny_model.network, tiny_model.card, tmp_path / "classifier")
    given = ["--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"]
    from voxplain.networks.resnet import resnet

    small = resnet(in_channels=2, width=4, stem_kernel=3).eval()
    its_card = vx.Card(
        name="c", channels=("flair", "t1"), classes=("ill",), factory="voxplain.networks.resnet:resnet",
        arguments={"in_channels": 2, "width": 4, "stem_kernel": 3},
    )  # fmt: skip
    folder = vx.save_model(small, its_card, tmp_path / "small")
    for command in (["predict"], ["explain", "occlusion", "--lesion", 1]):
        code, _, err = run(*command, "--model", folder, *given, "--out", tmp_path / "out")
        assert code == 2
        assert "expected a map per class" in err


# report and check


@pytest.fixture
def explained(run: Run, head: Path, tmp_path: Path) -> Path:
    """All lesions by one method, the first also by another."""
    out = tmp_path / "out"
    asked = [*files(head), "--reference", head / "gt.nii.gz", "--out", out]
    assert run("explain", "instance-grad-cam++", *asked)[0] == 0
    assert run("explain", "guided-backprop", *asked, "--lesion", 1, "--sequences", "each")[0] == 0
    return out


def test_report_is_a_page_of_lesions(
    run: Run, head: Path, explained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, _, err = run("report", explained, "--truth", head / "gt.nii.gz")
    assert code == 0, err
    text = (explained / "report.html").read_text()
    assert "The network marks 4 lesions, 0.2 ml in all." in text
    assert text.count("data-lesion=") == 2 * 5
    assert str(head) not in text
    monkeypatch.setattr(report_command, "MOST_LESIONS", 2)
    assert run("report", explained, "--out", tmp_path / "page.html")[0] == 0
    text = (tmp_path / "page.html").read_text()
    assert "This page holds maps of 2 of the 5 lesions. Maps of 3 more lie in out, a file each." in text
    # Peaks of those that lie elsewhere are in the list all the same.
    rows = re.findall(r"<tr tabindex.*?</tr>", text, re.DOTALL)
    assert not any("–" in row for row in rows[5:])


def test_report_refuses_what_does_not_belong_together(run: Run, head: Path, explained: Path) -> None:
    code, _, err = run("predict", *files(head), "--threshold", 0.99, "--smallest", 20, "--out", explained)
    assert code == 0
    code, _, err = run("report", explained)
    assert code == 2
    assert "instance-grad-cam++-lesion-005 in" in err or "instance-grad-cam++-lesion-004 in" in err
    assert "explains another lesion than those of lesions.tsv" in err
    assert err.count("\n") == 1


def test_check_finds_the_lesion_again(run: Run, head: Path, tmp_path: Path) -> None:
    asked = ["--lesion", 1, "--segments", 8, "--mask", "top:1", "--out", tmp_path]
    assert run("explain", "relevance-map", *files(head, "whole"), *asked)[0] == 0
    code, out, err = run("check", tmp_path, "--model", head / "whole", "--quick", "--device", "cpu")
    assert code == 0, err
    assert "relevance-map-lesion-001:" in out
    assert "deletion/insertion" in out
    assert json.loads((tmp_path / "relevance-map-lesion-001.json").read_text())["checks"]["lines"]
    assert run("report", tmp_path)[0] == 0
    assert "of 1" in (tmp_path / "report.html").read_text()
