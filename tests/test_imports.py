"""Imports flow one way: every arrow between the rooms of DESIGN.md, read off the source."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import voxplain

ROOT = Path(voxplain.__file__).parent

# Room -> the rooms that it may import. What is not listed is an arrow that runs back (or a room without a place).
_TYPES = {"errors", "grid", "scan"}
_VALUES = {"explanation", "target", "compute", "midplane", "model", "partition", "preparation", "randomisation"}
_LOWER = _TYPES | _VALUES | {"io"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "grid": {"errors"},
    "scan": {"errors", "grid"},
    "explanation": _TYPES,
    "compute": {"errors"},
    "model": {"errors"},
    "target": _TYPES | {"model"},
    "partition": _TYPES,
    "midplane": _TYPES,
    "preparation": _TYPES | {"midplane", "model", "brain_tissue"},
    "preprocessing": _TYPES,
    "brain_tissue": _TYPES,
    "randomisation": {"errors", "model"},
    "networks": set(),
    "losses": set(),
    "io": _TYPES | {"explanation", "model", "networks"},
    "datasets": _TYPES | {"io", "lesions", "model", "preparation", "brain_tissue"},
    "engine": _LOWER,
    "explain": _LOWER | {"engine", "networks", "losses"},
    "segment": _TYPES | {"explanation"},
    "lesions": _TYPES,
    "refine": _TYPES | {"explanation"},
    "metrics": _TYPES | {"explanation", "model", "target", "randomisation"},
    "checks": _LOWER | {"engine", "explain", "metrics"},
    "results": _TYPES | {"explanation", "io"},
    "prediction": _LOWER | {"engine", "explain", "lesions"},
    "diagnosis": _LOWER | {"engine", "explain", "metrics", "prediction", "segment", "tumour_regions"},
    "report": _LOWER | {"segment", "lesions", "results", "metrics", "diagnosis", "tumour_regions"},
    "calibration": set(),
    "lesion_errors": {"errors", "io"},
    "augmentation": set(),
    "balance": {"errors"},
    "optimisation": {"errors", "io"},
    "segmentation_training": _LOWER | {"engine", "augmentation", "optimisation"},
    "segmentation_losses": {"errors", "losses", "segmentation_training"},
    "tumour_regions": {"errors"},
    "training": _LOWER
    | {"engine", "augmentation", "balance", "datasets", "losses", "metrics", "networks"}
    | {"optimisation"},
}
_BELOW_CLI = set(ALLOWED)
ALLOWED["studies"] = ALLOWED["cohort"] = _BELOW_CLI
ALLOWED["commands"] = _BELOW_CLI | {"studies", "cohort"}
ALLOWED["cli"] = ALLOWED["commands"] | {"commands"}
ALLOWED["__init__"] = _BELOW_CLI | {"cohort"}

# What these rooms may import from outside, the standard library apart.
OUTSIDE = {
    "errors": set(),
    "grid": {"numpy", "nibabel"},
    "scan": {"numpy"},
    "networks": {"torch", "monai"},
    "losses": {"torch", "monai"},
    "metrics": {"numpy", "scipy"},
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path, source: str) -> set[str]:
    """Full names of all modules that a source imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name their whole path"
            if node.module == "voxplain":
                found |= {f"voxplain.{alias.name}" for alias in node.names}
            else:
                found.add(str(node.module))
    return found


def arrows_that_run_back(path: Path, source: str) -> list[str]:
    room = room_of(path)
    wrong = []
    for name in sorted(imported(path, source)):
        package, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if package == "voxplain":
            if target != room and target not in ALLOWED.get(room, set()):
                wrong.append(f"{room} -> {target} ({path.relative_to(ROOT)} imports {name})")
        elif room in OUTSIDE and package not in OUTSIDE[room] and package not in sys.stdlib_module_names:
            wrong.append(f"{room} -> {package} ({path.relative_to(ROOT)})")
    return wrong


SOURCES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_arrow_runs_back(path: Path) -> None:
    assert room_of(path) in ALLOWED, f"{path} is a room that DESIGN.md does not know"
    assert arrows_that_run_back(path, path.read_text(encoding="utf-8")) == []


def test_the_allowed_arrows_themselves_have_no_cycle() -> None:
    placed: set[str] = set()
    while len(placed) < len(ALLOWED):
        ready = {room for room, below in ALLOWED.items() if room not in placed and below <= placed}
        assert ready, f"these rooms import each other: {sorted(set(ALLOWED) - placed)}"
        placed |= ready


def test_nothing_imports_the_command_line() -> None:
    assert not any("cli" in below for below in ALLOWED.values())
    for path in SOURCES:
        assert "voxplain.cli" not in imported(path, path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("scan.py", "from voxplain.io.nifti import read"),
        ("grid.py", "def f():\n    from voxplain import scan"),
        ("networks/x.py", "import numpy"),
        ("networks/x.py", "from voxplain.errors import InputError"),
        ("metrics/x.py", "import torch"),
        ("metrics/x.py", "import voxplain.explain.cam"),
        ("engine/x.py", "from voxplain.explain import GradCAM"),
        ("io/x.py", "from voxplain.preparation import prepare"),
        ("studies/x.py", "from voxplain.cli import app"),
        ("training.py", "from voxplain.studies import demo"),
    ],
)
def test_this_test_can_fail(file: str, source: str) -> None:
    assert len(arrows_that_run_back(ROOT / file, source)) == 1


def test_no_room_has_a_forbidden_name() -> None:
    for path in SOURCES:
        forbidden = {"utils", "helpers", "base", "common", "constants", "config", "registry"}
        assert not forbidden & set(path.relative_to(ROOT).with_suffix("").parts), path


def test_nothing_pickles() -> None:
    for path in SOURCES:
        names = {name.partition(".")[0] for name in imported(path, path.read_text(encoding="utf-8"))}
        assert not names & {"pickle", "cPickle", "dill", "joblib", "cloudpickle"}, path
