"""Files that are built once and shared: whole or absent, safe with several processes, opened as
memory maps.

    <cache>/tokenizers/<key>/     tokenizer.json ...
    <cache>/shards/<key>/         train.bin, val.bin: raw little-endian token ids;
                                  val_bytes.bin: bytes per token; meta.json
    <cache>/hashes/<path hash>    content hash of a local file, its size and modification time

A key is a hash of the text's content and of every setting that changes the tokens, so nothing is
ever stale: other content or other settings are another folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harness.errors import CorpusError

VERSION = 1  # of the layout below and of everything that decides which token comes where
# lines of one running text are encoded in blocks of about this size, several at a time
_BLOCK_CHARS = 1 << 13
_BATCH_CHARS = 1 << 20  # text encoded at a time
# a file changed more recently than this may change again within its time stamp's resolution
_SETTLED_S = 2.0


def cache_folder(cache_dir: str | None) -> Path:
    """`corpus.cache_dir`, else `$XDG_CACHE_HOME/scaling-harness`, else
    `~/.cache/scaling-harness`.
    """
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scaling-harness"


def digest(*parts: Any) -> str:
    """A key of 24 hexadecimal digits from JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def file_sha256(path: Path, cache: Path) -> str:
    """SHA-256 of a file, hashed again only when its size or modification time differ from the last
    time.

    Raises OSError when the file cannot be read. Failing to note the hash costs time, not
    correctness, and is no error.
    """
    path = path.resolve()
    stat = path.stat()
    seen = [stat.st_size, stat.st_mtime_ns]
    note = cache / "hashes" / digest(str(path))
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        noted = json.loads(note.read_text())
        if noted["seen"] == seen:
            return str(noted["sha256"])
    with path.open("rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    if time.time() - stat.st_mtime > _SETTLED_S:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            temporary = note.with_name(f".{note.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps({"seen": seen, "sha256": sha256}))
            temporary.replace(note)
    return sha256


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, made by `build(temporary folder)` if it is not there yet; it appears whole, by one
    rename, or not at all.

    Processes that want the same folder wait for the one that builds it. Where the file system has
    no locks, each builds and the first rename wins. CorpusError when the cache cannot be written;
    what `build` raises passes through.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f".{folder.name}.lock")) as alone:
            if folder.is_dir():
                return folder
            if alone:  # then what a builder left here is from a process that was killed
                for stale in folder.parent.glob(f".{folder.name}.*.tmp"):
                    shutil.rmtree(stale, ignore_errors=True)
            temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
            temporary.mkdir()
            try:
                build(temporary)
                for path in temporary.rglob("*"):
                    _flush(path)
                try:
                    temporary.rename(folder)
                except OSError:
                    if not folder.is_dir():
                        raise
                _flush(folder.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as e:
        raise CorpusError(
            f"corpus.cache_dir={folder.parent.parent} cannot hold the tokenised text: {e.strerror or e}. "
            "Free space there, or name another folder with corpus.cache_dir."
        ) from e
    return folder


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Exclusive among processes until the block ends or the process dies; yields False where locks
    are not supported.
    """
    with path.open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


def _flush(path: Path) -> None:
    """To disk, so that the rename never outlives the content after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- tokens --------------------------------------------------------------------------------------
class Encoder(Protocol):
    """What `write_shards` needs of a tokenizer."""

    @property
    def size(self) -> int:
        """Highest token id + 1."""
        ...

    @property
    def separator(self) -> int:
        """The token that begins a document."""
        ...

    def encode(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per text: token ids, and the number of UTF-8 bytes of each token."""
        ...


@dataclass
class Part:
    """What one part (train or val) holds. The stream begins with a separator."""

    tokens: int
    text_bytes: int  # UTF-8 bytes of the text read
    documents: int
    empty: int  # documents without text, left out
    text_sha256: str
    exhausted: bool  # all of the source was taken


@dataclass
class Shards:
    """Memory maps of one tokenised corpus. `val_bytes[i]` is the number of text bytes of
    `val[i]`.
    """

    train: np.ndarray
    val: np.ndarray
    val_bytes: np.ndarray
    train_part: Part
    val_part: Part


@dataclass
class Documents:
    """Texts of one part.

    Separated documents get a separator each; otherwise the texts are lines of one running text.
    """

    texts: Iterable[str]
    separated: bool
    limit: int | None = None  # stop once this many tokens are there


def write_shards(folder: Path, encoder: Encoder, train: Documents, val: Documents) -> None:
    """Tokenise both parts into `folder` (see the module's text)."""
    dtype = "<u2" if encoder.size <= 1 << 16 else "<u4"
    meta: dict[str, Any] = {"version": VERSION, "dtype": dtype}
    meta["val"] = asdict(_write_part(folder, "val", encoder, val, dtype, keep_bytes=True))
    meta["train"] = asdict(_write_part(folder, "train", encoder, train, dtype, keep_bytes=False))
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def open_shards(folder: Path) -> Shards:
    """Memory maps of what `write_shards` wrote; CorpusError when a file was damaged afterwards."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        train_part, val_part = Part(**meta["train"]), Part(**meta["val"])
        maps = [
            np.memmap(folder / name, dtype=dtype, mode="r", shape=(part.tokens,))
            for name, dtype, part in (
                ("train.bin", meta["dtype"], train_part),
                ("val.bin", meta["dtype"], val_part),
                ("val_bytes.bin", "<u4", val_part),
            )
        ]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CorpusError(
            f"the cached tokens in {folder} are damaged: {e}. Remove that folder; it will be made again."
        ) from e
    return Shards(maps[0], maps[1], maps[2], train_part, val_part)


def _write_part(folder: Path, name: str, encoder: Encoder, documents: Documents, dtype: str, keep_bytes: bool) -> Part:
    part = Part(tokens=0, text_bytes=0, documents=0, empty=0, text_sha256="", exhausted=True)
    sha256 = hashlib.sha256()

    def counted() -> Iterator[str]:
        for text in documents.texts:
            if text:
                part.documents += 1
                raw = text.encode()
                part.text_bytes += len(raw)
                sha256.update(raw)
                yield text
            else:
                part.empty += 1

    separator = np.array([encoder.separator])
    with contextlib.ExitStack() as files:
        tokens_file = files.enter_context((folder / f"{name}.bin").open("wb"))
        bytes_file = files.enter_context((folder / f"{name}_bytes.bin").open("wb")) if keep_bytes else None

        def put(ids: np.ndarray, lengths: np.ndarray) -> None:
            part.tokens += len(ids)
            tokens_file.write(ids.astype(dtype).tobytes())
            if bytes_file is not None:
                bytes_file.write(lengths.astype("<u4").tobytes())

        texts = counted() if documents.separated else _joined(counted(), _BLOCK_CHARS)
        if not documents.separated:
            put(separator, np.zeros(1))
        for batch in _batches(texts, _BATCH_CHARS):
            for ids, lengths in encoder.encode(batch):
                if documents.separated:
                    put(separator, np.zeros(1))
                put(ids, lengths)
            if documents.limit is not None and part.tokens >= documents.limit:
                part.exhausted = False
                break
    if part.documents == 0:
        what = "training" if name == "train" else "validation"
        raise CorpusError(
            f"the {what} part of the corpus has no text, only {part.empty} empty rows. Name another file or "
            "corpus.text_field."
        )
    part.text_sha256 = sha256.hexdigest()
    return part


def _joined(lines: Iterable[str], chars: int) -> Iterator[str]:
    """Runs of whole lines of at least `chars` characters; the last one may be shorter."""
    for batch in _batches(lines, chars):
        yield "".join(batch)


def _batches(texts: Iterable[str], chars: int) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
