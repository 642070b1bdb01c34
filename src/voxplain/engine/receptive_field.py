"""What part of its input a network's output can depend on, and the crop that gives the same output there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from voxplain.engine.budget import is_out_of_memory

# First voxel and one past the last, per axis.
Sides = tuple[tuple[int, int], ...]
Network = Callable[[torch.Tensor], torch.Tensor]

# The reach that is tried first, in voxels beyond the wanted ones; it doubles until it suffices.
_FIRST_REACH = 32
# Crops begin at multiples of 1, 2, 4 ... so many voxels: strides of up to six levels.
_LARGEST_MULTIPLE = 64
# The stride of most networks as a whole.
_COMMON_STRIDE = 16
# A crop's scores may differ by so much of the largest: convolutions of another size add up in another order.
_ROUNDING = 1e-5
# What reads all of its input at once, by the ends of their names.
_GLOBAL = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "GroupNorm", "LayerNorm", "MultiheadAttention")
_POOLING = ("AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "SABlock")


@dataclass(frozen=True)
class ReceptiveField:
    """Where the wanted voxels of an output read the input, in voxels of the input.

    Attributes:
        box: all that the wanted voxels can depend on, and these voxels themselves.
        crop: the part of the input that gives the wanted voxels the same output; it holds `box`.
        notice: why the crop is all of the input, where it might have been less.
    """

    box: Sides
    crop: Sides
    notice: str | None = None


def receptive_field(network: Network, inputs: torch.Tensor, wanted: Sides, *, module: nn.Module) -> ReceptiveField:
    """Find what the output (1, classes, ...) in a box of voxels can depend on, and a crop that gives the same there.

    Works on anything that can be called, by what a NaN reaches: voxels outside of a box are filled with NaN, and the
    box is halved from each side as long as the wanted voxels stay free of it. The crop begins and ends at multiples of
    the smallest power of two, up to 64, with which strides keep their phase; it is tried on these inputs with noise, as
    any phase serves where they are constant. Other noise in what is left out must not be seen, as some networks swallow
    NaN. Where no crop does, it is all of the input.

    Args:
        network: in eval mode, (1, C, ...) -> (1, classes, ...) on the same grid.
        inputs: (1, C, ...), on the network's device.
        wanted: voxels of the output, (first, one past the last) per axis.
        module: the network or what it wraps, searched for the layer to blame where the field is everything.
    """
    with torch.no_grad():
        extent = tuple(inputs.shape[2:])
        whole = tuple((0, size) for size in extent)
        outer = _outer(network, inputs, wanted)
        if outer is None:
            return ReceptiveField(whole, whole, _blame(module, extent, wanted))
        trial = _Trial(network, _with_noise(inputs), wanted)
        # The first crop need not be tight: on it, the field is found with smaller passes.
        first = trial.aligned(outer)
        if first is None or not trial.blind_outside(outer):
            return ReceptiveField(whole, whole, _unaligned(extent))
        moved = _moved(wanted, first)
        box = _moved(_bisected(network, inputs[_slices(first)], moved), first, back=True)
        crop = trial.aligned(box) or first
        # A box that is nearly everything is not worth a word.
        might = _rounded(box, _COMMON_STRIDE, extent)
        return ReceptiveField(box, crop, _unaligned(extent) if crop == whole != might else None)


def _outer(network: Network, inputs: torch.Tensor, wanted: Sides) -> Sides | None:
    """A box, not all of the input, that holds the field; None where there is none."""
    extent, reach = inputs.shape[2:], _FIRST_REACH
    whole = tuple((0, size) for size in extent)
    while True:
        outer = tuple((max(0, a - reach), min(n, b + reach)) for (a, b), n in zip(wanted, extent, strict=True))
        if outer == whole:
            # Of a small input a small reach may be everything, and the field less.
            return outer if _any_side_is_free(network, inputs, wanted) else None
        if not _reached(network, inputs, outer, wanted):
            return outer
        reach *= 2


def _any_side_is_free(network: Network, inputs: torch.Tensor, wanted: Sides) -> bool:
    """Whether a NaN in the outermost voxels of some side stays away from the wanted ones."""
    whole = tuple((0, size) for size in inputs.shape[2:])
    for axis, (start, stop) in enumerate(whole):
        for side in ((start + 1, stop), (start, stop - 1)):
            inner = (*whole[:axis], side, *whole[axis + 1 :])
            within = side[0] <= wanted[axis][0] and wanted[axis][1] <= side[1]
            if side[0] < side[1] and within and not _reached(network, inputs, inner, wanted):
                return True
    return False


def _bisected(network: Network, inputs: torch.Tensor, wanted: Sides) -> Sides:
    """The smallest box that holds the field, side by side."""
    whole = tuple((0, size) for size in inputs.shape[2:])
    found: list[tuple[int, int]] = []
    for axis, (start, stop) in enumerate(whole):

        def free(first: int, last: int, axis: int = axis) -> bool:
            inner = (*whole[:axis], (first, last), *whole[axis + 1 :])
            return inner == whole or not _reached(network, inputs, inner, wanted)

        low, high = start, wanted[axis][0]
        while low < high:
            middle = -(-(low + high) // 2)
            low, high = (middle, high) if free(middle, stop) else (low, middle - 1)
        first, (low, high) = low, (wanted[axis][1], stop)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if free(start, middle) else (middle + 1, high)
        found.append((first, high))
    return tuple(found)


def _reached(network: Network, inputs: torch.Tensor, inner: Sides, wanted: Sides) -> bool:
    """Whether NaN outside of a box reaches the wanted voxels."""
    filled = torch.full_like(inputs, float("nan"))
    filled[_slices(inner)] = inputs[_slices(inner)]
    try:
        return bool(torch.isnan(_part(network(filled), wanted)).any())
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        # A network that refuses NaN does not let itself be asked.
        return True


class _Trial:
    """What the wanted voxels give on crops of some inputs, compared with what they give on all of them."""

    def __init__(self, network: Network, inputs: torch.Tensor, wanted: Sides) -> None:
        self.network, self.inputs, self.wanted = network, inputs, wanted
        self.expected = _part(network(inputs.clone()), wanted)

    def aligned(self, box: Sides) -> Sides | None:
        """The smallest crop around a box, on multiples of a power of two, that gives the clean output."""
        multiple, tried = 1, set[Sides]()
        while multiple <= _LARGEST_MULTIPLE:
            crop = _rounded(box, multiple, self.inputs.shape[2:])
            if crop not in tried and self._gives_the_same(crop):
                return crop
            tried.add(crop)
            multiple *= 2
        return None

    def _gives_the_same(self, crop: Sides) -> bool:
        try:
            output = self.network(self.inputs[_slices(crop)].clone())
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            return False
        size = tuple(stop - start for start, stop in crop)
        return tuple(output.shape[2:]) == size and self._same(_part(output, _moved(self.wanted, crop)))

    def blind_outside(self, box: Sides) -> bool:
        """Whether noise outside of a box goes unseen: some networks swallow NaN."""
        other = _with_noise(self.inputs, seed=1)
        other[_slices(box)] = self.inputs[_slices(box)]
        return self._same(_part(self.network(other), self.wanted))

    def _same(self, output: torch.Tensor) -> bool:
        return bool((output - self.expected).abs().max() <= _ROUNDING * self.expected.abs().max().clamp(min=1e-30))


def _with_noise(inputs: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A copy with noise as wide as the inputs themselves."""
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed)).to(inputs)
    return inputs + noise * inputs.std().clamp(min=1e-3)


