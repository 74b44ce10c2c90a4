"""Tokenizers of real text: raw bytes, a BPE trained on the corpus, or a pretrained one.

All live in a folder as Hugging Face files.

Ids of `bytes` are the byte values and 256 for the separator; `bpe` has the separator at 0. A
byte-level vocabulary spells one byte per character, so the bytes of a token are exactly the length
of its spelling. The model's vocabulary is what the tokenizer really has, rounded up to a multiple
of 16 so that rows stay aligned; the added ids never occur.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.shards import build_once, digest
from harness.errors import CorpusError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEPARATOR = "<|endoftext|>"
# a BPE is trained on at most this much of the beginning of the training part
BPE_TEXT_BYTES = 16 << 20
_VERSION = 1
_ROW_MULTIPLE = 16
_META = "harness_tokenizer.json"
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.jinja")  # of a tokenizer's folder, without weights


@dataclass(frozen=True)
class _Meta:
    kind: str  # bytes | bpe | hub
    name: str  # as it goes to the record
    size: int  # highest id + 1
    separator: int
    separator_text: str


class TextTokenizer:
    """An opened tokenizer folder. Nothing heavy is loaded before the first `encode`."""

    def __init__(self, folder: Path) -> None:
        try:
            self._meta = _Meta(**json.loads((folder / _META).read_text()))
            self.fingerprint = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
        except (OSError, ValueError, TypeError) as e:
            raise CorpusError(
                f"the cached tokenizer in {folder} is damaged: {e}. Remove that folder; it will be made again."
            ) from e
        self.folder = folder
        self.name, self.size, self.separator = self._meta.name, self._meta.size, self._meta.separator

    @property
    def vocab(self) -> int:
        """Embedding rows of a model for this tokenizer: `size` rounded up."""
        return -(-self.size // _ROW_MULTIPLE) * _ROW_MULTIPLE

    def encode(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per text: token ids, and the UTF-8 bytes of each.

        Special tokens spelled out in a text stay plain text.

        A pretrained tokenizer's bytes are taken from character offsets: exact sums, except that a
        character which is split over several tokens counts at the first of them.
        """
        if self._meta.kind == "bytes":
            raw = [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
            return [(ids, np.ones(len(ids), np.int64)) for ids in raw]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        out = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            out.append(
                (ids, self._bytes_of_id[ids] if self._meta.kind == "bpe" else _offset_bytes(text, encoding.offsets))
            )
        return out

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """Text of token ids, separators left out."""
        return self._backend.decode([int(i) for i in ids if i != self.separator], skip_special_tokens=False)

    @cached_property
    def _backend(self) -> Tokenizer:
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        return backend

    @cached_property
    def _bytes_of_id(self) -> np.ndarray:
        lengths = np.zeros(self.size, np.int64)
        for token, index in self._backend.get_vocab().items():
            lengths[index] = 0 if index == self.separator else len(token)
        return lengths

    def save(self, folder: Path, context: int) -> None:
        """Write it for `AutoTokenizer.from_pretrained(folder)`; `context` becomes the longest input
        it accepts silently.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._meta.kind == "hub":
            for path in self.folder.iterdir():
                if path.name != _META:
                    shutil.copy(path, folder / path.name)
            return
        shutil.copy(self.folder / "tokenizer.json", folder / "tokenizer.json")
        _write_hf_config(
            folder, context, {"eos_token": self._meta.separator_text, "bos_token": self._meta.separator_text}
        )


def open_tokenizer(
    choice: str, vocab: int, cache: Path, train_texts: Callable[[], Iterator[str]], train_key: str
) -> TextTokenizer:
    """The tokenizer named by `corpus.tokenizer`, from the cache where it was made before.

    `vocab` is the requested size of a BPE. `train_texts()` gives the training part's texts, read
    only to train a BPE; `train_key` identifies that text. CorpusError names what is wrong with the
    choice.
    """

    def at(key: str, build: Callable[[Path], None]) -> TextTokenizer:
        return TextTokenizer(build_once(cache / "tokenizers" / key, build))

    if choice == "bytes":
        return at(f"bytes-{_VERSION}", _build_bytes)
    if choice == "bpe":
        if vocab < 257:
            raise CorpusError(
                f"corpus.vocab={vocab} is too small for a byte-level BPE: 256 bytes and a separator come first. "
                "Use corpus.vocab>=257, or corpus.tokenizer=bytes."
            )
        return at(
            digest("bpe", _VERSION, BPE_TEXT_BYTES, vocab, train_key),
            lambda folder: _build_bpe(folder, vocab, train_texts()),
        )
    if choice.startswith("hub:") and len(choice) > len("hub:"):
        name = choice.removeprefix("hub:")
        return at(digest("hub", _VERSION, name), lambda folder: _build_pretrained(folder, choice, name, name))
    local = Path(choice).expanduser()
    if local.is_dir():
        files = sorted({path for pattern in _HUB_FILES for path in local.glob(pattern)})
        key = digest("folder", _VERSION, [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])
        return at(key, lambda folder: _build_pretrained(folder, choice, str(local), local.resolve().name))
    raise CorpusError(
        f"corpus.tokenizer={choice} is neither bytes, bpe, hub:NAME (a tokenizer of the Hugging Face Hub, e.g. "
        "hub:gpt2) "
        "nor a folder with a saved tokenizer."
    )


# --- making them ---------------------------------------------------------------------------------
def _byte_alphabet() -> list[str]:
    """The character that byte-level vocabularies use for each byte 0 ..

    255: printable bytes stand for themselves, the rest follow from U+0100 on (the table of GPT-2's
    encoder).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]


