"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR2 as a request that work honours at its next safe point.
Standard library only.

Slurm sends SIGTERM, submitit SIGUSR2 ahead of it, and a closing terminal SIGHUP.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

SAME_REQUEST_S = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
_reason: str | None = None
_heard = False  # whether this process's handlers are ours already


def reason() -> str | None:
    """Which signal asked this process to stop; None while none did."""
    return _reason


def _ask(number: int, frame: FrameType | None) -> None:
    global _reason
    _reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def install() -> None:
    """Listen for the rest of this process: a worker must hear it between two runs as well as within
    one."""
    global _heard
    if not _heard and threading.current_thread() is threading.main_thread():
        _heard = True
        for number in _to_handle():
            signal.signal(number, _ask)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Listen while the block runs, and put the earlier handlers back; nothing to do where this
    process listens already."""
    if _heard or threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handlers(_ask):
        yield


@contextlib.contextmanager
def forwarding() -> Iterator[None]:
    """In a launching process: hand the first Ctrl-C or SIGTERM to the workers and wait for them; a
    second one ends the wait.

    What stops a job often signals its whole group and its leader besides: within `SAME_REQUEST_S`
    that is one request.
    """
    asked_s: float | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked_s
        if asked_s is not None:
            if time.monotonic() - asked_s < SAME_REQUEST_S:
                return
            raise KeyboardInterrupt
        asked_s = time.monotonic()
        _ask(number, frame)
        print("stopping: runs under way write a checkpoint first; once more to stop at once", flush=True)
        for pid in _workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    with _handlers(forward):
        yield


def _to_handle() -> list[signal.Signals]:
    """`nohup` has SIGHUP ignored, and it stays so."""
    return [s for s in _SIGNALS if s is not signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    global _reason, _heard
    _reason, _heard = None, True
    before = {number: signal.signal(number, handler) for number in _to_handle()}
    try:
        yield
    finally:
        _heard = False
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _workers() -> list[int]:
    """Processes that this one started and that may train, as Linux tells it; none where it does
    not.

    Left out are the power sampler, which its trainer ends, and Inductor's compile workers: killed
    while they compile, they leave the trainer waiting for good.
    """
    pids: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += [int(pid) for pid in path.read_text().split()]
    return [pid for pid in pids if not _is_helper(pid)]


def _is_helper(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True  # it is gone
    return any(name in command for name in (b"harness.power.sampler", b"compile_worker"))
