"""A network and its card: what it eats, and what it says."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from voxplain.errors import InputError

_CHOICES = {
    "activation": ("sigmoid", "softmax"),
    "normalisation": ("none", "min-max", "z-score", "tissue", "grey-matter"),
    "region": ("whole", "half"),
    "fit": ("cut", "stretch", "head"),
    "spatial_dims": (2, 3),
    "slices": (None, "axial", "coronal", "sagittal"),
}
# The codes of the axis along which slices of each plane are counted.
SLICE_CODES = {"axial": "IS", "coronal": "PA", "sagittal": "LR"}
_KINDS = {
    "name": str,
    "orientation": str | None,
    "description": str,
    "factory": str | None,
    "arguments": Mapping,
    "weights": str | None,
    "training": Mapping,
}


@dataclass(frozen=True)
class Card:
    """What a network eats and says; `model.json` holds exactly these fields.

    Attributes:
        name: the model's name, as provenance and reports state it.
        channels: sequences in the order in which the network reads them.
        classes: one name per output; a single sigmoid output has one class.
        absent: those of the classes that say that nothing is there, such as "tumour-free"; a region of such a class is
            never positive.
        activation: "sigmoid" (each output on its own) or "softmax".
        threshold: probability from which a region counts as positive.
        calibration: (scale, shift) of the raw score that make its activation a probability that can be read as one;
            what is said of a region goes through it, what is explained is the network's own score.
        spatial_dims: 3, or 2 for networks that read images (scans with Z = 1).
        slices: for networks that read images: "axial", "coronal" or "sagittal" lets one run along a 3D scan, slice by
            slice; None takes images alone. The third axis of orientation, spacing and shape is that across the slices.
        spacing: voxel size in mm that the network was trained on; None takes the scan's own.
        orientation: axis codes such as "LPS"; None takes the scan's own.
        normalisation: per sequence over the whole scan: "z-score" over non-zero voxels (zeros stay 0); "tissue", for
            heads on a background that is dark but not 0: z-score over the voxels above 1/32 of the brightest, all
            others count as 0; "grey-matter", for skull-stripped heads with T1: 5 (x / median of grey matter - 1) over
            non-zero voxels (zeros stay 0), so that contrasts are the same however much fluid a brain holds; "min-max"
            to 0-1; or "none".
        region: "whole", or "half": both halves of the head are judged, the second one mirrored onto the first.
        shape: size in voxels to which the region is cut or padded; None takes all of it. Networks that read images
            have (X, Y, 1), and those without `slices` take an image of exactly that size.
        fit: how a whole scan comes to its shape. "cut" takes or pads its middle; "stretch" takes the smallest box that
            holds all that is not background, and resamples it to so many voxels (paper grading, 003, IV.A.2), so that
            the size of a voxel differs from scan to scan. "head" cuts to that box, with a margin of 4 voxels, but not
            smaller than the window: what networks learnt from, as their normalisation layers see how much air there is.
        window: size in voxels of the windows in which a network that gives a map reads the scan; their raw scores are
            blended with Gaussian weights (`voxplain.engine.windows`). None runs it on all of the input at once.
        overlap: share of a window that the next one covers again, at least 0 and below 1.
        skull_stripped: whether the network expects heads without skull on a background of exactly 0.
        description: what the model is for.
        factory: what builds the network, "package.module:callable".
        arguments: keyword arguments of the factory.
        weights: a file of weights beside the card, for factories given as "python:...".
        weights_fingerprint: hash of the weights that this card belongs to.
        training: facts about the training: data, citation, epochs, figures; `ids` lists the training cases,
            `validation_ids` those that chose the epoch.
    """

    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    absent: tuple[str, ...] = ()
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    threshold: float = 0.5
    calibration: tuple[float, float] = (1.0, 0.0)
    spatial_dims: Literal[2, 3] = 3
    slices: Literal["axial", "coronal", "sagittal"] | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    normalisation: Literal["none", "min-max", "z-score", "tissue", "grey-matter"] = "none"
    region: Literal["whole", "half"] = "whole"
    shape: tuple[int, int, int] | None = None
    fit: Literal["cut", "stretch", "head"] = "cut"
    window: tuple[int, int, int] | None = None
    overlap: float = 0.25
    skull_stripped: bool = False
    description: str = ""
    factory: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    weights_fingerprint: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("channels", "classes", "absent", "calibration", "spacing", "shape", "window"):
            value = getattr(self, name)
            if value is None and name in ("spacing", "shape", "window"):
                continue
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InputError(f"the card's {name} is a list; got {value!r}")
            object.__setattr__(self, name, tuple(value))
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                given = ", ".join(map(str, allowed))
                raise InputError(f"the card's {name} is one of {given}; got {getattr(self, name)!r}")
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"the card's {name} is of the wrong kind: got {getattr(self, name)!r}")
        if not all(isinstance(name, str) for name in (*self.channels, *self.classes)):
            raise InputError(f"the card's channels and classes are names; got {self.channels} and {self.classes}")
        if not self.channels or not self.classes:
            raise InputError("the card must name at least one channel and one class")
        if unknown := [str(name) for name in self.absent if name not in self.classes]:
            raise InputError(
                f"the card's absent names classes that say that nothing is there; {', '.join(unknown)} is not among "
                f"its classes {', '.join(self.classes)}"
            )
        for name in ("channels", "classes"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise InputError(f"the card's {name} come twice: {', '.join(getattr(self, name))}")
        if not 0 < self.threshold < 1:
            raise InputError(f"the card's threshold is a probability between 0 and 1; got {self.threshold}")
        numbers = [value for value in self.calibration if isinstance(value, int | float) and math.isfinite(value)]
        if len(self.calibration) != 2 or len(numbers) != 2 or numbers[0] <= 0:
            raise InputError(f"the card's calibration is a scale above 0 and a shift; got {self.calibration}")
        for name in ("spacing", "shape", "window"):
            value = getattr(self, name)
            if value is not None and (len(value) != 3 or not all(0 < size < math.inf for size in value)):
                raise InputError(f"the card's {name} is three positive numbers; got {value}")
        if self.spatial_dims == 2 and self.shape is not None and self.shape[2] != 1:
            raise InputError(f"the card's shape for a network that reads images is (X, Y, 1); got {self.shape}")
        if self.fit == "stretch" and (
            self.shape is None or (self.spacing, self.slices, self.window) != (None,) * 3 or self.region == "half"
        ):
            raise InputError(
                "a whole scan is stretched to a shape: give the card a shape, region whole, and neither spacing, "
                "slices nor window; or set fit to cut"
            )
        if self.fit == "head" and (self.region, self.shape, self.slices) != ("whole", None, None):
            raise InputError("a scan that is cut to its head is read whole: region whole, and neither shape nor slices")
        self._check_window()
        if self.slices is not None:
            self._check_slices(SLICE_CODES[self.slices])

    def _check_window(self) -> None:
        if not isinstance(self.overlap, int | float) or not 0 <= self.overlap < 1:
            raise InputError(f"the card's overlap is a share of the window, at least 0 and below 1; got {self.overlap}")
        if self.window is None:
            return
        if not all(isinstance(size, int) for size in self.window):
            raise InputError(f"the card's window is three whole numbers of voxels; got {self.window}")
        if self.spatial_dims != 3 or self.region == "half":
            raise InputError(
                "windows are for networks that read whole volumes: set the card's spatial_dims to 3 and its region to "
                "whole, or drop the window"
            )

    def _check_slices(self, codes: str) -> None:
        if self.spatial_dims != 2:
            raise InputError(
                f"the card's slices are for networks that read images: set spatial_dims to 2, or drop {self.slices!r}"
            )
        if self.region == "half":
            raise InputError("a network that runs along slices reads whole slices: set the card's region to whole")
        if self.orientation is not None and (len(self.orientation) != 3 or self.orientation[2] not in codes):
            raise InputError(
                f"the third axis of the card's orientation is that across its {self.slices} slices ({codes[0]} or "
                f"{codes[1]}); got {self.orientation!r}"
            )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Card:
        """Read a card; fields that are missing or not known are refused by name."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(content) - known)
        missing = sorted({"name", "channels", "classes"} - set(content))
        if unknown or missing:
            raise InputError(
                "a model card needs name, channels and classes, and has no field but "
                f"{', '.join(sorted(known))}; missing: {', '.join(missing) or 'none'}; "
                f"not known: {', '.join(unknown) or 'none'}"
            )
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """The card as plain data, for `model.json`.

        What came later is left out where it is as if it were not there: trainings that were finished before, which are
        known by their cards, are then still known.
        """
        later = {"fit": "cut"}
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if name not in later or value != later[name]}

    def calibrated(self, output: torch.Tensor) -> torch.Tensor:
        """The raw score of any shape, scaled and shifted by the calibration."""
        scale, shift = self.calibration
        return scale * output + shift

    @property
    def training_ids(self) -> frozenset[str]:
        """Ids of the cases that the network has seen: those it was trained on, and those that chose its epoch."""
        return frozenset((*self.training.get("ids", ()), *self.training.get("validation_ids", ())))


