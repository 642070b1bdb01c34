"""What the page says of checks: passed, failed and not tested, each with its figures and what it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxplain.explanation import Explanation
from voxplain.report.facts import figure_table, is_taken, provenance_lines
from voxplain.report.figures import scan_figures
from voxplain.report.page import report
from voxplain.report.trust import QUESTIONS, questions, trust
from voxplain.scan import Labels

CHECKS = {
    "lines": {
        "deletion/insertion": {"verdict": "passed", "said": "whole: area under deletion 0.19", "regions": {}},
        "weight randomisation": {"verdict": "failed", "said": "rank correlation <b>0.91</b>"},
        "FLAIR intensity": {"verdict": "not tested", "said": "nothing"},
    },
    "run": {"quick": False},
}


def checked(why: Explanation, **run: object) -> Explanation:
    return replace(why, provenance=why.provenance | {"checks": CHECKS | {"run": run}})


def test_lines_of_a_checked_map(make_head: Any, parts_map: Callable[..., Explanation]) -> None:
    why = parts_map(make_head((20, 24, 20), 8.0).scan())
    (found,) = trust(["map"], [checked(why)])
    assert [(line.check, line.verdict) for line in found.lines] == [
        ("deletion/insertion", "passed"), ("weight randomisation", "failed"), ("FLAIR intensity", "not tested"),
    ]  # fmt: skip
    assert found.note == ""
    assert [name for name, _ in questions([found])] == [line.check for line in found.lines]
    (quick,) = trust(["map"], [checked(why, quick=True)])
    assert quick.note == "A smoke run: these verdicts mean nothing."


def test_a_map_that_nobody_checked_is_not_tested(make_head: Any, parts_map: Callable[..., Explanation]) -> None:
    (found,) = trust(["map"], [parts_map(make_head((20, 24, 20), 8.0).scan())])
    (line,) = found.lines
    assert (line.check, line.verdict) == ("all tests", "not tested")
    assert "voxplain check" in line.said
    assert dict(questions([found])) == QUESTIONS


def test_the_page_says_it_and_keeps_the_curves_to_itself(
    make_head: Any, parts_map: Callable[..., Explanation], tmp_path: Path
) -> None:
    scan = make_head((20, 24, 20), 8.0).scan()
    why = checked(parts_map(scan))
    page = report(scan, [why, parts_map(scan)], names=["tested", "not"], path=tmp_path / "page.html").read_text("utf-8")
    for text in (
        '<span class="outcome passed">passed</span> whole: area under deletion 0.19',
        '<span class="outcome failed">failed</span> rank correlation &lt;b&gt;0.91&lt;/b&gt;',
        '<span class="outcome not-tested">not tested</span>',
        "does the map change when the network forgets",
    ):
        assert text in page
    assert "checks" not in dict(provenance_lines(why, None))


def test_controls_are_maps_that_need_no_network(
    make_head: Any, parts_map: Callable[..., Explanation], top_mask: Callable[[Explanation], Labels]
) -> None:
    scan = make_head((20, 24, 20), 8.0).scan()
    why = parts_map(scan)
    rows = {"relevance-map": why, "edge-detector": why, "random-map seed=1": why}
    assert not any(is_taken(name) for name in rows)
    table = figure_table(scan_figures(scan, rows, {name: top_mask(map_) for name, map_ in rows.items()}, top_mask(why)))
    groups = {row.name: row.group for row in table.rows}
    assert [groups[name] for name in rows] == ["map", "free", "free"]
