"""Phantoms: made brain scans with a known lesion, as FLAIR, T1, T1ce and T2, one seed for one patient.

Anatomy (on the MNI152 template), lesions and contrasts are rules that we wrote; what is measured on phantoms checks
software, not medicine, and is called "phantom (software check)".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from voxplain.datasets.brats import GRADES, SEQUENCES, cases
from voxplain.datasets.case import Case
from voxplain.datasets.cpm_radpath import CLASSES
from voxplain.datasets.phantom_anatomy import Anatomy, make_anatomy, smooth_noise, world
from voxplain.datasets.phantom_lesions import (
    ENHANCING,
    LESION,
    NECROTIC,
    OEDEMA,
    grow_glioma,
    scatter_lesions,
)
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.io.nifti import save
from voxplain.scan import Labels, Scan

SIDES = ("left", "right")
# Types of glioma in the words of CPM-RadPath: glioblastoma, astrocytoma, oligodendroglioma.
TYPES = tuple(CLASSES)

# The marker of a planted shortcut: a bright ball in one sequence, in the left half of the cerebellum.
SHORTCUT_SEQUENCE = "t2"
SHORTCUT_CENTRE_MM = (-26.0, -62.0, -42.0)
SHORTCUT_RADIUS_MM = 5.0
SHORTCUT_BRIGHTNESS = 4.0

# What each sequence shows, as multiples of white matter (medians over BraTS patients, rounded):
#           grey  white csf  necrotic oedema enhancing
_CONTRASTS = {
    "flair": (1.10, 1.0, 0.28, 1.75, 2.00, 1.85),
    "t1": (0.66, 1.0, 0.26, 0.70, 0.85, 0.82),
    "t1ce": (0.76, 1.0, 0.34, 0.78, 0.88, 1.55),
    "t2": (1.55, 1.0, 3.2, 2.20, 1.85, 1.70),
}
# What the core of a glioma of that type shows instead of necrosis, and calcium. An astrocytoma's is bright on T2 and
# dark on FLAIR, where only its surroundings are bright ("T2-FLAIR mismatch"); an oligodendroglioma's is bright on both.
_CORES = {
    "A": {"flair": 0.6, "t1": 0.55, "t1ce": 0.62, "t2": 2.9},
    "O": {"flair": 1.75, "t1": 0.78, "t1ce": 0.84, "t2": 2.0},
}
_CALCIUM = {"flair": 0.35, "t1": 0.55, "t1ce": 0.6, "t2": 0.4}
_MS_LESION = {"flair": 1.75, "t1": 0.74, "t1ce": 0.78, "t2": 2.0}
# How much of a voxel's signal a vessel takes, and how bright it is.
_VESSELS = {"flair": (0.2, 0.6), "t1": (0.2, 0.75), "t1ce": (1.0, 2.4), "t2": (0.2, 0.5)}
# How much a lesion's water, which varies within it, brightens it.
_WATER = {"flair": 0.14, "t1": -0.05, "t1ce": -0.05, "t2": 0.16}
# How far the tissues and lesions of patients differ in a sequence (log scale; white matter is the yardstick).
_SPREAD = (0.05, 0, 0.1, 0.12, 0.12, 0.12)
_MOST_PARTS = 6
_WHITE_MATTER = 330.0  # scanner units, before the gain of each sequence
# Standard deviation in each of the receiver's two channels, as a share of white matter; then by voxel size.
_NOISE = {"flair": 0.045, "t1": 0.028, "t1ce": 0.028, "t2": 0.042}
_NOISIER = {1: 1.3, 2: 1.0}


@dataclass(frozen=True, eq=False)
class Phantom:
    """A made patient: the scan, its labels on the same grid, and what was asked for.

    `kind` is "glioma" or "ms"; `grade` as asked for, or None (no tumour, or no glioma); `side` of the tumour "left"
    (x < 0) or "right", None without one; `shortcut` whether the marker is planted.
    """

    scan: Scan
    labels: Labels
    kind: str
    seed: int
    grade: str | None = None
    side: str | None = None
    shortcut: bool = False


def glioma(
    seed: int = 0,
    *,
    spacing: float = 2.0,
    grade: str | None = "HGG",
    side: str | None = None,
    shortcut: bool = False,
    brightness: float = SHORTCUT_BRIGHTNESS,
) -> Phantom:
    """A skull-stripped brain with a glioma. Labels as in BraTS: 1 necrotic or non-enhancing, 2 oedema, 4 enhancing.

    Channels flair, t1, t1ce, t2: whole numbers of at least 1 in the brain and exactly 0 outside, on the template's
    grid (RAS+, the mid-sagittal plane at x = 0). The tumour (24 to 150 ml) lies wholly in one half. One seed is one
    patient, whatever the spacing; another `grade` or `side` is the same brain with another tumour. A "HGG" has an
    enhancing rim around necrosis, a "LGG" the same outline and no enhancement; without a grade there is no tumour and
    the labels are all 0. In the words of CPM-RadPath, "G" (glioblastoma) looks as "HGG" does; "A" (astrocytoma) does
    not enhance and has a core that is bright on T2 and dark on FLAIR; "O" (oligodendroglioma) does not enhance, is
    bright on both, and holds clumps of calcium that are dark on all. A patient's types have one outline.

    A `shortcut` is a bright ball (5 mm) in T2 at (-26, -62, -42) mm, in the cerebellum, where no tumour grows; it is
    not in the labels. Fluid has 3.2 times the signal of white matter there, the marker 4 times: a network has to look
    for it. With a higher `brightness` it is what strikes first.

    Args:
        seed: the patient.
        spacing: voxel size in mm, 1 or 2.
        grade: "HGG", "LGG", "G", "A", "O", or None for the same patient without tumour.
        side: the patient's "left" (x < 0) or "right"; None leaves it to the seed.
        shortcut: whether the marker is planted.
        brightness: the marker's signal, as a multiple of white matter's.

    Raises:
        InputError: another spacing, grade or side, a negative seed, or a brightness of 0 or less.
    """
    _check(seed, spacing)
    if grade is not None and grade not in (*GRADES, *TYPES):
        raise InputError(
            f"the grade of a glioma is one of {', '.join((*GRADES, *TYPES))}, or None for no tumour; got {grade!r}"
        )
    if side is not None and side not in SIDES:
        raise InputError(f"a tumour lies 'left' or 'right' (None: as the seed says); got {side!r}")
    if not 0 < brightness < np.inf:
        raise InputError(f"the brightness of a shortcut is a multiple of white matter's, above 0; got {brightness}")
    brain, growth, scanner = np.random.default_rng(seed).spawn(3)
    anatomy = make_anatomy(brain, int(spacing))
    drawn = SIDES[int(growth.integers(2))]
    if grade is None:
        side, labels, parts = None, np.zeros(anatomy.grid.shape, dtype=np.int32), []
    else:
        side = side or drawn
        tumour = grow_glioma(growth, anatomy, -1 if side == "left" else 1, grade)
        anatomy, labels = tumour.anatomy, tumour.labels
        third = tumour.calcium if grade in _CORES else labels == ENHANCING
        parts = [(labels == NECROTIC) & ~tumour.calcium, tumour.oedema * (labels == OEDEMA), third]
    scan = _scanned(scanner, anatomy, parts, _contrasts(grade), marker=brightness if shortcut else None)
    return Phantom(scan, Labels(labels, anatomy.grid), "glioma", seed, grade, side, shortcut)


def multiple_sclerosis(seed: int = 0, *, spacing: float = 2.0, lesions: Labels | None = None) -> Phantom:
    """A skull-stripped brain with lesions of multiple sclerosis, bright on FLAIR and T2. Labels: 1 lesion.

    A lesion is what hangs together by faces or edges (18 neighbours), as in expert masks. Scan as of `glioma`. Lesions
    are made (10 to 45, most of them around the ventricles), or lie where the caller's mask is.

    Args:
        seed: the patient.
        spacing: voxel size in mm, 1 or 2.
        lesions: a mask in MNI space, on any grid with axes parallel to the template's; every label counts, each
            voxel takes the nearest one's, and what lies outside this patient's brain is dropped.

    Raises:
        InputError: another spacing, a negative seed, a mask that is empty, rotated, or nowhere in the brain.
    """
    _check(seed, spacing)
    brain, growth, scanner = np.random.default_rng(seed).spawn(3)
    again = copy.deepcopy(brain)
    anatomy = make_anatomy(brain, int(spacing))
    if lesions is None:
        mask = scatter_lesions(growth, anatomy, anatomy if spacing == 2 else make_anatomy(again, 2))
    else:
        mask = _placed(lesions, anatomy)
    contrasts = {name: (*_CONTRASTS[name][:3], _MS_LESION[name]) for name in SEQUENCES}
    scan = _scanned(scanner, anatomy, [mask], contrasts, marker=None)
    return Phantom(scan, Labels(np.where(mask, LESION, 0), anatomy.grid), "ms", seed)


def write_case(scan: Scan, labels: Labels, folder: Path | str) -> Case:
    """Write a scan and its labels in BraTS layout (NAME/NAME_flair.nii.gz, ..., NAME/NAME_seg.nii.gz) and list it.

    Raises:
        InputError: the two lie on different grids, BraTS knows no such sequence, or the folder cannot be written.
    """
    strange = [name for name in scan.channels if name not in SEQUENCES]
    if strange:
        raise InputError(f"BraTS layout holds {', '.join(SEQUENCES)}; got {', '.join(strange)}; select channels first")
    if difference := scan.grid.difference(labels.grid):
        raise InputError(f"a scan and its labels lie on one grid; these differ: {difference}")
    folder = Path(folder).expanduser().resolve()
    for name in scan.channels:
        save(scan.select([name]), folder / f"{folder.name}_{name}.nii.gz")
    save(labels, folder / f"{folder.name}_seg.nii.gz")
    return cases(folder)[0]


def _contrasts(grade: str | None) -> Mapping[str, Sequence[float]]:
    """What each sequence shows of the tissues and of the three parts of a glioma."""
    if grade not in _CORES:
        return _CONTRASTS
    core = _CORES[grade]
    return {name: (*row[:3], core[name], row[4], _CALCIUM[name]) for name, row in _CONTRASTS.items()}


def _check(seed: int, spacing: float) -> None:
    if spacing not in (1, 2):
        raise InputError(f"a phantom has a spacing of 1 or 2 mm; got {spacing}; resample one with Scan.on")
    if seed < 0:
        raise InputError(f"the seed of a phantom is a whole number of at least 0; got {seed}")


def _placed(lesions: Labels, anatomy: Anatomy) -> np.ndarray:
    """The caller's lesions on the phantom's grid, inside its brain."""
    if not lesions.data.any():
        raise InputError("the lesion mask is empty; give a mask in MNI space that marks at least one lesion")
    found: np.ndarray = (lesions.on(anatomy.grid).data > 0) & anatomy.brain
    if not found.any():
        where = ", ".join(f"{value:.0f}" for value in lesions.grid.world(np.argwhere(lesions.data)).mean(axis=0))
        raise InputError(
            f"no lesion of the mask lies in the phantom's brain (their middle is at {where} mm); "
            "give a mask in MNI space"
        )
    return found


def _scanned(
    random: np.random.Generator,
    anatomy: Anatomy,
    lesions: Sequence[np.ndarray],
    contrasts: Mapping[str, Sequence[float]],
    *,
    marker: float | None,
) -> Scan:
    """What a scanner makes of it: contrast, texture, slice thickness, uneven coils, Rician noise, any gain.

    `contrasts` holds what each sequence shows of grey matter, white matter, fluid and each of the `lesions`, which
    are shares (X, Y, Z) from 0 to 1 with hard borders; `marker` is the brightness of a planted shortcut.
    """
    grid, brain = anatomy.grid, anatomy.brain
    spacing = grid.spacing[0]
    parts = [ndimage.gaussian_filter(lesion.astype(np.float32), 0.6 / spacing)[brain] for lesion in lesions]
    ill = sum(parts, np.zeros(np.count_nonzero(brain), dtype=np.float32))
    healthy = np.clip(1 - ill, 0, 1)
    mixture = np.stack([*(healthy * tissue for tissue in anatomy.tissues()[:, brain]), *parts])
    vessels = anatomy.vessels[brain] * healthy
    water = smooth_noise(random, grid, 7)[brain] * ill
    data = np.zeros((len(contrasts), *grid.shape), dtype=np.float32)
    (receiver,) = random.spawn(1)  # noise takes as many numbers as there are voxels; all else is the same at 1 and 2 mm
    for image, (name, values) in zip(data, contrasts.items(), strict=True):
        # A lesion's draws come last, so that the healthy tissue of one patient does not depend on them.
        luck = np.clip(random.standard_normal(_MOST_PARTS), -2, 2)[: len(mixture)]
        shown = np.asarray(values[: len(mixture)]) * np.exp(luck * np.array(_SPREAD[: len(mixture)]))
        signal = shown.astype(np.float32) @ mixture
        share, brightness = _VESSELS[name]
        signal += share * vessels * (brightness - signal)
        texture = smooth_noise(random, grid, 4)[brain]
        coils = smooth_noise(random, grid, 65)[brain]
        signal *= np.exp((0.035 + 0.05 * ill) * texture + _WATER[name] * water + 0.09 * coils)
        if marker is not None and name == SHORTCUT_SEQUENCE:
            signal += marker_share(grid)[brain] * (marker - signal)
        blur = np.full(3, 0.3)
        blur[random.choice(3, p=(0.15, 0.15, 0.7))] += abs(random.normal(0, 0.6))
        image[brain] = signal
        image[brain] = _blurred(image, brain, blur / spacing)
        noise = _NOISE[name] * _NOISIER[round(spacing)] * np.exp(random.normal(0, 0.3))
        gain = _WHITE_MATTER * np.exp(np.clip(random.normal(0, 0.35), -0.9, 0.9))
        real, imaginary = noise * receiver.standard_normal((2, signal.size), dtype=np.float32)
        image[brain] = np.maximum(np.rint(gain * np.hypot(image[brain] + real, imaginary)), 1)
    return Scan(data, grid, tuple(contrasts))


def _blurred(image: np.ndarray, brain: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The brain's voxels (N,) after a blur in which the background, which is nothing, takes no part."""
    total = ndimage.gaussian_filter(image, sigma)[brain]
    values: np.ndarray = total / ndimage.gaussian_filter(brain.astype(np.float32), sigma)[brain]
    return values


def marker_share(grid: Grid) -> np.ndarray:
    """How much of each voxel the ball of a planted shortcut takes, (X, Y, Z) from 0 to 1."""
    x, y, z = (axis - c for axis, c in zip(world(grid), SHORTCUT_CENTRE_MM, strict=True))
    return np.clip((SHORTCUT_RADIUS_MM - np.sqrt(x**2 + y**2 + z**2)) / grid.spacing[0] + 0.5, 0, 1)
