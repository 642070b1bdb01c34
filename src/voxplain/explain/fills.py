"""What a perturbed part is filled with.

A fill has one text form everywhere: `fill="blurred:8"`, `--fill blurred:8`. It acts on the network's input, after
normalisation, and is made ready once for each input; what it looks at beside the part (a blurred sequence, say) is
worked out then, not for each part again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.optimal import load_perturbation_network, perturbed
from voxplain.midplane import midplane

Box = tuple[slice, slice, slice]
# A fill made ready for one input: from a part, as its box and a boolean mask (x, y, z) inside it, to what the box is
# filled with, (C, x, y, z) or of a shape that broadcasts to it. Only the part's voxels are looked at.
Values = Callable[[Box, np.ndarray], np.ndarray]
Fill = Callable[[Probe], Values]

# A wider Gaussian sees all of a head, as tissue-mean does, and takes minutes or all of the memory.
_WIDEST = 100.0

FORMS = "blank, min, max, tissue-mean, blurred:MM, mirror, noise or optimal:DIR"


def blank(probe: Probe) -> Values:
    """What the raw value 0 (background) became on the network's input."""
    return _constant(np.asarray(probe.prepared.background))


def region_minimum(probe: Probe) -> Values:
    """The part's own minimum per sequence (paper 000, 3.4)."""
    return lambda box, inside: _per_sequence(probe.input[(slice(None), *box)][:, inside].min(axis=1))


def region_maximum(probe: Probe) -> Values:
    """The part's own maximum per sequence (paper 000, 3.4)."""
    return lambda box, inside: _per_sequence(probe.input[(slice(None), *box)][:, inside].max(axis=1))


def sequence_minimum(probe: Probe) -> Values:
    """The whole sequence's minimum (paper 001, B)."""
    return _constant(probe.input.min(axis=(1, 2, 3)))


def sequence_maximum(probe: Probe) -> Values:
    """The whole sequence's maximum (paper 001, B)."""
    return _constant(probe.input.max(axis=(1, 2, 3)))


def tissue_mean(probe: Probe) -> Values:
    """The sequence's mean over the foreground; the background where an input has no foreground."""
    mean, _ = _of_tissue(probe)
    return _constant(mean)


def noise(probe: Probe) -> Values:
    """Independent normal values with the sequence's mean and standard deviation over the foreground, from the seed."""
    mean, deviation = _of_tissue(probe)
    # A generator of its own, so that methods draw the same samples whatever the fill.
    drawn = probe.rng.spawn(1)[0].standard_normal(probe.input.shape, dtype=np.float32)
    return _volume(drawn * _per_sequence(deviation) + _per_sequence(mean))


def mirror(probe: Probe) -> Values:
    """The value at the mirrored place, across the mid-sagittal plane; background where that lies outside.

    The plane is the face between voxels at which a head would be cut in halves (`voxplain.midplane.midplane`).

    Raises:
        InputError: the network reads halves, or the head is not aligned with the grid.
    """
    prepared = probe.prepared
    check_fill_fits("mirror", probe.model.card.region)
    plane = midplane(prepared.foreground, prepared.input.grid)
    if not plane.aligned:
        raise InputError(
            "fill mirror needs a head that is aligned with the grid's axes; here brain and mirror image overlap by a "
            f"Dice of {plane.overlap:.2f}: register it to a template first, or use another fill"
        )
    probe.facts["mirror_plane"] = plane.note
    image = probe.input
    sources = 2 * plane.face - 1 - np.arange(image.shape[1 + plane.axis])
    there = (sources >= 0) & (sources < len(sources))
    mirrored = np.take(image, np.clip(sources, 0, len(sources) - 1), axis=1 + plane.axis)
    there = there.reshape([-1 if axis == plane.axis else 1 for axis in range(3)])
    return _volume(np.where(there, mirrored, _per_sequence(np.asarray(prepared.background))))


@dataclass(frozen=True)
class Blurred:
    """The sequence smoothed by a Gaussian, `sigma` in mm; beyond the input's edge its last voxels go on."""

    sigma: float

    def __call__(self, probe: Probe) -> Values:
        """The fill on one input."""
        sigma = [self.sigma / spacing for spacing in probe.prepared.input.grid.spacing]
        return _volume(np.stack([gaussian_filter(channel, sigma, mode="nearest") for channel in probe.input]))


