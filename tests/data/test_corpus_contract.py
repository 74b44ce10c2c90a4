"""What every corpus keeps to: batches that are a pure function of (seed, step), a fixed validation
set apart from them, and a record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.config.schema import (
    FAMILIES,
    Arm,
    CorpusConfig,
    CountdownConfig,
    FactsConfig,
    GroupConfig,
    GroupFormat,
    MultiplyConfig,
    QaConfig,
    TextConfig,
)
from harness.data.batches import Batch, Corpus
from harness.data.corpora import open_corpus, save_tokenizer, sizes

INFO = {
    *("corpus_id", "kind", "tokenizer", "vocab", "unique_tokens"),
    *("val_tokens", "bytes_per_token", "floor_nat", "files"),
}


def text(folder: Path, **settings: object) -> TextConfig:
    """A text of numbered lines, so that no two windows of it are alike."""
    path = folder / "lines.txt"
    path.write_text("".join(f"Line {i} holds the square {i * i}.\n" for i in range(3_000)), encoding="utf-8")
    return TextConfig(train=str(path), context=32, val_tokens=2_048, cache_dir=str(folder / "cache"), **settings)  # type: ignore[arg-type]


FAMILY: dict[str, Callable[[Path], CorpusConfig]] = {
    "facts": lambda _: FactsConfig(val_tokens=6_300),
    "facts of a capped pool": lambda _: FactsConfig(val_tokens=6_300, unique_tokens=3_150),
    "bytes": text,
    "bpe": lambda folder: text(folder, tokenizer="bpe", vocab=300),
    "stride": lambda _: GroupConfig(val_tokens=5_400),
    "budget": lambda _: GroupConfig(format=GroupFormat.budget, val_tokens=5_600),
    "filler": lambda _: GroupConfig(arm=Arm.filler, val_tokens=5_400),
    "countdown": lambda _: CountdownConfig(val_tokens=3_000),
    "multiply": lambda _: MultiplyConfig(digits=3, val_tokens=3_700),
}


def test_every_corpus_is_held_to_the_contract(tmp_path: Path) -> None:
    # which is never trained on
    trained = {cls for cls in FAMILIES["corpus"].values() if cls is not QaConfig}
    assert {type(make(tmp_path)) for make in FAMILY.values()} == trained


@pytest.fixture(params=FAMILY)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> CorpusConfig:
    return FAMILY[request.param](tmp_path)


@pytest.fixture
def corpus(config: CorpusConfig) -> Corpus:
    return open_corpus(config, tokens_needed=10_000 if isinstance(config, TextConfig) else 0)


def equal(a: Batch, b: Batch) -> bool:
    same = np.array_equal(a.tokens, b.tokens) and np.array_equal(a.mask, b.mask)
    if a.positions is None or b.positions is None:
        return same and a.positions is b.positions
    return same and np.array_equal(a.positions, b.positions)


def test_a_batch_is_a_function_of_seed_and_step(config: CorpusConfig, corpus: Corpus) -> None:
    batches = [corpus.train_batch(3, step, 16) for step in range(4)]
    # which takes the place of a corpus that is kept, so the next one is built anew
    open_corpus(FactsConfig(keys=9), 0)
    again = open_corpus(config, tokens_needed=10_000 if isinstance(config, TextConfig) else 0)
    for step in (3, 1, 0, 2):
        assert equal(again.train_batch(3, step, 16), batches[step])
    assert not equal(batches[0], batches[1])
    assert not equal(batches[0], corpus.train_batch(4, 0, 16))


def test_a_batch_has_its_shapes(config: CorpusConfig, corpus: Corpus) -> None:
    batch = corpus.train_batch(0, 7, 5)
    assert (batch.tokens.dtype, batch.mask.dtype) == (np.int64, np.float32)
    assert batch.tokens.shape == (5, corpus.context + 1)
    assert batch.mask.shape == (5, corpus.context)
    assert set(np.unique(batch.mask)) <= {0.0, 1.0}
    assert (batch.mask.sum(1) > 0).all()
    assert 0 <= batch.tokens.min() <= batch.tokens.max() < corpus.vocab
    if batch.positions is not None:
        assert (batch.positions.dtype, batch.positions.shape) == (np.int64, (5, corpus.context))
    assert sizes(config) == (corpus.vocab, corpus.context)


def test_validation_is_one_set_apart_from_training(corpus: Corpus) -> None:
    parts, whole = list(corpus.val_batches(64)), list(corpus.val_batches(100_000))
    assert len(whole) == 1
    assert np.array_equal(np.concatenate([b.tokens for b in parts]), whole[0].tokens)
    assert np.array_equal(np.concatenate([b.mask for b in parts]), whole[0].mask)
    assert all(len(b.tokens) <= 64 for b in parts)
    assert whole[0].tokens.size - len(whole[0].tokens) == corpus.info["val_tokens"]
    trained = {tuple(r) for r in corpus.train_batch(0, 0, 1_000).tokens.tolist()}
    assert not trained & {tuple(r) for r in whole[0].tokens.tolist()}


def test_the_record_says_what_was_trained_on(corpus: Corpus, tmp_path: Path) -> None:
    assert set(corpus.info) >= INFO
    text = json.dumps(corpus.info, allow_nan=False)
    assert str(tmp_path) not in text, "a file is named and hashed, and its folder is nobody's business"
    assert corpus.info["vocab"] == corpus.vocab
    if corpus.info["floor_nat"] is None:
        assert corpus.info["floor_reason"]
    else:
        assert corpus.val_oracle_nat() == pytest.approx(corpus.info["floor_nat"], rel=0.1)
    assert corpus.unique_tokens(1_000) <= 1_000
    assert corpus.unique_tokens(10**12) >= corpus.unique_tokens(1_000)


def test_two_corpora_have_two_ids(tmp_path: Path) -> None:
    ids = [open_corpus(make(tmp_path), 0).info["corpus_id"] for make in FAMILY.values()]
    # A cap on fresh tokens leaves the corpus what it is
    assert len(set(ids)) == len(FAMILY) - 1


def test_a_tokenizer_is_written(corpus: Corpus, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(corpus, tmp_path / "tokenizer")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "tokenizer")) <= corpus.vocab
