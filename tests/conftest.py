"""What all tests share: real scans, made heads, tiny networks, the command line, and the rule that CI skips nothing."""

from __future__ import annotations

import csv
import os
import sys
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import settings
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image
from scipy import ndimage

from voxplain import cli
from voxplain.datasets.phantom import multiple_sclerosis
from voxplain.grid import Grid
from voxplain.io.nifti import save
from voxplain.model import Card, Model
from voxplain.networks.resnet import resnet
from voxplain.scan import Scan

Run = Callable[..., tuple[int, str, str]]
SEQUENCES = ("flair", "t1", "t1ce", "t2")
KINDS = {1: "meningioma", 2: "glioma", 3: "pituitary"}

settings.register_profile("voxplain", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("voxplain")


# Files that take longest, so that no process is left alone with one of them at the end.
LONGEST = (
    "test_readme.py",
    "test_every_explainer.py",
    "test_instance.py",
    "test_engine.py",
    "test_gp.py",
    "test_phantom.py",
    "test_cli.py",
    "test_budget.py",
    "test_grade_phantoms.py",
    "test_lesions.py",
    "test_preprocessing.py",
    "test_demo_lesions.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; others stay in order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def _is_forbidden(report: pytest.TestReport | pytest.CollectReport) -> bool:
    """Whether a skip counts as a failure: VOXPLAIN_NO_SKIPS=1 says that all that a test may need is there."""
    return os.environ.get("VOXPLAIN_NO_SKIPS") == "1" and report.skipped and "wasxfail" not in vars(report)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _is_forbidden(report):
        report.outcome = "failed"
        report.longrepr = f"skipped, though VOXPLAIN_NO_SKIPS=1: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if _is_forbidden(report):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped, though VOXPLAIN_NO_SKIPS=1: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real scans (VOXPLAIN_DATA, or shared/data beside the checkout)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VOXPLAIN_DATA", default))
    if not (folder / "glioma_2mm").is_dir():
        pytest.skip(f"no real scans at {folder}; set VOXPLAIN_DATA to their folder")
    return folder


def reorient(data: np.ndarray, affine: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """A volume (X, Y, Z) and its affine in another orientation, by nibabel alone."""
    image = nib.Nifti1Image(data, affine)
    turned = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(tuple(orientation))))
    return np.asarray(turned.dataobj), turned.affine


