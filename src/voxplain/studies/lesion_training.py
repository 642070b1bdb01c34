"""One training of paper instance (004): real scans as they are, the same with made lesions, and made brains."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from voxplain.compute import Compute
from voxplain.datasets import phantom
from voxplain.datasets.case import Case
from voxplain.datasets.made_lesions import paint_lesions
from voxplain.datasets.patches import Volume, draw, volume_of
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.io.atomic import output_folder, write_text
from voxplain.io.bundle import load_model, save_model
from voxplain.io.nifti import read_labels
from voxplain.optimisation import finish, finished
from voxplain.scan import Labels, Scan
from voxplain.segmentation_losses import lesion_loss
from voxplain.segmentation_training import train_segmentation
from voxplain.studies.cross_validation import new_network
from voxplain.studies.lesion_presets import LesionPreset
from voxplain.studies.model_page import lesions_page

DATA = (
    "3D MR brain scans of MS patients with consensus lesion masks, University Medical Centre Ljubljana, CC BY 4.0 "
    "(Lesjak 2018, 10.1007/s12021-017-9348-7), in MNI space at 1 mm"
)
_LABELS = "expert lesion masks of the training patients, and lesions that were made: shapes of other patients' masks"
_LIMITS = (
    "Research software, not a medical device; learnt from so few patients that other scanners, sequences and diseases "
    "are outside of what it has seen."
)
# A made lesion lies up to so many voxels beside its model, mirrored or not.
_SHIFT = 4


def train_network(
    cases: Sequence[Case],
    shapes: Sequence[Path],
    folder: Path,
    *,
    preset: LesionPreset,
    seed: int = 0,
    compute: Compute,
    title: str = "training",
) -> dict[str, Any]:
    """Train one network into `folder`: model.json, weights.safetensors and metrics.json; a finished one is kept.

    Nothing but the given cases and shapes is read. Where `painted` exceeds the shapes, they come again elsewhere.

    Raises:
        InputError: no case, a case without an expert mask, no shapes to make lesions from, or a folder with another
            training.
    """
    if not cases or (not shapes and preset.painted + preset.phantoms > 0):
        raise InputError(
            "training needs patients with expert masks, and masks of other patients (lesion_masks/*.nii.gz in the data "
            f"folder) as shapes of made lesions; got {len(cases)} and {len(shapes)}"
        )
    ids = [case.id for case in cases]
    content = [dataclasses.asdict(preset), seed, ids, [path.name for path in shapes]]
    identity = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    known = finished(folder, identity, of="scans")
    if known is not None:
        return known
    output_folder(folder)
    card, patch = preset.card, preset.patch_size
    volumes = volumes_of(cases, shapes, preset, seed=seed, compute=compute)
    network, lesion = new_network(card, seed), card.classes.index("lesion")
    result = train_segmentation(
        network,
        lambda random: draw(volumes, patch, random),
        folder,
        loss=lambda network, images, blobs: lesion_loss(network(images).float(), blobs, lesion, preset.settings),
        settings=preset.settings,
        identity=identity,
        seed=seed,
        compute=compute,
        title=title,
    )
    facts = {
        "data": DATA,
        "labels": _LABELS,
        "ids": ids,
        "shapes": len(shapes),
        "painted": preset.painted,
        "phantoms": preset.phantoms,
        "weights_of_draws": {"real": preset.real, "painted": 1.0, "phantom": preset.phantom},
        "settings": dataclasses.asdict(preset.settings),
        "seed": seed,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "seconds": result.seconds,
        "limits": _LIMITS,
    }
    description = (
        f"Segments white-matter lesions of multiple sclerosis on FLAIR and T1. Learnt from {DATA}, with made lesions. "
        f"{_LIMITS}"
    )
    card = dataclasses.replace(card, description=description, training=facts)
    save_model(network, card, folder, half_precision=True)
    write_text(lesions_page(load_model(folder).card), folder / "README.md")
    metrics = {"identity": identity, "losses": list(result.losses), **facts}
    finish(folder, metrics)
    return metrics


def volumes_of(
    cases: Sequence[Case], shapes: Sequence[Path], preset: LesionPreset, *, seed: int, compute: Compute
) -> list[Volume]:
    """All that patches are drawn from; every random choice follows from the seed and the volume's place in the list.

    Raises:
        InputError: a case without an expert mask or without FLAIR and T1.
    """
    card, patch = preset.card, preset.patch_size
    masks = [read_labels(path) for path in shapes]
    scans = [(case, case.scan(["flair", "t1"]), case.tumour()) for case in cases]
    found = [volume_of(case.id, scan, known, card, patch, preset.real) for case, scan, known in scans]
    jobs = [(number, index) for number in range(preset.painted) for index in range(len(scans))]
    for number, index in tracked(jobs, "made lesions in real scans", shown=compute.progress):
        case, scan, known = scans[index]
        random = np.random.default_rng((seed, 1, number, index))
        lesions = _elsewhere(masks[(number + index) % len(masks)], random)
        painted, labels = paint_lesions(scan, lesions, seed=int(random.integers(2**31)), known=known)
        found.append(volume_of(f"{case.id} with made lesions {number}", painted, labels, card, patch))
    for number in tracked(range(preset.phantoms), "made brains", shown=compute.progress):
        random = np.random.default_rng((seed, 2, number))
        lesions = _elsewhere(masks[int(random.integers(len(masks)))], random)
        # Painted, not grown with the phantom: made lesions of either kind then look alike.
        healthy = _made_brain(int(random.integers(2**31)))
        painted, labels = paint_lesions(healthy, lesions, seed=int(random.integers(2**31)))
        found.append(volume_of(f"phantom {number}", painted, labels, card, patch, preset.phantom))
    return found


@lru_cache(maxsize=2)
def _made_brain(seed: int) -> Scan:
    """FLAIR and T1 of a brain without lesions; the networks of a smoke run share their only one."""
    return phantom.glioma(seed, spacing=1, grade=None).scan.select(["flair", "t1"])


def _elsewhere(lesions: Labels, random: np.random.Generator) -> Labels:
    """Lesions a few voxels beside where they were, mirrored or not; masks in MNI space are symmetric in their grid."""
    data = np.roll(lesions.data, random.integers(-_SHIFT, _SHIFT + 1, 3), axis=(0, 1, 2))
    if random.random() < 0.5:
        data = np.flip(data, lesions.grid.axis("LR"))
    return Labels(np.ascontiguousarray(data), lesions.grid)
