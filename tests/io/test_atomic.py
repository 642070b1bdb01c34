"""What is written appears whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from voxplain.errors import InputError
from voxplain.io.atomic import output_folder, write_json, write_text, writing


def test_the_file_appears_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.txt"
    with writing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_rights_follow_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text("x", tmp_path / "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    write_text("old", path)

    def fail() -> None:
        with writing(path) as temporary:
            temporary.write_text("new, but ha")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"cannot write .*a\.txt \(No space left on device\)"),
        writing(tmp_path / "a.txt"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*a.json"):
        write_json({"a": 1}, tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_text("x", tmp_path / ("a" * 250))
    assert list(tmp_path.iterdir()) == []


def test_json_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
    write_json({"ä": [1, 2.5, None]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": [1, 2.5, None]}


def test_an_output_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"cannot write into .*choose another output folder"):
            output_folder(folder)
    with pytest.raises(InputError, match="cannot write into /proc/"):
        output_folder("/proc/voxplain")
    made = output_folder(tmp_path / "a" / "b")
    assert made.is_dir()
    assert list(made.iterdir()) == []
