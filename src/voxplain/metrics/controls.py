"""Maps that know nothing of the network: what any map must differ from, as explanations of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.scan import Scan

# As reports call them, after which come options where there are several.
CONTROLS = ("edge-detector", "random-map")


def edge_detector(scan: Scan, explanation: Explanation) -> Explanation:
    """Edges of the scan in place of a map (Adebayo 2018): the magnitude of the gradient, summed over the sequences.

    Each sequence is first divided by its standard deviation over the brain; the edge between brain and background is
    left out, and background has 0. Where the explanation has parts, so has this: a part's score is the mean over its
    voxels. Unit: standard deviations per mm, at least 0. A scan without contrast gives zeros.

    Raises:
        InputError: the explanation lies on another grid than the scan.
    """
    _check_grid(scan, explanation)
    inside = scan.foreground()
    edges = np.zeros(scan.grid.shape)
    if inside.any():
        axes = tuple(axis for axis, size in enumerate(scan.grid.shape) if size > 1)
        steps = [scan.grid.spacing[axis] for axis in axes]
        nearest = distance_transform_edt(
            ~inside, sampling=scan.grid.spacing, return_distances=False, return_indices=True
        )
        for data in scan.data:
            spread = float(data[inside].std(dtype=np.float64))
            if spread > 0 and axes:
                # Outside of the brain its nearest voxel goes on, so that the head's outline is no edge.
                slopes = np.gradient(data[tuple(nearest)].astype(np.float64) / spread, *steps, axis=axes)
                edges += np.sqrt(np.sum(np.square(slopes if len(axes) > 1 else [slopes]), axis=0))
    edges[~inside] = 0
    if explanation.parts is None:
        return _control("EdgeDetector", explanation, edges[None], None, "SD per mm", {})
    labels = explanation.parts.data.ravel()
    assert explanation.scores is not None
    size = len(explanation.scores) + 1
    means = np.bincount(labels, weights=edges.ravel(), minlength=size) / np.maximum(
        np.bincount(labels, minlength=size), 1
    )
    return _control("EdgeDetector", explanation, None, means[1:], "SD per mm", {})


def random_map(scan: Scan, explanation: Explanation, *, seed: int) -> Explanation:
    """A map of the same values in places drawn by chance, region by region.

    Scores of parts are shuffled among the parts of their region. A voxel-wise map becomes Gaussian noise that is as
    smooth along each axis (by the correlation of neighbours, Forman 1995), whose voxels in the brain are given the
    map's values there by rank; background keeps its values. Unit and sign are the map's own. A map that is the same
    everywhere stays as it is.

    Raises:
        InputError: the explanation lies on another grid than the scan, or names no regions.
    """
    _check_grid(scan, explanation)
    if not explanation.regions:
        raise InputError("a random map is made region by region, and this explanation names none; give it its regions")
    random = np.random.default_rng(seed)
    if explanation.parts is not None and explanation.scores is not None:
        scores = explanation.scores.copy()
        for region in explanation.regions:
            inside = explanation.labels_in(region) - 1
            scores[inside] = random.permutation(scores[inside])
        return _control("RandomMap", explanation, None, scores, explanation.unit, {"seed": seed})
    values, foreground = explanation.map.copy(), scan.foreground()
    for region in explanation.regions:
        inside = foreground[region.slices]
        noise = random.standard_normal(inside.shape)
        for data in values:
            own = data[region.slices]
            field = gaussian_filter(noise, _smoothness(own, inside))
            drawn = np.empty(int(inside.sum()), dtype=own.dtype)
            drawn[np.argsort(field[inside], kind="stable")] = np.sort(own[inside])
            own[inside] = drawn
    return _control("RandomMap", explanation, values, None, explanation.unit, {"seed": seed})


def _smoothness(values: np.ndarray, inside: np.ndarray) -> list[float]:
    """The standard deviation in voxels, per axis, of the Gaussian that makes noise as smooth as a map (X, Y, Z)."""
    found = []
    for axis, size in enumerate(values.shape):
        pairs = [(slice(None),) * axis + (side,) for side in (slice(None, -1), slice(1, None))]
        both = inside[pairs[0]] & inside[pairs[1]]
        first, second = (values[pair][both].astype(np.float64) for pair in pairs)
        alike = 0.0
        if first.size > 1 and np.ptp(first) > 0 and np.ptp(second) > 0:
            alike = float(np.corrcoef(first, second)[0, 1])
        # A Gaussian makes neighbours correlate by exp(-1 / (4 sigma^2)); a ramp has no width, hence the bound.
        sigma = np.sqrt(-0.25 / np.log(min(alike, 1 - 1e-9))) if alike > 0 else 0.0
        found.append(min(float(sigma), size / 4))
    return found


def _control(
    kind: str,
    explanation: Explanation,
    values: np.ndarray | None,
    scores: np.ndarray | None,
    unit: str,
    options: dict[str, int],
) -> Explanation:
    """The control in place of the map: painted from scores where it has parts."""
    if scores is not None:
        assert explanation.parts is not None
        values = np.concatenate([[0.0], scores])[explanation.parts.data][None]
    assert values is not None
    # Which scan, model and target it stands beside; nothing of how that map was made.
    kept = {key: explanation.provenance[key] for key in ("model", "scan", "target") if key in explanation.provenance}
    own = {"explainer": f"control:{kind}", "options": options, "warnings": [], "seen": False}
    return replace(
        explanation,
        map=values,
        channels=explanation.channels if len(values) == len(explanation.channels) else ("all",),
        signed=explanation.signed and kind == "RandomMap",
        unit=unit,
        scores=scores,
        provenance=kept | own,
    )


def _check_grid(scan: Scan, explanation: Explanation) -> None:
    if difference := scan.grid.difference(explanation.grid):
        raise InputError(f"the map lies on another grid than the scan: {difference}; give the scan that was explained")
