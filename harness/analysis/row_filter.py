"""Row conditions for `--filter` and `--hold-out`: column comparisons only, read by a hand-written parser; nothing is ever
evaluated as code.

    condition  = all {"or" all}
    all        = one {"and" one}
    one        = "not" one | "(" condition ")" | column OP operand
    OP         = == != < <= > >=
    operand    = number | 'text' | true | false | column
    column     = name such as loss_nat, or [any name] in brackets

Numbers are compared with numbers, text with text (== and != only). A comparison with an empty cell is false, `!=` too:
what is missing satisfies no comparison. true and false fit columns that hold true/false, True/False, or 1/0.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from harness.errors import FitError

Columns = Mapping[str, NDArray]
Mask = NDArray[np.bool_]

MAX_DEPTH = 40  # of parentheses and nots: a longer chain is a mistake, and recursion has an end
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<op>==|!=|<=|>=|<|>)|(?P<mark>[()])|\[(?P<bracket>[^\[\]]+)\]|(?P<name>[^\W\d][\w.]*))"
)
_COMPARE: dict[str, Callable] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
EXAMPLE = "\"loss < 4.5 and role == 'fit'\""


@dataclass(frozen=True)
class Column:
    name: str


@dataclass(frozen=True)
class Comparison:
    column: str
    op: str
    operand: float | str | bool | Column


@dataclass(frozen=True)
class Not:
    part: Condition


@dataclass(frozen=True)
class Both:
    """Several parts joined by one word: `and` (every part holds) or `or` (any part holds)."""

    word: str
    parts: tuple[Condition, ...]


Condition = Comparison | Not | Both


def parse(text: str) -> Condition:
    """The condition in `text`; FitError says where it is not one."""
    return _Parser(text).whole()


def rows(text: str, columns: Columns) -> Mask:
    """Boolean mask of the rows of `columns` (arrays of one length; float64 or text) where the condition `text` holds."""
    return evaluate(parse(text), columns)


def evaluate(condition: Condition, columns: Columns) -> Mask:
    match condition:
        case Not(part):
            return ~evaluate(part, columns)
        case Both("and", parts):
            return np.logical_and.reduce([evaluate(p, columns) for p in parts])
        case Both(_, parts):
            return np.logical_or.reduce([evaluate(p, columns) for p in parts])
        case Comparison():
            return _compare(condition, columns)


def find_column(columns: Columns, name: str, where: str) -> NDArray:
    """A column by its exact name; FitError with the nearest names where there is none."""
    if name in columns:
        return columns[name]
    near = difflib.get_close_matches(name, columns, n=3, cutoff=0.5)
    same = [c for c in columns if c.strip().lower() == name.strip().lower()]
    near = list(dict.fromkeys([*same, *near]))
    hint = f"Did you mean {' or '.join(repr(c) for c in near)}? " if near else ""
    listed = ", ".join(repr(c) for c in list(columns)[:40]) + (" …" if len(columns) > 40 else "")
    raise FitError(f"{where}: there is no column {name!r}. {hint}Columns: {listed or 'none'}.")


def is_text(values: NDArray) -> bool:
    return values.dtype.kind not in "fiu"


def _compare(c: Comparison, columns: Columns) -> Mask:
    left = find_column(columns, c.column, "condition")
    test = _COMPARE[c.op]
    if isinstance(c.operand, Column):
        right = find_column(columns, c.operand.name, "condition")
        if is_text(left) != is_text(right):
            raise FitError(
                f"condition: {c.column!r} and {c.operand.name!r} cannot be compared: one holds text, one holds numbers."
            )
        other: float | str | NDArray = right
    elif isinstance(c.operand, bool):
        if c.op not in ("==", "!="):
            raise FitError(
                f"condition: {c.column!r} {c.op} {str(c.operand).lower()}: only == and != go with true and false."
            )
        if is_text(left):
            left, other = np.array([str(v).strip().lower() for v in left], dtype=str), str(c.operand).lower()
        else:
            other = float(c.operand)
    else:
        other = c.operand
        if is_text(left) and not isinstance(other, str):
            raise FitError(
                f"condition: column {c.column!r} holds text, such as {_sample(left)}; {other:g} is a number. "
                f"Put quotes around it to compare text: {c.column} {c.op} '{other:g}'."
            )
        if not is_text(left) and isinstance(other, str):
            raise FitError(f"condition: column {c.column!r} holds numbers; {other!r} is text. Leave out the quotes.")
    if is_text(left) and c.op not in ("==", "!="):
        raise FitError(f"condition: column {c.column!r} holds text: only == and != go with text, not {c.op}.")
    found = np.asarray(test(left, other), dtype=bool)
    for side in (left, other):  # what is missing satisfies nothing
        if isinstance(side, np.ndarray):
            found = found & ((side != "") if is_text(side) else np.isfinite(side))
    return found


def _sample(values: NDArray) -> str:
    return ", ".join(repr(str(v)) for v in list(dict.fromkeys(values[:50]))[:3])


class _Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0  # next token
        self.tokens: list[tuple[str, str, int]] = []  # kind, value, position
        place = 0
        while text[place:].strip():
            m = _TOKEN.match(text, place)
            if m is None:
                place += len(text[place:]) - len(text[place:].lstrip())
                self._refuse(f"{text[place : place + 12]!r} is no part of a condition", place)
            kind = str(m.lastgroup)
            self.tokens.append((kind, m.group(kind), m.start(kind)))
            place = m.end()

    def whole(self) -> Condition:
        if not self.tokens:
            self._refuse("it is empty", 0)
        condition = self._any(0)
        if self.at < len(self.tokens):
            _, value, place = self.tokens[self.at]
            self._refuse(f"{value!r} is unexpected; join comparisons with and, or", place)
        return condition

    def _any(self, depth: int) -> Condition:
        return self._joined("or", lambda: self._joined("and", lambda: self._one(depth)))

    def _joined(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self._peek() == ("name", word):
            self.at += 1
            parts.append(part())
        return parts[0] if len(parts) == 1 else Both(word, tuple(parts))

    def _one(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            self._refuse(f"it is nested more than {MAX_DEPTH} deep", self._place())
        if self._peek() == ("name", "not"):
            self.at += 1
            return Not(self._one(depth + 1))
        if self._peek() == ("mark", "("):
            self.at += 1
            inside = self._any(depth + 1)
            self._take(("mark",), "a closing parenthesis", ")")
            return inside
        column = self._column(*self._take(("name", "bracket"), "a column name"))
        _, op = self._take(("op",), f"one of {' '.join(_COMPARE)} after {column!r}")
        kind, value = self._take(("number", "text", "name", "bracket"), f"a number, a 'text' or a column after {op}")
        if kind == "number":
            return Comparison(column, op, float(value.replace("_", "")))
        if kind == "text":
            return Comparison(column, op, value[1:-1])
        if (kind, value) in (("name", "true"), ("name", "false")):
            return Comparison(column, op, value == "true")
        return Comparison(column, op, Column(self._column(kind, value)))

    def _column(self, kind: str, value: str) -> str:
        if kind == "name" and value in ("and", "or", "not", "true", "false"):
            self._refuse(
                f"{value!r} stands where a column is expected; a column of that name is [{value}]", self._place(-1)
            )
        return value

    def _peek(self) -> tuple[str, str] | None:
        return self.tokens[self.at][:2] if self.at < len(self.tokens) else None

    def _place(self, back: int = 0) -> int:
        i = self.at + back
        return self.tokens[i][2] if i < len(self.tokens) else len(self.text)

    def _take(self, kinds: tuple[str, ...], what: str, value: str | None = None) -> tuple[str, str]:
        found = self._peek()
        if found is None or found[0] not in kinds or (value is not None and found[1] != value):
            self._refuse(f"{what} is missing", self._place())
        self.at += 1
        return found

    def _refuse(self, why: str, place: int) -> NoReturn:
        shown = self.text if len(self.text) <= 160 else f"{self.text[:157]}..."
        raise FitError(
            f"condition {shown!r}, character {place + 1}: {why}. A condition compares columns with numbers or 'text', "
            f"joined by and, or, not and parentheses, for example {EXAMPLE}; names with spaces stand in [brackets]."
        )
