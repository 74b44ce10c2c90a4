"""Tokenised text is built once: reused, never stale, whole or absent, whoever builds it and however
that ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.config.schema import TextConfig
from harness.data import shards, text
from harness.data.shards import build_once, cache_folder, file_sha256
from harness.data.text import open_text
from harness.errors import CorpusError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path: Path) -> TextConfig:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {i} of a text that is long enough\n" for i in range(2000)))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return TextConfig(train=str(path), cache_dir=str(tmp_path / "cache"), vocab=300)


def built(config: TextConfig) -> list[str]:
    assert config.cache_dir is not None
    return sorted(p.name for p in (Path(config.cache_dir) / "shards").iterdir() if not p.name.startswith("."))


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


# --- reuse ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_opening_again_reads_no_text(config: TextConfig, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config.tokenizer = tokenizer
    first = open_text(config, 32, 500, 10_000)

    def refuse(*_: object) -> None:
        raise AssertionError("the text was read again")

    monkeypatch.setattr(text.LocalFile, "texts", refuse)
    monkeypatch.setattr(hashlib, "file_digest", refuse)
    second = open_text(config, 32, 500, 10_000)
    assert second.info == first.info
    assert (second.train_batch(0, 0, 4).tokens == first.train_batch(0, 0, 4).tokens).all()
    # Neither another context, nor a cap, nor the length of the run changes the tokens
    open_text(replace(config, unique_tokens=6_400, allow_repetition=True), 64, 100, 50_000)
    assert len(built(config)) == 1


def test_opening_again_loads_no_library(config: TextConfig) -> None:
    config.tokenizer = "bpe"
    open_text(config, 32, 500, 10_000)
    code = """
        import sys
        from harness.data.text import open_text
        from harness.config.schema import TextConfig
        open_text(TextConfig(train=sys.argv[1], cache_dir=sys.argv[2], tokenizer="bpe", vocab=300), 32, 500, 10_000).train_batch(0, 0, 2)
        print(sorted({"datasets", "tokenizers", "transformers", "torch"} & set(sys.modules)))
    """
    assert start(code, config.train, str(config.cache_dir)).communicate()[0] == "[]\n"


def test_other_content_makes_other_shards(config: TextConfig) -> None:
    before = open_text(config, 32, 500, 10_000)
    path = Path(config.train)
    path.write_text(path.read_text().replace("line 7 ", "LINE 7 "))  # as many bytes as before
    os.utime(path, (1_700_000_001, 1_700_000_001))
    after = open_text(config, 32, 500, 10_000)
    assert len(built(config)) == 2
    assert after.info["corpus_id"] != before.info["corpus_id"]
    assert b"LINE 7 " in bytes(np.asarray(after._shards.train[1:]).astype(np.uint8))


def test_the_same_content_elsewhere_is_the_same_corpus(config: TextConfig, tmp_path: Path) -> None:
    first = open_text(config, 32, 500, 10_000)
    (tmp_path / "elsewhere").mkdir()
    moved = Path(config.train).rename(tmp_path / "elsewhere" / "lines.txt")
    second = open_text(replace(config, train=str(moved)), 32, 500, 10_000)
    assert second.info == first.info
    assert len(built(config)) == 1


@pytest.mark.parametrize("change", [{"tokenizer": "bpe"}, {"val_fraction": 0.1}, {"val": "other.txt"}])
def test_settings_that_change_tokens_make_other_shards(
    config: TextConfig, change: dict[str, str | float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.txt").write_text("another text, for validation alone\n" * 100)
    open_text(config, 32, 500, 10_000)
    open_text(replace(config, **change), 32, 500, 10_000)  # type: ignore[arg-type]
    assert len(built(config)) == 2


def test_a_hash_is_kept_only_for_files_that_have_settled(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("one")
    assert file_sha256(path, cache) == hashlib.sha256(b"one").hexdigest()
    stat = path.stat()
    path.write_text("two")  # within the time stamp's resolution, as good as: same size, same time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_sha256(path, cache) == hashlib.sha256(b"two").hexdigest()


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder("there") == Path("there")
    monkeypatch.setenv("XDG_CACHE_HOME", "base")
    assert cache_folder(None) == Path("base/scaling-harness")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "home")
    assert cache_folder(None) == Path("home/.cache/scaling-harness")


# --- building ------------------------------------------------------------------------------------
BUILD = """
    import os, sys, time
    from pathlib import Path
    from harness.data.shards import build_once
    def build(folder):
        (folder / "first").write_text("1")
        print("building", flush=True)
        time.sleep(float(sys.argv[2]))
        (folder / "second").write_text(str(os.getpid()))
    build_once(Path(sys.argv[1]), build)
    print(sorted(p.name for p in Path(sys.argv[1]).iterdir()))
