"""What `mkdocs build` does beside reading docs/: pages from the repository, links to them, and the command line's page.

Pages in docs/ link to files of the repository by relative path, as a repository browser needs it; here such a link is
turned to the page of the site that shows that file.
"""

from __future__ import annotations

import dataclasses
import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Files outside docs/ that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "src/voxplain/shipped/tumour-hemisphere/README.md": "models/tumour-hemisphere.md",
}
_COMMANDS = "<!-- commands -->"
_OPTIONS = re.compile(r"<!-- options of ([\w+-]+) -->")
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)([^)]*)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for source, page in PAGES.items():
        text = relinked((ROOT / source).read_text(encoding="utf-8"), source, page)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave docs/, and fill in what is read off the code: explainers' options and commands."""
    if page.file.generated_by is None:
        markdown = relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    markdown = _OPTIONS.sub(lambda match: option_table(match[1]), markdown)
    return markdown.replace(_COMMANDS, command_pages()) if _COMMANDS in markdown else markdown


def relinked(markdown: str, source: str, page: str) -> str:
    """Markdown of the repository's file `source` with its relative links as the site's `page` needs them."""

    def turned(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if target in PAGES:
            target = PAGES[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            raise PluginError(f"{source} links to {target}, which is no page of the site; add it to PAGES in hooks.py")
        return f"]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{match[2]})"

    return _LINK.sub(turned, markdown)


def option_table(name: str) -> str:
    """The options of the explainer of that name in Markdown, from its fields."""
    from voxplain.commands.explain import known_explainers

    rows = [
        f"| `{field.name}` | `{field.default!r}` | {field.metadata['help']} |"
        for field in dataclasses.fields(known_explainers()[name])
    ]
    return "\n".join(["| option | default | what it does |", "| --- | --- | --- |", *rows, ""])


def command_pages() -> str:
    """Every command with its options, in Markdown, read off the parser itself."""
    import typer.main

    from voxplain.cli import app

    return "\n".join(
        _command_page(words, command) for words, command in _commands("voxplain", typer.main.get_command(app))
    )


def _commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands that run something, with the words that call them."""
    from typer.core import TyperGroup

    if not isinstance(command, TyperGroup):
        yield words, command
        return
    for name, inner in command.commands.items():
        yield from _commands(f"{words} {name}", inner)


def _command_page(words: str, command: Any) -> str:
    from typer.core import TyperArgument

    lines = [f"## `{words}`", "", inspect.cleandoc(command.help or ""), ""]
    if command.params:
        lines += ["| option | default | what it does |", "| --- | --- | --- |"]
    for parameter in command.params:
        flag = parameter.name.upper() if isinstance(parameter, TyperArgument) else parameter.opts[0]
        flag += " ..." if parameter.multiple or parameter.nargs != 1 else ""
        given = "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"
        text = (parameter.help or "").replace("|", "\\|")
        lines.append(f"| `{flag}` | {'required' if parameter.required else given} | {text} |")
    return "\n".join([*lines, ""])
