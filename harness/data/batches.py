"""What every corpus hands to the training loop: batches that are a pure function of (seed,
step).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass
class Batch:
    """B sequences of S positions. Shapes: tokens (B, S + 1), mask and positions (B, S)."""

    tokens: np.ndarray  # int64; inputs are [:, :-1], targets [:, 1:]
    mask: np.ndarray  # float32; 1 where the target is scored
    # int64; None: 0 .. S - 1, which lets attention take its fast causal path
    positions: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> Batch:
        """Some of the sequences."""
        return Batch(self.tokens[rows], self.mask[rows], None if self.positions is None else self.positions[rows])

    @classmethod
    def plain(cls, tokens: np.ndarray) -> Batch:
        """Every target scored, positions 0 .. S - 1."""
        return cls(tokens.astype(np.int64, copy=False), np.ones((tokens.shape[0], tokens.shape[1] - 1), np.float32))


class Corpus(Protocol):
    """A source of training batches and a fixed validation set that never overlaps them."""

    vocab: int
    context: int
    # For the record: corpus_id, kind, tokenizer, vocab, unique_tokens, val_tokens, bytes_per_token,
    # floor_nat, files ...
    info: dict[str, Any]

    def train_batch(self, seed: int, step: int, sequences: int) -> Batch:
        """The batch of optimiser step `step` (from 0); the same arguments always give the same
        batch.
        """
        ...

    def unique_tokens(self, tokens: int) -> int:
        """Distinct training tokens among the first `tokens` that were trained on."""
        ...

    def val_batches(self, sequences: int) -> Iterator[Batch]:
        """The validation set in a fixed order, at most `sequences` sequences a batch."""
        ...

    def val_oracle_nat(self) -> float | None:
        """The best possible mean loss on exactly these validation tokens, nat per token, where it
        is known.
        """
        ...
