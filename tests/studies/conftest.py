"""What the tests of studies share: made patients."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxplain.datasets.phantom_cohort import write_gliomas


@pytest.fixture(scope="session")
def made_patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms in BraTS layout, two of each grade."""
    root = tmp_path_factory.mktemp("patients") / "data"
    for _ in write_gliomas(root, n=4):
        pass
    return root
