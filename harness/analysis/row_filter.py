"""Row conditions for `--filter` and `--hold-out`: comparisons of columns; no text is run as code.

    condition  = all {"or" all}
    all        = part {"and" part}
    part       = "not" part | "(" condition ")" | column OP operand
    OP         = == != < <= > >=
    operand    = number | 'text' | true | false | column
    column     = name such as loss_nat, or [any name] in brackets

Numbers are compared with numbers, text with text (== and != only). A comparison with an empty cell
is false, `!=` included. true and false match columns of true/false, True/False, or 1/0.
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

MAX_DEPTH = 40  # of parentheses and nots, far from the limit of recursion
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
class ColumnComparison:
    column: str
    op: str
    operand: float | str | bool | Column


@dataclass(frozen=True)
class Not:
    part: Condition


@dataclass(frozen=True)
class Joined:
    """Parts joined by the same word: `and` (every part is true) or `or` (any part is true)."""

    word: str
    parts: tuple[Condition, ...]


Condition = ColumnComparison | Not | Joined


def parse(text: str) -> Condition:
    """The condition in `text`; raises FitError with the character at which it is wrong."""
    return _ConditionParser(text).whole()


def rows(text: str, columns: Columns) -> Mask:
    """The mask of the rows of `columns` (of equal length, float64 or text) where `text` is true."""
    return evaluate(parse(text), columns)


def evaluate(condition: Condition, columns: Columns) -> Mask:
    match condition:
        case Not(part):
            return ~evaluate(part, columns)
        case Joined("and", parts):
            return np.logical_and.reduce([evaluate(p, columns) for p in parts])
        case Joined(_, parts):
            return np.logical_or.reduce([evaluate(p, columns) for p in parts])
        case ColumnComparison():
            return _compare(condition, columns)


def find_column(columns: Columns, name: str, where: str) -> NDArray:
    """A column by its exact name.

    Raises FitError with the most similar names where there is none.
    """
    if name in columns:
        return columns[name]
    near = difflib.get_close_matches(name, columns, n=3, cutoff=0.5)
    same = [c for c in columns if c.strip().lower() == name.strip().lower()]
    near = list(dict.fromkeys([*same, *near]))
    hint = f"Did you mean {' or '.join(repr(c) for c in near)}? " if near else ""
    names = ", ".join(repr(c) for c in list(columns)[:40]) + (" …" if len(columns) > 40 else "")
    raise FitError(f"{where}: there is no column {name!r}. {hint}Columns: {names or 'none'}.")


def is_text(values: NDArray) -> bool:
    return values.dtype.kind not in "fiu"


def _compare(comparison: ColumnComparison, columns: Columns) -> Mask:
    left = find_column(columns, comparison.column, "condition")
    test = _COMPARE[comparison.op]
    if isinstance(comparison.operand, Column):
        right = find_column(columns, comparison.operand.name, "condition")
        if is_text(left) != is_text(right):
            raise FitError(
                f"condition: {comparison.column!r} and {comparison.operand.name!r} cannot be compared: one holds text, one holds numbers."
            )
        operand: float | str | NDArray = right
    elif isinstance(comparison.operand, bool):
        if comparison.op not in ("==", "!="):
            raise FitError(
                f"condition: {comparison.column!r} {comparison.op} {str(comparison.operand).lower()}: only == and != go with true and false."
            )
        if is_text(left):
            left, operand = np.array([str(v).strip().lower() for v in left], dtype=str), str(comparison.operand).lower()
        else:
            operand = float(comparison.operand)
    else:
        operand = comparison.operand
        if is_text(left) and not isinstance(operand, str):
            raise FitError(
                f"condition: column {comparison.column!r} holds text, such as {_sample(left)}; {operand:g} is a number. "
                f"Put quotes around it to compare text: {comparison.column} {comparison.op} '{operand:g}'."
            )
        if not is_text(left) and isinstance(operand, str):
            raise FitError(
                f"condition: column {comparison.column!r} holds numbers; {operand!r} is text. Leave out the quotes."
            )
    if is_text(left) and comparison.op not in ("==", "!="):
        raise FitError(
            f"condition: column {comparison.column!r} holds text: only == and != go with text, not {comparison.op}."
        )
    mask = np.asarray(test(left, operand), dtype=bool)
    for side in (left, operand):  # an empty cell makes every comparison false
        if isinstance(side, np.ndarray):
            mask = mask & ((side != "") if is_text(side) else np.isfinite(side))
    return mask


def _sample(values: NDArray) -> str:
    return ", ".join(repr(str(v)) for v in list(dict.fromkeys(values[:50]))[:3])


class _ConditionParser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.next = 0  # index of a token
        self.tokens: list[tuple[str, str, int]] = []  # kind, value, position
        place = 0
        while text[place:].strip():
            m = _TOKEN.match(text, place)
            if m is None:
                place += len(text[place:]) - len(text[place:].lstrip())
                self._refuse(f"{text[place : place + 12]!r} is not part of a condition", place)
            kind = str(m.lastgroup)
            self.tokens.append((kind, m.group(kind), m.start(kind)))
            place = m.end()

    def whole(self) -> Condition:
        if not self.tokens:
            self._refuse("it is empty", 0)
        condition = self._any(0)
        if self.next < len(self.tokens):
            _, value, place = self.tokens[self.next]
            self._refuse(f"{value!r} is unexpected; join comparisons with and, or", place)
        return condition

    def _any(self, depth: int) -> Condition:
        return self._joined("or", lambda: self._joined("and", lambda: self._part(depth)))

    def _joined(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self._peek() == ("name", word):
            self.next += 1
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _part(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            self._refuse(f"it is nested more than {MAX_DEPTH} deep", self._place())
        if self._peek() == ("name", "not"):
            self.next += 1
            return Not(self._part(depth + 1))
        if self._peek() == ("mark", "("):
            self.next += 1
            inside = self._any(depth + 1)
            self._take(("mark",), "a closing parenthesis", ")")
            return inside
        column = self._column(*self._take(("name", "bracket"), "a column name"))
        _, op = self._take(("op",), f"one of {' '.join(_COMPARE)} after {column!r}")
        kind, value = self._take(("number", "text", "name", "bracket"), f"a number, a 'text' or a column after {op}")
        if kind == "number":
            return ColumnComparison(column, op, float(value.replace("_", "")))
        if kind == "text":
            return ColumnComparison(column, op, value[1:-1])
        if (kind, value) in (("name", "true"), ("name", "false")):
            return ColumnComparison(column, op, value == "true")
        return ColumnComparison(column, op, Column(self._column(kind, value)))

    def _column(self, kind: str, value: str) -> str:
        if kind == "name" and value in ("and", "or", "not", "true", "false"):
            self._refuse(
                f"{value!r} is in the place of a column; write [{value}] for a column of that name", self._place(-1)
            )
        return value

    def _peek(self) -> tuple[str, str] | None:
        return self.tokens[self.next][:2] if self.next < len(self.tokens) else None

    def _place(self, back: int = 0) -> int:
        i = self.next + back
        return self.tokens[i][2] if i < len(self.tokens) else len(self.text)

    def _take(self, kinds: tuple[str, ...], expected: str, value: str | None = None) -> tuple[str, str]:
        token = self._peek()
        if token is None or token[0] not in kinds or (value is not None and token[1] != value):
            self._refuse(f"{expected} is missing", self._place())
        self.next += 1
        return token

    def _refuse(self, problem: str, place: int) -> NoReturn:
        excerpt = self.text if len(self.text) <= 160 else f"{self.text[:157]}..."
        raise FitError(
            f"condition {excerpt!r}, character {place + 1}: {problem}. A condition compares columns with numbers or 'text', "
            f"joined by and, or, not and parentheses, for example {EXAMPLE}; names with spaces go in [brackets]."
        )
