"""Real text as a corpus: a local .txt, .jsonl or .parquet file, or a Hub dataset that is streamed,
both read through `datasets`.

Train and validation never share text. Of a local file the last `val_fraction` is held out, cut
between documents (.txt: between lines); a streamed dataset without a validation split gives its
first documents; `corpus.val` names a file of its own. A .txt file is one running text whose line
ends are read as "\\n"; rows of the other kinds are documents and begin with a separator token each,
which is scored like any token and has no bytes.

The training stream is cut into sequences of context + 1 tokens that overlap by one, so each token
is a target exactly once. An epoch is a permutation of them drawn from (seed, epoch); a stream's is
drawn block by block of about a million tokens, so that a larger budget later continues where the
smaller one ended. A cap on unique tokens takes the first of one fixed shuffle (a stream: the first
of its own order), so that smaller caps are subsets of larger ones, for every seed of the run.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.schema import TextConfig
from harness.data.shards import (
    VERSION,
    Documents,
    Shards,
    build_once,
    cache_folder,
    digest,
    file_sha256,
    open_shards,
    write_shards,
)
from harness.data.text_corpus import Pool, TextCorpus, check_val, choose_pool, sequences, wanted_sequences
from harness.data.tokenizer import TextTokenizer, head, open_tokenizer
from harness.errors import CorpusError

_LOADERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
_MUST_BE = {"text": "UTF-8 text", "json": "one JSON object a line", "parquet": "a whole Parquet file"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# A stream's validation part in bytes per requested token: ample, and the same text for every
# tokenizer
_VAL_BYTES_PER_TOKEN = 16
# Streamed tokens are taken and kept in powers of two from here up, so that runs of similar length
# share them
_LEVEL = 1 << 20


# --- reading -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LocalFile:
    """A text file of this machine, `value` as the user wrote it in `field`."""

    field: str
    value: str
    path: Path
    loader: str
    sha256: str
    size: int

    @property
    def separated(self) -> bool:
        return self.loader != "text"

    def texts(self, text_field: str) -> Iterator[str]:
        """Documents, or lines of a .txt, in file order; "" for an empty row.

        CorpusError when the file cannot be read.
        """
        options: dict[str, Any] = {"keep_linebreaks": True} if self.loader == "text" else {}
        what = f"{self.field}={self.value}"
        advice = f"It must be {_MUST_BE[self.loader]}; repair it or use another file."
        if self.size == 0:
            raise CorpusError(f"{what} is empty. Use a file with text in it.")
        files = {"train": glob.escape(str(self.path))}  # it takes patterns
        data = _load(what, advice, self.loader, data_files=files, split="train", **options)
        return _column(data, what, advice, "text" if self.loader == "text" else text_field)


def _load(what: str, advice: str, *args: Any, **kwargs: Any) -> Any:
    """`datasets.load_dataset(..., streaming=True)`, its failures as one CorpusError."""
    import datasets

    # what it logs is in the exception as well
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        return datasets.load_dataset(*args, streaming=True, **kwargs)
    except (OSError, ValueError, StopIteration) as e:
        # builtin types and subclasses are what it raises
        raise _unreadable(what, e, advice) from e


def _column(data: Any, what: str, advice: str, text_field: str) -> Iterator[str]:
    """The strings of one column, row by row."""
    row = 0
    batches = iter(data.iter(batch_size=1000))
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as e:
            raise _unreadable(what, e, advice) from e
        if batch is None:
            return
        if text_field not in batch:
            usable = [name for name, values in batch.items() if isinstance(values[0], str)]
            raise CorpusError(
                f"corpus.text_field={text_field} is no column of {what}; its columns are {', '.join(batch)}. "
                + (f"Use corpus.text_field={usable[0]}." if usable else "Use a file with a column of strings.")
            )
        for text in batch[text_field]:
            if not isinstance(text, str | None):
                raise CorpusError(
                    f"corpus.text_field={text_field} of {what} holds {type(text).__name__} in row {row}, not text. "
                    "Name a column of strings."
                )
            yield text or ""
            row += 1


def _unreadable(what: str, error: BaseException, advice: str) -> CorpusError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return CorpusError(f"{what} cannot be read: {reason.rstrip('.')}. {advice}")


def _local_file(field: str, value: str, cache: Path, hub: bool) -> LocalFile | None:
    """The local file that `value` names, or None where it can only be a Hub name and `hub` allows
    one.
    """
    path = Path(value).expanduser()
    kinds = ", ".join(_LOADERS)
    if path.is_dir():
        raise CorpusError(f"{field}={value} is a folder. Name one file in it ({kinds}).")
    if not path.exists():
        if hub and path.suffix not in _LOADERS and _HUB_NAME.fullmatch(value):
            return None
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        names = "an existing file, or a Hub dataset such as roneneldan/TinyStories" if hub else "an existing file"
        raise CorpusError(f"{field}={value} does not exist{where}. Name {names} ({kinds}).")
    if path.suffix not in _LOADERS:
        raise CorpusError(
            f"{field}={value} has the ending {path.suffix or '(none)'}; files are read by their ending: {kinds}. "
            "Rename or convert it."
        )
    try:
        return LocalFile(field, value, path, _LOADERS[path.suffix], file_sha256(path, cache), path.stat().st_size)
    except OSError as e:
        raise CorpusError(f"{field}={value} cannot be read: {e.strerror}. Check its permissions.") from e


class Parts:
    """The two parts of a text, as iterators that can be made again.

    `identity` (JSON-able) fixes what both hold.
    """

    def __init__(self, config: TextConfig, val_tokens: int, cache: Path) -> None:
        self._config = config
        self._val_head_bytes = _VAL_BYTES_PER_TOKEN * val_tokens
        self.local = _local_file("corpus.train", config.train, cache, hub=True)
        self.val_file = None if config.val is None else _local_file("corpus.val", config.val, cache, hub=False)
        if self.local and self.val_file and self.local.sha256 == self.val_file.sha256:
            raise CorpusError(
                f"corpus.val={config.val} has the same content as corpus.train={config.train}: validation must not "
                "have been trained on. "
                "Name another file, or leave corpus.val out and a part of the training file is held out."
            )
        if self.local and self.val_file is None and not 0 < config.val_fraction < 1:
            raise CorpusError(
                f"corpus.val_fraction={config.val_fraction} must lie between 0 and 1. Use e.g. 0.05, or give "
                "corpus.val."
            )
        source = [self.local.loader, self.local.sha256] if self.local else ["hub", config.train, config.hub_config]
        if self.val_file:
            held_out: list[Any] = [self.val_file.loader, self.val_file.sha256]
        else:
            held_out = [config.val_fraction] if self.local else [self._val_head_bytes]
        fields = [config.text_field] if any(f is None or f.separated for f in (self.local, self.val_file)) else []
        self.identity: list[Any] = [source, held_out, fields]

    @property
    def stem(self) -> str:
        return self.local.path.stem if self.local else self._config.train.rsplit("/", 1)[-1]

    def train(self) -> Iterator[str]:
        if self.local is None:
            texts = self._hub_texts("train")
            if self.val_file is None and "validation" not in self._hub_splits:
                for _ in head(texts, self._val_head_bytes):
                    pass
            return texts
        texts = self.local.texts(self._config.text_field)
        return texts if self.val_file else islice(texts, self._cut)

    def val(self) -> Iterator[str]:
        if self.val_file:
            return self.val_file.texts(self._config.text_field)
        if self.local is None:
            split = "validation" if "validation" in self._hub_splits else "train"
            return head(self._hub_texts(split), self._val_head_bytes)
        return islice(self.local.texts(self._config.text_field), self._cut, None)

    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """Both parts for `write_shards`."""
        separated = self.local is None or self.local.separated
        val_separated = self.val_file.separated if self.val_file else separated
        return Documents(self.train(), separated, train_limit), Documents(self.val(), val_separated)

    def files(self, shards: Shards) -> list[dict[str, Any]]:
        """For the record: base names, content hashes and sizes.

        Of a stream: the hash of the text that was taken.
        """
        train = shards.train_part
        listed = [
            {"name": f.path.name, "sha256": f.sha256, "bytes": f.size}
            for f in (self.local, self.val_file)
            if f is not None
        ]
        if self.local is None:
            listed.insert(0, {"name": self._config.train, "sha256": train.text_sha256, "bytes": train.text_bytes})
        return listed

    @cached_property
    def _cut(self) -> int:
        """How many documents (lines) are for training: the held-out rest has at least
        `val_fraction` of the bytes.
        """
        assert self.local is not None
        sizes = np.fromiter((len(t.encode()) for t in self.local.texts(self._config.text_field)), dtype=np.int64)
        before = np.cumsum(sizes) - sizes
        held_out = sizes.sum() - before
        cut = int(np.searchsorted(-held_out, -self._config.val_fraction * sizes.sum(), side="right")) - 1
        what = f"corpus.train={self.local.value}"
        unit = "documents" if self.local.separated else "lines"
        if not sizes.any():
            raise CorpusError(f"{what} has no text in its {len(sizes)} {unit}. Name another file or corpus.text_field.")
        if cut < 1 or before[cut] == 0:
            raise CorpusError(
                f"{what} has too few {unit} ({len(sizes)}) to hold out corpus.val_fraction={self._config.val_fraction} "
                f"of it between {unit}. Give a validation file with corpus.val, or use a longer text."
            )
        return cut

    @cached_property
    def _hub_splits(self) -> Any:
        splits = _load(self._hub_what, self._hub_advice, self._config.train, self._config.hub_config)
        if "train" not in splits:
            raise CorpusError(
                f"{self._hub_what} has no split named train; its splits are {', '.join(splits)}. Use another dataset."
            )
        return splits

    @property
    def _hub_what(self) -> str:
        config = f" (corpus.hub_config={self._config.hub_config})" if self._config.hub_config else ""
        return f"corpus.train={self._config.train}{config}, on the Hugging Face Hub as there is no such file,"

    _hub_advice = "Check the name, corpus.hub_config and the network, or use a local .txt, .jsonl or .parquet file."

    def _hub_texts(self, split: str) -> Iterator[str]:
        return _column(self._hub_splits[split], self._hub_what, self._hub_advice, self._config.text_field)


# --- the corpus ----------------------------------------------------------------------------------
def open_text(config: TextConfig, context: int, val_tokens: int, tokens_needed: int) -> TextCorpus:
    """Tokenise the text, or find it in the cache, and open it for a run of `tokens_needed` trained
    tokens.

    `context` is the number of scored positions per sequence, `val_tokens` the scored tokens of the
    validation set. CorpusError, naming the setting, when the text cannot be found, read or
    tokenised, or is too small for what is asked.
    """
    cache = cache_folder(config.cache_dir)
    parts = Parts(config, val_tokens, cache)
    block = (_LEVEL - 1) // context if parts.local is None else None
    wanted = wanted_sequences(config, context, tokens_needed, block)
    text_key = digest(parts.identity)
    tokenizer = open_tokenizer(config.tokenizer, config.vocab, cache, parts.train, text_key)
    key = digest(VERSION, text_key, tokenizer.fingerprint)
    folder = cache / "shards" / key
    if parts.local is None:
        shards = _stream_shards(folder, wanted * context + 1, parts, tokenizer)
    else:
        shards = open_shards(build_once(folder, lambda f: write_shards(f, tokenizer, *parts.documents(None))))
    pool = choose_pool(config, context, tokens_needed, wanted, parts.local is None, shards)
    check_val(config, val_tokens, parts.local is None, shards)
    endless = parts.local is None and config.unique_tokens is None and len(pool) == wanted
    info: dict[str, Any] = {
        "corpus_id": f"text-{parts.stem}-{tokenizer.name.rsplit('/', 1)[-1]}-{key[:8]}",
        "kind": "text",
        "tokenizer": tokenizer.name,
        "tokenizer_size": tokenizer.size,
        "tokenizer_sha256": tokenizer.fingerprint,
        "vocab": tokenizer.vocab,
        "unique_tokens": None if endless else len(pool) * context,
        "train_tokens_available": None if endless else sequences(shards, context) * context,
        "val_tokens": val_tokens,
        "bytes_per_token": int(shards.val_bytes[1 : 1 + val_tokens].sum(dtype=np.int64)) / val_tokens,
        "floor_nat": None,
        "floor_reason": "the entropy of real text is not known",
        "files": parts.files(shards),
        "repetition": tokens_needed > len(pool) * context,
    }
    return TextCorpus(shards, tokenizer, Pool(pool, block, config.allow_repetition), context, val_tokens, info)


def save_tokenizer(corpus: TextCorpus, folder: Path) -> None:
    """Write the corpus's tokenizer as Hugging Face files, next to an exported checkpoint."""
    corpus.tokenizer.save(folder, corpus.context)


def _stream_shards(folder: Path, tokens: int, parts: Parts, tokenizer: TextTokenizer) -> Shards:
    """The shortest kept beginning of this stream that holds `tokens`, or all that the stream has;
    read from the Hub if new.
    """
    cached = sorted(
        (open_shards(path) for path in folder.parent.glob(f"{folder.name}-*")), key=lambda s: s.train_part.tokens
    )
    for shards in cached:
        if shards.train_part.tokens >= tokens or shards.train_part.exhausted:
            return shards
    level = _LEVEL
    while level < tokens:
        level *= 2
    return open_shards(
        build_once(
            folder.with_name(f"{folder.name}-{level}"), lambda f: write_shards(f, tokenizer, *parts.documents(level))
        )
    )
