"""Reading of answers: real gold answers, spelled numbers, sums by our own parser, annotations,
expressions.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.tasks import qa_text
from harness.tasks.qa_data import read_jsonl
from harness.tasks.task import NONE

REAL = Path(__file__).resolve().parents[3] / "shared" / "corpora" / "gsm8k"


@pytest.fixture(scope="module")
def real() -> list[dict[str, str]]:
    if not (REAL / "test.jsonl").exists():
        pytest.skip("no ../shared/corpora/gsm8k here: the real rows are not part of the project")
    lines = [x for part in ("train", "test") for x in (REAL / f"{part}.jsonl").read_text().splitlines()]
    assert len(lines) == 7_473 + 1_319
    return [json.loads(x) for x in lines]


def test_every_real_gold_answer_is_read_and_extracted(real: list[dict[str, str]]) -> None:
    """The reference reading is another one: whatever stands after the only mark, commas out, by
    Fraction itself.
    """
    for row in real:
        steps, after = row["answer"].split("####")
        gold = Fraction(after.strip().replace(",", ""))
        assert qa_text.strict_number(row["answer"]) == gold
        assert qa_text.strict_number(f"{steps}\n#### ${after.strip()}.\n") == gold
        assert qa_text.last_number(f"{steps}\nSo the answer is {after.strip()}.") == gold


def test_real_files_are_read_whole(real: list[dict[str, str]]) -> None:
    records = read_jsonl(REAL / "train.jsonl") + read_jsonl(REAL / "test.jsonl")
    golds = {r["question"].strip(): Fraction(r["answer"].split("####")[1].replace(",", "")) for r in real}
    assert {r.question: r.gold for r in records} == golds
    assert len(records) == len(golds)


def test_real_annotations_hold(real: list[dict[str, str]]) -> None:
    """All but two of 27,998 hold; with a value off by one none does, so the check is no rubber
    stamp.
    """
    found = [x for r in real for x in re.findall(r"<<([^<>\n]*)>>", r["answer"])]
    false = [x for x in found if not qa_text.annotation_holds(x)]
    assert (len(found), len(false)) == (27_998, 2)
    off = [f"{x.rpartition('=')[0]}={qa_text.value(x.rpartition('=')[2]) + 1}" for x in found if x not in false]
    assert not any(qa_text.annotation_holds(x) for x in off)


@pytest.mark.parametrize(
    ("text", "strict", "last"),
    [
        ("#### 18", "18", "18"),
        ("so 7.\n#### 1,234.50\n", "1234.5", "1234.5"),
        ("####$ 2,000,000", "2000000", "2000000"),
        ("####: -3", "-3", "-3"),
        ("#### \u22123", "-3", "-3"),
        ("#### 3/4 of it", "3/4", "3/4"),
        ("#### $-7.", "-7", "-7"),
        ("#### -$7", "-7", "-7"),
        ("#### .5", "1/2", "1/2"),
        ("#### 5 Wait\n#### 6", "6", "6"),
        ("#### the answer is 9", None, "9"),
        ("there are 12 - 5 = 7 left", None, "7"),
        ("16-3", None, "3"),
        ("a temperature of -4 degrees", None, "-4"),
        ("it costs $1,200.", None, "1200"),
        ("In 1,00 ways", None, "0"),
        ("no number", None, None),
        ("", None, None),
        ("####", None, None),
        ("5 ####", None, "5"),
    ],
)
def test_numbers(text: str, strict: str | None, last: str | None) -> None:
    assert qa_text.strict_number(text) == (None if strict is None else Fraction(strict))
    assert qa_text.last_number(text) == (None if last is None else Fraction(last))


def test_ids_go_by_value_and_never_change() -> None:
    spelled = ["#### 1,200", "#### 1200.00", "#### $1200", "#### 2400/2"]
    assert len({qa_text.answer_id(qa_text.strict_number(s)) for s in spelled}) == 1
    assert qa_text.answer_id(None) == NONE
    assert qa_text.answer_id(Fraction(18)) == 3_547_655_215_277_390_082
    ids = {qa_text.answer_id(Fraction(a, b)) for a in range(-50, 50) for b in (1, 3, 7)}
    assert len(ids) == len({Fraction(a, b) for a in range(-50, 50) for b in (1, 3, 7)})
    assert all(0 <= i < 2**63 for i in ids)


# --- sums ----------------------------------------------------------------------------------------
def sums() -> st.SearchStrategy[tuple[str, Fraction]]:
    """A fully parenthesised or precedence-bound sum, and its value by Fraction arithmetic."""

    def join(parts: tuple[tuple[str, Fraction], str, tuple[str, Fraction]]) -> tuple[str, Fraction] | None:
        (left, a), sign, (right, b) = parts
        if sign == "/" and b == 0:
            return None
        value = a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b
        return f"({left} {sign}{right})", value

    number = st.integers(0, 10**6).map(lambda n: (f"{n:,}", Fraction(n))) | st.integers(0, 10**4).map(
        lambda n: (f"{n / 100:.2f}", Fraction(n, 100))
    )
    both = lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(join).filter(bool)  # noqa: E731
    return st.recursive(number, both, max_leaves=6)  # type: ignore[arg-type]


@given(sums())
def test_sums_are_exact(given_sum: tuple[str, Fraction]) -> None:
    text, value = given_sum
    found = qa_text.parse(text)
    if len(text) > qa_text.LONGEST:
        assert found is None
    else:
        assert found is not None
        assert found.value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", "14"),
        ("20-5-3", "12"),
        ("24/4/3", "2"),
        ("-(2-5)*2", "6"),
        ("50%*80", "40"),
        ("3 \u00d7 [4\u22121]", "9"),
        ("$5*2", "10"),
    ],
)
def test_precedence(text: str, value: str) -> None:
    found = qa_text.parse(text)
    assert found is not None
    assert found.value == Fraction(value)


@pytest.mark.parametrize(
    "text",
    ["", "2**3", "1/0", "1/(2-2)", "2+", "(2", "2)", "2 3", "abs(2)", "__import__('os')", "1e9", "+" * 300 + "1", "("],
)
def test_what_is_no_sum_is_not_read(text: str) -> None:
    assert qa_text.parse(text) is None


def test_deep_sums_end() -> None:
    assert qa_text.parse("(" * 60 + "1" + ")" * 59) is None
    assert qa_text.parse("-" * 119 + "1") is not None


@pytest.mark.parametrize(
    ("inside", "holds"),
    [
        ("2*3=6", True),
        ("2*3=7", False),
        ("10/3=3.33", True),
        ("20/3=6.66", True),
        ("20/3=6.67", True),
        ("20/3=6.68", False),
        ("10/3=3", False),
        ("10/4=2.50", True),
        ("5+5=10=10", True),
        ("5+5=10=11", False),
        ("5+5", False),
        ("x+5=7", False),
        ("1/0=0", False),
        ("=5", False),
    ],
)
def test_annotations(inside: str, holds: bool) -> None:
    assert qa_text.annotation_holds(inside) is holds


def test_verified_is_the_prefix_before_the_first_wrong_step() -> None:
    assert qa_text.verified_steps("a <<1+1=2>>2 b <<2+2=5>>5 c <<3+3=6>>6") == (1, 3)
    assert qa_text.verified_steps("none") == (0, 0)


# --- expressions ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "right", "strict"),
    [
        ("7 - 5 = <<7-5=2>>2\n2 + 7 = <<2+7=9>>9\n#### (7 - 5) + 7", True, True),
        ("#### (7 - 5) + 7 = 9", True, True),
        ("The way is (7 - 5) + 7.", True, False),
        ("#### 7 + 7 - 5", True, True),
        ("#### 7 + 2", False, True),  # other numbers
        ("#### 7 + 5 - 7", False, True),  # another value
        ("#### 7 + 7 - 5 + 5 - 5", False, True),  # a number too often
        ("#### 7 + 7 - 10 / 2", False, True),
        ("#### 9", False, True),
        ("I cannot do it", False, False),
    ],
)
def test_expressions(text: str, right: bool, strict: bool) -> None:
    found, after_mark = qa_text.expression(text)
    assert after_mark is strict
    assert (found is not None and qa_text.reaches(found, (7, 5, 7), 9)) is right


def test_division_is_no_way_to_a_target() -> None:
    found = qa_text.parse("6/2+1")
    assert found is not None
    assert not qa_text.reaches(found, (6, 2, 1), 4)


def test_forms_forget_the_order_of_what_is_added_or_multiplied() -> None:
    form = lambda text: getattr(qa_text.parse(text), "form", None)  # noqa: E731
    assert form("7 + 7 - 5") == form("7 - 5 + 7") != form("7 - (5 - 7)")
    assert form("(2 + 3) * 4") == form("4 * (3 + 2)") != form("4 * 3 + 2")
