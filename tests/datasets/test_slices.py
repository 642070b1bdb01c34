from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxplain.datasets.slices import Parts, Slice, by_patient, deal, rotate, unique
from voxplain.errors import InputError


def made(name: str, group: str, label: str = "tumour", fold: int | None = None) -> Slice:
    return Slice(name, group, label, lambda: np.zeros((1, 2, 2), np.float32), lambda: np.zeros((2, 2), bool), fold)


def groups(part: list[Slice]) -> set[str]:
    return {item.group for item in part}


def check(slices: list[Slice], parts: Parts) -> None:
    """Every slice on one side, in order; no group on two."""
    assert Counter(item.id for part in parts for item in part) == Counter(item.id for item in slices)
    assert sum(len(groups(part)) for part in parts) == len({item.group for item in slices})
    for part in parts:
        assert part
        assert [item.id for item in part] == sorted(item.id for item in part)


patients = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.sampled_from(["LGG", "HGG", ""]), min_size=3)


@given(patients, st.integers(0, 2**31), st.integers(0, 2), st.sampled_from(["partition", "subsampling"]))
def test_no_patient_lies_on_two_sides(strata, seed, index, scheme):
    slices = [made(f"{number:04d}", group) for number, group in enumerate([*strata, *reversed(strata)])]
    parts = by_patient(slices, index, strata=strata, seed=seed, scheme=scheme)
    check(slices, parts)
    again = by_patient(slices[::-1], index, strata=dict(reversed(strata.items())), seed=seed, scheme=scheme)
    assert [groups(part) for part in again] == [groups(part) for part in parts]


@given(patients, st.integers(0, 2**31))
def test_a_partition_tests_every_patient_once(strata, seed):
    slices = [made(f"{number:04d}", group) for number, group in enumerate(strata)]
    tests = [by_patient(slices, index, strata=strata, seed=seed)[2] for index in range(3)]
    assert sorted(item.id for part in tests for item in part) == [item.id for item in slices]
    for stratum in set(strata.values()):
        held = [sum(strata[group] == stratum for group in groups(part)) for part in tests]
        assert max(held) - min(held) <= 1


@given(st.integers(0, 2**31), st.integers(0, 9), st.integers(0, 40), st.integers(20, 60))
def test_subsampling_gives_the_shares_of_the_paper_in_each_stratum(seed, index, low, high):
    strata = {f"p{number:03d}": "LGG" if number < low else "HGG" for number in range(low + high)}
    slices = [made(group, group) for group in strata]
    parts = by_patient(slices, index, strata=strata, seed=seed, scheme="subsampling")
    for part, share in zip(parts, (0.6, 0.15, 0.25), strict=True):
        assert abs(len(part) - share * len(slices)) <= 1
        for name, count in (("LGG", low), ("HGG", high)):
            assert abs(sum(strata[group] == name for group in groups(part)) - share * count) <= 2


def test_subsamples_differ_from_split_to_split():
    slices = [made(f"{number:02d}", f"{number:02d}") for number in range(20)]
    strata = {item.group: "HGG" for item in slices}
    drawn = [groups(by_patient(slices, index, strata=strata, scheme="subsampling")[2]) for index in range(4)]
    assert len({frozenset(part) for part in drawn}) == 4


def test_folds_rotate_over_those_that_are_there():
    slices = [made(f"{fold}{number}", f"fold {fold}", fold=fold) for fold in (1, 2, 4, 5) for number in range(2)]
    fold_of = {item.group: item.fold or 0 for item in slices}
    found = [[sorted({item.fold for item in part}) for part in rotate(slices, fold_of, index)] for index in range(4)]
    assert found == [[[4, 5], [2], [1]], [[1, 5], [4], [2]], [[1, 2], [5], [4]], [[2, 4], [1], [5]]]


@given(patients, st.integers(2, 6), st.integers(0, 2**31))
def test_dealt_folds_are_even_in_each_stratum(strata, folds, seed):
    fold_of = deal(strata, folds, seed)
    assert set(fold_of) == set(strata)
    for stratum in set(strata.values()):
        counts = Counter(fold_of[group] for group in strata if strata[group] == stratum)
        assert max(counts.values()) - min(counts.get(fold, 0) for fold in range(1, folds + 1)) <= 1


def test_what_is_refused():
    slices = [made(name, name, fold=1) for name in "abc"]
    strata = {name: "x" for name in "abc"}
    with pytest.raises(InputError, match="at least three folds; these slices lie in 1"):
        rotate(slices, {name: 1 for name in "abc"}, 0)
    with pytest.raises(InputError, match="0 to 2 here; got 3"):
        rotate(slices, {"a": 1, "b": 2, "c": 3}, 3)
    with pytest.raises(InputError, match="0 to 2 here; got 3"):
        by_patient(slices, 3, strata=strata)
    with pytest.raises(InputError, match="at least 0 here; got -1"):
        by_patient(slices, -1, strata=strata, scheme="subsampling")
    with pytest.raises(InputError, match="at least three patients; got 2"):
        by_patient(slices[:2], 0, strata={"a": "x", "b": "x"})
    with pytest.raises(InputError, match="patient d has no stratum"):
        by_patient([*slices, made("d", "d")], 0, strata=strata)
    with pytest.raises(InputError, match="partition or subsampling; got 'folds'"):
        by_patient(slices, 0, strata=strata, scheme="folds")
    with pytest.raises(InputError, match="slice a comes twice"):
        unique([*slices, slices[0]])


def test_slices_can_be_members_of_sets():
    first, second = made("a", "p"), made("a", "p")
    assert len({first, second, first}) == 2
