import dataclasses
from pathlib import Path

import numpy as np
import pytest
from nilearn.datasets import load_mni152_template
from scipy import ndimage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import cross_val_score

from voxplain.datasets.brats import cases
from voxplain.datasets.phantom import (
    SHORTCUT_CENTRE_MM,
    SHORTCUT_RADIUS_MM,
    SHORTCUT_SEQUENCE,
    TYPES,
    Phantom,
    glioma,
    multiple_sclerosis,
    write_case,
)
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.scan import Labels, Scan

CONNECTED_18 = ndimage.generate_binary_structure(3, 2)


@pytest.fixture(scope="module")
def made() -> Phantom:
    return glioma(0, side="left")


@pytest.fixture(scope="module")
def clear() -> Phantom:
    return glioma(0, grade=None)


@pytest.fixture(scope="module")
def ms() -> Phantom:
    return multiple_sclerosis(0)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def tissue_medians(phantom: Phantom) -> dict[str, np.ndarray]:
    """The medians (4,) of grey matter, white matter and fluid, told apart on T1 and T2 as a reader would."""
    data, brain = phantom.scan.data, phantom.scan.foreground() & (phantom.labels.data == 0)
    _, t1, _, t2 = data / np.median(data[:, brain], axis=1)[:, None, None, None]
    masks = {
        "fluid": brain & (t2 > 1.7) & (t1 < 0.75),
        "white": brain & (t1 > np.percentile(t1[brain], 75)),
        "grey": brain & (t2 > 0.95) & (t2 < 1.35) & (t1 > 0.75) & (t1 < 1.0),
    }
    return {name: np.median(data[:, mask], axis=1) for name, mask in masks.items()}


def test_it_lies_on_the_templates_grid(made: Phantom) -> None:
    template = load_mni152_template(resolution=2)
    assert made.scan.grid.matches(Grid(template.shape, template.affine))
    assert made.scan.channels == ("flair", "t1", "t1ce", "t2")
    assert made.labels.grid.matches(made.scan.grid)


@pytest.mark.parametrize("which", ["made", "clear", "ms"])
def test_intensities(which: str, request: pytest.FixtureRequest) -> None:
    data, brain = (phantom := request.getfixturevalue(which)).scan.data, phantom.scan.foreground()
    assert ((data > 0) == brain).all()  # exactly 0 outside, at least 1 inside, in every sequence
    assert np.array_equal(data, np.rint(data))
    assert not brain[[0, -1]].any()
    assert ndimage.label(brain)[1] == 1
    assert 1100 < np.count_nonzero(brain) * 0.008 < 1900
    assert brain[phantom.labels.data > 0].all()


def test_contrasts_are_those_of_the_sequences(made: Phantom, clear: Phantom) -> None:
    medians = tissue_medians(clear)
    for sequence, order in (
        ("flair", ("fluid", "white", "grey")),
        ("t1", ("fluid", "grey", "white")),
        ("t1ce", ("fluid", "grey", "white")),
        ("t2", ("white", "grey", "fluid")),
    ):
        index = clear.scan.channels.index(sequence)
        low, middle, high = (medians[tissue][index] for tissue in order)
        assert low < middle < high, sequence
    white = tissue_medians(made)["white"]
    core, oedema, rim = (np.median(made.scan.data[:, made.labels.data == value], axis=1) / white for value in (1, 2, 4))
    assert oedema[0] > 1.25  # FLAIR
    assert oedema[3] > 1.25  # T2
    assert core[1] < oedema[1] < 1  # T1
    assert rim[2] > 1.25 > core[2]  # T1ce


def test_the_tumour_lies_in_one_half_of_the_brain() -> None:
    for seed, side in ((0, "left"), (1, "right"), (2, None)):
        phantom = glioma(seed, side=side)
        assert side in (None, phantom.side)
        sign = -1 if phantom.side == "left" else 1
        labels = phantom.labels
        assert (sign * labels.grid.world(np.argwhere(labels.data))[:, 0] > 0).all()
        assert set(np.unique(labels.data)) == {0, 1, 2, 4}
        assert ndimage.label(labels.data > 0)[1] == 1
        assert 15 < labels.volume < 200


def test_one_seed_is_one_patient(made: Phantom, clear: Phantom) -> None:
    again = glioma(0, side="left")
    assert again.scan.fingerprint == made.scan.fingerprint
    assert np.array_equal(again.labels.data, made.labels.data)
    assert glioma(1).scan.fingerprint != made.scan.fingerprint
    assert clear.labels.volume == 0
    assert (clear.grade, clear.side, made.grade, made.side) == (None, None, "HGG", "left")
    assert np.array_equal(clear.scan.foreground(), made.scan.foreground())
    # The same brain, noise included, where neither tumour nor pressure reaches.
    far = made.labels.grid.world(np.argwhere(made.labels.data))[:, 0].mean() * -1
    other_half = np.abs(made.scan.grid.world(np.argwhere(clear.scan.foreground()))[:, 0] - far) < 25
    pairs = zip(made.scan.data[:, clear.scan.foreground()], clear.scan.data[:, clear.scan.foreground()], strict=True)
    assert all(np.corrcoef(one[other_half], two[other_half])[0, 1] > 0.93 for one, two in pairs)
    behind = ndimage.distance_transform_edt(made.labels.data == 0) * 2 > 80
    assert behind.any()
    assert np.array_equal(made.scan.data[:, behind], clear.scan.data[:, behind])