@dataclass(frozen=True)
class Optimal:
    """What a perturbation network, trained for this very classifier, makes of the part (papers 000, 3.4.1, and 001).

    `folder` holds the network, as `voxplain train perturbation` writes it.
    """

    folder: str

    def __call__(self, probe: Probe) -> Values:
        """The fill on one input.

        Raises:
            InputError: no perturbation network there, or one that was trained for another classifier.
        """
        found = load_perturbation_network(self.folder, probe.model)
        probe.facts["perturbation_network"] = found.fingerprint
        device = probe.compute.torch_device
        network = found.network.to(device).eval()
        image = torch.tensor(probe.input[None], device=device)
        background = torch.tensor(_per_sequence(np.asarray(probe.prepared.background)), device=device)

        def values(box: Box, inside: np.ndarray) -> np.ndarray:
            part = torch.zeros(image.shape[2:], dtype=torch.bool, device=device)
            part[box] = torch.from_numpy(inside).to(device)
            with torch.inference_mode():
                return perturbed(network, image, part[None, None], background)[0][(slice(None), *box)].cpu().numpy()

        return values


def check_fill_fits(fill: str, region: str) -> None:
    """Refuse a fill that an input of this region ("whole" or "half") has no values for; for use before any work.

    Raises:
        InputError: the fill is mirror, and the network reads halves.
    """
    if fill == "mirror" and region == "half":
        raise InputError(
            "fill mirror takes values from the other side of the head, which a network that reads halves "
            "(card: region half) does not see; use blank, tissue-mean or blurred:MM, or a network of whole scans"
        )


_NAMED: dict[tuple[str, str], Fill] = {
    ("blank", "region"): blank,
    ("blank", "sequence"): blank,
    ("min", "region"): region_minimum,
    ("min", "sequence"): sequence_minimum,
    ("max", "region"): region_maximum,
    ("max", "sequence"): sequence_maximum,
}
_NAMED |= {(name, scope): fill for scope in ("region", "sequence")
           for name, fill in (("tissue-mean", tissue_mean), ("mirror", mirror), ("noise", noise))}  # fmt: skip


def fill_named(name: str, scope: str) -> Fill:
    """The fill of a name ("blank", "blurred:8", "optimal:DIR", ...) and the scope that minimum and maximum look at.

    Raises:
        InputError: no such fill or scope.
    """
    if scope not in ("region", "sequence"):
        raise InputError(f"scope, what min and max look at, is one of region, sequence; got {scope!r}")
    if (name, scope) in _NAMED:
        return _NAMED[name, scope]
    kind, _, argument = name.partition(":")
    if kind == "optimal" and argument:
        return Optimal(str(Path(argument)))
    if kind == "blurred" and 0 < _number(argument) <= _WIDEST:
        return Blurred(_number(argument))
    raise InputError(
        f"fill is one of {FORMS} (MM: a Gaussian's sigma, above 0 and at most {_WIDEST:g} mm; DIR: the folder of a "
        f"perturbation network); got {name!r}"
    )


def _number(text: str) -> float:
    """The number that a text spells; NaN where it spells none."""
    try:
        return float(text)
    except ValueError:
        return np.nan


def _per_sequence(values: np.ndarray) -> np.ndarray:
    """One value per sequence, (C,), in the form that broadcasts over a box."""
    return np.asarray(values, dtype=np.float32)[:, None, None, None]


def _constant(values: np.ndarray) -> Values:
    filled = _per_sequence(values)
    return lambda box, inside: filled


def _volume(filled: np.ndarray) -> Values:
    filled = np.asarray(filled, dtype=np.float32)
    return lambda box, inside: filled[(slice(None), *box)]


def _of_tissue(probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each sequence over the foreground, both (C,)."""
    inside = probe.input[:, probe.prepared.foreground].astype(np.float64)
    if not inside.shape[1]:
        return np.asarray(probe.prepared.background), np.zeros(len(probe.input))
    return inside.mean(axis=1), inside.std(axis=1)
