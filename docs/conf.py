"""Sphinx configuration. `scripts/docs` builds the site; every page works without a network."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import tokenize
from io import StringIO
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness import __version__  # noqa: E402

project = "scaling-harness"
author = "the scaling-harness authors"
copyright = author
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns: list[str] = []
templates_path: list[str] = []

myst_heading_anchors = 3
default_role = "code"
# The pages of the API document modules that import these; the site is built without them
autodoc_mock_imports = ["torch", "transformers", "datasets", "hydra", "omegaconf", "wandb", "pynvml", "altair"]
autodoc_mock_imports += ["vl_convert", "tokenizers", "safetensors"]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"scaling-harness {__version__}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "friendly"
highlight_language = "text"  # of blocks that name no language


# --- docstrings: plain text with `code` becomes reStructuredText ----------------------------------
def plain_to_rst(lines: list[str]) -> list[str]:
    """Docstrings here are plain text.

    A paragraph with an indented line or columns is shown as it is written.
    """
    out: list[str] = []
    for paragraph in "\n".join(lines).split("\n\n"):
        rows = [r for r in paragraph.split("\n") if r.strip()]
        if not rows:
            continue
        out.append("")
        if any(r.startswith(" ") or re.search(r"\S {3,}\S", r) for r in rows):
            out += ["::", "", *(f"    {r}" for r in rows)]
        elif all(r.startswith("- ") for r in rows):
            out += [escape(r) for r in rows]
        else:
            out += [escape(r.strip()) for r in rows]
    return [*out, ""]


def escape(text: str) -> str:
    """Escape what reStructuredText would read as markup, outside `code`."""
    out = []
    for part in re.split(r"(`[^`]+`|\*\w+\*)", text):
        if part.startswith("`"):
            out.append(f"``{part[1:-1]}``")
        else:
            out.append(part if re.fullmatch(r"\*\w+\*", part) else re.sub(r"([*|_\\`]|(?<=\w)<)", r"\\\1", part))
    return "".join(out)


def field_comments(cls: type) -> dict[str, str]:
    """Field -> the comment behind it or in the lines above it: where a dataclass of this project
    says what a field means.
    """
    try:
        source = inspect.cleandoc(inspect.getsource(cls))
        (definition,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    rows = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    out: dict[str, str] = {}
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno is not None:
            above, line = [], node.lineno - 1
            while line in comments and rows[line - 1].strip().startswith("#"):
                above.insert(0, comments[line])
                line -= 1
            behind = [comments[n] for n in range(node.lineno, node.end_lineno + 1) if n in comments]
            out[node.target.id] = " ".join([*above, *behind])
    return out


def on_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    if what == "class" and lines and lines[0].startswith(f"{name.rsplit('.', 1)[-1]}("):
        lines.clear()  # the docstring that `dataclass` makes of a signature
    text = plain_to_rst(lines)
    if what == "class" and dataclasses.is_dataclass(thing):
        comments = field_comments(cast(type, thing))
        text += [field_line(f, comments.get(f.name, "")) for f in dataclasses.fields(thing)] + [""]
    lines[:] = text


def field_line(f: dataclasses.Field, comment: str) -> str:
    default = "" if f.default is dataclasses.MISSING else f" = {getattr(f.default, 'name', repr(f.default))}"
    return f"- ``{f.name}: {f.type}{default}``" + (f" – {escape(comment)}" if comment else "")


def on_signature(app: Any, what: str, name: str, thing: Any, *_: Any) -> tuple[str, None] | None:
    """The fields of a dataclass are listed one a line with their meaning, not in a signature
    too.
    """
    return ("", None) if what == "class" and dataclasses.is_dataclass(thing) else None


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", on_docstring)
    app.connect("autodoc-process-signature", on_signature)
