"""A short HTML page of a study: what came out, pictures and tables; it opens from disk and asks no network."""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxplain.io.atomic import write_text
from voxplain.report import facts


def study_page(
    path: str | Path,
    *,
    title: str,
    notes: Sequence[str],
    pictures: Mapping[str, bytes],
    tables: Mapping[str, Sequence[Sequence[str]]],
    provenance: Mapping[str, Any],
) -> Path:
    """Write the page; it appears whole or not at all.

    Args:
        path: the page.
        title: what was studied.
        notes: what to know before reading on, in sentences.
        pictures: PNG files by caption.
        tables: by title, lines of cells with the header first; the second column is the kind of figure.
        provenance: what replays the study, folded away.

    Returns:
        The path.

    Raises:
        InputError: the page cannot be written.
    """
    import jinja2

    path = Path(path)
    shown = {name: lines for name, lines in tables.items() if len(lines) > 1}
    found = {line[1] for lines in shown.values() for line in lines[1:]}
    folder = importlib.resources.files("voxplain.report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((folder / "study.html.jinja").read_text(encoding="utf-8"))
    style = (folder / "page.css").read_text(encoding="utf-8") + (folder / "cohort.css").read_text(encoding="utf-8")
    page = template.render(
        style=style,
        title=title,
        notes=notes,
        pictures={name: base64.b64encode(data).decode("ascii") for name, data in pictures.items()},
        tables={name: (lines[0], lines[1:]) for name, lines in shown.items()},
        kinds=[(kind, meaning) for kind, meaning in facts.KINDS.items() if kind in found],
        provenance=json.dumps(facts.without_folders(provenance), indent=2, default=str, ensure_ascii=False),
    )
    write_text(page, path)
    return path