"""


def test_two_processes_at_once_build_one(tmp_path: Path) -> None:
    both = [start(BUILD, str(tmp_path / "made"), "0.5") for _ in range(2)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert sorted(len(lines) for lines in said) == [1, 2]  # one built, the other waited
    assert all(lines[-1] == "['first', 'second']" for lines in said)


def test_two_processes_open_one_corpus_at_once(config: TextConfig) -> None:
    code = """
        import sys
        from harness.data.text import open_text
        from harness.config.schema import TextConfig
        corpus = open_text(TextConfig(train=sys.argv[1], cache_dir=sys.argv[2], tokenizer="bpe", vocab=300), 32, 500, 10_000)
        print(corpus.info["corpus_id"], corpus.train_batch(0, 3, 2).tokens.tolist())
    """
    both = [start(code, config.train, str(config.cache_dir)) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert said[0] == said[1] != ""
    assert len(built(config)) == 1


def test_without_locks_the_first_rename_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    made = tmp_path / "made"

    def build(folder: Path) -> None:
        (folder / "file").write_text("slow")
        made.mkdir()
        (made / "file").write_text("fast")

    assert (build_once(made, build) / "file").read_text() == "fast"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CorpusError("broken text")])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    with pytest.raises(type(error)):
        build_once(tmp_path / "made", build)
    assert [p.name for p in tmp_path.iterdir()] == [".made.lock"]


def test_a_killed_build_is_cleared_away_and_done_again(tmp_path: Path) -> None:
    made = tmp_path / "made"
    process = start(BUILD, str(made), "60")
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert len(list(tmp_path.glob(".made.*.tmp"))) == 1
    assert not made.exists()

    def build(folder: Path) -> None:
        (folder / "file").write_text("whole")

    build_once(made, build)
    assert [p.name for p in made.iterdir()] == ["file"]
    assert list(tmp_path.glob(".made.*.tmp")) == []


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CorpusError, match=r"corpus\.cache_dir=.* cannot hold .*: No space left on device\. Free space"):
        build_once(tmp_path / "shards" / "made", build)
    assert [p.name for p in (tmp_path / "shards").iterdir()] == [".made.lock"]


def test_a_cache_folder_that_cannot_be_made(config: TextConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match=r"corpus\.cache_dir=.*file cannot hold the tokenised text: Not a directory"):
        open_text(replace(config, cache_dir=str(tmp_path / "file")), 32, 500, 10_000)


@pytest.mark.parametrize("name", ["train.bin", "val_bytes.bin", "meta.json"])
def test_damaged_shards_are_refused(config: TextConfig, name: str) -> None:
    open_text(config, 32, 500, 10_000)
    assert config.cache_dir is not None
    file = Path(config.cache_dir) / "shards" / built(config)[0] / name
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CorpusError, match=r"are damaged: .* Remove that folder; it will be made again"):
        open_text(config, 32, 500, 10_000)


def test_the_widest_16_bit_vocabulary_and_the_first_beyond_it(tmp_path: Path) -> None:
    class Encoder:
        separator = 0

        def __init__(self, size: int) -> None:
            self.size = size

        def encode(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
            return [(np.array([self.size - 1]), np.array([len(t)])) for t in texts]

    for size, dtype in ((1 << 16, "<u2"), ((1 << 16) + 1, "<u4")):
        folder = tmp_path / dtype
        folder.mkdir()
        part = [shards.Documents(["abc"], separated=True) for _ in range(2)]
        shards.write_shards(folder, Encoder(size), part[0], part[1])
        opened = shards.open_shards(folder)
        assert opened.train.dtype == np.dtype(dtype)
        assert opened.train.tolist() == [0, size - 1]
        assert opened.val_bytes.tolist() == [0, 3]


def test_a_stream_is_cut_where_it_was_asked_to(tmp_path: Path) -> None:
    class Encoder:
        separator, size = 9, 10

        def encode(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
            return [(np.zeros(len(t), np.int64), np.ones(len(t), np.int64)) for t in texts]

    endless = (("x" * 300_000) for _ in iter(int, 1))  # never ends
    began = time.monotonic()
    shards.write_shards(
        tmp_path, Encoder(), shards.Documents(endless, True, limit=1_000_000), shards.Documents(["y"], True)
    )
    assert time.monotonic() - began < 60
    part = shards.open_shards(tmp_path).train_part
    assert 1_000_000 <= part.tokens < 2_600_000
    assert not part.exhausted
