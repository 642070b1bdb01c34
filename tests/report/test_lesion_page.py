"""The page of lesions: what its list says, which maps it holds, and what it refuses."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.grid import Grid
from voxplain.lesions import Lesions, find_lesions
from voxplain.report.lesion_maps import LesionMap
from voxplain.report.lesion_page import lesion_report
from voxplain.scan import Labels, Scan
from voxplain.target import RegionScore

GRID = Grid((24, 28, 20), np.array([[-2.0, 0, 0, 23], [0, 2, 0, -25], [0, 0, 2.5, -24], [0, 0, 0, 1]]))


def made() -> tuple[Scan, Lesions]:
    """A block of tissue with three lesions, one of them missed and one wrong."""
    rng = np.random.default_rng(0)
    data = np.zeros((2, *GRID.shape))
    data[:, 2:-2, 2:-2, 2:-2] = rng.uniform(1, 2, (2, 20, 24, 16))
    mask, reference = np.zeros((2, *GRID.shape), int)
    mask[5:9, 6:10, 5:8] = mask[14:16, 16:19, 10:12] = 1
    reference[5:8, 6:10, 5:8] = reference[16:19, 6:8, 12:14] = 1
    probability = np.where(mask > 0, 0.8, 0.1).astype(np.float32)
    lesions = find_lesions(Labels(mask, GRID), probability=probability, reference=Labels(reference, GRID))
    return Scan(data, GRID, ("flair", "t1")), lesions


def why(lesions: Lesions, number: int, *, name: str = "InstanceSmoothGrad", scale: float = 1.0) -> Explanation:
    inside = lesions.labels.data == number
    values = np.stack([inside * 2.0, np.roll(inside, 1, axis=0) * -1.0]) * scale
    provenance: dict[str, Any] = {
        "explainer": f"voxplain.explain.instance:{name}",
        "options": {},
        "target": RegionScore("lesion", lesions.labels, number).record(),
        "model": {"name": "unet", "fingerprint": "0123"},
        "warnings": [],
        "seen": False,
    }
    return Explanation(values, ("flair", "t1"), GRID, True, "logit per intensity unit", (), provenance=provenance)


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def voxels(volume: dict[str, Any]) -> np.ndarray:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(volume["base64"])))
    return np.asarray(image.dataobj.get_unscaled()) * volume["slope"]


def test_a_map_is_cut_and_laid_back() -> None:
    _, lesions = made()
    for number in lesions.numbers:
        whole = why(lesions, number)
        one = LesionMap.of("smooth", whole, lesions)
        np.testing.assert_array_equal(one.on(GRID), whole.map)
        assert one.values.size < whole.map.size / 20
        assert one.peaks == {"flair": 2.0, "t1": -1.0}
    zero = LesionMap.of("smooth", why(lesions, 1, scale=0), lesions)
    assert not zero.on(GRID).any()


def test_the_list_and_its_maps(tmp_path: Path) -> None:
    scan, lesions = made()
    maps = [LesionMap.of("smooth", why(lesions, number), lesions) for number in (1, 2)]
    maps.append(LesionMap.of("cam", why(lesions, 1, scale=3), lesions))
    page = lesion_report(
        scan, lesions, maps, path=tmp_path / "page.html", peaks={"smooth": {3: {"flair": 0.25, "t1": -0.125}}},
        elsewhere="One more lies in out, a file each.",
    )  # fmt: skip
    text = page.read_text()
    assert "The network marks 2 lesions, 0.6 ml in all." in text
    assert "Of these, 1 overlap with the reference and 1 do not; the reference has 1 more." in text
    assert "This page holds maps of 2 of the 3 lesions. One more lies in out, a file each." in text
    rows = re.findall(r'<tr tabindex="0" data-lesion="(\d)".*?</tr>', text, re.DOTALL)
    assert rows == ["1", "2", "3"] * 2
    cells = [re.findall(r"<td.*?</td>", row, re.DOTALL) for row in re.findall(r"<tr tabindex.*?</tr>", text, re.DOTALL)]
    plain = [[re.sub(r"<.*?>", "", cell) for cell in row] for row in cells]
    centre = GRID.world(np.argwhere(lesions.labels.data == 1)).mean(axis=0)
    assert plain[0][:6] == ["1", "TP", "480", "0.80", "2", "−1"]
    assert plain[0][6] == " ".join(f"{v:.0f}".replace("-", "−") for v in centre)
    assert [row[1] for row in plain[:3]] == ["TP", "FP", "FN"]
    assert plain[2][4:6] == ["0.25", "−0.125"]
    assert plain[4][4:6] == ["–", "–"]
    data = data_of(page)
    assert [method["name"] for method in data["methods"]] == ["smooth", "cam"]
    smooth = data["methods"][0]
    assert set(smooth["lesions"]) == {"1", "2"}
    assert not voxels(smooth["empty"]["channels"][0]).any()
    labels = voxels(data["lesions"])
    for number in (1, 2):
        flair, t1 = smooth["lesions"][str(number)]["channels"]
        shown = voxels(flair)
        np.testing.assert_allclose(shown[labels == number], 2.0, rtol=1e-6)
        assert not shown[labels != number].any()
        assert voxels(t1).min() == pytest.approx(-1)
        assert (flair["name"], flair["diverging"], flair["peak"]) == ("flair", True, 2.0)
    assert "not tested" in text
    assert "There is no expert mask" not in text


def test_the_size_of_a_page_grows_with_what_is_local(tmp_path: Path) -> None:
    scan, lesions = made()
    maps = [LesionMap.of("smooth", why(lesions, number), lesions) for number in lesions.numbers]
    one = lesion_report(scan, lesions, maps[:1], path=tmp_path / "one.html").stat().st_size
    three = lesion_report(scan, lesions, maps, path=tmp_path / "three.html").stat().st_size
    assert three - one < 20_000


def test_without_reference_there_is_no_kind(tmp_path: Path) -> None:
    scan, lesions = made()
    plain = find_lesions(Labels(lesions.predicted.data > 0, GRID))
    page = lesion_report(scan, plain, [LesionMap.of("smooth", why(plain, 1), plain)], path=tmp_path / "page.html")
    text = page.read_text()
    assert "The network marks 2 lesions, 0.6 ml in all." in text
    assert "true positive" not in text
    assert "There is no expert mask" in text
    assert re.search(
        r'data-lesion="1".*?<td class="n">480</td>\s*<td class="n" title="highest –">–</td>', text, re.DOTALL
    )


def test_what_is_refused(tmp_path: Path) -> None:
    scan, lesions = made()
    whole = why(lesions, 1)
    with pytest.raises(InputError, match="shows at least one map"):
        lesion_report(scan, lesions, [], path=tmp_path / "page.html")
    other = find_lesions(Labels(np.roll(lesions.predicted.data > 0, 1, axis=2), GRID))
    for wrong, said in (
        (replace(whole, provenance={}), "explains no lesion of this list"),
        (replace(whole, provenance=whole.provenance | {"target": {"kind": "ClassScore", "name": "a"}}), "no lesion of"),
        (replace(whole, map=whole.map * np.inf), "NaN or infinite"),
        (replace(whole, grid=GRID.flipped(0)), "lies on another grid than the lesions"),
        (why(other, 1), "explains another lesion 1 than that of the list, of 48 voxels"),
    ):
        with pytest.raises(InputError, match=said):
            LesionMap.of("smooth", wrong, lesions)
    one = [LesionMap.of("smooth", whole, lesions)]
    moved = Scan(scan.data, GRID.flipped(1), scan.channels)
    with pytest.raises(InputError, match="the label map of lesions does not lie on the scan's grid"):
        lesion_report(moved, lesions, one, path=tmp_path / "page.html")
    with pytest.raises(InputError, match="the expert mask does not lie"):
        lesion_report(scan, lesions, one, truth=Labels(lesions.labels.data, GRID.flipped(1)), path=tmp_path / "p.html")