def _byte_level(model: Any) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return backend


def _build_bytes(folder: Path) -> None:
    from tokenizers import AddedToken, models

    backend = _byte_level(
        models.BPE(vocab={spelling: byte for byte, spelling in enumerate(_byte_alphabet())}, merges=[])
    )
    backend.add_special_tokens([AddedToken(SEPARATOR, special=True, normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    _write_meta(folder, _Meta("bytes", "bytes", backend.get_vocab_size(), backend.get_vocab()[SEPARATOR], SEPARATOR))


def _build_bpe(folder: Path, vocab: int, texts: Iterator[str]) -> None:
    from tokenizers import models, trainers

    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[SEPARATOR],
        initial_alphabet=_byte_alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(head(texts, BPE_TEXT_BYTES), trainer)
    backend.save(str(folder / "tokenizer.json"))
    size = backend.get_vocab_size()
    _write_meta(folder, _Meta("bpe", f"bpe-{size}", size, backend.get_vocab()[SEPARATOR], SEPARATOR))


def _build_pretrained(folder: Path, choice: str, source: str, name: str) -> None:
    from transformers import AutoTokenizer

    what = f"corpus.tokenizer={choice}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
    except (OSError, ValueError, ImportError) as e:
        raise CorpusError(
            f"{what} could not be loaded: {' '.join(str(e).split())[:300]} Check the name and the network; without a "
            "network use a "
            "folder with a saved tokenizer, or corpus.tokenizer=bytes or bpe."
        ) from e
    if not tokenizer.is_fast:
        raise CorpusError(
            f"{what} has no fast version (tokenizer.json), which counting bytes needs. Use another one, or bytes or "
            "bpe."
        )
    for text in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.sep_token):
        if text is not None:
            break
    else:
        raise CorpusError(
            f"{what} has no end-of-text token to put between documents. Use another one, or bytes or bpe."
        )
    tokenizer.save_pretrained(folder)
    size = max(tokenizer.get_vocab().values()) + 1
    _write_meta(folder, _Meta("hub", name, size, int(tokenizer.convert_tokens_to_ids(text)), text))


def save_word_tokenizer(vocab: int, folder: Path) -> None:
    """The tokenizer of a corpus that has tokens but no text: words `t0` ..

    `t<vocab - 1>` with a space between them.

    Any other word is an error of the tokenizer, not an unknown token.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="<none>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    _write_hf_config(folder, None, {})


def head(texts: Iterator[str], text_bytes: int) -> Iterator[str]:
    """The first texts, up to and with the one that completes `text_bytes` UTF-8 bytes."""
    size = 0
    for text in texts:
        yield text
        size += len(text.encode())
        if size >= text_bytes:
            return


def _write_meta(folder: Path, meta: _Meta) -> None:
    (folder / _META).write_text(json.dumps(asdict(meta), indent=1) + "\n")


def _write_hf_config(folder: Path, context: int | None, tokens: dict[str, str]) -> None:
    """What AutoTokenizer reads in addition to tokenizer.json.

    The class name is the one that transformers 4 and 5 both know.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    if context is not None:
        config["model_max_length"] = context
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _offset_bytes(text: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    """Bytes per token from character offsets: from the end of the token before to its own end."""
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    end_byte = np.concatenate([[0], np.cumsum(widths)])
    ends = np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
    if len(ends):
        ends[-1] = len(text)  # what the tokenizer drops at the end belongs to the last token
    return np.diff(end_byte[ends], prepend=0)
