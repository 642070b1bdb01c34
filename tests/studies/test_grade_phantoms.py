"""The grade check on phantoms: what a top supervoxel lies on by hand, sums by hand, and a run from end to end."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import voxplain as vx
from voxplain import cli
from voxplain.datasets.phantom import SHORTCUT_CENTRE_MM, glioma
from voxplain.studies import cross_validation
from voxplain.studies.grade_phantoms import judged, markdown, marker_mask, scores, study
from voxplain.studies.scoring import CASE_COLUMNS

CPU = vx.Compute(device="cpu", threads=1)


def explanation(values: list[float]) -> vx.Explanation:
    """Four parts of 2 x 4 x 4 voxels along x."""
    parts = np.repeat(np.arange(1, 5), 2)[:, None, None] * np.ones((1, 4, 4), dtype=int)
    grid = vx.Grid((8, 4, 4), np.eye(4))
    painted = np.array([0.0, *values])[parts][None]
    return vx.Explanation(painted, ("all",), grid, False, "u", (), vx.Labels(parts, grid), np.array(values))


def test_where_the_top_supervoxel_lies() -> None:
    tumour = np.zeros((8, 4, 4), dtype=int)
    tumour[2:4] = 4  # all of part 2
    tumour[4, :, :] = 2  # half of part 3
    marker = np.zeros((8, 4, 4), dtype=bool)
    marker[5:8, 0, 0] = True  # one voxel of part 3, two of part 4
    labels = vx.Labels(tumour, explanation([0, 0, 0, 1]).grid)
    expected = {1: (0, 0, 0.0, 0), 2: (1, 1, 1.0, 0), 3: (0, 1, 0.5, 0), 4: (0, 0, 0.0, 1)}
    for top, (inside, touches, share, on) in expected.items():
        why = explanation([float(part == top) for part in range(1, 5)])
        found = judged(why, labels, marker)
        assert found == {
            "top_inside_tumour": inside,
            "top_touches_tumour": touches,
            "share_in_tumour": share,
            "top_on_shortcut": on,
        }
        assert "top_on_shortcut" not in judged(why, labels, None)


def test_a_map_without_parts_is_refused() -> None:
    why = explanation([0, 0, 0, 1])
    bare = vx.Explanation(why.map, why.channels, why.grid, False, "u", ())
    with pytest.raises(vx.InputError, match="a map of parts"):
        judged(bare, vx.Labels(np.zeros((8, 4, 4), dtype=int), why.grid), None)


def test_the_marker_is_where_phantoms_bear_it() -> None:
    with_marker, without = (glioma(3, shortcut=shortcut, brightness=8).scan for shortcut in (True, False))
    marker = marker_mask(with_marker.grid)
    # A ball of 5 mm has 524 mm^3.
    assert marker.sum() * with_marker.grid.voxel_volume == pytest.approx(524, rel=0.25)
    middle = with_marker.grid.world(np.argwhere(marker)).mean(axis=0)
    np.testing.assert_allclose(middle, SHORTCUT_CENTRE_MM, atol=0.6)
    t2, before = with_marker.channel("t2"), without.channel("t2")
    assert t2[marker].mean() > 2.5 * before[marker].mean()
    assert t2[marker].mean() > np.quantile(t2[t2 != 0], 0.999)


def test_an_impossible_brightness() -> None:
    for brightness in (0, -1, np.nan, np.inf):
        with pytest.raises(vx.InputError, match="brightness of a shortcut"):
            glioma(0, shortcut=True, brightness=brightness)


def test_sums_by_hand() -> None:
    rows = []
    for number in range(8):
        grade = "HGG" if number % 2 else "LGG"
        case = (f"c{number}", f"p{number}", number // 4, "whole", "shortcut")
        rows.append((*case, "network", "label", "plain", float(number % 2)))
        rows.append((*case, "network", "probability", "plain", number / 10))
        rows.append((*case, f"relevance-map/{grade}", "top_inside_tumour", "plain", float(number > 2)))
        if number % 2:
            rows.append((*case, f"relevance-map/{grade}", "top_on_shortcut", "plain", float(number > 1)))
    table = scores(pd.DataFrame(rows, columns=list(CASE_COLUMNS)))
    values = {(line.row, line.metric): (line.value, line.n) for line in table.itertuples()}
    # In each fold three of four pairs are in order.
    assert values["network", "auc"] == (0.75, 8)
    assert values["relevance-map", "top_inside_tumour"] == (5 / 8, 8)
    assert values["relevance-map/HGG", "top_inside_tumour"] == (3 / 4, 4)
    assert values["relevance-map/LGG", "top_inside_tumour"] == (2 / 4, 4)
    assert values["relevance-map/HGG", "top_on_shortcut"] == (3 / 4, 4)
    assert ("relevance-map", "top_on_shortcut") not in values
    text = markdown(table, "too few to mean anything (LGG: 4 patients)")
    assert "phantom (software check)**: grade of made gliomas; too few to mean anything (LGG: 4 patients)" in text
    assert text.count(">= 0.95: missed") == 2


def test_too_few_phantoms(tmp_path: Path) -> None:
    with pytest.raises(vx.InputError, match="at least 6 patients, three of each grade; got 4"):
        study(tmp_path / "out", n=4, compute=CPU)
    with pytest.raises(vx.InputError, match="preset is one of"):
        study(tmp_path / "out", preset="huge", compute=CPU)
    assert not (tmp_path / "out").exists()


def test_from_the_command_to_tables_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "grade-phantoms", "--out", str(tmp_path), "--quick", "--device", "cpu", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["voxplain", *words])
    with contextlib.suppress(SystemExit):
        cli.main()
    printed = capsys.readouterr().out
    assert "phantom (software check)" in printed
    assert "too few to mean anything (HGG: 3 patients, LGG: 3 patients)" in printed
    names = {"plain", "shortcut", "cases.tsv", "scores.tsv", "tables.md", "provenance.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    table = pd.read_csv(tmp_path / "scores.tsv", sep="\t")
    assert set(table["table"]) == {"plain", "shortcut"}
    assert (table.loc[table["metric"] == "auc", "n"] == 6).all()
    assert (table.loc[table["metric"] == "top_on_shortcut", "n"] == 3).all()
    facts = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    assert (facts["what"], facts["n"], facts["folds"]) == ("phantom (software check)", 6, 5)
    # What is there is kept: nothing is trained or explained again.
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(cross_validation, "train", None)
    monkeypatch.setattr("voxplain.studies.grade_phantoms.judged", None)
    study(tmp_path, n=6, preset="quick", compute=CPU, console=Console(file=io.StringIO()))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
