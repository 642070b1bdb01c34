"""Every `voxplain` command and Python line of the README and the docs works as printed (long ones with --quick)."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from voxplain.datasets.phantom import glioma, write_case

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
LONG = ("check", "train", "evaluate", "study")
# Smoke runs of these have tests of their own; on the pages of docs/ their options are read, and no more.
_READ = ("voxplain study ", "voxplain train segmentation ")
_TYPED = 3
# Pages on results name the command of a run that took hours; the others are read from top to bottom.
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if not page.startswith("docs/results/")]


class Block(NamedTuple):
    """One fenced block: its language ("" for commands), the file that it stands for, and the text."""

    language: str
    title: str
    text: str


@dataclass
class Workplace:
    """A reader's folder, and the commands that were run there."""

    folder: Path
    done: set[str] = field(default_factory=set)


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall((ROOT / page).read_text())]


def commands(text: str) -> list[str]:
    lines = [line.split(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, made_cheng, made_ms) -> Workplace:
    """A folder as a reader has it: what `make demo` leaves behind, small cohorts, and slices."""
    folder = tmp_path_factory.mktemp("reader")
    made = glioma(0)
    write_case(made.scan, made.labels, folder / "demo" / "made-scan")
    for seed in range(4):
        made = glioma(seed, side="left" if seed % 2 else "right")
        write_case(made.scan, made.labels, folder / "BraTS" / f"Made_{seed:03d}_1")
    shutil.copytree(made_cheng, folder / "Cheng")
    shutil.copytree(made_ms, folder / "MS")
    return Workplace(folder)


def as_typed(*words: str) -> tuple[int, str, str]:
    """Run a command in a process of its own, in the current folder."""
    found = subprocess.run([sys.executable, "-m", "voxplain.cli", *words], capture_output=True, text=True, timeout=240)
    return found.returncode, found.stdout, found.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_from_top_to_bottom(page, workplace, monkeypatch, run):
    monkeypatch.chdir(workplace.folder)
    # Importing torch takes longer than most of these commands: the README's first ones are typed, others called.
    typed = _TYPED if page == "README.md" else 0
    found = blocks(page)
    for block in found:
        if block.title:
            (workplace.folder / block.title).write_text(block.text)
    importlib.invalidate_caches()
    names: dict = {"__name__": __name__}
    for block in found:
        assert block.language in ("", "python", "json"), f"{page}: what is a block of {block.language}?"
        if block.language == "python" and not block.title:
            exec(compile(block.text, page, "exec", dont_inherit=True), names)
        elif not block.language:
            for line in commands(block.text):
                if line.startswith("voxplain "):
                    # Once: pages repeat each other's.
                    if line in workplace.done:
                        continue
                    words = shlex.split(line)[1:]
                    if line.startswith(_READ) and page != "README.md":
                        assert run(*words, "--help")[0] == 0, line
                        continue
                    call, typed = (as_typed if typed > 0 else run), typed - 1
                    code, out, error = call(*words, *(["--quick"] if words[0] in LONG else []))
                    assert code == 0, f"{line}\n{out}\n{error}"
                    workplace.done.add(line)
                else:
                    assert line.startswith("make "), f"{page}: nobody knows whether this works: {line}"
    if page == "README.md":
        assert (workplace.folder / "out" / "relevance-map.nii.gz").is_file()
        assert (workplace.folder / "out" / "report.html").is_file()
        assert (workplace.folder / "runs" / "hemispheres" / "final" / "weights.safetensors").is_file()
        assert (workplace.folder / "runs" / "study" / "scores.tsv").is_file()


def test_make_lines_are_targets():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = "\n".join(block.text for block in blocks("README.md") if not block.language)
    made = [line.split()[1] for line in commands(text) if line.startswith("make ")]
    assert made == ["demo", "test"]
    assert set(made) <= set(targets)


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/phantoms.md", "docs/how-to/score-maps.md"])
def test_commands_were_found(page):
    text = "\n".join(block.text for block in blocks(page) if not block.language)
    assert len([line for line in commands(text) if line.startswith("voxplain ")]) >= 2


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_documented_explainer_is_one(workplace, monkeypatch):
    import voxplain as vx

    monkeypatch.chdir(workplace.folder)
    text = next(block.text for block in blocks("docs/how-to/add-an-explainer.md") if block.language == "python")
    names: dict = {"__name__": __name__}
    exec(compile(text, "docs/how-to/add-an-explainer.md", "exec", dont_inherit=True), names)
    why = names["LeaveOneChannelOut"]()(vx.load_model("tumour-hemisphere"), vx.read("demo/made-scan"))
    assert why.channels == ("flair", "t1", "t1ce", "t2")
    assert why.map.any()
