"""The product of two numbers of n digits.

Digits are tokens, lowest first; the chain of thought is the partial products and their running
sums.

a * b ||  p_1  + p_2 ( s_2 )  + p_3 ( s_3 )  ..  + p_n  #### product EOS
p_i = a b_i 10^(i-1) and s_i have n + i digits
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from harness.config.schema import Arm, MultiplyConfig, TtcConfig
from harness.tasks.task import (
    NONE,
    Control,
    Grades,
    Problems,
    Rule,
    Trace,
    draw_side,
    first_distinct,
    hashes,
    held_out_side,
    only_free,
)

_ENUMERATE = 1_000_000  # as many pairs are listed; of more, distinct ones are drawn


class MultiplyTask:
    """See the module's text. n = digits; a problem's payload is its two factors, (P, 2)."""

    name, version = "multiply", 1
    times, bar, plus, left, right, mark, eos, pad = range(10, 18)
    thought_end: int | None = mark
    fill = 18  # in the filler arm only

    def __init__(self, config: MultiplyConfig) -> None:
        n = config.digits
        self.config, self.arm, self.digits = config, config.arm.value, n
        self.low, self.high = 10 ** (n - 1), 10**n
        self.vocab = 18 + (config.arm is Arm.filler)
        # Each step of thought: (tokens before its digits, digits, tokens after)
        self.parts = [(0, n + 1, 0)]
        for i in range(2, n + 1):
            self.parts += [(1, n + i, 0)] + ([(1, n + i, 1)] if i < n else [])
        self.step_tokens = n + 2  # the shortest step with a sign; later ones are longer
        self.thought = 0 if config.arm is Arm.direct else sum(map(sum, self.parts))
        self.prompt_tokens, self.written = 2 * n + 2, self.thought + 1 + 2 * n + 1
        self.context = self.prompt_tokens + self.written - 1
        self.chance = 10.0 ** -(2 * n)
        self.floor_nat: float | None = 0.0
        self.floor_reason = "every scored token follows from the factors"
        self.distinct_rows = (self.high - self.low) ** 2
        fixed = {"task": self.name, "version": self.version, "arm": self.arm, "digits": n}
        self.info: dict[str, Any] = {
            **fixed,
            "chance": self.chance,
            "hash": hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16],
        }

    # --- problems
    def _of(self, payload: np.ndarray) -> Problems:
        ids = hashes(payload)
        cluster = np.unique(ids, return_inverse=True)[1].astype(np.int64)
        return Problems(ids, cluster, np.full(len(ids), self.digits), payload)

    def _draw(self, rng: np.random.Generator, n: int) -> Problems:
        return self._of(rng.integers(self.low, self.high, (n, 2)))

    def problems(self, count: int, seed: int = 0, *, held_out: bool = True) -> Problems:
        rng = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, 2 + held_out], dtype=np.uint64)))
        if self.distinct_rows > _ENUMERATE:
            return first_distinct(lambda n: self._draw(rng, n), count, held_out)
        every = self._of(self.low + np.stack(np.divmod(rng.permutation(self.distinct_rows), self.high - self.low), 1))
        return every.take(np.flatnonzero(held_out_side(every.ids) == held_out)[:count])

    # --- as a corpus
    def rows(
        self, rng: np.random.Generator, n: int, *, held_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        problems = draw_side(lambda count: self._draw(rng, count), n, held_out)
        tokens = np.concatenate([self._prompt(problems), self._written(problems)], 1)
        place = np.arange(1, tokens.shape[1]) - self.prompt_tokens
        learned = (place >= 0) if self.config.arm is not Arm.filler else self._answer(place)
        return tokens, np.broadcast_to(learned, (n, self.context)).astype(np.float32), None

    def _answer(self, place: np.ndarray) -> np.ndarray:
        """Which places of the continuation hold digits of the answer."""
        return (place > self.thought) & (place <= self.thought + 2 * self.digits)

    def _written(self, problems: Problems) -> np.ndarray:
        """The right continuation (P, T)."""
        a, b = problems.payload.T
        n = self.digits
        out: list[np.ndarray] = []

        def sign(token: int) -> None:
            out.append(np.full((len(a), 1), token))

        if self.config.arm is Arm.cot:
            total = np.zeros_like(a)
            for i in range(1, n + 1):
                partial = a * (b // 10 ** (i - 1) % 10) * 10 ** (i - 1)
                total = total + partial
                if i > 1:
                    sign(self.plus)
                out.append(_digits(partial, n + i))
                if 1 < i < n:
                    sign(self.left)
                    out.append(_digits(total, n + i))
                    sign(self.right)
        elif self.config.arm is Arm.filler:
            out.append(np.full((len(a), self.thought), self.fill))
        sign(self.mark)
        out.append(_digits(a * b, 2 * n))
        sign(self.eos)
        return np.concatenate(out, 1)

    # --- as a test
    def controls(self, ttc: TtcConfig) -> list[Control]:
        return only_free(self.name, ttc)

    def _prompt(self, problems: Problems) -> np.ndarray:
        a, b = problems.payload.T
        times, bar = (np.full((len(a), 1), t) for t in (self.times, self.bar))
        return np.concatenate([_digits(a, self.digits), times, _digits(b, self.digits), bar], 1)

    def prompts(self, problems: Problems, control: Control) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return list(self._prompt(problems)), [np.arange(self.prompt_tokens)] * len(problems)

    def max_new(self, control: Control) -> int:
        return self.written

    def rule(self, problems: Problems, control: Control, generated: np.ndarray) -> Rule:
        n, t = generated.shape
        if self.config.arm is not Arm.filler or self._answer(np.array(t)):
            return Rule(np.full(n, NONE))
        return Rule(np.full(n, self.fill if t < self.thought else self.mark if t == self.thought else self.eos))

    def position(self, problems: Problems, control: Control, generated: np.ndarray) -> np.ndarray:
        return np.full(len(generated), self.prompt_tokens + generated.shape[1] - 1)

    def grade(self, problems: Problems, control: Control, generated: np.ndarray, lengths: np.ndarray) -> Grades:
        n, row = len(generated), np.arange(len(generated))
        inside = np.arange(generated.shape[1]) < lengths[:, None]
        # Room behind, so that what is read past the end is padding
        text = np.full((n, max(self.written, generated.shape[1]) + 2 * self.digits + 2), self.pad)
        text[:, : generated.shape[1]] = np.where(inside, generated, self.pad)
        ended = (text == self.eos).any(1)
        marked = (text == self.mark).any(1)
        at = (text == self.mark).argmax(1)[:, None] * marked[:, None] + 1 + np.arange(2 * self.digits)
        digits = text[row[:, None], at]
        readable = ended & marked & (digits < 10).all(1) & (text[row, at[:, -1] + 1] == self.eos)
        answer = np.where(readable, np.where(digits < 10, digits, 0) @ 10 ** np.arange(2 * self.digits), NONE)
        correct = answer == problems.payload.prod(1)
        if self.config.arm is not Arm.cot:
            return Grades(answer, correct, np.zeros(n, np.int64), correct.copy(), ~ended)
        # Up to the first wrong step, what is emitted is what is due
        same = text[:, : self.thought] == self._written(problems)[:, : self.thought]
        ends = np.cumsum([sum(part) for part in self.parts]).tolist()
        starts = [0, *ends[:-1]]
        holds = np.stack([same[:, i:j].all(1) for i, j in zip(starts, ends, strict=True)], 1)
        verified = np.cumprod(holds, 1).sum(1)
        whole = (verified == len(self.parts)) & (text[:, self.thought] == self.mark)
        return Grades(answer, correct, verified, whole & correct, ~ended)

    def trace(self, problems: Problems, control: Control) -> Trace:
        """Scored are digits; marks, which carry no part of the problem, would only raise the
        mean.
        """
        tokens = self._written(problems)
        return Trace(tokens, tokens < 10)


def _digits(value: np.ndarray, count: int) -> np.ndarray:
    """Decimal digits (P, count), lowest first."""
    return value[:, None] // 10 ** np.arange(count) % 10
