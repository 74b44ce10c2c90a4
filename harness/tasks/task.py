"""What every test-time task offers: rows to train on, test problems, rules of decoding, and a
verifier.

Arrays are numpy; a task never sees a model. P problems, R rows (a row is one sample of one
problem), L prompt tokens, T generated tokens. A task is both a corpus (`rows`) and a test
(everything else); its test problems never occur among its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from harness.config.schema import TtcConfig
from harness.errors import ConfigError, CorpusError

HELD_OUT = 8  # one problem in so many, by its hash, is never trained on
_WEIGHTS = np.random.Generator(np.random.Philox(key=1_729)).integers(0, 2**64, 256, np.uint64) | np.uint64(1)
NONE = -1  # in integer arrays of tokens and answers: nothing is forced, nothing was read


def held_out_side(ids: np.ndarray) -> np.ndarray:
    """Which problems (uint64 ids) belong to the test side, bool."""
    return ids % np.uint64(HELD_OUT) == 0


def hashes(payload: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint64 hash of each row of integers (P, at most 256), NONE counting as absent: what ids and
    the hold-out go by.
    """
    weighted = (payload + 1).astype(np.uint64) * _WEIGHTS[: payload.shape[1]]
    x = weighted.sum(1, dtype=np.uint64) + np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        # the finaliser of splitmix64
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def draw_side(draw: Callable[[int], Problems], n: int, held_out: bool) -> Problems:
    """n problems of one side; what falls on the other is drawn again.

    CorpusError where a side seems empty.
    """
    parts: list[Problems] = []
    missing = n
    for _ in range(1_000):
        if missing == 0:
            return concatenated(parts)
        drawn = draw(missing * (HELD_OUT if held_out else 1) + 8)
        drawn = drawn.take(np.flatnonzero(held_out_side(drawn.ids) == held_out)[:missing])
        parts.append(drawn)
        missing -= len(drawn)
    raise CorpusError(f"too few {'held-out' if held_out else 'training'} problems. Give the task more to draw from.")


def first_distinct(draw: Callable[[int], Problems], count: int, held_out: bool) -> Problems:
    """The first `count` different problems of one side; fewer when many draws bring nothing new."""
    problems, idle = draw(0), 0
    while len(problems) < count and idle < 8:
        more = draw(4_096)
        joined = concatenated([problems, more.take(held_out_side(more.ids) == held_out)])
        joined = joined.take(np.sort(np.unique(joined.ids, return_index=True)[1]))
        idle = idle + 1 if len(joined) == len(problems) else 0
        problems = joined
    return problems.take(np.arange(min(count, len(problems))))


def concatenated(parts: list[Problems]) -> Problems:
    """Problems one after another; their payloads are arrays."""
    return Problems(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("ids", "cluster", "size", "payload")))


def only_free(task: str, ttc: TtcConfig) -> list[Control]:
    """The controls of a task that has none of its own. ConfigError for each one that is set."""
    values = {"strides": ttc.strides, "max_states": ttc.max_states, "min_states": ttc.min_states}
    problems = [
        f"ttc.{key}={value}: corpus={task} has no such control. Use {'null' if key == 'min_states' else '[]'}."
        for key, value in values.items()
        if value not in (None, []) and (key, value) != ("strides", [1])
    ]
    if problems:
        raise ConfigError(problems)
    return [Control()]


@dataclass(frozen=True)
class Control:
    """How decoding is steered. A cell of an evaluation has one control and one temperature."""

    stride: int = 1  # group, stride format: a state is written after every `stride` operators
    # thought is cut after so many states and the answer forced; None: never
    max_states: int | None = None
    min_states: int | None = None  # thought may not end before so many states

    def label(self) -> str:
        parts = [f"stride {self.stride}"] if self.stride != 1 else []
        parts += [f"at most {self.max_states} states"] if self.max_states is not None else []
        parts += [f"at least {self.min_states} states"] if self.min_states is not None else []
        return ", ".join(parts) or "free"


@dataclass(frozen=True)
class Problems:
    """P problems; arrays of length P. `payload` is read by their task alone."""

    # uint64, a hash of the problem: stable over runs, and what the hold-out goes by
    ids: np.ndarray
    # int64; problems with one prompt or template share a cluster and are resampled together
    cluster: np.ndarray
    size: np.ndarray  # int64; operators, numbers, digits; 0 where a problem has no size
    payload: Any  # (P, ...) array or a list of length P

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: np.ndarray) -> Problems:
        """The problems at `index` (integers or booleans), with repetition: a row per sample is
        `problems.take(problem_of_row)`.
        """
        index = np.flatnonzero(index) if index.dtype == bool else index
        if isinstance(self.payload, np.ndarray):
            payload = self.payload[index]
        else:
            payload = [self.payload[i] for i in index.tolist()]
        return Problems(self.ids[index], self.cluster[index], self.size[index], payload)


