"""`make bench`, as a smoke run of the command that it calls."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]


def test_the_smoke_run_writes_every_table(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "perturbation.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    figures = pd.read_csv(tmp_path / "performance.tsv", sep="\t")
    assert list(figures["section"].unique()) == ["captum", "occlusion", "growth", "profile", "settings"]
    assert figures["value"].notna().all()
    deviations = figures[figures["metric"].str.startswith("largest deviation")]
    assert len(deviations) == 3
    assert (deviations["value"] <= 1e-5).all()
    assert "### growth" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "growth.svg").read_text().startswith("<?xml")
    assert f"benchmarks/{Path(command[1]).name} --out" in (ROOT / "Makefile").read_text()


def test_the_smoke_run_of_the_jacobian_finds_both_maps_equal(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "jacobian.py"), "--quick", "--copies", "1", "--passes", "2"]
    command += ["--timed-copies", "1", "--sample-copies", "1", "--squared-radius", "10", "--most-voxels", "64"]
    done = subprocess.run(
        [*command, "--threads", "1", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1", "VOXPLAIN_DATA": ""},
    )
    assert done.returncode == 0, done.stderr
    figures = pd.read_csv(tmp_path / "jacobian.tsv", sep="\t")
    assert list(figures["case"].unique()) == ["machine", "whole", "windows", "sample"]
    assert figures["value"].notna().all()
    deviations = figures[(figures["metric"] == "largest deviation of the map, of its peak") & (figures["n"] > 0)]
    assert (deviations.loc[deviations["case"] != "sample", "value"] <= 1e-5).all()
    # A sample is one: its maxima are at most those of all voxels.
    maxima = figures[figures["metric"].str.contains("maximum over that of all voxels")]
    assert len(maxima) == 2


def test_the_tables_of_the_performance_page_are_those_that_were_measured() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    sys.modules["tables"] = tables  # dataclasses look their module up
    spec.loader.exec_module(tables)
    results = ROOT / "docs" / "results"
    figures = pd.read_csv(results / "performance.tsv", sep="\t")
    assert tables.markdown(figures) in (results / "performance.md").read_text()
    assert "performance-growth.svg" in (results / "performance.md").read_text()
