"""Conditions on rows: their meaning, the messages of mistakes, and that no text is run as code."""

from __future__ import annotations

import ast
import builtins
import operator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis import row_filter
from harness.analysis.row_filter import Column, ColumnComparison, Condition, Joined, Not, parse, rows
from harness.errors import FitError

TABLE = {
    "loss": np.array([2.0, 3.0, np.nan, 5.0]),
    "Model Size": np.array([1e6, 2e6, 3e6, 4e6]),
    "tokens": np.array([2e6, 1e6, 3e6, 4e6]),
    "role": np.array(["fit", "probe", "", "fit"]),
    "annealed": np.array(["True", "False", "true", ""]),
    "flag": np.array([1.0, 0.0, 1.0, np.nan]),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loss < 3", [1, 0, 0, 0]),
        ("loss <= 3", [1, 1, 0, 0]),
        ("loss != 3", [1, 0, 0, 1]),  # an empty cell satisfies no comparison
        ("not loss > 2.5", [1, 0, 1, 0]),
        ("role == 'fit' and loss >= 5", [0, 0, 0, 1]),
        ('role == "probe" or loss == 5', [0, 1, 0, 1]),
        ("loss < 3 or loss > 4 and role == 'probe'", [1, 0, 0, 0]),  # and binds closer
        ("(loss < 3 or loss > 4) and not (role == 'probe')", [1, 0, 0, 1]),
        ("[Model Size] >= 2e6", [0, 1, 1, 1]),
        ("[Model Size] > 2_000_000.0", [0, 0, 1, 1]),
        ("tokens<[Model Size]", [0, 1, 0, 0]),
        ("tokens > -1e3", [1, 1, 1, 1]),
        ("role != 'fit'", [0, 1, 0, 0]),
        ("annealed == true", [1, 0, 1, 0]),
        ("annealed != true", [0, 1, 0, 0]),
        ("flag == true", [1, 0, 1, 0]),
        ("flag == false", [0, 1, 0, 0]),
    ],
)
def test_meaning(text: str, expected: list[int]) -> None:
    assert rows(text, TABLE).astype(int).tolist() == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["it is empty"]),
        ("loss", ["one of == != < <= > >= after 'loss' is missing", "character 5"]),
        ("loss < ", ["a number, a 'text' or a column after < is missing"]),
        ("loss < 3 4", ["'4' is unexpected", "and, or"]),
        ("loss = 3", ["'= 3' is not part of a condition", "character 6"]),
        ("loss < 3 and", ["a column name is missing"]),
        ("3 < loss", ["a column name is missing"]),
        ("(loss < 3", ["a closing parenthesis is missing"]),
        ("not", ["a column name is missing"]),
        ("los < 3", ["no column 'los'", "Did you mean 'loss'", "'Model Size'"]),
        ("LOSS < 3", ["Did you mean 'loss'"]),
        ("role < 'fit'", ["holds text", "only == and !="]),
        ("role == 3", ["'role' holds text", "'fit'", "quotes"]),
        ("loss == 'a'", ["'loss' holds numbers", "Leave out the quotes"]),
        ("loss == role", ["cannot be compared"]),
        ("annealed < true", ["only == and != go with true"]),
        ("or == 3", ["'or' is in the place of a column", "[or]"]),
        ("__import__('os').system('touch ran')", ["is not part of a condition"]),
        ("loss < 3 and exec('1')", ["one of =="]),
        ("loss.__class__ == 1", ["no column 'loss.__class__'"]),
        ("(lambda: 1)()", ["': 1)()' is not part"]),
        ("loss < 3; import os", ["is not part of a condition"]),
        ("{loss}", ["is not part of a condition"]),
        ("(" * 41 + "loss < 3" + ")" * 41, ["nested more than 40 deep"]),
        ("not " * 5000 + "loss < 3", ["nested more than 40 deep"]),
    ],
)
def test_mistakes(text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FitError) as e:
        rows(text, TABLE)
    assert all(w in str(e.value) for w in words), str(e.value)
    assert list(tmp_path.iterdir()) == []


