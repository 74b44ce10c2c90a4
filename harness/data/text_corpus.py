"""Batches of a tokenised text: which tokens come in which step, a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.config.schema import TextConfig
from harness.data.batches import Batch
from harness.data.shards import Shards
from harness.data.tokenizer import TextTokenizer
from harness.errors import CorpusError

_POOL_ORDER = 0x5EED  # fixes the shuffle behind `unique_tokens`; not the run's seed


@dataclass(frozen=True)
class Pool:
    """The training sequences that a run may use.

    With `block`, each stretch of that many is permuted by itself: a longer pool begins in the same
    order.
    """

    sequences: np.ndarray  # their numbers
    block: int | None
    repeats: bool  # whether more than one epoch may be trained


class TextCorpus:
    """A corpus as in `batches.Corpus`, made by `text.open_text`.

    Sequence i is tokens i * context .. (i + 1) * context, both included, so neighbours share one
    token and every token is a target exactly once.

    An epoch is a permutation of the pool, drawn from (seed, epoch).
    """

    def __init__(
        self,
        shards: Shards,
        tokenizer: TextTokenizer,
        pool: Pool,
        context: int,
        val_tokens: int,
        info: dict[str, Any],
    ) -> None:
        self.vocab = tokenizer.vocab
        self.context = context
        self.tokenizer = tokenizer
        self.info = info
        self._shards = shards
        self._pool = pool
        self._val_tokens = val_tokens
        self._orders: dict[tuple[int, int], np.ndarray] = {}  # of the last two epochs used

    def train_batch(self, seed: int, step: int, sequences: int) -> Batch:
        """The batch of step `step` (from 0).

        CorpusError past the pool where repetition was not allowed.
        """
        first, size = step * sequences, len(self._pool.sequences)
        if not self._pool.repeats and first + sequences > size:
            raise CorpusError(
                f"step {step} of {sequences} sequences lies beyond the {size * self.context:,} training tokens and "
                "corpus.allow_repetition=false. Train fewer tokens, or set corpus.allow_repetition=true."
            )
        chosen = []
        while sequences > 0:
            epoch, place = divmod(first, size)
            chosen.append(self._order(seed, epoch)[place : place + sequences])
            first += len(chosen[-1])
            sequences -= len(chosen[-1])
        starts = self._pool.sequences[np.concatenate(chosen)] * self.context
        return Batch.plain(self._shards.train[starts[:, None] + np.arange(self.context + 1)])

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        key = (seed, epoch)
        if key not in self._orders:
            if len(self._orders) >= 2:
                self._orders.pop(next(iter(self._orders)))
            self._orders[key] = epoch_order(len(self._pool.sequences), self._pool.block, seed, epoch)
        return self._orders[key]

    def unique_tokens(self, tokens: int) -> int:
        """Distinct training tokens among the first `tokens` trained."""
        return min(tokens, len(self._pool.sequences) * self.context)

    def val_batches(self, sequences: int) -> Iterator[Batch]:
        """The first `val_tokens` targets of the validation part, in order; the end of the last
        sequence is masked out.
        """
        count = -(-self._val_tokens // self.context)
        last = len(self._shards.val) - 1
        for first in range(0, count, sequences):
            rows = np.arange(first, min(first + sequences, count))[:, None] * self.context
            batch = Batch.plain(self._shards.val[np.minimum(rows + np.arange(self.context + 1), last)])
            batch.mask[rows + np.arange(self.context) >= self._val_tokens] = 0.0
            yield batch

    def val_oracle_nat(self) -> float | None:
        """None, because the entropy of real text is not known."""
        return None


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of range(n) that is the same in every version of numpy: only a bit generator's
    raw stream is promised to stay, `Generator.permutation` is not.
    """
    bits = np.random.Philox(np.random.SeedSequence([part % 2**64 for part in key]))
    return np.argsort(bits.random_raw(n), kind="stable")


def epoch_order(n: int, block: int | None, seed: int, epoch: int) -> np.ndarray:
    """The order of n sequences in one epoch; with `block`, of each run of that many in turn."""
    if block is None:
        return permutation(n, seed, epoch)
    starts = range(0, n, block)
    parts = [start + permutation(min(block, n - start), seed, epoch, start // block) for start in starts]
    return np.concatenate(parts)


def sequences(shards: Shards, context: int) -> int:
    return (shards.train_part.tokens - 1) // context


def wanted_sequences(config: TextConfig, context: int, tokens_needed: int, block: int | None) -> int:
    """Distinct training sequences that a run needs, in whole blocks.

    CorpusError when the cap holds not even one.
    """
    cap, wanted = config.unique_tokens, -(-tokens_needed // context)
    if block is not None:
        wanted = -(-wanted // block) * block
    if cap is None:
        return wanted
    if cap < context:
        raise CorpusError(
            f"corpus.unique_tokens={cap} is less than one sequence of corpus.context={context} tokens. "
            f"Use at least {context}."
        )
    return min(wanted, cap // context)


def choose_pool(
    config: TextConfig, context: int, tokens_needed: int, wanted: int, stream: bool, shards: Shards
) -> np.ndarray:
    """Numbers of the training sequences that a run may use.

    CorpusError when they are fewer than it needs, or than it says.

    Of a stream: the beginning, in as many whole blocks as the run needs, even if the cache holds
    more.
    """
    what, cap = f"corpus.train={config.train}", config.unique_tokens
    available = sequences(shards, context)
    if available < 1:
        raise CorpusError(
            f"{what} has {shards.train_part.tokens:,} training tokens, fewer than one sequence of "
            f"corpus.context={context}. Use a longer text."
        )
    if cap is not None and cap > available * context and (not stream or available < wanted):
        raise CorpusError(
            f"corpus.unique_tokens={cap:_} is more than the {available * context:_} training tokens of {what}. "
            f"Use corpus.unique_tokens<={available * context:_}, leave it out, or use a longer text."
        )
    if stream:
        pool = np.arange(min(available, wanted))
    elif cap is None:
        pool = np.arange(available)
    else:
        pool = permutation(available, _POOL_ORDER)[: cap // context]
    unique = len(pool) * context
    if tokens_needed > unique and not config.allow_repetition:
        limit = f"{what} has {unique:_} training tokens"
        more = "use a longer text"
        if cap is not None:
            limit = f"corpus.unique_tokens={cap:_} leaves {unique:_} training tokens (whole sequences)"
            more = "raise corpus.unique_tokens"
        raise CorpusError(
            f"{limit}, and the run trains on {tokens_needed:_}. Train on at most {unique:_} (budget.tokens) or {more}; "
            "or set corpus.allow_repetition=true to go through them more than once."
        )
    return pool


def check_val(config: TextConfig, val_tokens: int, stream: bool, shards: Shards) -> None:
    """CorpusError when the validation part has fewer than `val_tokens` targets."""
    held_out = shards.val_part.tokens - 1
    if held_out >= val_tokens:
        return
    if config.val is not None:
        where, more = f"corpus.val={config.val}", "a longer file"
    elif stream:
        where, more = f"the validation part of corpus.train={config.train}", "give a longer file as corpus.val"
    else:
        where = f"the part of corpus.train={config.train} that is held out"
        more = f"a corpus.val_fraction above {config.val_fraction}, or a longer text"
    raise CorpusError(
        f"corpus.val_tokens={val_tokens:_} is more than the {held_out:_} tokens of {where}. "
        f"Use corpus.val_tokens<={held_out:_}, or {more}."
    )
