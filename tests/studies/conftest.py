"""What the tests of studies share: the command line in this process, and made patients."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from voxplain import cli
from voxplain.datasets.phantom_cohort import write_gliomas

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the command line; gives exit code, standard output and standard error."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["voxplain", *map(str, arguments)])
        capfd.readouterr()
        code = None
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                cli.main()
            except SystemExit as left:
                code = int(left.code or 0)
        assert code is not None
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def made_patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms in BraTS layout, two of each grade."""
    root = tmp_path_factory.mktemp("patients") / "data"
    for _ in write_gliomas(root, n=4):
        pass
    return root