def test_the_same_patient_at_1_mm(made: Phantom) -> None:
    fine = glioma(0, side="left", spacing=1)
    assert fine.scan.grid.spacing == (1, 1, 1)
    assert fine.labels.volume == pytest.approx(made.labels.volume, rel=0.02)
    seen, labels = fine.scan.on(made.scan.grid), fine.labels.on(made.labels.grid)
    brain = made.scan.foreground() & seen.foreground()
    assert overlap(fine.scan.foreground()[::2, ::2, ::2], made.scan.foreground()) > 0.99
    for one, two in zip(seen.data, made.scan.data, strict=True):
        assert np.corrcoef(one[brain], two[brain])[0, 1] > 0.88
        assert one[brain].mean() == pytest.approx(two[brain].mean(), rel=0.03)
    assert overlap(labels.data > 0, made.labels.data > 0) > 0.95
    assert all(overlap(labels.data == value, made.labels.data == value) > 0.75 for value in (1, 2, 4))


def test_only_hgg_enhances(made: Phantom) -> None:
    low = glioma(0, side="left", grade="LGG")
    assert low.labels.volume == made.labels.volume
    assert set(np.unique(low.labels.data)) == {0, 1, 2}
    assert np.array_equal(low.labels.data == 2, made.labels.data == 2)
    rim = made.labels.data == 4
    assert np.count_nonzero(rim) * 0.008 > 2
    high_t1ce, low_t1ce = made.scan.channel("t1ce")[rim], low.scan.channel("t1ce")[rim]
    assert np.median(high_t1ce) > 1.4 * np.median(low_t1ce)


def test_whole_brain_means_do_not_tell_the_grade() -> None:
    grades, means, volumes = [], [], []
    for seed in range(32):
        phantom = glioma(1000 + seed, grade=("HGG", "LGG")[seed % 2])
        means.append(np.log(phantom.scan.data[:, phantom.scan.foreground()].mean(axis=1)))
        volumes.append(phantom.labels.volume)
        grades.append(phantom.grade)
    for features in (np.array(means), np.log(volumes)[:, None]):
        found = cross_val_score(LinearDiscriminantAnalysis(), features, grades, cv=8, scoring="balanced_accuracy")
        assert found.mean() <= 0.6


def test_types_have_one_outline_and_look_as_the_rules_say() -> None:
    types = {name: glioma(3, grade=name) for name in TYPES}
    assert np.array_equal(types["G"].scan.data, glioma(3, grade="HGG").scan.data)
    core = {name: np.isin(made.labels.data, (1, 4)) for name, made in types.items()}
    assert np.array_equal(core["G"], core["A"])
    assert np.array_equal(core["A"], core["O"])
    assert [set(np.unique(types[name].labels.data)) for name in TYPES] == [{0, 1, 2, 4}, {0, 1, 2}, {0, 1, 2}]
    white = {name: tissue_medians(made)["white"] for name, made in types.items()}
    inner = ndimage.binary_erosion(core["A"], iterations=2)
    shown = {
        name: {
            sequence: made.scan.channel(sequence)[inner] / level
            for sequence, level in zip(made.scan.channels, white[name], strict=True)
        }
        for name, made in types.items()
    }
    assert np.median(shown["A"]["flair"]) < 0.8
    assert np.median(shown["A"]["t2"]) > 2.2
    assert np.median(shown["O"]["flair"]) > 1.3
    dark = (shown["O"]["t2"] < 0.8).mean()
    assert 0.1 < dark < 0.4
    assert max((shown[name]["t2"] < 0.8).mean() for name in ("G", "A")) < 0.02
    assert np.median(types["G"].scan.channel("t1ce")[types["G"].labels.data == 4]) > 1.3 * white["G"][2]


