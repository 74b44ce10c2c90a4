"""How an attempt ends, in one place for training and evaluation: whatever stops it, the state on
disk says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from harness import records
from harness.config.schema import AttemptConfig, Retry
from harness.errors import BusyError, ConfigError, CorpusError, RecordError
from harness.records import RunState
from harness.runtime import attempt, lock, signals
from harness.runtime.attempt import Attempt, Diverged, Interrupted
from harness.training import run as train_run
from harness.ttc import run as ttc_run
from tests.ttc import small


def ending(error: BaseException) -> Callable[[Attempt], str | None]:
    def work(this: Attempt) -> str | None:
        this.begin()
        raise error

    return work


def done(this: Attempt) -> str | None:
    this.begin()
    return "as it should be"


def made(folder: Path, work: Callable[[Attempt], str | None], **control: Any) -> RunState:
    return attempt.make(folder, "a run", AttemptConfig(**control), work)


ENDS = [
    (CorpusError("no such text"), "failed", "no such text", False),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "failed", "out of memory", False),
    (Diverged("loss nan"), "diverged", "loss nan", False),
    (Interrupted("stopped by SIGTERM"), "interrupted", "SIGTERM", False),
    (KeyboardInterrupt(), "interrupted", "Ctrl-C", True),
    (SystemExit(3), "interrupted", "exit code 3", True),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), "interrupted", "a closed pipe", True),
    (ZeroDivisionError("division by zero"), "failed", "ZeroDivisionError: division by zero", True),
    (MemoryError("numpy"), "failed", "MemoryError", True),
]


@pytest.mark.parametrize(("error", "state", "reason", "raised"), ENDS, ids=lambda v: type(v).__name__)
def test_every_end_is_recorded_once(
    error: BaseException, state: str, reason: str, raised: bool, tmp_path: Path
) -> None:
    if raised:
        with pytest.raises(type(error)):
            made(tmp_path, ending(error))
    else:
        assert made(tmp_path, ending(error)).state == state
    written = records.load_state(tmp_path)
    assert written is not None
    assert (written.state, written.pid, written.attempt) == (state, None, 1)
    assert reason in (written.reason or "")
    assert not lock.is_held(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), BrokenPipeError(), Interrupted("SIGHUP")])
def test_a_requested_exit_is_taken_up_again_by_the_next_launch(error: BaseException, tmp_path: Path) -> None:
    with contextlib.suppress(type(error)):
        made(tmp_path, ending(error))
    again = made(tmp_path, done)
    assert (again.state, again.reason, again.attempt) == ("done", "as it should be", 2)


def test_failed_and_diverged_ones_wait_for_their_flags(tmp_path: Path) -> None:
    made(tmp_path, ending(CorpusError("x")))
    assert made(tmp_path, done).state == "failed"
    assert made(tmp_path, done, retry=Retry.failed).state == "done"
    (tmp_path / "left over").mkdir()
    made(tmp_path, ending(Diverged("nan")))
    assert made(tmp_path, done, retry=Retry.failed).state == "diverged"
    assert made(tmp_path, done, force=True).attempt == 1
    assert not (tmp_path / "left over").exists()


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    def inner(this: Attempt) -> None:
        with pytest.raises(BusyError, match="another process"):
            made(tmp_path, done)

    made(tmp_path, inner)


@pytest.mark.parametrize("began", [True, False])
def test_a_full_disk_never_hides_what_ended_the_attempt(
    began: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def work(this: Attempt) -> str | None:
        if began:
            this.begin()
        monkeypatch.setattr(os, "fsync", no_room)
        raise CorpusError("the first problem")

    assert made(tmp_path, work).state == "failed"
    state = records.load_state(tmp_path)
    if began:
        assert state is not None
        assert (state.state, state.reason) == ("failed", "the first problem")
    else:
        assert "failed (the first problem)" in capsys.readouterr().err


def test_a_killed_attempt_is_known_to_the_next(tmp_path: Path) -> None:
    seen: list[bool] = []

    def work(this: Attempt) -> None:
        seen.append(this.killed)

    records.write_json(tmp_path / "state.json", RunState("running"))
    made(tmp_path, work)
    made(tmp_path, work)
    assert seen == [True, False]


# --- the same for the two that use it -------------------------------------------------------------
def train(folder: Path, patch: pytest.MonkeyPatch, error: BaseException) -> tuple[Path, Callable[[], RunState]]:
    def broken(*_: object) -> None:
        raise error

    patch.setattr(train_run, "plan_run", broken)
    config = tiny.config(folder)
    return tiny.run_dir(config), lambda: tiny.train(config)


def evaluate(folder: Path, patch: pytest.MonkeyPatch, error: BaseException) -> tuple[Path, Callable[[], RunState]]:
    def broken(*_: object) -> None:
        raise error

    patch.setattr(ttc_run, "plan_evaluation", broken)
    config = small.config(folder)
    return small.folder(config) / "ttc", lambda: small.evaluated(config)


@pytest.mark.parametrize("start", [train, evaluate])
def test_ctrl_c_and_a_full_disk_end_alike(start: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        folder, work = start(tmp_path, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            work()
    state = records.load_state(folder)
    assert state is not None
    assert state.state == "interrupted"
    with pytest.MonkeyPatch.context() as patch:
        folder, work = start(tmp_path, patch, RecordError("cannot write: No space left on device"))
        assert work().state == "failed"


@pytest.mark.parametrize("start", [tiny.train, ttc_run.evaluate])
def test_the_checks_are_behind_the_door(start: Callable[..., Any], tmp_path: Path) -> None:
    """With two budgets one would be dropped in silence."""
    config = tiny.config(tmp_path)
    config.budget.flop = 1e9
    with pytest.raises(ConfigError, match=r"tokens and flop set, exactly one is needed"):
        start(config)
    config = tiny.config(tmp_path)
    config.model.width = -5  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="width"):
        start(config)


LISTENER = """
import signal, sys, time
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from harness.runtime import signals
with signals.listening():
    print("ready", flush=True)
    end = time.monotonic() + 20
    while signals.reason() is None and time.monotonic() < end:
        time.sleep(0.01)
    print(signals.reason(), flush=True)
"""


@pytest.mark.parametrize(
    ("number", "how", "reason"),
    [(s, "", s.name) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)]
    + [(signal.SIGINT, "", "Ctrl-C"), (signal.SIGHUP, "nohup", "SIGTERM")],
)
def test_requests_to_stop(number: signal.Signals, how: str, reason: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", LISTENER, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    if how == "nohup":
        process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0].strip() == reason
    assert signals.reason() is None
