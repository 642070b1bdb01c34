"""The command line: bad input is one clear line and exit code 2, Ctrl-C is 130, and nothing is left half-written."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from voxplain.commands.options import seen_by
from voxplain.grid import Grid
from voxplain.io.bundle import load_model, save_model
from voxplain.io.nifti import read, read_labels, save
from voxplain.model import Model
from voxplain.scan import Labels, Scan

SEQUENCES = ("flair", "t1", "t1ce", "t2")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tiny_model: Model, tmp_path: Path) -> Path:
    return save_model(tiny_model.network, tiny_model.card, tmp_path / "model")


@pytest.fixture
def patient(make_head: Any, write_patient: Callable[..., Path], tmp_path: Path) -> Path:
    return write_patient(make_head().scan(), tmp_path / "P")


@pytest.fixture
def files(patient: Path) -> list[str]:
    return [text for name in SEQUENCES for text in (f"--{name}", str(patient / f"P_{name}.nii.gz"))]


def assert_refused(result: tuple[int, str, str], *said: str, out: Path | None = None) -> None:
    """Exit code 2, one line on standard error with all of `said`, nothing else printed, nothing written."""
    code, printed, error = result
    assert code == 2, error
    assert printed == ""
    (line,) = error.strip().splitlines()
    assert line.startswith("error: ")
    for text in said:
        assert text in line
    if out is not None:
        assert not out.is_dir() or list(out.iterdir()) == []


def test_methods(run: Run) -> None:
    code, printed, _ = run("methods")
    assert code == 0
    for text in ("relevance-map", "grad-cam", "perturbation", "calls", "layer"):
        assert text in printed


def test_a_whole_run_of_each_method(run: Run, model: Path, patient: Path, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "relevance"
    code, printed, error = run(
        "explain", "relevance-map", "--model", model, *files, "--out", out, "--partition", "cubes:40", "--threads", 1
    )
    assert code == 0, error
    names = [
        "relevance-map-mask.nii.gz",
        "relevance-map-parts.nii.gz",
        "relevance-map-ranks.tsv",
        "relevance-map.json",
        "relevance-map.nii.gz",
    ]
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert str(out / name) in printed
    scan = read(patient)
    for name in ("relevance-map-mask", "relevance-map-parts", "relevance-map"):
        assert scan.grid.difference(read(x=out / f"{name}.nii.gz").grid) is None
    provenance = json.loads((out / "relevance-map.json").read_text())
    assert provenance["mask"]["rule"] == "otsu"
    assert provenance["model"]["fingerprint"] == load_model(model).fingerprint
    code, printed, error = run(
        "explain", "grad-cam", "--layer", "layer1", "--model", model, "--scan", patient, "--out", tmp_path / "cam"
    )
    assert code == 0, error
    assert sorted(path.name for path in (tmp_path / "cam").iterdir()) == [
        "grad-cam-mask.nii.gz",
        "grad-cam.json",
        "grad-cam.nii.gz",
    ]


def test_bfloat16_is_asked_for_recorded_and_said(run: Run, model: Path, patient: Path, tmp_path: Path) -> None:
    common = ("explain", "grad-cam", "--layer", "layer1", "--model", model, "--scan", patient, "--out")
    for name, more in (("float32", ()), ("bfloat16", ("--dtype", "bfloat16"))):
        code, _, error = run(*common, tmp_path / name, *more)
        assert code == 0, error
        provenance = json.loads((tmp_path / name / "grad-cam.json").read_text())
        assert provenance["compute"]["dtype"] == name
        assert ("ran in bfloat16" in error) == (name == "bfloat16")


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> Path:
    image = nib.load(path)
    data = change(image.get_fdata(dtype=np.float32))
    nib.save(nib.Nifti1Image(data, image.affine if affine is None else affine), path)
    return path


def with_nan(data: np.ndarray) -> np.ndarray:
    data[3, 4, 5] = np.nan
    return data


def with_inf(data: np.ndarray) -> np.ndarray:
    data[3, 4, 5] = -np.inf
    return data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), ["missing: t1ce"]),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), ["cannot read P_t1ce.nii.gz: truncated"]),
        (lambda path: path.write_bytes(gzip.compress(b"no image")), ["cannot read P_t1ce.nii.gz"]),
        (lambda path: rewrite(path, with_nan), ["t1ce", "1 voxels that are NaN or infinite"]),
        (lambda path: rewrite(path, with_inf), ["t1ce", "1 voxels that are NaN or infinite"]),
        (lambda path: rewrite(path, lambda d: np.stack([d, d], -1)), ["P_t1ce.nii.gz is 4D", "one 3D volume"]),
        (lambda path: rewrite(path, np.zeros_like), ["sequence t1ce is zero in every voxel"]),
        (lambda path: rewrite(path, lambda d: d[:-1]), ["t1ce differ: shape (40, 48, 40) against (39, 48, 40)"]),
        (lambda path: rewrite(path, np.asarray, np.diag([-4.0, -4, 3, 1])), ["t1ce differ: spacing", "resample"]),
        (
            lambda path: path.write_bytes((path.parent / "P_t2.nii.gz").read_bytes()),
            ["t1ce and t2 hold the same voxels"],
        ),
        (lambda path: (path.parent / "Q_t1ce.nii").touch(), ["sequence t1ce comes twice", "P_t1ce.nii.gz", "keep one"]),
        (lambda path: path.rename(path.parent / "P_dwi.nii.gz"), ["missing: t1ce"]),
    ],
    ids=[
        *("missing", "truncated", "no-image", "nan", "inf", "4d", "all-zero", "shape", "spacing", "same-voxels"),
        *("doubled", "unknown"),
    ],
)
def test_bad_scans(
    run: Run, model: Path, patient: Path, tmp_path: Path, change: Callable[[Path], object], said: list[str]
) -> None:
    change(patient / "P_t1ce.nii.gz")
    out = tmp_path / "out"
    assert_refused(run("explain", "relevance-map", "--model", model, "--scan", patient, "--out", out), *said, out=out)


def test_a_damaged_header_is_one_line(run: Run, model: Path, files: list[str], tmp_path: Path) -> None:
    path = tmp_path / "odd.nii"
    content = bytearray(gzip.decompress(Path(files[1]).read_bytes()))
    content[70:72] = b"\x0f\x27"
    path.write_bytes(content)
    result = run("explain", "relevance-map", "--model", model, "--out", tmp_path / "o", "--flair", path, *files[2:])
    assert_refused(result, "cannot read odd.nii", "data code 9999")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (lambda f: [*f[:2], *f], ["sequence flair is given twice"]),
        (lambda f: [*f, "--sequence", f"flair={f[3]}"], ["sequence flair is given twice"]),
        (lambda f: [*f, "--sequence", f"T1C={f[1]}"], ["sequence t1ce is given twice"]),
        (lambda f: [f[0], f[3], f[2], f[1], *f[4:]], ["P_t1.nii.gz is given as flair, but its name says t1"]),
        (lambda f: [*f[:6], "--t2", f[1]], ["P_flair.nii.gz is given as t2, but its name says flair"]),
        (lambda f: f[:6], ["missing: t2"]),
        (lambda f: [*f[:7], "/nothing/there.nii.gz"], ["there is no file /nothing/there.nii.gz"]),
        (lambda f: [], ["give either --scan", "or one file per sequence"]),
        (lambda f: [*f, "--scan", str(Path(f[1]).parent)], ["give either --scan"]),
        (lambda f: ["--scan", "/nothing"], ["there is no folder /nothing"]),
        (lambda f: [*f, "--sequence", "adc"], ["--sequence is name=file.nii.gz; got 'adc'"]),
        (lambda f: [*f, "--target", "stroke"], ["no class 'stroke'; it has tumour"]),
        (lambda f: [*f, "--device", "gpu"], ["device is auto, cpu, cuda or cuda:N"]),
        (lambda f: [*f, "--device", "cuda:99"], ["device cuda:99 is not there"]),
        (lambda f: [*f, "--dtype", "float16"], ["dtype is float32 or bfloat16; got 'float16'"]),
        (lambda f: [*f, "--dtype", "bfloat16", "--engine", "incremental"], ["bfloat16 needs engine full"]),
        (lambda f: [*f, "--memory", "lots"], ["memory is a size such as 4GB"]),
        (lambda f: [*f, "--threads", "0"], ["threads must be at least 1"]),
        (lambda f: [*f, "--fill", "grey"], ["fill is one of blank, min, max", "got 'grey'"]),
        (lambda f: [*f, "--partition", "cubes:inf"], ["partition is slic, or cubes:MM"]),
        (lambda f: [*f, "--mask", "top:x"], ["--mask is otsu, multi-otsu, top:N (ranks) or fixed:VALUE; got 'top:x'"]),
        (lambda f: [*f, "--channel", "adc"], ["no sequence 'adc'"]),
    ],
)  # fmt: skip
def test_bad_flags(
    run: Run, model: Path, files: list[str], tmp_path: Path, flags: Callable[[list[str]], list[str]], said: list[str]
) -> None:
    out = tmp_path / "out"
    assert_refused(run("explain", "relevance-map", "--model", model, "--out", out, *flags(files)), *said, out=out)


def test_a_layer_that_does_not_exist_lists_those_that_do(run: Run, model: Path, patient: Path, tmp_path: Path) -> None:
    common = ("explain", "grad-cam", "--model", model, "--scan", patient, "--out", tmp_path / "out")
    layers = ("layer1", "layer2", "layer3", "layer4")
    assert_refused(run(*common, "--layer", "layer9"), "no layer 'layer9'", *layers, out=tmp_path / "out")
    assert_refused(run(*common), "needs the name of a layer", *layers, out=tmp_path / "out")


def test_a_2d_network_on_a_3d_scan(run: Run, model: Path, patient: Path, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(
        json.dumps(
            {
                "name": "flat",
                "channels": SEQUENCES,
                "classes": ["tumour"],
                "spatial_dims": 2,
                "arguments": {"spatial_dims": 2, "in_channels": 4, "out_channels": 1, "block_config": [1]},
            }
        )
    )
    common = ("explain", "relevance-map", "--scan", patient, "--out", tmp_path / "out")
    flat = ("--model", "python:monai.networks.nets:DenseNet", "--card", tmp_path / "card.json")
    assert_refused(run(*common, *flat), "a 2D network reads images", "(40, 48, 40)", out=tmp_path / "out")


def test_bad_models(
    run: Run, model: Path, patient: Path, tmp_path: Path, tiny_network: Callable[..., torch.nn.Module]
) -> None:
    out = tmp_path / "out"

    def explain(name: object, *more: object) -> tuple[int, str, str]:
        return run("explain", "relevance-map", "--model", name, "--scan", patient, "--out", out, *more)

    assert_refused(explain("nothing-of-that-name"), "there is no model nothing-of-that-name", out=out)
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"name": "x", "channels": ["t1"], "classes": ["a"]}))
    pickled = tmp_path / "network.pt"
    torch.save(tiny_network(), pickled)
    assert_refused(explain(pickled, "--card", card), "never unpickled", out=out)
    pickled.write_bytes(pickle.dumps({"weights": 1}))
    assert_refused(explain(pickled, "--card", card), "never unpickled", out=out)
    assert_refused(explain("python:os:system", "--card", card), "cannot build the network", out=out)
    assert_refused(explain("python:voxplain.networks.resnet:resnet"), "needs a card", out=out)
    other = save_model(tiny_network(width=8), load_model(model).card, tmp_path / "other")
    (model / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    assert_refused(explain(model), "holds the weights of another network", out=out)
    (model / "weights.safetensors").unlink()
    torch.save(tiny_network(), model / "weights.pt")
    assert_refused(explain(model), "expected weights.safetensors", "may hold a pickle", out=out)
    (model / "model.json").write_text("{")
    assert_refused(explain(model), "is not JSON", out=out)


def test_an_output_folder_that_cannot_be_written(run: Run, model: Path, patient: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "out"
    explain = ("explain", "relevance-map", "--model", model, "--scan", patient, "--out", below)
    assert_refused(run(*explain), f"cannot write into {below}", "choose another output folder")
    train = ("train", "hemispheres", "--data", tmp_path, "--out", below)
    assert_refused(run(*train, "--folds", 2), f"cannot write into {below}")
    evaluate = ("evaluate", "hemispheres", "--model", model, "--data", tmp_path, "--out", below)
    assert_refused(run(*evaluate), f"cannot write into {below}")


def test_scans_that_are_not_what_the_card_expects(
    run: Run, model: Path, patient: Path, make_head: Any, write_patient: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name in SEQUENCES:
        rewrite(patient / f"P_{name}.nii.gz", lambda data: data + 5)
    explain = ("explain", "relevance-map", "--model", model, "--out", out, "--scan")
    assert_refused(run(*explain, patient), "skull-stripped", "strip the skull first", out=out)
    tilted = write_patient(make_head((48, 52, 40), tilt=0.8).scan(), tmp_path / "T")
    assert_refused(run(*explain, tilted), "not aligned", "register it to a template first", out=out)


def test_bad_training_and_evaluation(run: Run, model: Path, patient: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train = ("train", "hemispheres", "--out", out, "--data")
    assert_refused(run(*train, tmp_path / "nothing"), "there is no folder", out=out)
    assert_refused(run(*train, model), "found no BraTS patient", out=out)
    assert_refused(run(*train, patient, "--preset", "huge"), "preset is one of", out=out)
    assert_refused(run(*train, patient), "case P has no expert mask")
    evaluate = ("evaluate", "hemispheres", "--model", model, "--data", patient, "--out", out)
    assert_refused(run(*evaluate), "no case with an expert mask")
    rewrite(shutil.copy(patient / "P_t1.nii.gz", patient / "P_seg.nii.gz"), lambda data: data % 2)
    assert_refused(run(*train, patient), "three patients; got 1 patients")
    rewrite(patient / "P_t1.nii.gz", with_nan)
    assert_refused(run("train", "hemispheres", "--data", patient, "--out", tmp_path / "other"), "case P: sequence t1")


def test_the_real_command_says_it_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "voxplain.cli", "explain", "grad-cam", "--model", "nothing", "--out"]
    done = subprocess.run(
        [*command, str(tmp_path / "out"), "--scan", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "found no sequence in" in done.stderr


def interrupt_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> tuple[int, str]:
    """Press Ctrl-C once something is there; the exit code and what was said on standard error."""
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    return process.returncode, error


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "voxplain.cli", *map(str, arguments)]

    def hear_interrupts() -> None:
        # A shell starts background jobs deaf to Ctrl-C, and their children inherit it; a user's command is not one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    )


def test_ctrl_c_while_explaining_leaves_nothing(patient: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time, torch\n"
        "class Slow(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        with open('passes', 'a') as file:\n"
        "            file.write('.')\n"
        "        time.sleep(0.1)\n"
        "        return x.mean((1, 2, 3, 4))[:, None]\n"
    )
    card = {"name": "slow", "channels": SEQUENCES, "classes": ["a"], "orientation": "LPS", "normalisation": "z-score"}
    (tmp_path / "card.json").write_text(json.dumps(card))
    out, passes = tmp_path / "out", tmp_path / "passes"
    out.mkdir()
    (out / "relevance-map-mask.nii.gz").write_text("from an earlier run")
    flags = ("--card", "card.json", "--scan", patient, "--out", out, "--partition", "cubes:12", "--batch-size", 1)
    process = start(tmp_path, "explain", "relevance-map", "--model", "python:slow:Slow", *flags)
    code, error = interrupt_when(process, lambda: passes.is_file() and passes.stat().st_size > 5)
    assert code == 130
    assert "stopped; what is finished is kept, nothing is half-written" in error
    assert "Traceback" not in error
    assert [path.name for path in out.iterdir()] == ["relevance-map-mask.nii.gz"]
    assert (out / "relevance-map-mask.nii.gz").read_text() == "from an earlier run"


def test_ctrl_c_while_training_keeps_what_is_finished(
    make_head: Any, write_patient: Callable[..., Path], tmp_path: Path
) -> None:
    for index in range(4):
        scan: Scan = make_head(seed=index).scan()
        folder = write_patient(scan, tmp_path / "data" / f"P{index}")
        tumour = np.zeros(scan.grid.shape, int)
        tumour[(slice(8, 14) if index % 2 else slice(26, 32)), 20:26, 18:24] = 2
        save(Labels(tumour, Grid(scan.grid.shape, scan.grid.affine)), folder / f"{folder.name}_seg.nii.gz")
    out = tmp_path / "runs"
    flags = ("--data", tmp_path / "data", "--out", out, "--folds", 2, "--device", "cpu")
    process = start(tmp_path, "train", "hemispheres", *flags)
    code, error = interrupt_when(process, lambda: any(out.glob("fold*/checkpoint.pt")))
    assert code == 130
    assert "stopped; what is finished is kept" in error
    assert "Traceback" not in error
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert written == ["fold0/checkpoint.pt", "halves.json"]
    json.loads((out / "halves.json").read_text())
    state = torch.load(out / "fold0" / "checkpoint.pt", weights_only=True)
    assert len(state["losses"]) >= 1


def test_a_report_of_a_folder(run: Run, model: Path, patient: Path, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("--model", model, "--out", out, "--threads", 1)
    assert run("explain", "relevance-map", "--partition", "cubes:40", *common, *files)[0] == 0
    assert run("explain", "grad-cam", "--layer", "layer1", "--scan", patient, *common)[0] == 0
    provenance = json.loads((out / "relevance-map.json").read_text())
    assert provenance["sources"] == {name: str(patient / f"P_{name}.nii.gz") for name in SEQUENCES}
    # The card does not list what the network was trained on.
    assert provenance["seen"] is None
    code, printed, error = run("report", out)
    assert code == 0, error
    assert printed.strip() == f"report: {out / 'report.html'}"
    page = (out / "report.html").read_text(encoding="utf-8")
    for said in ("relevance-map", "grad-cam", "There is no expert mask", "P_flair.nii.gz"):
        assert said in page
    assert str(tmp_path) not in page
    truth = tmp_path / "truth.nii.gz"
    scan = read(patient)
    save(Labels(scan.data[0] > 20000, scan.grid), truth)
    page_path = tmp_path / "page.html"
    moved = patient.rename(tmp_path / "moved")
    assert_refused(run("report", out), "the scan is not where it was explained", "give it with --scan")
    code, _, error = run("report", out, "--scan", moved, "--truth", truth, "--note", "made scan", "--out", page_path)
    assert code == 0, error
    assert "made scan" in page_path.read_text(encoding="utf-8")


def test_reports_that_cannot_be_made(
    run: Run, model: Path, patient: Path, make_head: Any, write_patient: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    explain = ("explain", "relevance-map", "--partition", "cubes:40", "--model", model, "--scan", patient, "--out", out)
    assert run(*explain)[0] == 0
    other = write_patient(make_head(seed=1).scan(), tmp_path / "Q")
    page = ("--out", tmp_path / "page.html")
    assert_refused(run("report", out, "--scan", other, *page), "relevance-map explains another scan", "--scan")
    flair = patient / "P_flair.nii.gz"
    assert_refused(run("report", out, "--flair", flair, *page), "t1, t1ce, t2 is missing among P_flair.nii.gz")
    assert_refused(run("report", other, *page), "found no results in", "run it first")
    truth = save_other_grid(tmp_path / "truth.nii.gz")
    assert_refused(run("report", out, "--truth", truth, *page), "the expert mask does not lie on the scan's grid")
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 0.5, np.float32), np.eye(4)), truth)
    assert_refused(run("report", out, "--truth", truth, *page), "truth.nii.gz is no expert mask", "whole numbers")
    assert_refused(run("report", out, out, *page), "is given twice")
    provenance = json.loads((out / "relevance-map.json").read_text())
    del provenance["sources"]
    (out / "relevance-map.json").write_text(json.dumps(provenance))
    assert_refused(run("report", out, *page), "do not say where their scan lies", "--scan")
    (out / "relevance-map-mask.nii.gz").unlink()
    assert_refused(run("report", out, *page), "relevance-map-mask.nii.gz is missing", "again")
    assert not (tmp_path / "page.html").exists()


def test_folders_tell_results_of_one_name_apart_and_phantoms_say_so(
    run: Run, model: Path, patient: Path, tmp_path: Path
) -> None:
    for name, edge in (("coarse", 60), ("fine", 40)):
        explain = ("explain", "relevance-map", "--partition", f"cubes:{edge}", "--model", model, "--scan", patient)
        assert run(*explain, "--out", tmp_path / name)[0] == 0
    out = tmp_path / "page.html"
    (patient / "phantom.json").write_text("{}")
    assert run("report", tmp_path / "coarse", tmp_path / "fine", "--out", out)[0] == 0
    page = out.read_text(encoding="utf-8")
    for said in ("relevance-map (coarse)", "relevance-map (fine)", "phantom (software check)"):
        assert said in page
    # What a command line holds need not be text.
    assert run("report", tmp_path / "fine", "--note", "mine", "--title", "a\udcff", "--out", out)[0] == 0
    assert "phantom (software check)" not in out.read_text(encoding="utf-8")


def save_other_grid(path: Path) -> Path:
    save(Labels(np.ones((4, 4, 4)), Grid((4, 4, 4), np.eye(4))), path)
    return path


def test_a_scan_of_the_training_is_named_so(
    run: Run, tiny_model: Model, make_head: Any, write_patient: Callable[..., Path], tmp_path: Path
) -> None:
    card = dataclasses.replace(tiny_model.card, training={"ids": ["BraTS_7"]})
    model = save_model(tiny_model.network, card, tmp_path / "model")
    patient = write_patient(make_head().scan(), tmp_path / "BraTS_7")
    out = tmp_path / "out"
    common = ("explain", "relevance-map", "--partition", "cubes:40", "--model", model, "--out", out)
    assert run(*common, "--scan", patient)[0] == 0
    assert json.loads((out / "relevance-map.json").read_text())["seen"] is True
    assert run("report", out)[0] == 0
    assert "The network was trained on this scan" in (out / "report.html").read_text(encoding="utf-8")


def test_maps_are_checked_where_they_lie_and_the_report_says_so(
    run: Run, model: Path, patient: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ("--model", model, "--scan", patient, "--out", out, "--partition", "cubes:24")
    assert run("explain", "relevance-map", *given)[0] == 0
    assert run("report", out)[0] == 0
    assert 'class="outcome not-tested"' in (out / "report.html").read_text(encoding="utf-8")
    code, printed, error = run("check", out, "--model", model, "--threads", 1, "--shuffled", model, "--quick")
    assert code == 0, error
    lines = json.loads((out / "relevance-map.json").read_text())["checks"]["lines"]
    assert lines["label randomisation"]["verdict"] == "failed"  # it is the same network
    for name, line in lines.items():
        assert f"{name}: {line['verdict']} ({line['said']})" in printed
    assert "randomised networks, " in error
    assert run("report", out)[0] == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'class="outcome failed"' in page
    assert "A smoke run: these verdicts mean nothing." in page


def test_checks_refuse_another_model_and_folders_without_results(
    run: Run, model: Path, tiny_network: Any, tiny_model: Model, patient: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert_refused(run("check", tmp_path / "nowhere", "--model", model), "there is no folder")
    run("explain", "relevance-map", "--model", model, "--scan", patient, "--out", out, "--partition", "cubes:40")
    other = save_model(tiny_network(seed=5), tiny_model.card, tmp_path / "other")
    assert_refused(run("check", out, "--model", other), "speaks of another model")
    assert "checks" not in json.loads((out / "relevance-map.json").read_text())
    shutil.move(patient, tmp_path / "moved")
    assert_refused(run("check", out, "--model", model), "the scan is not where it was explained", "--scan")
    assert run("check", out, "--model", model, "--scan", tmp_path / "moved", "--quick", "--threads", 1)[0] == 0


def test_segment_outlines_and_leaves_what_a_report_reads(
    run: Run, model: Path, patient: Path, files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "lesion"
    code, printed, error = run("segment", "--model", model, *files, "--out", out, "--segments", 10, "--threads", 1)
    assert code == 0, error
    assert "lesion: " in printed
    masks = [read_labels(out / f"{name}-mask.nii.gz") for name in ("relevance-map", "grad-cam")]
    assert (masks[0].data == masks[1].data).all()
    assert read(patient).grid.difference(masks[0].grid) is None
    rule = json.loads((out / "grad-cam.json").read_text())["mask"]["rule"]
    assert rule == "mixture of flair, t2 from relevance-map and grad-cam"
    assert run("report", out, "--out", tmp_path / "report.html")[0] == 0


def test_segment_without_a_layer_to_watch(
    run: Run, tiny_model: Model, tmp_path: Path, files: list[str], make_head: Any
) -> None:
    path, card = tmp_path / "model.pt", tmp_path / "card.json"
    torch.jit.trace(tiny_model.network.eval(), torch.zeros(1, 4, 12, 16, 12)).save(path)
    card.write_text(json.dumps(tiny_model.card.to_dict() | {"factory": None, "arguments": {}}))
    out = tmp_path / "lesion"
    arguments = ("--model", path, "--card", card, *files, "--out", out, "--segments", 10, "--border", "t1")
    code, printed, error = run("segment", *arguments, "--threads", 1)
    assert code == 0, error
    assert "the relevance map alone says where" in error
    assert not (out / "grad-cam.nii.gz").exists()
    assert json.loads((out / "relevance-map.json").read_text())["mask"]["rule"] == "mixture of t1 from relevance-map"
    assert "lesion: " in printed


def test_segment_refuses(run: Run, model: Path, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "lesion"
    start = ("segment", "--model", model, "--out", out)
    assert_refused(run(*start, *files, "--border", "adc"), "--border adc", "flair, t1, t1ce, t2", out=out)
    assert_refused(run(*start, *files, "--layer", "layer9"), "no layer 'layer9'", out=out)
    assert_refused(run(*start), "give either --scan", out=out)
    assert_refused(run(*start, "--flair", tmp_path / "missing.nii.gz"), "missing.nii.gz", out=out)


def test_a_scan_that_was_trained_on_is_known_by_its_folder_or_its_files_names(
    tiny_model: Model, tmp_path: Path
) -> None:
    card = dataclasses.replace(tiny_model.card, training={"ids": ["Brats18_X_1"]})
    for path, seen in (("Brats18_X_1/flair.nii.gz", True), ("Brats18_X_1_flair.nii.gz", True), ("Y/Y.nii.gz", False)):
        assert seen_by(card, {"flair": tmp_path / path}) is seen
    assert seen_by(tiny_model.card, {"flair": tmp_path / "flair.nii.gz"}) is None