# --- properties -----------------------------------------------------------------------------------
SYMBOLS = [
    "loss",
    "role",
    "[Model Size]",
    "and",
    "or",
    "not",
    "(",
    ")",
    "==",
    "<",
    "!=",
    "3",
    "-1e9",
    "'fit'",
    "true",
    ".",
]
SYMBOLS += [
    "__import__",
    "os",
    "eval",
    "lambda",
    ":",
    "=",
    "[",
    "]",
    "'",
    '"',
    "\\",
    "\n",
    "0x1",
    "1e999",
    "é",
    "_",
    ",",
]


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(SYMBOLS), max_size=25).map(" ".join)))
def test_any_text_is_a_mask_or_a_mistake(text: str) -> None:
    """Nothing but a mask or a FitError comes out, whatever goes in, and no builtin that runs code
    is ever called.
    """

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("code was about to run")

    originals = {name: getattr(builtins, name) for name in ("eval", "exec", "compile", "__import__")}
    try:
        for name in originals:
            setattr(builtins, name, forbidden)
        try:
            mask = rows(text, TABLE)
        except FitError:
            mask = np.zeros(4, dtype=bool)
    finally:
        for name, function in originals.items():
            setattr(builtins, name, function)
    assert mask.shape == (4,)
    assert mask.dtype == bool


def test_the_module_has_no_way_to_run_code() -> None:
    tree = ast.parse(Path(row_filter.__file__).read_text(encoding="utf-8"))
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__", "getattr", "setattr", "open", "vars", "globals"}
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imported <= {"difflib", "operator", "re", "numpy"}


NUMBERS = st.sampled_from(["loss", "tokens", "Model Size", "flag"])
VALUES = st.one_of(st.integers(-5, 5).map(float), st.sampled_from([1e6, 2.5, 3e6, 1e-9, -7.25]))
COMPARISONS = st.builds(ColumnComparison, NUMBERS, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), VALUES)
COMPARISONS |= st.builds(ColumnComparison, NUMBERS, st.sampled_from(["==", "<", ">="]), NUMBERS.map(Column))
COMPARISONS |= st.builds(
    ColumnComparison, st.just("role"), st.sampled_from(["==", "!="]), st.sampled_from(["fit", "x y", ""])
)
TREES = st.recursive(
    COMPARISONS,
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(Joined, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=12,
)


def text_of(c: Condition) -> str:
    match c:
        case Not(part):
            return f"not ({text_of(part)})"
        case Joined(word, parts):
            return f" {word} ".join(f"({text_of(p)})" for p in parts)
        case ColumnComparison(column, op, Column(name)):
            return f"[{column}] {op} [{name}]"
        case ColumnComparison(column, op, str(value)):
            return f"[{column}] {op} '{value}'"
        case ColumnComparison(column, op, value):
            return f"[{column}] {op} {value!r}"


def holds(c: Condition, row: int) -> bool:
    """The same condition, one row at a time, without arrays."""
    match c:
        case Not(part):
            return not holds(part, row)
        case Joined("and", parts):
            return all(holds(p, row) for p in parts)
        case Joined(_, parts):
            return any(holds(p, row) for p in parts)
        case ColumnComparison(column, op, operand):
            pair = [TABLE[column][row], TABLE[operand.name][row] if isinstance(operand, Column) else operand]
            cells = pair if isinstance(operand, Column) else pair[:1]
            if any(v == "" or v != v for v in cells):  # empty text, NaN
                return False
            compare = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt}
            return bool(compare.get(op, operator.ge)(*pair))


@given(TREES)
def test_text_and_tree_say_the_same(tree: Condition) -> None:
    expected = [holds(tree, i) for i in range(4)]
    assert rows(text_of(tree), TABLE).tolist() == expected
    assert row_filter.evaluate(parse(text_of(tree)), TABLE).tolist() == expected
