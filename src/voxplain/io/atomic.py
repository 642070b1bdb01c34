"""Everything voxplain writes appears whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from voxplain.errors import InputError


@contextmanager
def writing(path: Path | str) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success it is flushed and renamed to `path`, else removed.

    Raises:
        InputError: the folder or the file cannot be written, or the disk is full.
    """
    path = Path(path)
    output_folder(path.parent)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=".writing-", suffix="-" + path.name, dir=path.parent)
        temporary = Path(name)
        os.close(handle)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; results are for the whole group, as the user's umask says.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}); make room, or choose another place"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def output_folder(path: Path | str) -> Path:
    """The folder, made where it is missing, and known to be writable.

    Raises:
        InputError: it cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write into {folder} ({error.strerror}); choose another output folder or change its rights"
        ) from error
    return folder


def write_text(text: str, path: Path | str) -> None:
    """Write a text file whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(content: Mapping[str, Any], path: Path | str) -> None:
    """Write a JSON file whole or not at all."""
    write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", path)


def read_json(path: Path | str) -> dict[str, Any] | None:
    """What `write_json` wrote; None where nothing was written yet."""
    path = Path(path)
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