def _rounded(box: Sides, multiple: int, extent: Sequence[int]) -> Sides:
    """A box that begins and ends at multiples of so many voxels, or at the input's end."""
    return tuple(
        (a // multiple * multiple, min(n, -(-b // multiple) * multiple)) for (a, b), n in zip(box, extent, strict=True)
    )


def _slices(sides: Sides) -> tuple[slice, ...]:
    return (slice(None), slice(None), *(slice(*side) for side in sides))


def _part(output: torch.Tensor, sides: Sides) -> torch.Tensor:
    return output[_slices(sides)]


def _moved(sides: Sides, origin: Sides, *, back: bool = False) -> Sides:
    """Sides counted from the first voxel of a box; or, back, from that of the input."""
    sign = 1 if back else -1
    return tuple((a + sign * zero, b + sign * zero) for (a, b), (zero, _) in zip(sides, origin, strict=True))


def _in_words(extent: Sequence[int]) -> str:
    return "x".join(map(str, extent))


def _unaligned(extent: Sequence[int]) -> str:
    return (
        f"no crop of the {_in_words(extent)} voxels that the network reads gives the same scores (strides that are no "
        "powers of two, or positions that count): goes on without the crop"
    )


def _blame(module: nn.Module, extent: Sequence[int], wanted: Sides) -> str | None:
    """Why the field is everything, by the first layer that reads all of its input; None where inputs are small."""
    named = ((name, getattr(layer, "original_name", type(layer).__name__)) for name, layer in module.named_modules())
    guilty = next(((name, kind) for name, kind in named if kind in _GLOBAL + _POOLING), None)
    margin = max(max(start, size - stop) for (start, stop), size in zip(wanted, extent, strict=True))
    if guilty is None and margin <= 2 * _FIRST_REACH:
        return None
    why = f": {guilty[1]} {guilty[0]!r} looks at all of it" if guilty else ""
    return f"the receptive field is the whole window of {_in_words(extent)} voxels{why}; goes on without the crop"
