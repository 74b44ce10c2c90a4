"""Text corpora: batches, epochs, caps, the split, byte accounting, files of every kind."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.config.schema import TextConfig
from harness.data.text import open_text
from harness.data.text_corpus import TextCorpus, permutation

_DIGITS = np.random.default_rng(0).integers(10**9, 10**10, size=(1200, 6))
# no 32 bytes twice
LINES = [f"line {i}: " + " ".join(str(n) for n in row) + "\n" for i, row in enumerate(_DIGITS)]
DOCUMENTS = [f"document {i:03d} – ünïcode and 😀 number {i * i}" for i in range(1000)]
SHA256_OF_LINES = hashlib.sha256("".join(LINES).encode()).hexdigest()


@pytest.fixture
def txt(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(LINES))
    return path


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(DOCUMENTS)))
    return path


def opened(
    path: Path, *, context: int = 32, val_tokens: int = 1000, tokens: int = 10_000, **settings: Any
) -> TextCorpus:
    config = TextConfig(train=str(path), cache_dir=str(path.parent / "cache"), **settings)
    return open_text(config, context, val_tokens, tokens)


def trained(corpus: TextCorpus, seed: int, steps: int, sequences: int) -> np.ndarray:
    """Tokens (steps x sequences, context + 1) of the first steps."""
    return np.concatenate([corpus.train_batch(seed, step, sequences).tokens for step in range(steps)])


def scored(corpus: TextCorpus, sequences: int = 7) -> np.ndarray:
    return np.concatenate([b.tokens[:, 1:][b.mask == 1] for b in corpus.val_batches(sequences)])


# --- batches -------------------------------------------------------------------------------------
def test_a_batch_has_the_promised_shapes_and_types(txt: Path) -> None:
    corpus = opened(txt)
    batch = corpus.train_batch(0, 0, 5)
    assert batch.tokens.shape == (5, 33)
    assert batch.mask.shape == (5, 32)
    assert (batch.tokens.dtype, batch.mask.dtype) == (np.int64, np.float32)
    assert batch.mask.all()
    assert batch.positions is None  # 0 .. 31
    assert batch.tokens.max() < corpus.vocab
    assert corpus.val_oracle_nat() is None


def test_a_batch_depends_on_seed_and_step_alone(txt: Path) -> None:
    first, second = opened(txt, allow_repetition=True), opened(txt, allow_repetition=True)
    forward = [first.train_batch(3, step, 4).tokens for step in range(900)]  # more than two epochs
    for step in (899, 0, 450, 7, 899):
        assert (second.train_batch(3, step, 4).tokens == forward[step]).all()
    assert not (second.train_batch(4, 0, 4).tokens == forward[0]).all()


def test_the_size_of_a_batch_does_not_change_the_order(txt: Path) -> None:
    corpus = opened(txt, allow_repetition=True)
    assert (trained(corpus, 1, 600, 5) == trained(corpus, 1, 1000, 3)).all()


def test_an_epoch_has_each_sequence_once_and_each_epoch_its_own_order(txt: Path) -> None:
    corpus = opened(txt, allow_repetition=True)
    n = corpus.info["unique_tokens"] // 32
    rows = [tuple(row) for row in trained(corpus, 0, 2 * n, 1)]
    assert len(set(rows[:n])) == n  # the lines are numbered: no two sequences are alike
    assert set(rows[n:]) == set(rows[:n])
    assert rows[n:] != rows[:n]


def test_every_training_token_is_a_target_exactly_once(txt: Path) -> None:
    corpus = opened(txt, tokenizer="bytes", val_fraction=0.1)
    n = corpus.info["unique_tokens"] // 32
    rows = trained(corpus, 0, n, 1)
    text = "".join(LINES).encode()
    by_start = sorted((text.find(bytes(row[1:].tolist())), i) for i, row in enumerate(rows))
    assert [start for start, _ in by_start] == list(range(0, 32 * n, 32))
    assert rows[by_start[0][1], 0] == 256  # the stream begins with the separator


def test_unique_tokens_counts_what_was_really_seen(txt: Path) -> None:
    corpus = opened(txt, unique_tokens=32 * 50 + 9, tokens=32 * 120, allow_repetition=True)
    assert corpus.info["unique_tokens"] == 32 * 50
    assert corpus.info["repetition"] is True
    for sequences in (1, 49, 50, 51, 120):
        rows = trained(corpus, 5, sequences, 1)
        assert corpus.unique_tokens(sequences * 32) == 32 * len({tuple(r) for r in rows})


def test_smaller_caps_are_subsets_of_larger_ones_whatever_the_seed(txt: Path) -> None:
    seen = []
    for sequences, seed in ((20, 0), (20, 9), (60, 4)):
        corpus = opened(txt, unique_tokens=32 * sequences, tokens=32 * sequences)
        seen.append({tuple(r) for r in trained(corpus, seed, sequences, 1)})
        assert corpus.info["repetition"] is False
    assert seen[0] == seen[1] < seen[2]
    everything = opened(txt)
    stream = [tuple(r) for r in trained(everything, 0, everything.info["unique_tokens"] // 32, 1)]
    order = sorted(stream.index(row) for row in seen[0])
    assert order != list(range(order[0], order[0] + 20))  # spread over the text, not its beginning


def test_the_permutation_never_changes() -> None:
    assert permutation(10, 1, 2).tolist() == [7, 1, 3, 0, 4, 8, 9, 2, 6, 5]
    assert sorted(permutation(1000, -1, 0).tolist()) == list(range(1000))
    assert permutation(50, 0, 0).tolist() != permutation(50, 0, 1).tolist()


# --- validation ----------------------------------------------------------------------------------
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_train_and_validation_share_no_line(txt: Path, tokenizer: str) -> None:
    corpus = opened(txt, tokenizer=tokenizer, vocab=400, val_fraction=0.2, val_tokens=2000)
    shards = corpus._shards
    train = corpus.tokenizer.decode(shards.train).splitlines(keepends=True)
    val = corpus.tokenizer.decode(shards.val).splitlines(keepends=True)
    assert train + val == LINES
    held_out = len("".join(val))
    assert 0.2 <= held_out / len("".join(LINES)) < 0.2 + len(LINES[-1]) / len("".join(LINES))


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_train_and_validation_share_no_document(jsonl: Path, tokenizer: str) -> None:
    corpus = opened(jsonl, text_field="body", tokenizer=tokenizer, vocab=400, val_tokens=500)
    parts = []
    for tokens in (corpus._shards.train, corpus._shards.val):
        cuts = np.flatnonzero(tokens == corpus.tokenizer.separator)
        parts.append([corpus.tokenizer.decode(t) for t in np.split(tokens, cuts)[1:]])
        assert tokens[0] == corpus.tokenizer.separator
    assert parts[0] + parts[1] == DOCUMENTS
    assert len(parts[1]) >= 20


@pytest.mark.parametrize("val_tokens", [1, 31, 32, 33, 1000])
def test_validation_scores_exactly_what_was_asked(txt: Path, val_tokens: int) -> None:
    corpus = opened(txt, val_tokens=val_tokens)
    expected = np.asarray(corpus._shards.val)[1 : 1 + val_tokens]
    assert corpus.info["val_tokens"] == val_tokens
    for sequences in (1, 7, 100):
        assert (scored(corpus, sequences) == expected).all()
        assert max(len(b.tokens) for b in corpus.val_batches(sequences)) <= sequences


def test_all_of_the_held_out_text_can_be_scored(txt: Path) -> None:
    probe = opened(txt)
    everything = len(probe._shards.val) - 1
    assert len(scored(opened(txt, val_tokens=everything))) == everything


def test_validation_from_a_file_of_its_own(txt: Path, jsonl: Path) -> None:
    corpus = opened(txt, val=str(jsonl), text_field="body")
    assert corpus.tokenizer.decode(corpus._shards.train) == "".join(LINES)
    assert corpus.tokenizer.decode(corpus._shards.val) == "".join(DOCUMENTS)
    assert [f["name"] for f in corpus.info["files"]] == ["lines.txt", "documents.jsonl"]


# --- bytes ---------------------------------------------------------------------------------------
def test_bytes_per_token_of_a_running_text_is_one(txt: Path) -> None:
    assert opened(txt).info["bytes_per_token"] == 1.0


def test_separators_are_scored_and_stand_for_no_byte(jsonl: Path) -> None:
    corpus = opened(jsonl, text_field="body", val_tokens=500)
    targets = scored(corpus)
    assert corpus.info["bytes_per_token"] == (targets != 256).sum() / 500 < 1.0


@pytest.mark.parametrize("val_tokens", [1, 2, 3, 50, 51, 52, 53, 54, 55, 300])
def test_bytes_of_bpe_tokens_are_exact_even_inside_a_character(jsonl: Path, val_tokens: int) -> None:
    corpus = opened(jsonl, text_field="body", tokenizer="bpe", vocab=270, val_tokens=val_tokens)
    targets = scored(corpus)
    spelled = {i: t for t, i in corpus.tokenizer._backend.get_vocab().items()}
    assert corpus.info["bytes_per_token"] == sum(len(spelled[i]) for i in targets if i != 0) / val_tokens
    assert corpus.tokenizer._meta.size == 270


# --- kinds of files ------------------------------------------------------------------------------
def test_a_parquet_file_gives_the_tokens_of_the_jsonl_file(jsonl: Path, tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    pq.write_table(pa.table({"id": list(range(len(DOCUMENTS))), "body": DOCUMENTS}), path, row_group_size=64)
    a, b = opened(jsonl, text_field="body"), opened(path, text_field="body")
    assert (a._shards.train == b._shards.train).all()
    assert (scored(a) == scored(b)).all()


def test_empty_rows_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "holes.jsonl"
    rows = list(itertools.chain.from_iterable(({"text": d}, {"text": None}, {"text": ""}) for d in DOCUMENTS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = opened(path)
    assert (np.asarray(corpus._shards.train) == 256).sum() == corpus._shards.train_part.documents
    assert corpus._shards.train_part.documents + corpus._shards.val_part.documents == len(DOCUMENTS)
    assert corpus._shards.train_part.empty + corpus._shards.val_part.empty == 2 * len(DOCUMENTS)


def test_carriage_returns_are_read_as_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "dos.txt"
    path.write_bytes("".join(LINES).replace("\n", "\r\n").encode())
    corpus = opened(path)
    whole = corpus.tokenizer.decode(corpus._shards.train) + corpus.tokenizer.decode(corpus._shards.val)
    assert whole == "".join(LINES)


def test_a_path_with_pattern_characters_is_one_file(txt: Path, tmp_path: Path) -> None:
    (tmp_path / "a[1]").mkdir()
    path = tmp_path / "a[1]" / "x*y.txt"
    path.write_bytes(txt.read_bytes())
    assert opened(path).info["files"][0]["name"] == "x*y.txt"


def test_the_record_names_files_by_base_name_and_hash(txt: Path) -> None:
    info = opened(txt).info
    assert info["files"] == [{"name": "lines.txt", "sha256": SHA256_OF_LINES, "bytes": txt.stat().st_size}]
    assert str(txt.parent) not in json.dumps(info)
    assert (info["kind"], info["floor_nat"], info["tokenizer"]) == ("text", None, "bytes")
    assert info["floor_reason"]
    assert info["vocab"] == 272


# --- real text -----------------------------------------------------------------------------------
def test_wikitext_2(corpora: Path, tmp_path: Path) -> None:
    folder = corpora / "wikitext-2"
    config = TextConfig(
        train=str(folder / "valid.txt"),
        val=str(folder / "test.txt"),
        tokenizer="bpe",
        cache_dir=str(tmp_path / "cache"),
    )
    corpus = open_text(config, 256, 129_024, 200_000)
    assert corpus.vocab == 4096
    text = (folder / "test.txt").read_text()
    said = corpus.tokenizer.decode(scored(corpus))
    assert text.startswith(said.rstrip("\ufffd"))
    assert abs(corpus.info["bytes_per_token"] * 129_024 - len(said.encode())) <= 3
    assert corpus.tokenizer.decode(corpus._shards.train) == (folder / "valid.txt").read_text()
    raw = open_text(replace(config, tokenizer="bytes"), 256, 129_024, 200_000)
    assert raw.info["bytes_per_token"] == 1.0
    assert raw.info["train_tokens_available"] == (folder / "valid.txt").stat().st_size // 256 * 256


def test_tinyshakespeare(corpora: Path, tmp_path: Path) -> None:
    path = corpora / "tinyshakespeare" / "input.txt"
    config = TextConfig(train=str(path), cache_dir=str(tmp_path / "cache"))
    corpus = open_text(config, 256, 50_000, 1_000_000)
    assert (
        corpus.tokenizer.decode(corpus._shards.train) + corpus.tokenizer.decode(corpus._shards.val) == path.read_text()
    )
    assert corpus.info["files"][0]["bytes"] == 1_115_394
