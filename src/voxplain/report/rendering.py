"""From what a page says and shows to one HTML file: template, style, scripts and their hashes."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import importlib.util
import json
from pathlib import Path
from typing import Any

from voxplain.errors import InputError


def viewer_script() -> str:
    """NiiVue (BSD-2), as the wheel of nilearn carries it; nilearn itself is not imported.

    Raises:
        InputError: nilearn is not installed, or carries no NiiVue.
    """
    found = importlib.util.find_spec("nilearn")
    folders = list(found.submodule_search_locations or []) if found is not None else []
    for folder in folders:
        script = Path(folder) / "_assets" / "js" / "niivue.umd.js"
        if script.is_file():
            return script.read_text(encoding="utf-8")
    raise InputError("the page's viewer comes with nilearn 0.14, which is missing; pip install 'nilearn>=0.14,<0.15'")


def in_script(content: Any) -> str:
    """JSON that no HTML parser can mistake for markup: <, >, & and the line separators are written as escapes."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def inline_script(source: str) -> str:
    """JavaScript that may stand between script tags: what would end or shift the element is broken up."""
    return source.replace("</script", "<\\/script").replace("</SCRIPT", "<\\/SCRIPT").replace("<!--", "<\\!--")


def render(context: dict[str, Any], data: dict[str, Any]) -> str:
    """The page of a context and of what its script needs, as text."""
    # Reports are rare; importing voxplain should not wait for a template engine.
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    folder = importlib.resources.files("voxplain.report")
    source = {name: folder.joinpath(name).read_text("utf-8") for name in ("page.html.jinja", "page.css", "page.js")}
    scripts = [inline_script(viewer_script()), inline_script(source["page.js"])]
    environment = Environment(
        loader=DictLoader({"page": source["page.html.jinja"]}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts]
    page = environment.get_template("page").render(
        **context,
        style=Markup(source["page.css"]),
        scripts=[Markup(script) for script in scripts],
        script_hashes=hashes,
        data=Markup(in_script(data)),
    )
    # A name from a command line or a file system need not be text.
    return page.encode("utf-8", "replace").decode("utf-8")
