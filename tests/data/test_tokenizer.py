"""Tokenizers: round trips, what AutoTokenizer reads back, special tokens in the text, bytes per
token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from harness.config.schema import TextConfig
from harness.data.text import open_text, save_tokenizer
from harness.data.tokenizer import BPE_TEXT_BYTES, TextTokenizer, head, open_tokenizer, save_word_tokenizer
from harness.errors import CorpusError

TEXTS = [f"The {n}th sentence, with naïve ünïcode – and 😀, ends here.\n" for n in range(300)]
ODD = "  two spaces,\ttab\r\n\n<unk> <|endoftext|> [CLS] \x00 ﬁ ½ e\u0301 漢字 👩‍👩‍👧 it 's , n't .\n "


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextTokenizer]:
    cache = tmp_path_factory.mktemp("cache")
    return {name: open_tokenizer(name, 400, cache, lambda: iter(TEXTS), "texts") for name in ("bytes", "bpe")}


def auto(folder: Path) -> Any:
    from transformers import AutoTokenizer, LlamaConfig

    # an exported checkpoint has one beside the tokenizer
    LlamaConfig(vocab_size=400).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
@settings(max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizers: dict[str, TextTokenizer], name: str, text: str) -> None:
    tokenizer = tokenizers[name]
    ((ids, lengths),) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert lengths.sum() == len(text.encode())
    assert tokenizer.separator not in ids


def test_bytes(tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = tokenizers["bytes"]
    assert (tokenizer.size, tokenizer.separator, tokenizer.vocab) == (257, 256, 272)
    assert tokenizer.encode(["aé"])[0][0].tolist() == list("aé".encode())


def test_a_bpe_has_the_vocabulary_that_was_really_trained(tmp_path: Path) -> None:
    small = open_tokenizer("bpe", 4096, tmp_path, lambda: iter(["abab abab abab"]), "small")
    assert small.size == len(json.loads((small.folder / "tokenizer.json").read_text())["model"]["vocab"]) < 300
    assert small.vocab == -(-small.size // 16) * 16
    assert small.name == f"bpe-{small.size}"


def test_a_bpe_is_trained_on_the_training_part_alone(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("plain words of training\n" * 2000 + "qqzz qqzz qqzz qqzz qqzz\n" * 100)
    config = TextConfig(
        train=str(path), tokenizer="bpe", vocab=300, cache_dir=str(tmp_path / "cache"), val_fraction=0.06
    )
    vocabulary = open_text(config, 32, 500, 1000).tokenizer._backend.get_vocab()
    assert "Ġtraining" in vocabulary
    assert not any("qq" in token or "zz" in token for token in vocabulary)


def test_a_bpe_depends_on_its_text_and_size_only(tmp_path: Path) -> None:
    first, again, other = (
        open_tokenizer("bpe", vocab, tmp_path / folder, lambda: iter(TEXTS), "texts").fingerprint
        for folder, vocab in (("a", 400), ("b", 400), ("c", 401))
    )
    assert first == again != other


def test_no_more_text_is_read_than_the_bpe_needs() -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield "é" * 1000

    assert sum(len(t.encode()) for t in head(endless(), 10_000)) == 10_000
    assert read == 5
    assert BPE_TEXT_BYTES == 16 * 2**20


# --- saved for Hugging Face ----------------------------------------------------------------------
@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_a_saved_tokenizer_is_read_by_auto_tokenizer(tmp_path: Path, name: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(TEXTS))
    corpus = open_text(
        TextConfig(train=str(path), tokenizer=name, vocab=400, cache_dir=str(tmp_path / "c")), 64, 200, 1000
    )
    save_tokenizer(corpus, tmp_path / "export")
    loaded = auto(tmp_path / "export")
    for text in (*TEXTS[:5], ODD.replace("<|endoftext|>", "")):
        ids = loaded(text).input_ids
        assert ids == corpus.tokenizer.encode([text])[0][0].tolist()
        assert loaded.decode(ids) == text
    assert loaded.eos_token_id == loaded.bos_token_id == corpus.tokenizer.separator
    assert loaded("a<|endoftext|>b").input_ids[1] == corpus.tokenizer.separator
    assert len(loaded) == corpus.tokenizer.size <= corpus.vocab
    assert loaded.model_max_length == 64


def test_words_of_a_corpus_without_text(tmp_path: Path) -> None:
    save_word_tokenizer(512, tmp_path)
    loaded = auto(tmp_path)
    ids = np.random.default_rng(0).integers(0, 512, 50).tolist()
    text = loaded.decode(ids)
    assert text == " ".join(f"t{i}" for i in ids)
    assert loaded(text).input_ids == ids
    assert len(loaded) == 512
    with pytest.raises(Exception, match="Missing"):
        loaded("t3 t512")


# --- pretrained ones -----------------------------------------------------------------------------
def pretrained_folder(folder: Path) -> Path:
    """A tokenizer that is not byte-level: lower case, stripped accents, whole words and an unknown
    token.
    """
    words = ["[UNK]", "</s>", "the", "sentence", ",", "and", "with", ".", "😀"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "[UNK]"})
    )
    return folder


def test_a_pretrained_tokenizer_from_a_folder(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(str(pretrained_folder(tmp_path / "words")), 0, tmp_path / "cache", lambda: iter([]), "")
    assert (tokenizer.name, tokenizer.size, tokenizer.separator, tokenizer.vocab) == ("words", 9, 1, 16)
    ((ids, lengths),) = tokenizer.encode(["The naïve 😀 , </s> end  \n"])
    assert ids.tolist() == [2, 0, 8, 4, 0, 0, 0, 0][: len(ids)]
    assert 1 not in ids  # "</s>" in a text is text
    assert lengths[:4].tolist() == [3, 7, 5, 2]  # "The", " naïve", " 😀", " ,"
    assert lengths.sum() == len("The naïve 😀 , </s> end  \n".encode())
    tokenizer.save(tmp_path / "export", 64)
    assert auto(tmp_path / "export")("the 😀").input_ids == [2, 8]


def test_a_changed_folder_is_another_tokenizer(tmp_path: Path) -> None:
    folder = pretrained_folder(tmp_path / "words")
    first = open_tokenizer(str(folder), 0, tmp_path / "cache", lambda: iter([]), "")
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace('"sentence"', '"phrase"'))
    second = open_tokenizer(str(folder), 0, tmp_path / "cache", lambda: iter([]), "")
    assert first.folder != second.folder
    assert first.fingerprint != second.fingerprint


def test_our_own_export_serves_as_a_pretrained_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(TEXTS))
    config = TextConfig(train=str(path), tokenizer="bpe", vocab=300, cache_dir=str(tmp_path / "cache"))
    own = open_text(config, 64, 200, 1000)
    save_tokenizer(own, tmp_path / "export")
    config.tokenizer = str(tmp_path / "export")
    loaded = open_text(config, 64, 200, 1000)
    assert (loaded.train_batch(0, 0, 4).tokens == own.train_batch(0, 0, 4).tokens).all()
    # 200 tokens end inside a character here and there; whole characters agree exactly
    assert loaded._shards.val_bytes.sum() == own._shards.val_bytes.sum()
    assert abs(loaded.info["bytes_per_token"] - own.info["bytes_per_token"]) * 200 <= 3
    assert loaded.info["tokenizer"] == "export"
    assert str(tmp_path) not in json.dumps(loaded.info)


def test_a_tokenizer_without_an_end_of_text(tmp_path: Path) -> None:
    folder = pretrained_folder(tmp_path / "words")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CorpusError, match=r"words has no end-of-text token to put between documents\. Use another one"):
        open_tokenizer(str(folder), 0, tmp_path / "cache", lambda: iter([]), "")


def test_a_damaged_tokenizer_is_refused(tokenizers: dict[str, TextTokenizer], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizers["bpe"].folder / "tokenizer.json").read_bytes())
    with pytest.raises(CorpusError, match=r"is damaged: .* Remove that folder; it will be made again\."):
        TextTokenizer(tmp_path)