@dataclass(frozen=True)
class Trace:
    """The reference continuation of each problem, for likelihoods: tokens (P, T) and which of them
    are scored (P, T).
    """

    tokens: np.ndarray  # int64, padded with the task's pad
    scored: np.ndarray  # bool


@dataclass(frozen=True)
class Rule:
    """What decoding must do next, per row: `forced` (R,) int64, NONE where the model chooses;
    `banned` (R, V) bool or None.

    `swap` = (token, by): where the model chooses `token`, `by` (R,) replaces it and counts as
    forced; NONE keeps the choice.
    """

    forced: np.ndarray
    banned: np.ndarray | None = None
    swap: tuple[int, np.ndarray] | None = None


@dataclass(frozen=True)
class Grades:
    """The verifier's word on R generated rows; arrays of length R."""

    # int64 id of the answer in canonical form; equal answers, equal ids; NONE: no answer could be
    # read

    answer: np.ndarray
    correct: np.ndarray  # bool
    # int64, steps of thought that hold, counted from the first up to the first wrong one
    verified: np.ndarray
    trace_ok: np.ndarray  # bool: every step holds and the answer is right
    truncated: np.ndarray  # bool: the end token never came
    # bool: the answer was found where the format puts it; None for tasks that read answers in one
    # way only
    strict: np.ndarray | None = None


class Task(Protocol):
    """One task in one arm.

    Controls that a task does not know are refused by `controls`, never ignored.
    """

    name: str  # group | countdown | multiply | qa
    version: int  # raised when formats or problems change: old samples are then not reused
    arm: str
    vocab: int
    context: int  # positions of a training row; 0 for tasks that are never trained on
    chance: float  # accuracy of a guesser who knows the format
    eos: int
    pad: int
    # token that ends the thought and starts the answer; None where the format has none
    thought_end: int | None
    step_tokens: int  # generated tokens per step of thought
    # the best possible loss per scored token; None: not known, for `floor_reason`
    floor_nat: float | None
    floor_reason: str
    distinct_rows: int  # distinct problems that `rows` can draw from, hold-out included
    # for the record: everything that fixes the problems, hashes instead of paths
    info: dict[str, Any]

    # --- as a corpus
    def rows(
        self, rng: np.random.Generator, n: int, *, held_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """n rows of the training side: tokens (n, S + 1) int64, mask (n, S) float32 of scored
        targets, positions (n, S) int64 or None.

        `held_out`: of the test side and by the same law, for the validation loss.
        """
        ...

    # --- as a test
    def problems(self, count: int, seed: int = 0, *, held_out: bool = True) -> Problems:
        """`count` distinct problems of the test side (or of the training side), fewer where no more
        exist. Same arguments, same problems.
        """
        ...

    def controls(self, ttc: TtcConfig) -> list[Control]:
        """The controls that `ttc.strides`, `max_states` and `min_states` ask for, in a fixed order.

        ConfigError for one that this task does not have.
        """
        ...

    def prompts(self, problems: Problems, control: Control) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Tokens and position ids of each prompt, int64, lengths may differ between problems."""
        ...

    def max_new(self, control: Control) -> int:
        """The largest number of tokens that a row may generate, the end token counted."""
        ...

    def rule(self, problems: Problems, control: Control, generated: np.ndarray) -> Rule:
        """What holds for the next token of R rows that have `generated` (R, t) so far; `problems`
        has one entry per row.
        """
        ...

    def position(self, problems: Problems, control: Control, generated: np.ndarray) -> np.ndarray:
        """Position ids (R,) at which the last token of `generated` (R, t) is fed, t >= 1."""
        ...

    def grade(self, problems: Problems, control: Control, generated: np.ndarray, lengths: np.ndarray) -> Grades:
        """Verify R rows: `generated` (R, T) of which `lengths` (R,) tokens count, the end token
        included. Unfinished rows are graded too.
        """
        ...

    def trace(self, problems: Problems, control: Control) -> Trace | None:
        """The one right continuation of each problem; None for tasks with many (countdown) or none
        in tokens (text).
        """
        ...
