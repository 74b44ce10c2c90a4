"""The embedded corpus: facts (key token, key token, value token) whose exact entropy is known.

A key's rank r has probability p(r) ~ r^-(1 + a); ranks are scattered over the vocab x vocab grid of
token pairs, and each key has one fixed random value token. A stream is triplets back to back, cut
into windows of `context` inputs (a multiple of 3), so each window scores as many first key tokens,
second key tokens and values, and the best possible loss is exactly H(key) / 3 nat per token:
H(first) + H(second | first) + 0 per triplet. Theory for the exponents: a for parameters, a / (1 +
a) for data (arXiv:2303.13506; the data exponent also arXiv:2102.04074).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from harness.config.schema import FactsConfig
from harness.data.batches import Batch
from harness.errors import CorpusError

# Second word of the generator's key: training, validation and epoch orders never share a stream
_TRAIN, _VALIDATION, _ORDER = 0, 1, 2


class FactsCorpus:
    """See the module's text.

    Draws are keyed by (seed, stream) and counted, so any batch is made at random access.
    """

    def __init__(self, config: FactsConfig) -> None:
        vocab, keys = config.vocab, config.keys
        problems = []
        if config.context % 3:
            problems.append(
                f"corpus.context={config.context} is not a multiple of 3: windows must hold whole triplets for the entropy to be exact. "
                f"Use corpus.context={max(3, config.context - config.context % 3)}."
            )
        if not 1 <= keys <= vocab * vocab:
            problems.append(
                f"corpus.keys={keys} does not fit: {vocab} tokens make {vocab * vocab:,} pairs. Use fewer keys or a larger corpus.vocab."
            )
        if config.zipf_a <= 0:
            problems.append(
                f"corpus.zipf_a={config.zipf_a} must be above 0 for the keys' probabilities to have a heavy but summable tail."
            )
        if problems:
            raise CorpusError("\n".join(problems))
        self.config = config
        self.vocab = vocab
        self.context = config.context
        rng = np.random.Generator(np.random.Philox(key=config.table_seed))
        self._key_of_rank = rng.permutation(vocab * vocab)[:keys]
        self._value_of_rank = rng.integers(0, vocab, size=keys)
        p = np.arange(1, keys + 1, dtype=np.float64) ** -(1.0 + config.zipf_a)
        p /= p.sum()
        self._p = p
        self._cumulative = np.cumsum(p)
        self._cumulative[-1] = 1.0
        self._p_first = np.bincount(self._key_of_rank // vocab, weights=p, minlength=vocab)
        self.entropy_key_nat = float(-(p * np.log(p)).sum())
        self.floor_nat = self.entropy_key_nat / 3
        self._val_sequences = max(1, config.val_tokens // config.context)
        facts = f"facts-v{vocab}-k{keys}-a{config.zipf_a:g}-c{config.context}-t{config.table_seed}"
        self.info: dict[str, Any] = {
            "corpus_id": facts,
            "kind": "facts",
            "hash": hashlib.sha256(facts.encode()).hexdigest()[:16],
            "tokenizer": "facts",
            "vocab": vocab,
            "zipf_a": config.zipf_a,
            "keys": keys,
            "unique_tokens": config.unique_tokens,
            "val_tokens": self._val_sequences * config.context,
            "bytes_per_token": None,
            "floor_nat": self.floor_nat,
            "files": [],
        }

    def _uniform(self, seed: int, stream: int, start: int, n: int) -> np.ndarray:
        """Draws (n, triplets + 1) of the sequences start .. start + n - 1: random access into a
        counter-based generator.
        """
        triplets = self.context // 3 + 1
        blocks = -(-triplets // 4)  # a Philox block is four 64-bit draws
        bits = np.random.Philox(key=np.array([seed % 2**64, stream], dtype=np.uint64)).advance(start * blocks)
        return np.random.Generator(bits).random((n, 4 * blocks))[:, :triplets]

    def _windows(self, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token windows (n, context + 1) of uniform draws (n, triplets + 1), and the key ranks
        behind them.
        """
        ranks = np.searchsorted(self._cumulative, uniform, side="right")
        keys = self._key_of_rank[ranks]
        tokens = np.stack([keys // self.vocab, keys % self.vocab, self._value_of_rank[ranks]], axis=-1)
        return tokens.reshape(len(uniform), -1)[:, : self.context + 1], ranks

    def train_batch(self, seed: int, step: int, sequences: int) -> Batch:
        start = step * sequences
        if self.config.unique_tokens is None:
            return Batch.plain(self._windows(self._uniform(seed, _TRAIN, start, sequences))[0])
        pool = max(1, self.config.unique_tokens // self.context)
        rows = []
        for index in range(start, start + sequences):
            epoch, place = divmod(index, pool)
            order = np.random.Generator(
                np.random.Philox(key=np.array([seed % 2**64, _ORDER + epoch], dtype=np.uint64))
            ).permutation(pool)
            rows.append(self._uniform(seed, _TRAIN, int(order[place]), 1))
        return Batch.plain(self._windows(np.concatenate(rows))[0])

    def unique_tokens(self, tokens: int) -> int:
        cap = self.config.unique_tokens
        return tokens if cap is None else min(tokens, max(1, cap // self.context) * self.context)

    def _val_windows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self._windows(self._uniform(self.config.table_seed, _VALIDATION, start, stop - start))

    def val_batches(self, sequences: int) -> Iterator[Batch]:
        for start in range(0, self._val_sequences, sequences):
            yield Batch.plain(self._val_windows(start, min(start + sequences, self._val_sequences))[0])

    def val_oracle_nat(self) -> float:
        """Mean of -ln p over the scored validation tokens under the true distribution."""
        return self._oracle_nat

    @cached_property
    def _oracle_nat(self) -> float:
        total, scored = 0.0, 0
        for start in range(0, self._val_sequences, 4096):
            tokens, ranks = self._val_windows(start, min(start + 4096, self._val_sequences))
            key_nat = -np.log(self._p[ranks])
            first_nat = -np.log(self._p_first[self._key_of_rank[ranks] // self.vocab])
            # Scored: k2 and v of every whole triplet, and the first token of every triplet but the
            # window's first
            total += float((key_nat[:, :-1] - first_nat[:, :-1]).sum() + first_nat[:, 1:].sum())
            scored += tokens.shape[0] * self.context
        return total / scored