class Head:
    """A made head in LPS: an ellipsoid of brain-like size, every voxel of it another number, on exact zeros.

    `volumes` is (C, X, Y, Z); `plane` the face (counted along x) at which the brain is its own mirror image.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (40, 48, 40),
        spacing: float = 4.0,
        plane: int | None = None,
        channels: tuple[str, ...] = SEQUENCES,
        seed: int = 0,
        tilt: float = 0.0,
    ) -> None:
        self.channels, self.spacing = channels, spacing
        self.plane = shape[0] // 2 if plane is None else plane
        x, y, z = np.indices(shape).astype(float)
        x = (x + 0.5 - self.plane) * spacing
        y = (y + 0.5 - shape[1] / 2) * spacing
        z = (z + 0.5 - shape[2] / 2) * spacing
        across, along = x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)
        self.brain = (across / 66) ** 2 + (along / 84) ** 2 + (z / 68) ** 2 <= 1
        rng = np.random.default_rng(seed)
        count = int(self.brain.sum())
        self.volumes = np.zeros((len(channels), *shape), dtype=np.float32)
        for index in range(len(channels)):
            self.volumes[index, self.brain] = rng.permutation(count) + 1 + 1000 * index
        self.affine = np.diag([-spacing, -spacing, spacing, 1.0])
        # World x = 0 lies in the mid-sagittal plane.
        self.affine[:3, 3] = [(self.plane - 0.5) * spacing, shape[1] / 2 * spacing, -shape[2] / 2 * spacing]

    def scan(self, orientation: str = "LPS", order: tuple[str, ...] | None = None) -> Scan:
        turned = [reorient(volume, self.affine, orientation) for volume in self.volumes]
        whole = Scan(np.stack([data for data, _ in turned]), Grid(turned[0][0].shape, turned[0][1]), self.channels)
        return whole if order is None else whole.select(order)


@pytest.fixture
def make_head() -> type[Head]:
    return Head


@pytest.fixture
def half_card() -> Callable[..., Card]:
    """The card of a hemisphere model; fields given by name replace its own."""

    def make(**fields: Any) -> Card:
        content: dict[str, Any] = {
            "name": "tiny",
            "channels": SEQUENCES,
            "classes": ("tumour",),
            "orientation": "LPS",
            "region": "half",
            "skull_stripped": True,
        }
        return Card(**(content | fields))

    return make


@pytest.fixture
def tiny_network() -> Callable[..., torch.nn.Module]:
    def make(seed: int = 0, **arguments: Any) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return resnet(**({"width": 4, "stem_kernel": 3} | arguments)).eval()

    return make


@pytest.fixture
def tiny_model(tiny_network: Callable[..., torch.nn.Module], half_card: Callable[..., Card]) -> Model:
    """A hemisphere model of a few thousand random weights."""
    card = half_card(
        normalisation="z-score",
        spacing=(4, 4, 4),
        shape=(20, 44, 36),
        factory="voxplain.networks.resnet:resnet",
        arguments={"width": 4, "stem_kernel": 3},
    )
    return Model(tiny_network(), card)


@pytest.fixture
def write_patient() -> Callable[..., Path]:
    """Write a scan as a BraTS patient folder, perhaps with an expert mask."""

    def write(scan: Scan, folder: Path) -> Path:
        for name in scan.channels:
            save(scan.select([name]), folder / f"{folder.name}_{name}.nii.gz")
        return folder

    return write


def write_cheng(root: Path, *, each: int = 1, folds: int = 4) -> Path:
    """A folder as Cheng's repacked one: a head with a bright blob, whose texture says which kind it is."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    down, right = np.indices((512, 512))
    head = (down - 256) ** 2 / 200**2 + (right - 256) ** 2 / 170**2 < 1
    rows: list[tuple[object, ...]] = []
    for number in range(1, 3 * folds * each + 1):
        random = np.random.default_rng(number)
        kind = 1 + (number - 1) % 3
        x, y = random.integers(180, 330, 2)
        blob = (down - y) ** 2 + (right - x) ** 2 < 30**2
        texture = ndimage.gaussian_filter(random.normal(size=(512, 512)), 4 * kind)
        image = np.where(head, 70 + 5 * random.normal(size=(512, 512)), 0)
        image[blob] = 170 + 25 * texture[blob] / texture.std()
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / "images" / f"{number:04d}.jpg")
        Image.fromarray(blob).save(root / "masks" / f"{number:04d}.png")
        rows.append((number, kind, KINDS[kind], 1 + (number - 1) // 3 % folds))
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "label", "class_name", "fold"), *rows])
    return root


@pytest.fixture(scope="session")
def made_cheng(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve made slices, one of each kind in each of four folds."""
    return write_cheng(tmp_path_factory.mktemp("cheng") / "data")


@pytest.fixture(scope="session")
def made_ms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made patients in Lesjak's layout, and the lesion masks of two others."""
    root = tmp_path_factory.mktemp("ms") / "data"
    for number in (1, 2):
        made = multiple_sclerosis(number)
        for name, file in (("flair", "FLAIR"), ("t1", "T1")):
            save(made.scan.select([name]), root / f"patient0{number}" / f"{file}.nii.gz")
        save(made.labels, root / f"patient0{number}" / "consensus_gt.nii.gz")
    for number in (3, 4):
        save(multiple_sclerosis(number).labels, root / "lesion_masks" / f"patient0{number}.nii.gz")
    return root


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the command line; gives exit code, standard output and standard error."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["voxplain", *map(str, arguments)])
        capfd.readouterr()
        code = None
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                cli.main()
            except SystemExit as left:
                code = int(left.code or 0)
        assert code is not None
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return call
