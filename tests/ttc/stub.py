"""A small task of the tests' own: copy the prompt's digits, one per step, then end.

Positions run back: a copy has the place of its digit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.config.schema import TtcConfig
from harness.models.flops import Shape
from harness.tasks.task import NONE, Control, Grades, Problems, Rule, Trace

DIGITS, START, MARK, END, PAD = 10, 10, 11, 12, 13
SHAPE = Shape(vocab=14, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, ffn=64, context=16, tied=True)


@dataclass
class CopyTask:
    """Problems of `sizes` digits, prompt `START digits MARK`; a step is `step_tokens` copied
    digits. `ban`: never generated.
    """

    sizes: tuple[int, ...] = (5,)
    step_tokens: int = 1
    room: int = 7
    ban: int | None = None
    name: str = "copy"
    version: int = 1
    arm: str = "cot"
    vocab: int = SHAPE.vocab
    context: int = 0
    chance: float = 0.1
    floor_nat: float | None = 0.0
    floor_reason: str = "a copy follows from the prompt"
    distinct_rows: int = 0
    eos: int = END
    pad: int = PAD
    thought_end: int | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def rows(
        self, rng: np.random.Generator, n: int, *, held_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        raise NotImplementedError

    def problems(self, count: int, seed: int = 0, *, held_out: bool = True) -> Problems:
        rng = np.random.default_rng(seed)
        size = np.array([self.sizes[i % len(self.sizes)] for i in range(count)])
        ids = np.arange(count, dtype=np.uint64)
        return Problems(ids, np.arange(count), size, [rng.integers(DIGITS, size=k) for k in size.tolist()])

    def controls(self, ttc: TtcConfig) -> list[Control]:
        return [Control()]

    def prompts(self, problems: Problems, control: Control) -> tuple[list[np.ndarray], list[np.ndarray]]:
        tokens = [np.concatenate(([START], digits, [MARK])) for digits in problems.payload]
        positions = [np.concatenate((np.arange(len(digits) + 1), [0])) for digits in problems.payload]
        return tokens, positions

    def max_new(self, control: Control) -> int:
        return self.room

    def rule(self, problems: Problems, control: Control, generated: np.ndarray) -> Rule:
        rows, t = generated.shape
        forced = np.full(rows, NONE)
        if control.max_states is not None and t >= control.max_states:
            forced[:] = END
        banned = np.zeros((rows, self.vocab), dtype=bool)
        if self.ban is not None:
            banned[:, self.ban] = True
        if control.min_states is not None and t < control.min_states:
            banned[:, END] = True
        return Rule(forced, banned if banned.any() else None)

    def position(self, problems: Problems, control: Control, generated: np.ndarray) -> np.ndarray:
        return np.minimum(generated.shape[1], problems.size + 1)

    def grade(self, problems: Problems, control: Control, generated: np.ndarray, lengths: np.ndarray) -> Grades:
        right = np.full(generated.shape, NONE)
        for row, digits in enumerate(problems.payload):
            right[row, : len(digits)] = digits
        tokens = np.logical_and.accumulate((right == generated) & (np.arange(generated.shape[1]) < lengths[:, None]), 1)
        verified = tokens.sum(1) // self.step_tokens
        ended = generated[np.arange(len(lengths)), np.maximum(lengths, 1) - 1] == END
        correct = ended & (tokens.sum(1) == problems.size) & (lengths == problems.size + 1)
        return Grades(np.where(correct, 1, NONE), correct, verified, correct, ~ended)

    def trace(self, problems: Problems, control: Control) -> Trace | None:
        tokens = np.full((len(problems), self.room), PAD)
        for row, digits in enumerate(problems.payload):
            tokens[row, : len(digits)], tokens[row, len(digits)] = digits, END
        return Trace(tokens, tokens != PAD)
