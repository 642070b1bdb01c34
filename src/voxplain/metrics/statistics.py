"""How sure a figure is: intervals over patients, paired tests, and their correction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from voxplain.errors import InputError


def bootstrap_interval(
    values: np.ndarray | tuple[np.ndarray, ...],
    *,
    statistic: Callable[..., float] = np.mean,
    groups: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic, resampling patients: (low, high) in its unit.

    Rows of one group (a patient's scans, slices, halves or lesions) are drawn together, so they never pass
    for independent. Rows with a NaN in any array are left out first; so are resamples whose statistic is NaN
    (an AUC of one class). (NaN, NaN) when fewer than two groups are left, or no resample has a number: one
    patient tells nothing about others.

    Args:
        values: (N,), or a tuple of aligned arrays (N,) that are handed to the statistic in this order.
        statistic: from the arrays of a resample to one number; `np.mean` takes all resamples at once,
            and `np.median` where there are no groups.
        groups: (N,), the patient of each row; None makes every row a patient.
        level: coverage, between 0 and 1.
        resamples: how many times the patients are drawn.
        seed: the same seed draws the same patients.

    Raises:
        InputError: arrays are not aligned, level is not between 0 and 1, or resamples is below 1.
    """
    arrays = [np.asarray(array) for array in (values if isinstance(values, tuple) else (values,))]
    groups = np.arange(arrays[0].size) if groups is None else np.asarray(groups)
    if groups.ndim != 1 or any(array.shape != groups.shape for array in arrays):
        raise InputError(
            "values and groups are arrays of one length, (N,); got "
            f"{', '.join(str(array.shape) for array in (*arrays, groups))}"
        )
    if not 0 < level < 1:
        raise InputError(f"level is a share between 0 and 1, such as 0.95; got {level}")
    if resamples < 1:
        raise InputError(f"resamples is at least 1; got {resamples}")

    valid = ~np.any([np.isnan(array) for array in arrays], axis=0)
    arrays = [array[valid] for array in arrays]
    names, group_of_row = np.unique(groups[valid], return_inverse=True)
    if len(names) < 2:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    if statistic is np.mean and len(arrays) == 1:
        sums, counts = np.bincount(group_of_row, weights=arrays[0]), np.bincount(group_of_row)
        results = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    elif statistic is np.median and len(arrays) == 1 and len(names) == group_of_row.size:
        results = np.median(arrays[0][np.argsort(group_of_row)][drawn], axis=1)
    else:
        order = np.argsort(group_of_row, kind="stable")
        members = np.split(order, np.cumsum(np.bincount(group_of_row))[:-1])
        # Where every row is a patient of its own there is nothing to put together.
        alone = len(names) == len(order)
        picks = (order[draw] if alone else np.concatenate([members[group] for group in draw]) for draw in drawn)
        results = np.array([statistic(*(array[pick] for array in arrays)) for pick in picks], dtype=np.float64)
    results = results[~np.isnan(results)]
    if results.size == 0:
        return np.nan, np.nan
    low, high = np.quantile(results, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_wilcoxon(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p-value, 0 to 1, of the Wilcoxon signed-rank test on the pairs a[i], b[i].

    Pairs are independent only if each is a patient: average a patient's rows first. Pairs with a NaN are left
    out; pairs without a difference take no rank. All differences 0: 1.0. No pair left: NaN.

    Args:
        a: (N,).
        b: (N,), paired with a.

    Raises:
        InputError: a and b are not arrays of one length.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"a paired test needs two arrays of one length, (N,); got {a.shape} and {b.shape}")
    differences = a - b
    differences = differences[~np.isnan(differences)]
    if differences.size == 0:
        return np.nan
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment of p-values, (M,) in the given order, each from its p-value to 1.

    NaN stays NaN and is not counted as a test. No p-values give no p-values.

    Args:
        p_values: (M,), each 0 to 1 or NaN.

    Raises:
        InputError: p-values are not one array (M,), or one lies outside 0 to 1.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    if p_values.ndim != 1 or (p_values < 0).any() or (p_values > 1).any():
        raise InputError(f"p-values are an array (M,) of numbers from 0 to 1; got {p_values.tolist()}")
    adjusted = np.full(p_values.shape, np.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted
