from pathlib import Path

import numpy as np
import pytest
from nilearn.datasets import load_mni152_template
from scipy import ndimage

from voxplain.datasets.brats import cases
from voxplain.datasets.phantom import made_scan, write_case
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.scan import Labels, Scan


@pytest.fixture(scope="module")
def made() -> tuple[Scan, Labels]:
    return made_scan(seed=0)


@pytest.fixture(scope="module")
def healthy() -> tuple[Scan, Labels]:
    return made_scan(seed=0, tumour=False)


def test_it_lies_on_the_templates_grid(made: tuple[Scan, Labels]) -> None:
    template = load_mni152_template(resolution=2)
    assert made[0].grid.matches(Grid(template.shape, template.affine))
    assert made[0].channels == ("flair", "t1", "t1ce", "t2")
    assert made[1].grid.matches(made[0].grid)


def test_intensities(made: tuple[Scan, Labels]) -> None:
    data, brain = made[0].data, made[0].foreground()
    assert ((data > 0) == brain).all()
    assert not brain[[0, -1]].any()
    assert ndimage.label(brain)[1] == 1
    assert np.array_equal(data, np.rint(data))
    assert 500 < data.max() < 1500
    assert 1300 < np.count_nonzero(brain) * 0.008 < 1900


def test_contrasts_are_those_of_the_sequences(made: tuple[Scan, Labels], healthy: tuple[Scan, Labels]) -> None:
    flair, t1, t1ce, t2 = made[0].data
    labels = made[1].data
    core, oedema, rim = labels == 1, labels == 2, labels == 4
    normal = made[0].foreground() & (labels == 0)
    for bright, dark, where in ((flair, flair, oedema), (t2, t2, oedema), (t1ce, t1ce, rim)):
        assert bright[where].mean() > dark[normal].mean() + 0.5 * dark[normal].std()
    assert t1[oedema].mean() < np.median(t1[normal])
    assert t1[core].mean() < np.median(t1[normal])
    assert t1ce[rim].mean() > 1.5 * t1ce[core].mean()
    assert flair[oedema].mean() > flair[normal].mean() + 2 * flair[normal].std()
    # Fluid is what is brightest on T2; white matter is what is bright on T1.
    flair, t1, t1ce, t2 = healthy[0].data
    brain = healthy[0].foreground()
    fluid, white = brain & (t2 > 700), brain & (t1 > 440)
    grey = brain & (t1 > 300) & (t1 < 380) & (t2 < 450)
    for image in (flair, t1, t1ce):
        assert image[fluid].mean() < 0.6 * min(image[grey].mean(), image[white].mean())
    assert t2[white].mean() < t2[grey].mean()
    assert flair[white].mean() < flair[grey].mean()


def test_the_tumour_lies_in_one_half_of_the_brain(made: tuple[Scan, Labels]) -> None:
    other = made_scan(seed=1, side="right")
    for (scan, labels), side in ((made, -1), (other, 1)):
        assert (side * scan.grid.world(np.argwhere(labels.data))[:, 0] > 0).all()
        assert scan.foreground()[labels.data > 0].all()
        assert set(np.unique(labels.data)) == {0, 1, 2, 4}
        assert ndimage.label(labels.data > 0)[1] == 1
        assert 25 < labels.volume < 80
    assert not np.array_equal(other[0].foreground(), made[0].foreground())


def test_one_seed_is_one_patient(made: tuple[Scan, Labels], healthy: tuple[Scan, Labels]) -> None:
    again = made_scan(seed=0)
    assert again[0].fingerprint == made[0].fingerprint
    assert np.array_equal(again[1].data, made[1].data)
    assert healthy[1].volume == 0
    assert np.array_equal(healthy[0].foreground(), made[0].foreground())
    far = ndimage.distance_transform_edt(made[1].data == 0) > 4
    assert np.array_equal(healthy[0].data[:, far], made[0].data[:, far])


def test_the_same_patient_at_1_mm(made: tuple[Scan, Labels]) -> None:
    scan, labels = made_scan(seed=0, spacing=1)
    assert scan.grid.spacing == (1, 1, 1)
    assert labels.volume == pytest.approx(made[1].volume, rel=0.02)
    for fine, coarse in zip(scan.data, made[0].data, strict=True):
        assert fine[fine > 0].mean() == pytest.approx(coarse[coarse > 0].mean(), rel=0.01)
    whole = labels.on(made[1].grid).data > 0
    both = np.count_nonzero(whole & (made[1].data > 0))
    assert 2 * both / (np.count_nonzero(whole) + np.count_nonzero(made[1].data)) > 0.9


def test_written_as_a_brats_patient(made: tuple[Scan, Labels], tmp_path: Path) -> None:
    scan, labels = made
    case = write_case(scan, labels, tmp_path / "made_0")
    assert [case] == cases(tmp_path)
    assert sorted(path.name for path in (tmp_path / "made_0").iterdir()) == [
        f"made_0_{name}.nii.gz" for name in ("flair", "seg", "t1", "t1ce", "t2")
    ]
    assert case.scan().fingerprint == scan.fingerprint
    assert np.array_equal(case.labels().data, labels.data)
    assert case.tumour().volume == labels.volume


def test_what_is_refused(made: tuple[Scan, Labels], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spacing of 1 or 2 mm; got 3"):
        made_scan(spacing=3)
    with pytest.raises(InputError, match="'left' or 'right'; got 'middle'"):
        made_scan(side="middle")
    scan, labels = made
    with pytest.raises(InputError, match="on one grid"):
        write_case(scan, Labels(labels.data, scan.grid.flipped(0)), tmp_path / "made")
    with pytest.raises(InputError, match="got pet"):
        write_case(Scan(scan.data[:1], scan.grid, ("pet",)), labels, tmp_path / "made")
    assert not (tmp_path / "made").exists()
