"""What a training input may look like as well: random changes that leave its label as it is."""

from __future__ import annotations

import math

import torch
from monai.transforms import (
    Compose,
    Lambda,
    Rand3DElastic,
    RandAdjustContrast,
    RandAffine,
    RandBiasField,
    RandCoarseDropout,
    RandFlip,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandRotate,
    RandScaleIntensity,
    RandShiftIntensity,
    RandStdShiftIntensity,
)
from monai.transforms.transform import RandomizableTransform

# True is the strong one for volumes, as `Settings.augmentation` says it.
AUGMENTATIONS = (True, "gentle", "elastic", "slices", "turns", "lesions", "contrast")
# Those that move no voxel, so that masks stay what they are.
UNMOVED = ("lesions", "contrast")


class MixChannels(RandomizableTransform):
    """Adds to every channel of (C, ...) a share of another one, drawn from -`share` to `share`.

    Scanners differ in how bright grey matter is on FLAIR beside white matter. T1 shows these tissues, too, so that a
    share of it turns the contrast of one scanner into another's, whatever else is in the image.
    """

    def __init__(self, share: float, prob: float) -> None:
        RandomizableTransform.__init__(self, prob)
        self.share = share

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """A copy with the channels mixed; one channel alone stays as it is."""
        self.randomize(None)
        count = len(image)
        if not self._do_transform or count < 2:
            return image
        steps = self.R.randint(1, count, size=count)
        shares = self.R.uniform(-self.share, self.share, size=count)
        mixed = [image[c] + float(shares[c]) * image[(c + int(steps[c])) % count] for c in range(count)]
        return torch.stack(mixed)


def augmentation(kind: bool | str = True) -> Compose:
    """The transforms of one kind; they take (C, X, Y, Z), or (C, X, Y) for "slices" and "turns".

    - True, for volumes: random mirroring, rotation, scaling and shift, contrast and brightness per sequence, and holes;
      zeros stay zero. Strong on purpose: with a few dozen labels a network otherwise knows its patients by heart within
      ten epochs, and its maps then show what it memorised instead of the lesion. The rotated inputs are mixed with
      unrotated ones, so that the network also sees images as sharp as those that it is going to read. The holes are
      what perturbation methods will show it: a network that has never seen one answers to the hole, not to what is
      missing.
    - "gentle", for volumes: mirrors, and hardly touches contrasts: for labels that hang on how bright one sequence is
      beside another, or on something small, which turning would blur and a hole could take away.
    - "elastic", for volumes: mirroring along the first two axes, a small affine change and an elastic one, as paper
      grading has it (003, IV.A.2; how much it leaves open). Zeros stay zero.
    - "turns", for slices: mirroring along either axis with probability 1/2 each and a rotation by up to 330 degrees
      either way, as paper gp has it (002, table 2).
    - "slices", for slices: mirroring, a rotation by up to 25 degrees, shift, scaling, brightness, contrast and noise,
      which falls on the background, too.
    - "lesions", for patches of normalised volumes: sequences mixed, contrast, brightness, a bias field, blur and noise,
      nothing that moves a voxel.
    - "contrast", for windows of normalised volumes: brightness, contrast and gamma of each sequence, little enough that
      enhancement, which is how much brighter T1 is with contrast agent than without, can still be told.
    """
    if kind == "contrast":
        return Compose(
            [
                RandScaleIntensity(factors=0.15, prob=0.8, channel_wise=True),
                RandShiftIntensity(offsets=0.15, prob=0.8, channel_wise=True),
                RandAdjustContrast(gamma=(0.8, 1.25), prob=0.3),
                RandGaussianNoise(std=0.08, prob=0.3),
            ]
        )
    if kind == "lesions":
        return Compose(
            [
                MixChannels(share=0.3, prob=0.8),
                RandScaleIntensity(factors=(-0.35, 0.5), prob=0.8, channel_wise=True),
                RandShiftIntensity(offsets=0.3, prob=0.8, channel_wise=True),
                RandAdjustContrast(gamma=(0.75, 1.35), prob=0.5),
                RandBiasField(coeff_range=(0.0, 0.06), prob=0.3),
                RandGaussianSmooth(sigma_x=(0.3, 0.8), sigma_y=(0.3, 0.8), sigma_z=(0.3, 0.8), prob=0.3),
                RandGaussianNoise(std=0.12, prob=0.5),
            ]
        )
    if kind == "elastic":
        return Compose(
            [
                *(RandFlip(prob=0.5, spatial_axis=axis) for axis in range(2)),
                RandAffine(
                    prob=0.5,
                    rotate_range=(0.17, 0.17, 0.17),
                    translate_range=(3, 3, 3),
                    scale_range=(0.1, 0.1, 0.1),
                    mode="bilinear",
                    padding_mode="zeros",
                ),
                Rand3DElastic(
                    sigma_range=(4, 6), magnitude_range=(30, 90), prob=0.3, mode="bilinear", padding_mode="zeros"
                ),
            ]
        )
    if kind == "turns":
        turn = RandRotate(range_x=11 / 6 * math.pi, prob=1.0, mode="bilinear", padding_mode="zeros")
        return Compose([*(RandFlip(prob=0.5, spatial_axis=axis) for axis in range(2)), turn])
    if kind == "slices":
        return Compose(
            [
                *(RandFlip(prob=0.5, spatial_axis=axis) for axis in range(2)),
                RandAffine(
                    prob=1.0,
                    rotate_range=(0.45,),
                    translate_range=(8, 8),
                    scale_range=(0.2, 0.2),
                    mode="bilinear",
                    padding_mode="border",
                ),
                RandScaleIntensity(factors=0.3, prob=0.7, channel_wise=True),
                RandStdShiftIntensity(factors=0.3, prob=0.7, nonzero=True, channel_wise=True),
                RandGaussianNoise(prob=0.5, std=0.05),
            ]
        )
    contrast = 0.1 if kind == "gentle" else 0.5
    transforms = [
        # Where nothing before it made a copy, MONAI's RandStdShiftIntensity writes into what it is given.
        Lambda(torch.clone),
        *(RandFlip(prob=0.5, spatial_axis=axis) for axis in range(3)),
        RandAffine(
            prob=0.7,
            rotate_range=(0.35, 0.35, 0.35),
            translate_range=(2, 4, 4),
            scale_range=(0.1, 0.1, 0.1),
            mode="bilinear",
            padding_mode="zeros",
        ),
        RandScaleIntensity(factors=contrast, prob=0.5, channel_wise=True),
        RandStdShiftIntensity(factors=contrast, prob=0.5, nonzero=True, channel_wise=True),
        RandCoarseDropout(
            holes=1, max_holes=4, spatial_size=6, max_spatial_size=16, dropout_holes=True, fill_value=0, prob=0.8
        ),
    ]
    if kind == "gentle":
        transforms = [one for one in transforms if not isinstance(one, RandAffine | RandCoarseDropout)]
    return Compose(transforms)