@dataclass(frozen=True, eq=False)
class Model:
    """A network and its card. `fingerprint` is the hash of its weights.

    `differentiable_inside` is False for TorchScript: such a network can be called and differentiated with respect to
    its input, but its layers cannot be watched.
    """

    network: nn.Module
    card: Card
    fingerprint: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", weights_fingerprint(self.network.state_dict()))
        dims = {2: "Conv2d", 3: "Conv3d"}
        found = {self._kind(module) for module in self.network.modules()}
        wanted, other = dims[self.card.spatial_dims], dims[5 - self.card.spatial_dims]
        if other in found and wanted not in found:
            raise InputError(
                f"the card says spatial_dims {self.card.spatial_dims}, but the network is made of {other}: "
                f"set spatial_dims to {5 - self.card.spatial_dims}, or load the network that belongs to the card"
            )

    @staticmethod
    def _kind(module: nn.Module) -> str:
        return module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__

    @property
    def differentiable_inside(self) -> bool:
        """Whether the network's layers can be watched with hooks."""
        return not isinstance(self.network, torch.jit.ScriptModule)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the network's modules, in order, the network itself left out."""
        return tuple(name for name, _ in self.network.named_modules() if name)

    def layer(self, name: str) -> nn.Module:
        """One module of the network, by its name.

        Raises:
            InputError: no such layer (the message lists those that exist), or a TorchScript network.
        """
        if not self.differentiable_inside:
            raise InputError(
                "a TorchScript network can be called and differentiated with respect to its input, but its layers "
                "cannot be watched; use a method that needs calls only (voxplain methods), or load the network "
                "from a folder or as python:pkg.mod:factory"
            )
        if name not in self.layers:
            top = [layer for layer in self.layers if "." not in layer]
            inner = [layer for layer in self.layers if "." in layer]
            shown = ", ".join(top + inner[:40]) + (f", ... ({len(inner) - 40} more)" if len(inner) > 40 else "")
            raise InputError(f"the network has no layer {name!r}; it has {shown}")
        return self.network.get_submodule(name)


def weights_fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """A hash of names, shapes and values of a state dict; precision and device do not matter to it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.to(torch.float64 if value.dtype == torch.float64 else torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
