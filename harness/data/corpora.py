"""Every corpus that can be trained on: texts, facts, and tasks, whose rows look like any other
batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from harness.config.schema import CorpusConfig, FactsConfig, QaConfig, TaskConfig, TextConfig
from harness.data.batches import Batch, Corpus
from harness.errors import ConfigError
from harness.tasks import open_task

C = TypeVar("C", bound=CorpusConfig)
# Second word of the generator's key: training and validation never share a stream
_TRAIN, _VALIDATION = 0, 1


# The last corpus that was computed rather than read: the runs of a sweep share theirs, and building
# one takes seconds
_computed: dict[str, Corpus] = {}


def open_corpus(config: CorpusConfig, tokens_needed: int) -> Corpus:
    """The corpus of a config, with at least `tokens_needed` training tokens (or repetition
    allowed). CorpusError otherwise.

    Corpora that are a function of their config alone are built once per process; texts are kept
    tokenised on disk.
    """
    match config:
        case FactsConfig():
            from harness.data.facts import FactsCorpus

            return _once(config, FactsCorpus)
        case TextConfig():
            from harness.data.text import open_text

            return open_text(config, config.context, config.val_tokens, tokens_needed)
        case QaConfig():
            raise ConfigError(
                "corpus=qa is not trained on: it tests pretrained checkpoints. Use `harness ttc model=pretrained corpus=qa`, "
                "or train on corpus=group, countdown or multiply."
            )
        case TaskConfig():
            return _once(config, TaskCorpus)
        case _:
            raise TypeError(f"no corpus for {type(config).__name__}")


def _once(config: C, build: Callable[[C], Corpus]) -> Corpus:
    key = repr(config)
    if key not in _computed:
        corpus = build(copy.deepcopy(config))
        _computed.clear()
        _computed[key] = corpus
    return _computed[key]


def sizes(config: CorpusConfig) -> tuple[int, int]:
    """(embedding rows, positions of a sequence) of a corpus.

    A text corpus is opened for it (and tokenised, once).
    """
    if isinstance(config, FactsConfig):
        return config.vocab, config.context
    corpus = open_corpus(config, tokens_needed=0)
    return corpus.vocab, corpus.context


def save_tokenizer(corpus: Corpus, folder: Path) -> None:
    """Write the corpus's tokenizer as Hugging Face files: corpora without text name their tokens
    t0, t1, ...
    """
    if corpus.info["kind"] == "text":
        from harness.data.text import TextCorpus
        from harness.data.text import save_tokenizer as save_text_tokenizer

        assert isinstance(corpus, TextCorpus)
        save_text_tokenizer(corpus, folder)
    else:
        from harness.data.tokenizer import save_word_tokenizer

        save_word_tokenizer(corpus.vocab, folder)


class TaskCorpus:
    """Fresh rows of a task's training side; validation rows are of its held-out side, by the same
    law.
    """

    def __init__(self, config: TaskConfig) -> None:
        self.task = task = open_task(config)
        self.vocab, self.context = task.vocab, task.context
        self._val_rows = max(1, config.val_tokens // self.context)
        self.info: dict[str, Any] = {
            "corpus_id": f"{task.name}-{task.arm}-v{task.version}-{task.info['hash']}-n{self._val_rows}",
            "kind": task.name,
            "hash": task.info["hash"],
            "tokenizer": task.name,
            "vocab": task.vocab,
            "context": task.context,
            "unique_tokens": None,
            "val_tokens": self._val_rows * self.context,
            "bytes_per_token": None,
            "floor_nat": task.floor_nat,
            "floor_reason": task.floor_reason,
            "files": [],
            "task": task.info,
        }

    def _batch(self, seed: int, stream: int, index: int, rows: int) -> Batch:
        key = np.array([seed % 2**64, stream], dtype=np.uint64)
        counter = np.array([0, 0, index, 0], dtype=np.uint64)  # batches are 2^128 draws apart
        rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
        return Batch(*self.task.rows(rng, rows, held_out=stream == _VALIDATION))

    def train_batch(self, seed: int, step: int, sequences: int) -> Batch:
        return self._batch(seed, _TRAIN, step, sequences)

    def unique_tokens(self, tokens: int) -> int:
        """At most: rows are drawn with repetition from so many problems."""
        return min(tokens, self.task.distinct_rows * self.context)

    def val_batches(self, sequences: int) -> Iterator[Batch]:
        whole = self._batch(0, _VALIDATION, 0, self._val_rows)
        for start in range(0, self._val_rows, sequences):
            yield whole[start : start + sequences]

    def val_oracle_nat(self) -> float | None:
        return self.task.floor_nat
