"""How much the fill matters: which maps are compared, what is said, and what stands on the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import voxplain as vx
from voxplain.explanation import Explanation
from voxplain.report.sensitivity import sensitivities
from voxplain.scan import Scan


@pytest.fixture
def scan(make_head: Any) -> Scan:
    return make_head((20, 24, 20), 8.0).scan()


@pytest.fixture
def why(scan: Scan, parts_map: Callable[..., Explanation]) -> Explanation:
    return parts_map(scan)


def filled(why: Explanation, fill: str, scores: np.ndarray | None = None, **provenance: Any) -> Explanation:
    """The map as another fill would have made it, with other scores of the same parts."""
    assert why.parts is not None
    options = why.provenance["options"] | {"fill": fill} | provenance.pop("options", {})
    found = why.scores if scores is None else scores
    painted = np.concatenate([[0.0], found])[why.parts.data][None]
    return replace(why, map=painted, scores=found, provenance=why.provenance | {"options": options} | provenance)


class Cells(HTMLParser):
    """Captions, header cells and rows of all tables of the class heat."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.captions: list[str] = []
        self.rows: list[list[str]] = []
        self.within = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.within = "heat" in (dict(attrs).get("class") or "") if tag == "table" else self.within
        if self.within and tag == "tr":
            self.rows.append([])
        if self.within and tag in ("td", "th"):
            self.rows[-1].append("")
        if self.within and tag == "caption":
            self.captions.append("")
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.within = self.within and tag != "table"

    def handle_data(self, data: str) -> None:
        if self.within and self.inside == "caption":
            self.captions[-1] += data.strip()
        elif self.within and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_two_fills_of_one_method_stand_on_the_page(scan: Scan, why: Explanation, tmp_path: Path) -> None:
    assert why.scores is not None
    path = vx.report(scan, [why, filled(why, "mirror", -why.scores)], path=tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert "How much the fill matters" in text
    assert "rank the parts with a correlation of −1.00, with 0 of the 3 highest parts in common" in text
    assert "The first place depends on the fill" in text
    cells = Cells(path)
    assert cells.captions[1] == "Of the 3 highest parts, those in common"
    assert ["fill", "blank", "mirror"] in cells.rows
    assert ["blank", "1.00", "−1.00"] in cells.rows
    assert ["mirror", "0/3", "3/3"] in cells.rows


def test_three_fills_name_the_two_that_are_least_alike(why: Explanation) -> None:
    assert why.scores is not None
    shifted = np.roll(why.scores, 1)
    (found,) = sensitivities([why, filled(why, "noise"), filled(why, "optimal:/home/ada/net", shifted)])
    assert found.of == "relevance-map for tumour, |change of probability|"
    positive, negative = found.regions
    assert (positive.region, positive.positive) == ("left half", True)
    assert (negative.region, negative.positive) == ("right half", False)
    assert "are least alike" in positive.said
    assert "optimal:net" in positive.said
    assert positive.tables[0].columns == ("blank", "noise", "optimal:net")
    assert [cell.words for cell in positive.tables[0].rows[0][1]][:2] == ["1.00", "1.00"]


def test_the_positive_region_comes_first(scan: Scan, parts_map: Callable[..., Explanation]) -> None:
    why = parts_map(scan, probabilities=(0.1, 0.9))
    (found,) = sensitivities([why, filled(why, "mirror")])
    assert [region.region for region in found.regions] == ["right half", "left half"]
    assert "Both put the same part first" in found.regions[0].said


def test_maps_that_differ_in_more_than_the_fill_are_not_compared(why: Explanation) -> None:
    assert why.parts is not None
    assert why.scores is not None
    order = np.arange(len(why.scores), 0, -1)
    renumbered = replace(
        filled(why, "mirror", why.scores[::-1]),
        parts=vx.Labels(np.concatenate([[0], order])[why.parts.data], why.grid),
        map=why.map,
    )
    others = [
        filled(why, "blank"),
        filled(why, "mirror", options={"scale": "logit"}),
        filled(why, "mirror", explainer="voxplain.explain.lime:LIME"),
        filled(why, "mirror", model={"name": "tiny", "fingerprint": "f" * 16}),
        filled(why, "mirror", target={"kind": "ClassScore", "name": "oedema"}),
        filled(why, "mirror", seed=1),
        renumbered,
        replace(filled(why, "mirror"), parts=None, scores=None),
        replace(filled(why, "mirror"), regions=()),
        replace(why, provenance={}),
    ]
    for other in others:
        assert sensitivities([why, other]) == []


def test_the_scope_is_part_of_minimum_and_maximum_only(why: Explanation) -> None:
    whole = {"scope": "sequence"}
    (found,) = sensitivities([filled(why, "min", options={"scope": "region"}), filled(why, "min", options=whole)])
    assert found.regions[0].tables[0].columns == ("min", "min of the sequence")
    assert sensitivities([filled(why, "blank", options={"scope": "region"}), filled(why, "blank", options=whole)]) == []


def test_two_networks_in_folders_of_one_name_are_two_fills(why: Explanation) -> None:
    (found,) = sensitivities([filled(why, "optimal:/a/net"), filled(why, "optimal:/b/net")])
    assert found.regions[0].tables[0].columns == ("optimal:net", "optimal:net (2)")


def test_a_fill_that_moves_nothing_is_said_and_dashed(why: Explanation) -> None:
    assert why.scores is not None
    zero = np.zeros(len(why.scores))
    (found,) = sensitivities([why, filled(why, "noise"), filled(why, "mirror", zero)])
    region = found.regions[0]
    assert "rank the parts with a correlation of 1.00" in region.said
    assert "With mirror all parts are equally relevant: there are no ranks to compare." in region.said
    assert [cell.words for cell in region.tables[0].rows[2][1]] == ["–", "–", "–"]
    (found,) = sensitivities([filled(why, "noise", zero), filled(why, "mirror", zero)])
    assert found.regions[0].said.startswith("With noise and mirror all parts are equally relevant")
    assert found.regions[0].tables == ()


def test_a_single_part_is_no_ranking(why: Explanation) -> None:
    assert why.parts is not None
    left = np.zeros(why.grid.shape, dtype=int)
    left[why.regions[0].slices] = why.parts.data[why.regions[0].slices] > 0
    one = replace(why, parts=vx.Labels(left, why.grid), scores=np.array([0.5]))
    (found,) = sensitivities([one, filled(one, "mirror")])
    assert [region.said for region in found.regions] == [
        "One part is no ranking: there is nothing to compare.",
        "No part is no ranking: there is nothing to compare.",
    ]
    assert {region.tables for region in found.regions} == {()}


def test_few_parts_have_no_table_of_the_highest(why: Explanation) -> None:
    (found,) = sensitivities([why, filled(why, "mirror")], k=1000)
    assert len(found.regions[0].tables) == 1
    assert "in common" not in found.regions[0].said


def test_one_map_has_no_such_section(scan: Scan, why: Explanation, tmp_path: Path) -> None:
    text = vx.report(scan, [why], path=tmp_path / "page.html").read_text(encoding="utf-8")
    assert "How much the fill matters" not in text
    assert "Which sequence carries" not in text
