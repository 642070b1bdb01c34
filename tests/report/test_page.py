"""The page as a file: self-contained, escaped, private, and clear about what does not fit."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import voxplain as vx
from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.grid import Grid
from voxplain.report.page import report
from voxplain.report.rendering import in_script, inline_script, viewer_script
from voxplain.scan import Labels, Scan

NASTY = "</script><img src=x onerror=\"document.title='bad'\"> 'ü' & \u2028 {{ 7*7 }}"


class Page(HTMLParser):
    """The elements, attributes, scripts and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and data.strip():
            self.scripts.append(data)
        else:
            self.text += data


def written(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def scan(make_head: Any) -> Scan:
    return make_head((20, 24, 20), 8.0).scan()


def test_the_viewer_comes_with_nilearn() -> None:
    assert version("nilearn").startswith("0.14.")
    script = viewer_script()
    assert len(script) > 1_000_000
    assert "NVImage" in script
    assert "Niivue" in script


def test_the_viewer_is_not_in_our_repository() -> None:
    package = Path(vx.__file__).parent
    assert all(path.stat().st_size < 100_000 for path in package.rglob("*.js"))


def test_a_page_stands_alone(scan: Scan, parts_map: Callable[..., Explanation], top_mask: Any, tmp_path: Path) -> None:
    why = parts_map(scan)
    assert (
        vx.report(scan, [why], masks=[top_mask(why)], path=tmp_path / "new" / "page.html")
        == tmp_path / "new" / "page.html"
    )
    page = written(tmp_path / "new" / "page.html")
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert tag == "img" or "src" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    for said in ("left half", "0.900", "positive from 0.400", "There is no expert mask", "relevance-map", "t1"):
        assert said in page.text
    assert "Oracle" not in page.text


def test_only_our_two_scripts_may_run(scan: Scan, parts_map: Callable[..., Explanation], tmp_path: Path) -> None:
    page = written(report(scan, [parts_map(scan)], path=tmp_path / "page.html"))
    (policy,) = [a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split(";")[1]
    data, *scripts = page.scripts
    assert len(scripts) == 2
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert json.loads(data)["sequences"][0]["name"] == "flair"


def test_names_are_text_and_nothing_else(
    scan: Scan, parts_map: Callable[..., Explanation], voxel_map: Callable[..., Explanation], tmp_path: Path
) -> None:
    whys = []
    for why in (parts_map(scan), voxel_map(scan, channels=2)):
        provenance = why.provenance | {
            "target": {"name": NASTY},
            "model": {"name": NASTY, "threshold": 0.3},
            "warnings": [NASTY],
            NASTY: NASTY,
        }
        regions = tuple(replace(region, name=NASTY) for region in why.regions)
        names = tuple(f"{NASTY}{index}" for index in range(len(why.channels)))
        whys.append(replace(why, provenance=provenance, regions=regions, unit=NASTY, channels=names))
    nasty = Scan(scan.data, scan.grid, (NASTY, "t1", "t1ce", "t2"))
    figures = pd.DataFrame({"row": [NASTY], "kind": [NASTY], NASTY: [1.0]})
    path = tmp_path / 'a"<b>.html'
    report(nasty, whys, names=[NASTY, NASTY], title=NASTY, note=NASTY, figures=figures, path=path)
    page = written(path)
    assert {tag for tag, attributes in page.elements if attributes.get("src") == "x"} == set()
    assert len(page.scripts) == 3
    assert page.text.count(NASTY) >= 10
    assert "49" not in re.findall(r"& . (\d+|\{\{)", page.text)
    assert json.loads(page.scripts[0])["sequences"][0]["name"] == NASTY


def test_escapes() -> None:
    assert json.loads(in_script({"a": NASTY})) == {"a": NASTY}
    assert not set("<>&\u2028\u2029") & set(in_script({"a": NASTY + "\u2029"}))
    assert inline_script("a = '</script>' + '<!--'") == "a = '<\\/script>' + '<\\!--'"


def test_pages_name_no_folder(scan: Scan, parts_map: Callable[..., Explanation], tmp_path: Path) -> None:
    why = parts_map(scan)
    sources = {"flair": "/home/ada/patients/P_flair.nii.gz"}
    why = replace(why, provenance=why.provenance | {"sources": sources, "fill": "optimal:/home/ada/net"})
    text = report(scan, [why], path=tmp_path / "page.html").read_text(encoding="utf-8")
    assert "P_flair.nii.gz" in text
    assert "ada" not in Page(text).text
    assert "/home/ada" not in text


def test_the_same_input_gives_the_same_page(
    scan: Scan, parts_map: Callable[..., Explanation], top_mask: Any, tmp_path: Path
) -> None:
    why = parts_map(scan)
    pages = [
        report(scan, [why], masks=[top_mask(why)], path=tmp_path / name).read_bytes() for name in ("a.html", "b.html")
    ]
    assert pages[0] == pages[1]


def test_figures_stand_on_the_page_with_their_kind(
    scan: Scan, parts_map: Callable[..., Explanation], top_mask: Any, tmp_path: Path
) -> None:
    why = parts_map(scan)
    truth = Labels(top_mask(why).data * 4, scan.grid)
    page = written(report(scan, [why], masks=[top_mask(why)], truth=truth, path=tmp_path / "a.html"))
    for said in ("intensity/flair", "whole-brain", "oracle", "deployable", "beats the best of what needs no network"):
        assert said in page.text
    seen = replace(why, provenance=why.provenance | {"seen": True})
    page = written(report(scan, [seen], masks=[top_mask(why)], truth=truth, path=tmp_path / "b.html"))
    assert "The network was trained on this scan" in page.text


@pytest.mark.parametrize(
    "case", ["zero", "signed", "channels", "no mask", "empty mask", "one sequence", "negative", "no regions"]
)
def test_odd_inputs(scan: Scan, voxel_map: Callable[..., Explanation], case: str, tmp_path: Path) -> None:
    why = voxel_map(scan, zero=case == "zero", signed=case == "signed", channels=3 if case == "channels" else 1)
    mask = None if case == "no mask" else Labels(np.zeros(scan.grid.shape), scan.grid)
    if case == "one sequence":
        scan = scan.select(["t1"])
    if case == "negative":
        scan = Scan(np.where(scan.foreground(), scan.data - 5000, 0), scan.grid, scan.channels)
    if case == "no regions":
        why = replace(why, regions=(), provenance={})
    page = written(report(scan, [why], masks=[mask], truth=mask, path=tmp_path / "page.html"))
    assert len(json.loads(page.scripts[0])["methods"][0]["channels"]) == (4 if case == "channels" else 1)


def test_a_flat_image(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((1, 40, 50, 1))
    flat = Scan(data, Grid((40, 50, 1), np.diag([-0.5, -0.5, 3.0, 1.0])), ("t1",))
    page = written(report(flat, [Explanation(data, ("all",), flat.grid, False, "u", ())], path=tmp_path / "page.html"))
    content = json.loads(page.scripts[0])
    assert content["shape"] == [40, 50, 1]
    assert content["flat"] == 2


def test_what_does_not_fit_is_refused(
    make_head: Any, scan: Scan, parts_map: Callable[..., Explanation], tmp_path: Path
) -> None:
    why = parts_map(scan)
    other = make_head((20, 24, 20), 7.0).scan()
    path = tmp_path / "page.html"
    with pytest.raises(
        InputError, match=r"the map relevance-map does not lie .*: spacing 7 x 7 x 7 mm against 8 x 8 x 8"
    ):
        report(other, [why], path=path)
    with pytest.raises(
        InputError, match=r"the expert mask does not lie on the scan's grid.*20 × 24 × 20 voxels of 8 × 8 × 8"
    ):
        report(scan, [why], truth=Labels(other.foreground(), other.grid), path=path)
    with pytest.raises(InputError, match="the mask of relevance-map does not lie"):
        report(scan, [why], masks=[Labels(other.foreground(), other.grid)], path=path)
    with pytest.raises(InputError, match="at least one map"):
        report(scan, [], path=path)
    with pytest.raises(InputError, match=r"one mask \(or None\) per map: expected 1, got 0"):
        report(scan, [why], masks=[], path=path)
    with pytest.raises(InputError, match="one name per map: expected 1, got 2"):
        report(scan, [why], names=["a", "b"], path=path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        report(scan, [why], path=tmp_path / "file" / "page.html")
    assert not path.exists()


def test_a_scan_at_2_mm_takes_less_than_8_mb(
    make_head: Any, parts_map: Callable[..., Explanation], tmp_path: Path
) -> None:
    scan = make_head((80, 96, 80), 2.0).scan()
    assert report(scan, [parts_map(scan)], path=tmp_path / "page.html").stat().st_size < 8e6


def test_maps_that_are_no_numbers_and_names_that_are_taken_are_refused(
    scan: Scan, parts_map: Callable[..., Explanation], voxel_map: Callable[..., Explanation], tmp_path: Path
) -> None:
    path, why = tmp_path / "page.html", parts_map(scan)
    assert why.scores is not None
    nowhere = replace(why, scores=np.where(why.scores == why.scores.max(), np.nan, why.scores))
    # Finite in each sequence, infinite in their sum.
    huge = replace(voxel_map(scan, channels=2), map=np.full((2, *scan.grid.shape), 3e38, np.float32))
    for wrong, said in (
        (replace(why, map=why.map * np.inf), "NaN or infinite"),
        (nowhere, "scores"),
        (huge, "its sum"),
    ):
        with np.errstate(all="ignore"), pytest.raises(InputError, match=said):
            report(scan, [wrong], path=path)
    with pytest.raises(InputError, match="whole-brain is what the report calls a row that needs no network"):
        report(scan, [why], names=["whole-brain"], path=path)
    with pytest.raises(InputError, match="columns row, kind and metrics; got dice"):
        report(scan, [why], figures=pd.DataFrame({"dice": [0.5]}), path=path)
    with pytest.raises(InputError, match="the metrics of figures are numbers; those of dice are"):
        report(scan, [why], figures=pd.DataFrame({"row": ["a"], "kind": ["plain"], "dice": ["x"]}), path=path)
    assert not path.exists()


def test_an_empty_expert_mask_gives_volumes_and_no_dice(
    scan: Scan, parts_map: Callable[..., Explanation], top_mask: Any, tmp_path: Path
) -> None:
    why, nothing = parts_map(scan), Labels(np.zeros(scan.grid.shape), scan.grid)
    for mask in (top_mask(why), nothing):
        page = written(report(scan, [why], masks=[mask], truth=nothing, path=tmp_path / "page.html"))
        assert "The expert mask is empty" in page.text
        text = page.text.split("How well does it do")[1]
        assert "beat" not in text
        assert "oracle" not in text
        assert "volume of the mask" in page.text


def test_of_two_networks_the_one_that_has_seen_the_scan_is_named(
    scan: Scan, parts_map: Callable[..., Explanation], top_mask: Any, tmp_path: Path
) -> None:
    new, old = (replace(parts_map(scan), provenance={"seen": value}) for value in (False, True))
    masks = [top_mask(new)] * 2
    path = report(scan, [new, old], masks=masks, truth=masks[0], names=["new", "old"], path=tmp_path / "page.html")
    page = written(path)
    assert "The network of old was trained on this scan." in page.text
    assert "new: Dice 1.000 (deployable)" in page.text
    assert "old: Dice 1.000 (seen)" in page.text


def test_a_map_of_the_smallest_values_is_kept(
    scan: Scan, voxel_map: Callable[..., Explanation], tmp_path: Path
) -> None:
    why = voxel_map(scan)
    tiny = replace(why, map=why.map * np.float32(1e-42))
    page = written(report(scan, [tiny], path=tmp_path / "page.html"))
    assert json.loads(page.scripts[0])["methods"][0]["channels"][0]["slope"] > 0
    assert page.text.count("zero everywhere") == 0
