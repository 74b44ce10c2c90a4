"""A request to stop, as a launching process hands it on: once per request, and to those that train
alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from harness.runtime import signals

SLEEP = "import time; print(1, flush=True); time.sleep(60)"


def test_signals_that_come_together_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` signals the whole group, and a batch script its children besides; only a later one
    means: at once.
    """
    now = 100.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    monkeypatch.setattr(signals, "_workers", list)
    with signals.forwarding():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.reason() == "SIGTERM"
        now += signals.SAME_REQUEST_S
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_samplers_and_compile_workers_are_no_workers() -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", SLEEP, name], stdout=subprocess.PIPE)
        for name in ("train", "harness.power.sampler", "torch/_inductor/compile_worker/__main__.py")
    ]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        found = signals._workers()
        assert children[0].pid in found
        assert not {child.pid for child in children[1:]} & set(found)
        assert signals._is_helper(2**22 + 1), "a child that is gone hides none of its siblings"
    finally:
        for child in children:
            child.kill()
            child.communicate()
