"""What the tests of studies share: the command line in this process, and made data in both layouts of slices."""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from voxplain import cli
from voxplain.datasets.phantom_cohort import write_gliomas

Run = Callable[..., tuple[int, str, str]]
KINDS = {1: "meningioma", 2: "glioma", 3: "pituitary"}


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
def made_patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms in BraTS layout, two of each grade."""
    root = tmp_path_factory.mktemp("patients") / "data"
    for _ in write_gliomas(root, n=4):
        pass
    return root
