"""Sizes and names that keep the code readable: functions, files, and words that name no value."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "harness").rglob("*.py"))
MAX_LINES, MAX_PARAMETERS, MAX_FILE_LINES = 60, 7, 400
# A function with more parameters or lines says in its docstring what they are
PARAMETERS, LINES = re.compile(r"\b[Ii]ts \d+ parameters are\b"), re.compile(r"\b[Ii]ts \d+ lines\b")
# Participles and pronouns that say where a value came from, not what it is
NO_NAMES = {"found", "given", "said", "told", "one", "other", "held", "kept", "asked"}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def parameters(function: ast.FunctionDef) -> int:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(a.arg not in ("self", "cls") for a in arguments)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short_and_values_have_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES, f"{path.name}: split it"
    tree = ast.parse(text)
    for function in functions(tree):
        docstring = " ".join((ast.get_docstring(function) or "").split())
        lines, count = code_lines(function), parameters(function)
        assert lines <= MAX_LINES or LINES.search(docstring), f"{path.name}: {function.name} has {lines} lines"
        assert count <= MAX_PARAMETERS or PARAMETERS.search(docstring), (
            f"{path.name}: {function.name} has {count} parameters"
        )
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound = stored | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    assert not bound & NO_NAMES, f"{path.name}: name the thing, not where it came from"
