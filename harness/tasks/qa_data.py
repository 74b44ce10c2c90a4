"""Records of text tasks: questions with worked answers from a local .jsonl file or the Hub, or
countdown problems in words.

Of the tasks only this file imports `datasets`, and only to read a dataset of the Hub.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from harness.config.schema import CountdownConfig, QaConfig
from harness.errors import ConfigError, CorpusError
from harness.tasks.countdown import CountdownTask
from harness.tasks.qa_text import MARK, last_number, strict_number

_DIGITS = re.compile(r"[\d.]+(?:/\d+)?")
COUNTDOWN = "countdown"  # the value of `corpus.test` that means generated problems


@dataclass(frozen=True)
class Record:
    """One question.

    `answer` is what the reference writes after the mark; right are all of its value, or all that
    reach `target`.
    """

    question: str
    rationale: str  # the worked steps; "" where the source has none
    answer: str
    gold: Fraction
    # countdown: the numbers to be used, and `gold` the value to be reached
    numbers: tuple[int, ...] = ()

    @property
    def id(self) -> int:
        return int.from_bytes(hashlib.sha256(self.question.encode()).digest()[:8], "little")


@dataclass(frozen=True)
class QaRecords:
    """Test records, the records that exemplars come from, and their names in the record of an
    evaluation.
    """

    test: list[Record]
    shots: list[Record]
    info: dict[str, Any]
    chance: float


def open_records(config: QaConfig) -> QaRecords:
    """The records of a config.

    ConfigError for settings that contradict each other, CorpusError for what cannot be read.
    """
    if config.test == COUNTDOWN:
        return _countdown(config)
    local = _is_file(config.test)
    info: dict[str, Any] = {"test": Path(config.test).name if local else config.test}
    if local:
        test = read_jsonl(Path(config.test))
    else:
        info |= {"hub_config": config.hub_config, "revision": config.revision}
        test = read_hub(config, "test")
    if config.shots == 0:
        shots, where = [], None
    elif config.shots_from is None and local:
        shots, where = test, "the test file; exemplars are left out of the test"
    elif config.shots_from is not None and _is_file(config.shots_from):
        shots, where = read_jsonl(Path(config.shots_from)), Path(config.shots_from).name
    elif local:
        raise ConfigError(
            f"corpus.shots_from={config.shots_from} is no .jsonl file, and corpus.test={config.test} is one, which has no splits. "
            "Give a .jsonl file, or null to draw exemplars from the test file."
        )
    else:
        where = config.shots_from or "train"
        shots = read_hub(config, where)
    info |= {"test_sha256": content_hash(test), "shots_from": where}
    info["shots_sha256"] = content_hash(shots) if shots else None
    return QaRecords(test, shots, info, chance=0.0)


def _is_file(name: str) -> bool:
    return name.endswith(".jsonl") or Path(name).is_file()


def content_hash(records: Iterable[Record]) -> str:
    """Of questions and answers in their order: the same for a file and for the same rows from the
    Hub.
    """
    h = hashlib.sha256()
    for r in records:
        h.update(json.dumps([r.question, r.rationale, r.answer]).encode())
    return h.hexdigest()


# --- files and the Hub ---------------------------------------------------------------------------
def _record(row: Any, where: str) -> Record:
    """A row with `question` and `answer`: worked steps, the mark, the answer; or the answer
    alone.
    """
    problem = None
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("question", "answer")):
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        problem = f"has no texts `question` and `answer` (it has {keys})"
    else:
        steps, mark, answer = row["answer"].rpartition(MARK)
        gold = strict_number(row["answer"]) if mark else last_number(answer)
        several = (
            mark and len(_DIGITS.findall(answer.replace(",", ""))) > 1
        )  # "2 1/2", "1e3", "3 or 4": which is right is a guess
        if gold is not None and row["question"].strip() and not several:
            return Record(row["question"].strip(), steps.strip() if mark else "", answer.strip(), gold)
        if several:
            problem = f"has more than one number after {MARK}: {answer.strip()[:60]!r}"
        elif gold is not None:
            problem = "has no question"
        else:
            problem = f"has no number as its answer: {answer.strip()[:60]!r}"
    raise CorpusError(
        f"{where} {problem}. Each row needs a question and an answer that ends in `{MARK}` and a number, or is a number."
    )


def _distinct(records: Iterator[Record], where: str) -> list[Record]:
    """One record per question, the first."""
    distinct = list({r.question: r for r in reversed(list(records))}.values())[::-1]
    if not distinct:
        raise CorpusError(f"{where} has no rows. Each row needs a question and an answer.")
    return distinct


def read_jsonl(path: Path) -> list[Record]:
    where = path.name
    try:
        lines = path.expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8 text"
        raise CorpusError(
            f"{path} cannot be read: {why}. Name a .jsonl file with `question` and `answer` on each line."
        ) from e

    def rows() -> Iterator[Record]:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as e:
                    raise CorpusError(f"{where}, line {number} is no JSON: {e}. Mend that line.") from e
                yield _record(row, f"{where}, line {number}")

    return _distinct(rows(), where)


def read_hub(config: QaConfig, split: str) -> list[Record]:
    """A split of a data set of the Hub, from the local cache where it was loaded before."""
    import datasets

    # what it logs is in the exception as well
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    what = f"corpus.test={config.test} (corpus.hub_config={config.hub_config}, revision {config.revision or 'newest'}, split {split})"
    try:
        data = datasets.load_dataset(config.test, config.hub_config, split=split, revision=config.revision)
        rows = list(data)
    except (OSError, ValueError) as e:  # builtin types and subclasses are what it raises
        reason = " ".join(str(e).split())[:300] or type(e).__name__
        raise CorpusError(
            f"{what} cannot be loaded from the Hugging Face Hub: {reason.rstrip('.')}. Check the name and the network; "
            "without a network give a local file with corpus.test=FILE.jsonl corpus.shots_from=TRAIN.jsonl, or corpus.test=countdown."
        ) from e
    return _distinct((_record(row, f"{what}, row {i}") for i, row in enumerate(rows)), what)


# --- countdown in words --------------------------------------------------------------------------
def _solution(numbers: tuple[int, ...], target: int, ceiling: int) -> tuple[str, str]:
    """One way to reach the target: worked steps, and the expression."""

    def join(pool: tuple[tuple[int, str], ...], steps: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        if len(pool) == 1:
            if pool[0][0] == target:
                yield "\n".join(steps), pool[0][1][1:-1]  # without the outermost parentheses
            return
        for i, j in itertools.permutations(range(len(pool)), 2):
            (a, left), (b, right) = pool[i], pool[j]
            rest = tuple(p for k, p in enumerate(pool) if k not in (i, j))
            for sign, value in (("+", a + b), ("-", a - b), ("*", a * b)):
                if 0 <= value <= ceiling:
                    step = f"{a} {sign} {b} = <<{a}{sign}{b}={value}>>{value}"
                    yield from join(((value, f"({left} {sign} {right})"), *rest), (*steps, step))

    return next(join(tuple((n, str(n)) for n in numbers), ()))


def _countdown(config: QaConfig) -> QaRecords:
    """The held-out problems of the countdown task at its default size, in words, with its chance
    level.
    """
    if config.shots_from is not None:
        raise ConfigError(
            f"corpus.shots_from={config.shots_from} has no meaning with corpus.test=countdown: exemplars are generated. Leave it out."
        )
    task = CountdownTask(CountdownConfig())

    def worded(held_out: bool) -> list[Record]:
        out = []
        for *numbers, target in task.problems(task.distinct_rows, held_out=held_out).payload.tolist():
            numbers_text = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
            question = f"Use each of the numbers {numbers_text} exactly once, with +, - and * and parentheses, to make {target}."
            steps, text = _solution(tuple(numbers), target, task.ceiling)
            out.append(Record(question, steps, text, Fraction(target), tuple(numbers)))
        return out

    test, shots = worded(True), worded(False) if config.shots else []
    info = {"test": COUNTDOWN, "problems_of": task.info, "test_sha256": content_hash(test)}
    info |= {
        "shots_from": "the training side" if shots else None,
        "shots_sha256": content_hash(shots) if shots else None,
    }
    return QaRecords(test, shots, info, task.chance)
