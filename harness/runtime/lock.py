"""One process per run. The kernel holds the lock, so it is never stale: it is freed when its holder
dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from harness.errors import BusyError


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Hold the run's lock. BusyError names the holder. The file's text only informs; the lock
    itself is `flock`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("a+", encoding="utf-8") as f:
        try:
            _acquire(f)
        except OSError as e:
            f.seek(0)
            raise BusyError(
                f"run {run_dir.name} is being trained by another process ({f.read().strip() or 'unknown'}). "
                "Wait for it, or stop it; its lock is freed when it ends."
            ) from e
        f.seek(0)
        f.truncate()
        f.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        f.flush()
        yield


def _acquire(f: TextIO, tries: int = 10) -> None:
    """Take the exclusive lock; a few short retries step over a reader that is asking `is_held` at
    this moment."""
    for left in range(tries - 1, -1, -1):
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if not left:
                raise
            time.sleep(0.02)


def is_held(run_dir: Path) -> bool:
    """Whether some process holds the run's lock now."""
    path = run_dir / "lock"
    if not path.exists():
        return False
    with path.open("r", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False