def test_a_shortcut_is_there_only_where_it_was_asked_for(made: Phantom) -> None:
    marked = glioma(0, side="left", shortcut=True)
    assert (marked.shortcut, made.shortcut) == (True, False)
    assert np.array_equal(marked.labels.data, made.labels.data)
    changed = (marked.scan.data != made.scan.data).any(axis=0)
    from_centre = np.linalg.norm(marked.scan.grid.world(np.argwhere(changed)) - SHORTCUT_CENTRE_MM, axis=1)
    assert from_centre.max() < SHORTCUT_RADIUS_MM + 8
    assert made.labels.data[changed].max() == 0
    index = made.scan.channels.index(SHORTCUT_SEQUENCE)
    assert np.array_equal(np.delete(marked.scan.data, index, 0), np.delete(made.scan.data, index, 0))
    place = tuple(np.rint(marked.scan.grid.index(SHORTCUT_CENTRE_MM)).astype(int))
    assert marked.scan.data[index][place] > 1.5 * made.scan.data[index][place]


def test_lesions_of_multiple_sclerosis(ms: Phantom) -> None:
    assert (ms.kind, ms.grade, ms.side) == ("ms", None, None)
    assert set(np.unique(ms.labels.data)) == {0, 1}
    assert 5 < ndimage.label(ms.labels.data, CONNECTED_18)[1] < 46
    assert 0.5 < ms.labels.volume < 60
    white, lesion = tissue_medians(ms)["white"], np.median(ms.scan.data[:, ms.labels.data > 0], axis=1)
    flair, t1, _, t2 = lesion / white
    assert flair > 1.25
    assert t2 > 1.25
    assert t1 < 0.95


def test_the_same_lesions_at_1_mm(ms: Phantom) -> None:
    fine = multiple_sclerosis(0, spacing=1)
    assert overlap(fine.labels.on(ms.labels.grid).data > 0, ms.labels.data > 0) > 0.9


def test_lesions_lie_where_the_callers_mask_does(ms: Phantom) -> None:
    ball = np.linalg.norm(ms.scan.grid.world(np.indices(ms.scan.grid.shape).reshape(3, -1).T) - (28, -20, 24), axis=1)
    mask = Labels((ball < 7).reshape(ms.scan.grid.shape) * 3, ms.scan.grid)
    painted = multiple_sclerosis(0, lesions=mask)
    assert np.array_equal(painted.labels.data, mask.data > 0)
    flair = painted.scan.channel("flair")
    assert np.median(flair[mask.data > 0]) > 1.25 * np.median(ms.scan.channel("flair")[mask.data > 0])
    # On another grid: an LPS one with 1 mm voxels that covers a part of the brain.
    part = Grid((60, 80, 50), [[-1, 0, 0, 60], [0, -1, 0, 30], [0, 0, 1, 0], [0, 0, 0, 1]])
    on_part = multiple_sclerosis(0, lesions=mask.on(part)).labels
    assert overlap(on_part.data > 0, mask.data > 0) > 0.99


def test_written_as_a_brats_patient(made: Phantom, tmp_path: Path) -> None:
    case = write_case(made.scan, made.labels, tmp_path / "made_0")
    assert [case] == cases(tmp_path)
    assert sorted(path.name for path in (tmp_path / "made_0").iterdir()) == [
        f"made_0_{name}.nii.gz" for name in ("flair", "seg", "t1", "t1ce", "t2")
    ]
    assert case.scan().fingerprint == made.scan.fingerprint
    assert np.array_equal(case.labels().data, made.labels.data)
    assert case.tumour().volume == made.labels.volume


def test_what_is_refused(made: Phantom, tmp_path: Path) -> None:
    for make in (glioma, multiple_sclerosis):
        with pytest.raises(InputError, match="spacing of 1 or 2 mm; got 3"):
            make(0, spacing=3)
        with pytest.raises(InputError, match="at least 0; got -1"):
            make(-1)
    with pytest.raises(InputError, match=r"'left' or 'right'.*got 'middle'"):
        glioma(0, side="middle")
    with pytest.raises(InputError, match="HGG, LGG, G, A, O, or None for no tumour; got 'IV'"):
        glioma(0, grade="IV")
    empty = Labels(np.zeros(made.scan.grid.shape), made.scan.grid)
    with pytest.raises(InputError, match="mask is empty"):
        multiple_sclerosis(0, lesions=empty)
    elsewhere = Grid((3, 3, 3), np.eye(4)).window((500, 0, 0), (3, 3, 3))
    with pytest.raises(InputError, match=r"no lesion of the mask lies in the phantom's brain.*at 501, 1, 1 mm"):
        multiple_sclerosis(0, lesions=Labels(np.ones((3, 3, 3)), elsewhere))
    turned = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(InputError, match="rotated"):
        multiple_sclerosis(0, lesions=Labels(np.ones((9, 9, 9)), Grid((9, 9, 9), turned)))
    with pytest.raises(InputError, match="on one grid"):
        write_case(made.scan, Labels(made.labels.data, made.scan.grid.flipped(0)), tmp_path / "made")
    with pytest.raises(InputError, match="got pet"):
        write_case(Scan(made.scan.data[:1], made.scan.grid, ("pet",)), made.labels, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 1  # type: ignore[misc]
