"""Results on disk: read back as they were written, and half-finished folders are named for what they lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxplain.errors import InputError
from voxplain.explanation import Explanation, Region
from voxplain.grid import Grid
from voxplain.io.nifti import save
from voxplain.results import read_results, write_results
from voxplain.scan import Labels

GRID = Grid((6, 5, 4), np.array([[-2.0, 0, 0, 5], [0, 0, 3, 6], [0, -1.5, 0, 7], [0, 0, 0, 1]]))
REGION = Region("whole", ((0, 6), (0, 5), (0, 4)), 0.75, 1.1, True)


def of_parts() -> Explanation:
    labels = np.zeros(GRID.shape, int)
    labels[:2], labels[2:4, :, 1:] = 1, 2
    scores = np.array([0.123456789, -0.5])
    return Explanation(
        np.concatenate([[0], scores])[labels][None],
        ("all",),
        GRID,
        True,
        "fall of probability",
        (REGION,),
        Labels(labels, GRID),
        scores,
        {"explainer": "a:RelevanceMap", "regions": [REGION.__dict__], "scan": {"fingerprint": "x", "channels": ["t1"]}},
    )


def of_voxels(channels: int) -> Explanation:
    values = np.random.default_rng(0).random((channels, *GRID.shape))
    names = tuple(f"c{k}" for k in range(channels))
    return replace(of_parts(), map=values, channels=names, signed=False, parts=None, scores=None)


MASK = Labels(np.arange(120).reshape(GRID.shape) % 2, GRID)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_results(
        of_parts(), MASK, "relevance-map", tmp_path, rule="otsu", sources={"t1": tmp_path / "t1.nii"}, seen=True
    )
    return tmp_path


def test_what_is_written_is_read_back(folder: Path) -> None:
    write_results(of_voxels(3), MASK, "saliency", folder, rule="top:1")
    (folder / "other.json").write_text("{}")
    (folder / "broken.json").write_text("{")
    save(MASK, folder / "seg.nii.gz")
    first, second = read_results(folder)
    assert (first.name, second.name) == ("relevance-map", "saliency")
    for result, was in ((first, of_parts()), (second, of_voxels(3))):
        why = result.explanation
        assert was.grid.difference(why.grid) is None
        np.testing.assert_array_equal(why.map, was.map)
        np.testing.assert_array_equal(result.mask.data, MASK.data)
        assert (why.signed, why.unit, why.channels, why.regions) == (was.signed, was.unit, was.channels, was.regions)
    assert first.explanation.scores is not None
    assert first.explanation.parts is not None
    np.testing.assert_allclose(first.explanation.scores, of_parts().scores, rtol=1e-5)
    np.testing.assert_array_equal(first.explanation.parts.data, of_parts().parts.data)  # type: ignore[union-attr]
    provenance = first.explanation.provenance
    assert provenance["sources"] == {"t1": str((folder / "t1.nii").resolve())}
    assert provenance["seen"] is True
    # Nobody said.
    assert second.explanation.provenance["seen"] is None
    assert provenance["mask"]["rule"] == "otsu"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "relevance-map.json").unlink(), "relevance-map.json is missing"),
        (lambda f: (f / "relevance-map-mask.nii.gz").unlink(), "relevance-map-mask.nii.gz is missing"),
        (lambda f: (f / "relevance-map.nii.gz").unlink(), "relevance-map.nii.gz is missing"),
        (lambda f: (f / "relevance-map-ranks.tsv").unlink(), "relevance-map-ranks.tsv is missing"),
        (lambda f: (f / "relevance-map-parts.nii.gz").unlink(), "relevance-map-parts.nii.gz is missing"),
        (lambda f: truncate(f / "relevance-map.nii.gz"), "cannot read relevance-map.nii.gz: truncated"),
        (lambda f: truncate(f / "relevance-map-parts.nii.gz"), "cannot read relevance-map-parts.nii.gz: truncated"),
        (lambda f: truncate(f / "relevance-map.json"), "relevance-map.json in .* is damaged"),
        (lambda f: truncate(f / "relevance-map-ranks.tsv"), "does not give one score|damaged"),
        (lambda f: (f / "relevance-map-ranks.tsv").write_text(""), "relevance-map-ranks.tsv is damaged"),
        (lambda f: change_json(f / "relevance-map.json", lambda c: c.pop("unit")), "not what voxplain writes .'unit'"),
        (lambda f: change_json(f / "relevance-map.json", lambda c: c.update(regions=[{}])), "not what voxplain writes"),
        (lambda f: change_json(f / "relevance-map.json", lambda c: c.update(mask=3)), "not what voxplain writes"),
        (lambda f: change_json(f / "relevance-map.json", lambda c: c.update(options=3)), "not what voxplain writes"),
        (
            lambda f: change_json(f / "relevance-map.json", lambda c: c["regions"][0].update(probability=float("nan"))),
            "not what voxplain writes .a probability of nan",
        ),
        (
            lambda f: save(Labels(MASK.data * 0, GRID), f / "relevance-map-mask.nii.gz"),
            "holds 0.000 ml, but .* 0.540 ml",
        ),
        (
            lambda f: save(Labels(MASK.data, GRID.flipped(0)), f / "relevance-map-mask.nii.gz"),
            "map and mask lie on different grids: orientation",
        ),
        (
            lambda f: save(Labels(of_parts().parts.data, GRID.flipped(1)), f / "relevance-map-parts.nii.gz"),  # type: ignore[union-attr]
            "parts lie on the map's grid",
        ),
        (
            lambda f: save(replace(of_parts(), map=of_parts().map * 2), f / "relevance-map.nii.gz"),
            "the map is not the one that relevance-map.json speaks of",
        ),
        (
            lambda f: (f / "relevance-map-ranks.tsv").write_text("label\tscore\n1\t0.2\n2\t-0.5\n"),
            "scores of relevance-map-ranks.tsv are not those of the map",
        ),
    ],
)
def test_half_finished_folders(folder: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=said) as raised:
        read_results(folder)
    assert "again" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values[:, ::-1], "the map is not the one that saliency.json speaks of"),
        (lambda values: np.where(values == values.max(), np.nan, values), "NaN or infinite"),
    ],
)
def test_another_map_under_the_same_name(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], said: str) -> None:
    why = of_voxels(3)
    write_results(why, MASK, "saliency", tmp_path, rule="top:1")
    save(replace(why, map=change(why.map)), tmp_path / "saliency.nii.gz")
    with pytest.raises(InputError, match=said):
        read_results(tmp_path)


def test_another_mask_of_the_same_volume_and_results_without_fingerprints(folder: Path) -> None:
    change_json(folder / "relevance-map.json", lambda content: content["fingerprints"].pop("map"))
    assert len(read_results(folder)) == 1
    save(Labels(1 - MASK.data, GRID), folder / "relevance-map-mask.nii.gz")
    with pytest.raises(InputError, match=r"the mask is not the one that relevance-map.json speaks of"):
        read_results(folder)
    change_json(folder / "relevance-map.json", lambda content: content.pop("fingerprints"))
    assert len(read_results(folder)) == 1


def test_folders_without_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nothing"):
        read_results(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"found no results in .*run it first"):
        read_results(tmp_path)
    save(MASK, tmp_path / "seg.nii.gz")
    with pytest.raises(InputError, match=r"seg.nii.gz is a file"):
        read_results(tmp_path / "seg.nii.gz")
    with pytest.raises(InputError, match="found no results in"):
        read_results(tmp_path)
