"""Countdown: reach a target from a few numbers, each used once, by + - *.

Many answers are right; a verifier keeps the pool of open numbers.

cot:     BOS COT n1 .. nm target EQ  a op b r  r op c target  EOS: four tokens a step, with results
direct:  the same with `?` for each result and for its later use; from four numbers on R1, R2 ..
         in place of `?`, because two may be open
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from functools import cached_property
from typing import Any

import numpy as np

from harness.config.schema import Arm, CountdownConfig, TtcConfig
from harness.errors import ConfigError
from harness.tasks.task import (
    NONE,
    Control,
    Grades,
    Problems,
    Rule,
    draw_side,
    first_distinct,
    hashes,
    held_out_side,
    only_free,
)

_ENUMERATE = 5_000  # multisets of numbers that are gone through whole
_GUESSES = 50_000  # random expressions that the chance level is counted from


class CountdownTask:
    """See the module's text. m numbers; a problem's payload is its numbers in the order of the
    prompt, and the target: (P, m + 1).
    """

    name, version, step_tokens = "countdown", 1, 4
    thought_end: int | None = None

    def __init__(self, config: CountdownConfig) -> None:
        if config.arm is Arm.filler:
            raise ConfigError(
                "corpus.arm=filler does not exist for countdown: every token of its answer is the answer. Use cot or direct."
            )
        self.config, self.arm, self.numbers, self.ceiling = config, config.arm.value, config.numbers, config.ceiling
        self.steps = self.numbers - 1
        self.plus = self.ceiling + 1  # then - and *
        self.bos, self.eq, self.eos, self.pad = range(self.plus + 3, self.plus + 7)
        formats = self.plus + 7
        self.format = formats + (config.arm is Arm.direct)
        # Token that names the result of each step
        marks = np.arange(self.steps) if self.numbers > 3 else np.zeros(self.steps, np.int64)
        self.marks = formats + 2 + marks
        self.vocab = int(self.marks.max()) + 1
        self.prompt_tokens, self.written = self.numbers + 4, 4 * self.steps + 1
        self.context = self.prompt_tokens + self.written - 1
        self.floor_nat: float | None = None
        self.floor_reason = "several continuations are right, and the entropy of those drawn is not known"
        fixed = {
            "task": self.name,
            "version": self.version,
            "arm": self.arm,
            "numbers": config.numbers,
            "low": config.low,
            "high": config.high,
            "ceiling": config.ceiling,
        }
        self._multisets = math.comb(config.high - config.low + self.numbers, self.numbers)
        self.listed = self.numbers <= 3 and self._multisets <= _ENUMERATE
        self.distinct_rows = len(self._all) if self.listed else self._multisets * (self.ceiling + 1)
        self.chance = self._chance()
        self.info: dict[str, Any] = {
            **fixed,
            "chance": self.chance,
            "distinct_problems": self.distinct_rows if self.listed else None,
            "hash": hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16],
        }

    # --- problems
    def _of(self, payload: np.ndarray) -> Problems:
        """A problem is its numbers in any order, and the target."""
        ids = hashes(np.concatenate([np.sort(payload[:, :-1], 1), payload[:, -1:]], 1))
        cluster = np.unique(ids, return_inverse=True)[1].astype(np.int64)
        return Problems(ids, cluster, np.full(len(ids), self.numbers), payload)

    @cached_property
    def _all(self) -> np.ndarray:
        """Every problem that has a solution, (P, m + 1), numbers rising."""
        values = range(self.config.low, self.config.high + 1)
        return np.array(
            [
                (*numbers, target)
                for numbers in itertools.combinations_with_replacement(values, self.numbers)
                for target in sorted(self._reachable(numbers))
            ]
        )

    def _reachable(self, pool: tuple[int, ...]) -> set[int]:
        if len(pool) == 1:
            return {pool[0]}
        values: set[int] = set()
        for i, j in itertools.combinations(range(len(pool)), 2):
            rest = tuple(v for k, v in enumerate(pool) if k not in (i, j))
            for value in {pool[i] + pool[j], abs(pool[i] - pool[j]), pool[i] * pool[j]}:
                if value <= self.ceiling:
                    values |= self._reachable((*rest, value))
        return values

    def _expressions(self, rng: np.random.Generator, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random expressions over numbers (n, m): tokens (n, 4 (m - 1)), value (n,), and whether
        every result is allowed (n,).
        """
        n, row = len(numbers), np.arange(len(numbers))
        value, token, open_ = numbers.copy(), numbers.copy(), np.ones(numbers.shape, bool)
        ok, written, i = np.ones(n, bool), [], row
        for step in range(self.steps):
            order = np.argsort(
                np.where(open_, rng.random(numbers.shape), 2.0), 1
            )  # two of the open numbers, in a random order
            i, j = order[:, 0], order[:, 1]
            op = rng.integers(0, 3, n)
            result = _apply(op, value[row, i], value[row, j])
            ok &= (result >= 0) & (result <= self.ceiling)
            result = np.clip(result, 0, self.ceiling)
            name = result if self.config.arm is Arm.cot else np.full(n, self.marks[step])
            written += [token[row, i], self.plus + op, token[row, j], name]
            value[row, i], token[row, i], open_[row, j] = result, name, False
        return np.stack(written, 1), value[row, i], ok

    def _draw(self, rng: np.random.Generator, n: int) -> tuple[Problems, np.ndarray]:
        """At most n problems by a random expression over random numbers, and the expressions."""
        numbers = rng.integers(self.config.low, self.config.high + 1, (n, self.numbers))
        tokens, target, ok = self._expressions(rng, numbers)
        return self._of(np.concatenate([numbers, target[:, None]], 1)[ok]), tokens[ok]

    def _chance(self) -> float:
        """The share of random allowed expressions that hit the target of the problems that
        `problems` gives.
        """
        rng = np.random.Generator(np.random.Philox(key=1))
        payload = self.problems(2_000).payload
        payload = payload[rng.integers(0, len(payload), _GUESSES)]
        _, guess, allowed = self._expressions(rng, payload[:, :-1])
        return float((guess == payload[:, -1])[allowed].mean())

    def problems(self, count: int, seed: int = 0, *, held_out: bool = True) -> Problems:
        rng = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, 2 + held_out], dtype=np.uint64)))
        if not self.listed:
            return first_distinct(lambda n: self._draw(rng, n)[0], count, held_out)
        numbers = rng.permuted(self._all[:, :-1], axis=1)
        every = self._of(np.concatenate([numbers, self._all[:, -1:]], 1)[rng.permutation(len(self._all))])
        return every.take(np.flatnonzero(held_out_side(every.ids) == held_out)[:count])

    # --- as a corpus
    def rows(
        self, rng: np.random.Generator, n: int, *, held_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        def draw(count: int) -> Problems:  # the expression travels as a part of the payload
            problems, written = self._draw(rng, 2 * count)
            return Problems(
                problems.ids, problems.cluster, problems.size, np.concatenate([problems.payload, written], 1)
            )

        drawn = draw_side(draw, n, held_out)
        prompt = self._prompt(drawn.payload[:, : self.numbers + 1])
        tokens = np.concatenate([prompt, drawn.payload[:, self.numbers + 1 :], np.full((n, 1), self.eos)], 1)
        mask = np.broadcast_to(np.arange(1, tokens.shape[1]) >= self.prompt_tokens, (n, self.context))
        return tokens, mask.astype(np.float32), None

    # --- as a test
    def controls(self, ttc: TtcConfig) -> list[Control]:
        return only_free(self.name, ttc)

    def _prompt(self, payload: np.ndarray) -> np.ndarray:
        n = len(payload)
        return np.concatenate([np.tile([self.bos, self.format], (n, 1)), payload, np.full((n, 1), self.eq)], 1)

    def prompts(self, problems: Problems, control: Control) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return list(self._prompt(problems.payload)), [np.arange(self.prompt_tokens)] * len(problems)

    def max_new(self, control: Control) -> int:
        return self.written

    def rule(self, problems: Problems, control: Control, generated: np.ndarray) -> Rule:
        return Rule(np.full(len(generated), NONE))

    def position(self, problems: Problems, control: Control, generated: np.ndarray) -> np.ndarray:
        return np.full(len(generated), self.prompt_tokens + generated.shape[1] - 1)

    def grade(self, problems: Problems, control: Control, generated: np.ndarray, lengths: np.ndarray) -> Grades:
        """A step holds if it takes two numbers out of the pool and puts in what they make; right is
        a pool of the target alone.

        An answer's id is its steps with the operands of + and * in order: the same expression
        reached by other steps is another answer.
        """
        n, row = len(generated), np.arange(len(generated))
        inside = np.arange(generated.shape[1]) < lengths[:, None]
        text = np.full((n, max(self.written, generated.shape[1])), self.pad)
        text[:, : generated.shape[1]] = np.where(inside, generated, self.pad)
        ended = (text == self.eos).any(1)
        token, value = problems.payload[:, :-1].copy(), problems.payload[:, :-1].copy()
        verified, holds, canonical = np.zeros(n, np.int64), np.ones(n, bool), []
        i = row
        readable = (text == self.eos).argmax(1) == self.written - 1
        for step in range(self.steps):
            a, op, b, name = text[:, 4 * step : 4 * step + 4].T
            i = (token == a[:, None]).argmax(1)
            named = token[row, i] == a
            first, token[row, i] = value[row, i], NONE
            j = (token == b[:, None]).argmax(1)
            named &= token[row, j] == b
            second = value[row, j]
            known = (op >= self.plus) & (op < self.plus + 3)
            result = _apply(np.where(known, op - self.plus, 0), first, second)
            due = result if self.config.arm is Arm.cot else self.marks[step]
            holds &= named & known & (result >= 0) & (result <= self.ceiling) & (name == due)
            verified += holds
            token[row, j] = NONE
            token[row, i], value[row, i] = name, result
            swap = (op != self.plus + 1) & (a > b)
            canonical += [np.where(swap, b, a), op, np.where(swap, a, b), name]
            readable &= self._operand(a) & known & self._operand(b) & self._operand(name)
        correct = holds & readable & (value[row, i] == problems.payload[:, -1])
        answer = (hashes(np.stack(canonical, 1)) >> np.uint64(1)).astype(np.int64)
        return Grades(np.where(readable, answer, NONE), correct, verified, correct.copy(), ~ended)

    def _operand(self, token: np.ndarray) -> np.ndarray:
        return (token <= self.ceiling) | (token >= self.marks[0])

    def trace(self, problems: Problems, control: Control) -> None:
        return None


def _apply(op: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.select([op == 0, op == 1], [a + b, a - b], a * b)
