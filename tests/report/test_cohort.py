"""The page of a cohort: what it says, that it escapes names, and that it needs nothing from outside."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxplain.errors import InputError
from voxplain.report.cohort import CasePicture, Distribution, cohort_report

EVIL = "</script><img src=x onerror=alert(1)>\"'&"


def picture(case: str, value: float, words: str = "") -> CasePicture:
    target = io.BytesIO()
    Image.new("RGB", (8, 8)).save(target, format="WEBP")
    return CasePicture(case, value, words, target.getvalue())


def page(path: Path, **changed) -> str:
    given = {
        "title": "Hemispheres: 4 patients",
        "summary": ["The map does not beat it."],
        "figure": "Dice",
        "distributions": [
            Distribution("map/otsu", "deployable", {"a": 0.1, "b": 0.9, "c": 0.9}, 0.63, 0.1, 0.9, 3),
            Distribution("intensity/flair", "deployable", {"a": 0.5, "b": 0.5, "c": float("nan")}, 0.5, 0.5, 0.5, 2),
            Distribution("map/best-grouping", "oracle", {}, float("nan"), float("nan"), float("nan"), 0),
        ],
        "pictured": "map/otsu",
        "pictures": [picture(f"case{i}", i / 10) for i in range(9)],
        "tables": {"Halves": [("row", "kind", "dice", "n"), ("map/otsu", "deployable", "0.63 [0.10, 0.90]", "3")]},
        "provenance": {"seed": 0, "file": "/home/someone/secret/scan.nii.gz"},
    } | changed
    return cohort_report(path / "report.html", **given).read_text(encoding="utf-8")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_nothing_from_outside_and_runs_no_script(tmp_path):
    tags = Tags(page(tmp_path))
    assert not [tag for tag, _ in tags.found if tag in ("script", "link", "iframe", "object")]
    sources = [attrs["src"] for _, attrs in tags.found if attrs.get("src")]
    assert sources
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    policy = next(attrs["content"] for tag, attrs in tags.found if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_best_and_worst_stand_open_in_order_and_the_rest_between(tmp_path):
    text = page(tmp_path)
    captions = re.findall(r"<b>(case\d)</b>: Dice <b>(\d\.\d\d)</b>", text)
    assert [case for case, _ in captions] == [f"case{i}" for i in (8, 7, 6, 0, 1, 2, 5, 4, 3)]
    assert captions[0] == ("case8", "0.80")
    # One case alone is neither the best nor the worst.
    alone = page(tmp_path, pictures=[picture("only", 0.4)])
    assert "Worst" not in alone
    assert "only" in alone


def test_points_lie_where_the_figures_are_and_never_on_each_other(tmp_path):
    text = page(tmp_path)
    points = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="2.8"><title>(\w+): ([\d.]+)<', text)
    assert {(case, float(x) / 600) for x, _, case, _ in points} == {
        ("a", 0.1),
        ("b", 0.9),
        ("c", 0.9),
        ("a", 0.5),
        ("b", 0.5),
    }
    first = [(x, y) for x, y, case, value in points if value in ("0.10", "0.90")]
    assert len(set(first)) == 3
    assert "0.63" in text
    assert "[0.10, 0.90]" in text


def test_every_row_of_every_table_carries_its_kind(tmp_path):
    text = page(tmp_path)
    for kind in ("deployable", "oracle"):
        assert f'<span class="kind {kind}">{kind}</span>' in text
    assert "no expert mask of any patient was looked at" in text


def test_names_are_escaped_and_paths_cut(tmp_path):
    text = page(
        tmp_path,
        title=EVIL,
        summary=[EVIL],
        note=EVIL,
        pictured=EVIL,
        pictures=[picture(EVIL, 0.5, EVIL), picture("b", 0.1)],
        distributions=[Distribution(EVIL, "oracle", {EVIL: 0.5}, 0.5, 0.4, 0.6, 1)],
        tables={EVIL: [("row", "kind", "n"), (EVIL, "oracle", EVIL)]},
    )
    tags = Tags(text)
    assert not [tag for tag, attrs in tags.found if tag == "script" or "onerror" in attrs]
    assert any(EVIL in words for words in tags.words)
    assert "secret" not in text
    assert "scan.nii.gz" in text


def test_a_figure_outside_0_to_1_and_a_place_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(InputError, match="0 to 1"):
        page(tmp_path, distributions=[Distribution("hd95", "deployable", {"a": 14.0}, 14, 13, 15, 1)])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        page(tmp_path / "file")


def test_many_equal_figures_stay_within_their_strip(tmp_path):
    values = dict.fromkeys(map(str, range(60)), 0.0)
    text = page(tmp_path, distributions=[Distribution("map/otsu", "deployable", values, 0.0, 0.0, 0.0, 60)])
    heights = np.array([float(y) for y in re.findall(r'cy="([\d.]+)"', text)])
    assert len(heights) == 60
    assert heights.min() >= 0
    assert heights.max() <= 34


def test_cases_without_a_figure_are_neither_best_nor_worst(tmp_path):
    values = [0.5, float("nan"), 0.9, 0.1]
    text = page(tmp_path, pictures=[picture(f"case{i}", value) for i, value in enumerate(values)], ends=1)
    captions = re.findall(r"<b>(case\d)</b>: Dice <b>(.*?)</b>", text)
    assert captions == [("case2", "0.90"), ("case3", "0.10"), ("case0", "0.50"), ("case1", "–")]


def test_pictures_carry_the_kind_of_their_row(tmp_path):
    text = page(tmp_path)
    assert re.search(r"<h2>Best cases of map/otsu, whole scans\s*<span class=\"kind deployable\">deployable<", text)
    assert re.search(r"<h2>Worst cases\s*<span class=\"kind deployable\">deployable<", text)
