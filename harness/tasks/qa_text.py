"""Reading answers out of text: numbers as rationals, sums by a parser of our own (never evaluated
as code), annotations, expressions.

Every value is a `fractions.Fraction`, so equal answers are equal however they are written: 1,200 =
1200.00 = $1200.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

from harness.tasks.task import NONE

MARK = "####"  # precedes an answer
LONGEST = 120  # characters of a sum; longer ones are not read
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,60})(?:\.\d{1,60})?|\.\d{1,60}"
# A minus sign belongs to a number only where nothing precedes it to subtract from
_NUMBER = re.compile(rf"(?:\$\s?)?(?:(?<![\w)\].])[-−]\s?)?\$?\s?(?:{_DIGITS})(?:/[1-9]\d{{0,59}})?")
_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")
_EXPRESSION = re.compile(r"[\d(][\d\s+*×()−-]*[\d)]")


def value(text: str) -> Fraction:
    """The number that a match of `_NUMBER` spells."""
    plain = re.sub(r"[\s$,]", "", text).replace("−", "-")
    top, _, bottom = plain.partition("/")
    return Fraction(top) / Fraction(bottom or 1)


def strict_number(text: str) -> Fraction | None:
    """The number right after the last answer mark, None where there is none."""
    _, mark, after = text.rpartition(MARK)
    match = _NUMBER.match(after.lstrip(" :")) if mark else None
    return value(match.group()) if match else None


def last_number(text: str) -> Fraction | None:
    numbers = _NUMBER.findall(text)
    return value(numbers[-1]) if numbers else None


def answer_id(key: Fraction | str | None) -> int:
    """int64 id >= 0 of an answer in canonical form, the same in every process; NONE for no
    answer.
    """
    if key is None:
        return NONE
    text = f"{key.numerator}/{key.denominator}" if isinstance(key, Fraction) else key
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


# --- sums ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sum:
    """A parsed sum: its value, the numbers in it, the operators in it, and its form, what is added
    or multiplied sorted.
    """

    value: Fraction
    numbers: tuple[Fraction, ...]
    operators: frozenset[str]
    form: str


_TOKEN = re.compile(rf"\s*(?:(?P<number>{_DIGITS})|(?P<sign>[-+*/()%]))")
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "x": "*", "X": "*", "[": "(", "]": ")", "$": " "})


class _Unreadable(Exception):
    pass


class _Parser:
    """expression = term {+|- term}; term = factor {*|/ factor}; factor = [+|-] factor | number [%]
    | ( expression ).
    """

    def __init__(self, text: str) -> None:
        text = text.translate(_SIGNS).strip()
        if len(text) > LONGEST:
            raise _Unreadable
        self.tokens: list[str] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise _Unreadable
            self.tokens.append(match.group().strip())
            at = match.end()
        self.at = 0

    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def whole(self) -> Sum:
        result = self.expression()
        if self.next():
            raise _Unreadable
        return result

    def expression(self) -> Sum:
        return self._chain(self.term, "+-")

    def term(self) -> Sum:
        return self._chain(self.factor, "*/")

    def _chain(self, part: Callable[[], Sum], signs: str) -> Sum:
        result = part()
        forms = [("", result.form)]
        while (sign := self.next()) and sign in signs:
            self.take()
            right = part()
            if sign == "/" and right.value == 0:
                raise _Unreadable
            value = _OPERATIONS[sign](result.value, right.value)
            result = Sum(value, result.numbers + right.numbers, result.operators | right.operators | {sign}, "")
            forms.append((sign, right.form))
        if len(forms) == 1:
            return result
        # a + b - c, and a * b / c, are sets of what is added and what is taken away
        inverse = signs[1]
        plus = sorted(f for s, f in forms if s != inverse)
        minus = sorted(f for s, f in forms if s == inverse)
        form = "(" + signs[0].join(plus) + "".join(inverse + m for m in minus) + ")"
        return Sum(result.value, result.numbers, result.operators, form)

    def factor(self) -> Sum:
        if not self.next():
            raise _Unreadable
        token = self.take()
        if token in "+-":
            inner = self.factor()
            if token == "+":
                return inner
            return Sum(-inner.value, inner.numbers, inner.operators | {"-"}, f"(-{inner.form})")
        if token == "(":
            inner = self.expression()
            if self.next() != ")":
                raise _Unreadable
            self.take()
            return inner
        if token in ")*/%":
            raise _Unreadable
        number = Fraction(token.replace(",", ""))
        if self.next() == "%":
            self.take()
            number /= 100
        return Sum(number, (number,), frozenset(), f"{number.numerator}/{number.denominator}")


def parse(text: str) -> Sum | None:
    """A sum of numbers with + - * / and parentheses, exact; None where it is none, longer than
    `LONGEST`, or divides by 0.
    """
    try:
        return _Parser(text).whole()
    except _Unreadable:
        return None


# --- steps ---------------------------------------------------------------------------------------
def annotation_holds(inside: str) -> bool:
    """Whether `expr=value` is true: exactly, or to the decimals that the value is written with
    (rounded or cut off).

    A value without a decimal point must be exact.
    """
    parts = inside.split("=")
    sums = [parse(p) for p in parts]
    if len(sums) < 2 or any(s is None for s in sums):
        return False
    exact = sums[0]
    assert exact is not None
    return all(s is not None and _agrees(exact.value, s.value, p) for s, p in zip(sums[1:], parts[1:], strict=True))


def _agrees(exact: Fraction, written: Fraction, text: str) -> bool:
    if exact == written:
        return True
    decimals = re.fullmatch(r"\s*[$-]*\s*[\d,]*\.(\d+)\s*", text)
    if decimals is None:
        return False
    with localcontext() as context:
        context.prec = 4 * LONGEST
        step = Decimal(1).scaleb(-len(decimals.group(1)))
        precise = Decimal(exact.numerator) / Decimal(exact.denominator)
        return any(Fraction(precise.quantize(step, how)) == written for how in (ROUND_HALF_UP, ROUND_DOWN))


def verified_steps(text: str) -> tuple[int, int]:
    """(annotations `<<expr=value>>` that hold before the first that does not, annotations in
    all).
    """
    annotations = _ANNOTATION.findall(text)
    holds = 0
    for inside in annotations:
        if not annotation_holds(inside):
            break
        holds += 1
    return holds, len(annotations)


# --- expressions as answers (countdown in words) -------------------------------------------------
def expression(text: str) -> tuple[Sum | None, bool]:
    """The expression that answers, and whether it followed the answer mark; else the last one in
    the text with an operator.
    """
    _, mark, after = text.rpartition(MARK)
    if mark:
        line = after.strip().partition("\n")[0].partition("=")[0].strip(" .$")
        if (parsed := parse(line)) is not None:
            return parsed, True
    for part in reversed(_EXPRESSION.findall(re.sub(_ANNOTATION, "", text))):
        parsed = parse(part.strip())
        if parsed is not None and parsed.operators:
            return parsed, False
    return None, False


def reaches(parsed: Sum, numbers: tuple[int, ...], target: int) -> bool:
    """Whether an expression uses every number once, with + - * alone, and has the target as its
    value.
    """
    return (
        parsed.value == target
        and parsed.operators <= {"+", "-", "*"}
        and Counter(parsed.numbers) == Counter(Fraction(n) for n in numbers)
    )
