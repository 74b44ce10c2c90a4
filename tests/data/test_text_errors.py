"""What a user reads when a text cannot be used: the setting, its value, why, what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config.schema import TextConfig
from harness.data.text import open_text
from harness.errors import CorpusError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a file of every sort."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": i, "body": f"the text of document {i}"} for i in range(500)]
    Path("good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("good.txt").write_text("".join(f"line {i} of it\n" for i in range(1000)))
    Path("same.txt").write_text(Path("good.txt").read_text())
    Path("latin.txt").write_bytes("caf\xe9\n".encode("latin-1") * 100)
    Path("empty.txt").write_text("")
    Path("blank.jsonl").write_text("\n\n")
    Path("one_line.txt").write_text("a single line without an end " * 500)
    Path("cut_off.jsonl").write_text('{"text": "a"}\n{"text": "b')
    Path("nulls.jsonl").write_text('{"text": null, "title": "a"}\n' * 10)
    Path("not.parquet").write_text("this is no parquet file")
    Path("table.csv").write_text("a,b\n")
    Path("some_folder").mkdir()
    return tmp_path


def refused(
    *, context: int = 32, val_tokens: int = 100, tokens: int = 1000, train: str = "good.txt", **settings: Any
) -> str:
    with pytest.raises(CorpusError) as caught:
        open_text(TextConfig(train=train, cache_dir="cache", **settings), context, val_tokens, tokens)
    shards = Path("cache/shards")
    assert not shards.exists() or all(p.name.startswith(".") or (p / "meta.json").exists() for p in shards.iterdir())
    assert list(Path("cache").glob("*/.*.tmp")) == []
    return str(caught.value)


def test_a_missing_file(folder: Path) -> None:
    assert refused(train="no/such.txt") == (
        f"corpus.train=no/such.txt does not exist in {folder}. Name an existing file, or a Hub dataset such as "
        "roneneldan/TinyStories (.txt, .jsonl, .parquet)."
    )
    assert refused(val="nowhere.jsonl").startswith("corpus.val=nowhere.jsonl does not exist in ")
    assert refused(train="/no/such/thing").startswith("corpus.train=/no/such/thing does not exist. Name an existing")


def test_a_folder_or_a_foreign_ending() -> None:
    assert refused(train="some_folder") == (
        "corpus.train=some_folder is a folder. Name one file in it (.txt, .jsonl, .parquet)."
    )
    assert refused(train="table.csv") == (
        "corpus.train=table.csv has the ending .csv; files are read by their ending: .txt, .jsonl, .parquet. "
        "Rename or convert it."
    )


@pytest.mark.parametrize(
    ("name", "why", "what_to_do"),
    [
        ("latin.txt", "'utf-8' codec can't decode byte 0xe9", "It must be UTF-8 text; repair it or use another file."),
        ("cut_off.jsonl", "JSON parse error", "It must be one JSON object a line; repair it or use another file."),
        ("not.parquet", "Parquet magic bytes not found", "It must be a whole Parquet file; repair it or use another"),
    ],
)
def test_an_unreadable_file(name: str, why: str, what_to_do: str, capfd: pytest.CaptureFixture[str]) -> None:
    message = refused(train=name)
    assert message.startswith(f"corpus.train={name} cannot be read: {why}")
    assert what_to_do in message
    assert "\n" not in message
    assert capfd.readouterr().err == ""  # nothing beside the one message


def test_an_empty_file() -> None:
    assert refused(train="empty.txt") == "corpus.train=empty.txt is empty. Use a file with text in it."


def test_a_wrong_text_field() -> None:
    assert refused(train="good.jsonl") == (
        "corpus.text_field=text is no column of corpus.train=good.jsonl; its columns are id, body. "
        "Use corpus.text_field=body."
    )
    assert refused(train="good.jsonl", text_field="id") == (
        "corpus.text_field=id of corpus.train=good.jsonl holds int in row 0, not text. Name a column of strings."
    )
    assert refused(train="nulls.jsonl") == (
        "corpus.train=nulls.jsonl has no text in its 10 documents. Name another file or corpus.text_field."
    )
    assert refused(train="blank.jsonl").startswith("corpus.train=blank.jsonl has no text in its 0 documents.")
    assert refused(val="nulls.jsonl") == (
        "the validation part of the corpus has no text, only 10 empty rows. Name another file or corpus.text_field."
    )


def test_a_text_that_cannot_be_split() -> None:
    assert refused(train="one_line.txt") == (
        "corpus.train=one_line.txt has too few lines (1) to hold out corpus.val_fraction=0.05 of it between lines. "
        "Give a validation file with corpus.val, or use a longer text."
    )
    assert refused(val_fraction=1.5) == (
        "corpus.val_fraction=1.5 must lie between 0 and 1. Use e.g. 0.05, or give corpus.val."
    )


def test_validation_on_the_training_text() -> None:
    assert refused(val="same.txt") == (
        "corpus.val=same.txt has the same content as corpus.train=good.txt: validation must not have been trained on. "
        "Name another file, or leave corpus.val out and a part of the training file is held out."
    )


def test_too_few_validation_tokens() -> None:
    assert refused(val_tokens=5000) == (
        "corpus.val_tokens=5_000 is more than the 750 tokens of the part of corpus.train=good.txt that is held out. "
        "Use corpus.val_tokens<=750, or a corpus.val_fraction above 0.05, or a longer text."
    )
    assert refused(val="good.jsonl", text_field="body", val_tokens=10**6).endswith("or a longer file.")


def test_too_few_training_tokens_says_how_many_and_both_ways_out() -> None:
    assert refused(tokens=20_000) == (
        "corpus.train=good.txt has 14_112 training tokens, and the run trains on 20_000. Train on at most 14_112 "
        "(budget.tokens) or use a longer text; or set corpus.allow_repetition=true to go through them more than once."
    )
    assert refused(tokens=20_000, unique_tokens=10_000) == (
        "corpus.unique_tokens=10_000 leaves 9_984 training tokens (whole sequences), and the run trains on 20_000. "
        "Train on at most 9_984 (budget.tokens) or raise corpus.unique_tokens; or set corpus.allow_repetition=true to "
        "go through them more than once."
    )


def test_both_ways_out_work() -> None:
    corpus = open_text(TextConfig(train="good.txt", cache_dir="cache"), 32, 100, 14_112)
    corpus.train_batch(0, 440, 1)
    with pytest.raises(CorpusError, match=r"step 441 of 1 sequences lies beyond the 14,112 training tokens"):
        corpus.train_batch(0, 441, 1)
    twice = open_text(TextConfig(train="good.txt", cache_dir="cache", allow_repetition=True), 32, 100, 20_000)
    assert twice.info["repetition"] is True
    assert twice.train_batch(0, 441, 1).tokens.shape == (1, 33)


def test_an_impossible_cap() -> None:
    assert refused(unique_tokens=31) == (
        "corpus.unique_tokens=31 is less than one sequence of corpus.context=32 tokens. Use at least 32."
    )
    assert refused(unique_tokens=10**6) == (
        "corpus.unique_tokens=1_000_000 is more than the 14_112 training tokens of corpus.train=good.txt. "
        "Use corpus.unique_tokens<=14_112, leave it out, or use a longer text."
    )
    assert refused(context=100_000).endswith("fewer than one sequence of corpus.context=100000. Use a longer text.")


def test_the_hub_out_of_reach() -> None:
    assert refused(train="nobody/nothing", hub_config="tiny") == (
        "corpus.train=nobody/nothing (corpus.hub_config=tiny), on the Hugging Face Hub as there is no such file, "
        "cannot be read: Couldn't reach 'nobody/nothing' on the Hub (OfflineModeIsEnabled). Check the name, "
        "corpus.hub_config and the network, or use a local .txt, .jsonl or .parquet file."
    )


def test_a_tokenizer_that_does_not_exist() -> None:
    assert refused(tokenizer="wordpiece") == (
        "corpus.tokenizer=wordpiece is neither bytes, bpe, hub:NAME (a tokenizer of the Hugging Face Hub, e.g. "
        "hub:gpt2) nor a folder with a saved tokenizer."
    )
    message = refused(tokenizer="hub:nobody/nothing")
    assert message.startswith("corpus.tokenizer=hub:nobody/nothing could not be loaded: ")
    assert message.endswith(
        "Check the name and the network; without a network use a folder with a saved tokenizer, or "
        "corpus.tokenizer=bytes or bpe."
    )
    assert refused(tokenizer="some_folder").startswith("corpus.tokenizer=some_folder could not be loaded: ")


def test_a_bpe_smaller_than_its_alphabet() -> None:
    assert refused(tokenizer="bpe", vocab=256) == (
        "corpus.vocab=256 is too small for a byte-level BPE: 256 bytes and a separator come first. "
        "Use corpus.vocab>=257, or corpus.tokenizer=bytes."
    )
