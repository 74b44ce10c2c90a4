"""Streams from the Hub: the real `datasets` client, in a process of its own, against a loopback
server.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "a" * 40


def rows(kind: str, count: int) -> bytes:
    texts = [f"{kind} {i} " + f"{i * 7919} words of it, " * 20 for i in range(count)]
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


REPOS = {
    # no validation split, longer than one step
    "org/stories": {"data/train.jsonl": rows("train", 3000)},
    "org/split": {"data/train.jsonl": rows("train", 200), "data/validation.jsonl": rows("held-out", 200)},
}


class Hub(BaseHTTPRequestHandler):
    """What `datasets` 5 asks for when it streams a repository of JSON files."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def answer(self, code: int, headers: dict[str, str], body: bytes = b"", length: int | None = None) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        Hub.asked.append(path)
        name = "/".join(path.removeprefix("/api").removeprefix("/datasets/").split("/")[:2])
        files = REPOS.get(name)
        if files is None:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            folder = path.split("/tree/")[1].partition("/")[2]
            listed = [{"type": "directory", "path": "data", "oid": "b" * 40, "size": 0}]
            if folder:
                listed = [{"type": "file", "path": f, "size": len(b), "oid": "c" * 40} for f, b in files.items()]
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(listed).encode())
        elif "/resolve/" in path:
            self.file(files.get(path.split("/resolve/")[1].partition("/")[2]))
        else:
            info = {
                "id": name,
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "siblings": [{"rfilename": f} for f in files],
            }
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(info).encode())

    do_HEAD = do_GET

    def file(self, content: bytes | None) -> None:
        if content is None:
            self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            self.answer(200, headers, length=len(content))
            return
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self.answer(206, headers, content[start:stop])


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process that can reach the loopback Hub, and nothing else, finds in its streams."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = tmp_path_factory.mktemp("hub")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(folder / "home")}
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    code = """
        import json, sys
        import numpy as np
        from harness.data import shards, text
        from harness.errors import CorpusError
        from harness.config.schema import TextConfig

        text._LEVEL, shards._BATCH_CHARS = 1 << 15, 1 << 12  # small steps, to see several
        out = {"opened": []}

        def opened(name, tokens, cache="first", **settings):
            config = TextConfig(train=name, cache_dir=f"{sys.argv[1]}/{cache}", vocab=300, **settings)
            try:
                corpus = text.open_text(config, 32, 1000, tokens)
            except CorpusError as e:
                out["opened"].append(str(e))
                return
            def documents(tokens):
                starts = np.flatnonzero(tokens == corpus.tokenizer.separator)
                texts = [corpus.tokenizer.decode(t[:40]) for t in np.split(tokens, starts)[1:]]
                return [" ".join(text.split()[:2]) for text in texts]

            out["opened"].append({
                "info": corpus.info,
                "train": documents(corpus._shards.train),
                "val": documents(corpus._shards.val),
                "pool": len(corpus._pool.sequences),
                "batch": corpus.train_batch(0, 0, 2).tokens.tolist(),
                "early": corpus.train_batch(0, 3, 200).tokens.tolist() if tokens < 10**6 and not settings else None,
                "shards": len(corpus._shards.train),
            })

        opened("org/stories", 20_000)
        opened("org/stories", 150_000)
        opened("org/stories", 20_000)
        opened("org/stories", 150_000, cache="second")
        opened("org/stories", 20_000, cache="second")
        opened("org/stories", 60_000, tokenizer="bpe")
        opened("org/split", 20_000)
        opened("org/split", 10**6)
        opened("org/split", 10**6, allow_repetition=True)
        opened("org/stories", 40_000, unique_tokens=3200, allow_repetition=True)
        opened("org/none", 1000)
        print(json.dumps(out))
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder / "cache")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    server.shutdown()
    server.server_close()
    assert process.returncode == 0, process.stderr
    names = [
        "short",
        "long",
        "short_again",
        "long_first",
        "short_second",
        "bpe",
        "split",
        "too_long",
        "repeated",
        "capped",
        "missing",
    ]
    return dict(zip(names, json.loads(process.stdout)["opened"], strict=True))


def test_a_stream_without_a_validation_split_holds_out_its_first_documents(answers: dict[str, Any]) -> None:
    short = answers["short"]
    assert short["val"][0] == "train 0"
    assert len(short["val"]) >= 16 * 1000 // 600
    assert short["train"][0] == f"train {len(short['val'])}"
    numbers = [int(d.split()[1]) for d in short["val"] + short["train"]]
    assert numbers == list(range(len(numbers)))


def test_a_longer_run_takes_more_of_the_same_stream(answers: dict[str, Any]) -> None:
    short, long = answers["short"], answers["long"]
    assert 20_000 < short["shards"] < 1 << 16
    assert 150_000 < long["shards"] < 1 << 19
    assert long["train"][: len(short["train"])] == short["train"]
    assert long["val"] == short["val"]
    block = (2**15 - 1) // 32
    assert (short["pool"], long["pool"]) == (block, 5 * block), "whole blocks"
    assert short["early"] == long["early"], "a budget added later does not change what came before it"


def test_batches_do_not_depend_on_what_the_cache_happens_to_hold(answers: dict[str, Any]) -> None:
    assert answers["short_again"] == answers["short"]
    second = answers["short_second"]  # finds only the longer shards
    assert second["shards"] == answers["long_first"]["shards"] > answers["short"]["shards"]
    assert (second["pool"], second["batch"]) == (answers["short"]["pool"], answers["short"]["batch"])


def test_a_stream_is_endless_until_it_ends(answers: dict[str, Any]) -> None:
    info = answers["short"]["info"]
    assert (info["unique_tokens"], info["train_tokens_available"], info["repetition"]) == (None, None, False)
    assert info["files"][0]["name"] == "org/stories"
    ended = answers["repeated"]["info"]
    assert ended["unique_tokens"] == ended["train_tokens_available"] > 50_000
    assert ended["repetition"] is True
    assert "org/split has " in answers["too_long"]
    assert "corpus.allow_repetition=true" in answers["too_long"]


def test_the_bpe_of_a_stream_is_trained_past_the_validation_part(answers: dict[str, Any]) -> None:
    assert answers["bpe"]["info"]["vocab"] == 304
    assert answers["bpe"]["val"] == answers["short"]["val"]


def test_a_validation_split_is_used(answers: dict[str, Any]) -> None:
    split = answers["split"]
    assert split["train"][0] == "train 0"
    assert {d.split()[0] for d in split["val"]} == {"held-out"}
    assert {d.split()[0] for d in split["train"]} == {"train"}


def test_a_cap_on_a_stream_is_its_beginning(answers: dict[str, Any]) -> None:
    assert answers["capped"]["pool"] == 100
    assert answers["capped"]["info"]["unique_tokens"] == 3200


def test_a_dataset_that_does_not_exist(answers: dict[str, Any]) -> None:
    assert answers["missing"].startswith(
        "corpus.train=org/none, on the Hugging Face Hub as there is no such file, cannot be read: "
        "Dataset 'org/none' doesn't exist on the Hub or cannot be accessed"
    )
    assert Hub.asked  # it was the loopback server that said so
