"""What a scan may need before a network reads it: FLAIR brought onto T1, and the coils' bias taken out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import SimpleITK as sitk

from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.scan import Scan

# ITK counts x and y the other way round than NIfTI does.
_TO_ITK = np.diag([-1.0, -1.0, 1.0])
_SAMPLED = 0.2
_SHRINK, _SMOOTH_MM = (4, 2, 1), (4.0, 2.0, 0.0)


def register(moving: Scan, fixed: Scan, *, seed: int = 0) -> tuple[Scan, dict[str, Any]]:
    """Bring a scan of one sequence onto the grid of another one by a rigid transform (mutual information).

    Three resolutions, linear interpolation, 0 outside the field of view. Both scans need the same head, roughly
    overlapping; where they share a background of exactly 0, the result's is 0 where the fixed scan's is.

    Args:
        moving: one sequence, such as FLAIR, on any grid with axes at right angles.
        fixed: one sequence, such as T1.
        seed: of the voxels that the similarity is measured at.

    Returns:
        The moving sequence on the fixed grid, and what was done: rotation in degrees, translation in mm at the centre
        of the fixed grid, the similarity before and after (mutual information, higher is more alike).

    Raises:
        InputError: more than one sequence, an image without content, or a registration that does not converge.
    """
    for name, scan in (("moving", moving), ("fixed", fixed)):
        if len(scan.channels) != 1 or not np.ptp(scan.data):
            raise InputError(f"registration takes one sequence with content; the {name} scan has {scan.channels}")
    still, other = image_of(fixed.data[0], fixed.grid), image_of(moving.data[0], moving.grid)
    centre = sitk.CenteredTransformInitializer(
        still, still, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(_SAMPLED, seed + 1)  # 0 would be the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(_SHRINK)
    method.SetSmoothingSigmasPerLevel(_SMOOTH_MM)
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetNumberOfThreads(1)
    method.SetInitialTransform(centre, inPlace=False)
    try:
        with _one_thread():
            before = -method.MetricEvaluate(still, other)
            found = method.Execute(still, other)
            moved = array_of(sitk.Resample(other, still, found, sitk.sitkLinear, 0.0, sitk.sitkFloat32))
    except RuntimeError as error:
        raise InputError(
            f"{moving.channels[0]} could not be registered to {fixed.channels[0]}: do they show the same head, roughly "
            f"in the same place? ({' '.join(str(error).split())[-160:]})"
        ) from error
    if (fixed.data == 0).any() and (moving.data == 0).any():
        moved = np.where(fixed.data[0] != 0, moved, 0)
    rigid = sitk.Euler3DTransform(found.GetNthTransform(0) if found.GetName() == "CompositeTransform" else found)
    turned = [rigid.GetAngleX(), rigid.GetAngleY(), rigid.GetAngleZ()]
    record = {
        "registration": "rigid, mutual information",
        "rotation_degrees": [round(math.degrees(angle), 3) for angle in turned],
        "translation_mm": [round(value, 3) for value in rigid.GetTranslation()],
        "mutual_information": [round(before, 4), round(-method.GetMetricValue(), 4)],
    }
    return Scan(moved[None], fixed.grid, moving.channels), record


@contextmanager
def _one_thread() -> Iterator[None]:
    """What ITK adds up on several threads differs from run to run; the filters inside of a method have their own."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def correct_bias(
    scan: Scan, *, shrink: int = 4, iterations: Sequence[int] = (50, 50, 50)
) -> tuple[Scan, dict[str, Any]]:
    """Take the slow unevenness of the coils out of every sequence (N4, Tustison 2010), within what is not 0.

    The field is found on a grid coarser by `shrink`, over as many resolutions as there are `iterations`. Where a
    sequence is 0 or below, nothing changes.

    Returns:
        The scan, and by sequence how far the field strays: its 5th and 95th percentile over the head, 1 being none.

    Raises:
        InputError: a sequence without voxels above 0.
    """
    data = scan.data.copy()
    record: dict[str, Any] = {"bias_correction": "N4", "shrink": shrink}
    for name, channel in zip(scan.channels, data, strict=True):
        inside = channel > 0
        if not inside.any():
            raise InputError(f"sequence {name} has no voxel above 0; expected an image")
        image = image_of(np.where(inside, channel, 0), scan.grid)
        mask = sitk.Cast(image_of(inside.astype(np.float32), scan.grid), sitk.sitkUInt8)
        factors = [min(shrink, size) for size in scan.grid.shape]
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations(list(iterations))
        corrector.Execute(sitk.Shrink(image, factors), sitk.Shrink(mask, factors))
        field = np.exp(array_of(corrector.GetLogBiasFieldAsImage(image)))
        channel[inside] /= field[inside]
        record[name] = [round(float(value), 3) for value in np.percentile(field[inside], (5, 95))]
    return Scan(data, scan.grid, scan.channels), record


def image_of(values: np.ndarray, grid: Grid) -> sitk.Image:
    """An array (X, Y, Z) as an ITK image that lies in the same place.

    Raises:
        InputError: axes that are not at right angles.
    """
    directions = grid.affine[:3, :3] / np.array(grid.spacing)
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        raise InputError("registration and bias correction need axes at right angles; resample the scan first")
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T, dtype=np.float32))
    image.SetSpacing([float(size) for size in grid.spacing])
    image.SetDirection((_TO_ITK @ directions).ravel().tolist())
    image.SetOrigin((_TO_ITK @ grid.affine[:3, 3]).tolist())
    return image


def array_of(image: sitk.Image) -> np.ndarray:
    """The voxels (X, Y, Z) of an ITK image, float32."""
    return np.ascontiguousarray(sitk.GetArrayFromImage(image).T, dtype=np.float32)
