"""Every command and every Python line of README and quickstart works as printed (long ones with --quick)."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from voxplain.datasets.phantom import made_scan, write_case

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
LONG = ("train", "evaluate", "study")


def blocks(path: str, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall((ROOT / path).read_text()) if found == language]


def commands(path: str) -> list[str]:
    lines = [line.split(" #")[0].strip() for text in blocks(path, "") for line in text.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder as a reader has it: what `make demo` leaves behind, and a small cohort in BraTS layout."""
    folder = tmp_path_factory.mktemp("reader")
    scan, truth = made_scan(seed=0)
    write_case(scan, truth, folder / "demo" / "made-scan")
    for seed in range(4):
        scan, truth = made_scan(seed=seed, side="left" if seed % 2 else "right")
        write_case(scan, truth, folder / "BraTS" / f"Made_{seed:03d}_1")
    return folder


def test_make_lines_are_targets():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [line.split()[1] for line in commands("README.md") if line.startswith("make ")]
    assert made == ["demo", "test"]
    assert set(made) <= set(targets)


def test_every_command_runs(workplace):
    lines = [line for line in commands("README.md") if line.startswith("voxplain ")]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)[1:]
        quick = ["--quick"] if words[0] in LONG else []
        run = subprocess.run(
            [sys.executable, "-m", "voxplain.cli", *words, *quick],
            cwd=workplace,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert run.returncode == 0, f"{line}\n{run.stdout}\n{run.stderr}"
    assert (workplace / "out" / "relevance-map.nii.gz").is_file()
    assert (workplace / "runs" / "hemispheres" / "final" / "weights.safetensors").is_file()
    assert (workplace / "runs" / "study" / "scores.tsv").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_every_python_line_runs(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    found = blocks(page, "python")
    assert found
    for text in found:
        exec(compile(text, page, "exec"), {})


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_documented_explainer_is_one(workplace, monkeypatch):
    import voxplain as vx

    (text,) = blocks("docs/add-an-explainer.md", "python")
    names: dict = {"__name__": __name__}
    exec(compile(text, "docs/add-an-explainer.md", "exec", dont_inherit=True), names)
    scan = vx.read(workplace / "demo" / "made-scan")
    why = names["LeaveOneChannelOut"]()(vx.load_model("tumour-hemisphere"), scan)
    assert why.channels == ("flair", "t1", "t1ce", "t2")
    assert why.map.any()
