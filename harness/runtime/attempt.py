"""One attempt at a run or at an evaluation: its lock, its state on disk, and how it ends. Training
and evaluation share it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import records
from harness.config.schema import AttemptConfig, Retry
from harness.errors import HarnessError, RecordError
from harness.records import RunState
from harness.runtime import lock
from harness.runtime.device import out_of_memory

HEARTBEAT_S = 2.0


class Interrupted(Exception):
    """A stop was requested, and everything that a later attempt needs is on disk."""


class Diverged(Exception):
    """The loss is NaN or above the stated bound."""


@dataclass
class Attempt:
    """The attempt under way. `killed`: the one before it died without recording its end."""

    folder: Path
    state: RunState
    killed: bool
    _beat_s: float = float("-inf")

    def begin(self) -> None:
        """From here on the state on disk says `running`."""
        records.write_json(self.folder / "state.json", self.state)

    def beat(self, power_w: Callable[[], float | None], force: bool = False, **progress: Any) -> None:
        """Update the state's fields; rewrite state.json every `HEARTBEAT_S` seconds at most, for
        `status` and the live table."""
        for name, value in progress.items():
            setattr(self.state, name, value)
        now_s = time.monotonic()
        if not force and now_s - self._beat_s < HEARTBEAT_S:
            return
        self._beat_s = now_s
        self.state.power_w, self.state.updated_unix_s = power_w(), time.time()
        records.write_json(self.folder / "state.json", self.state)

    def end(self, name: str, reason: str | None) -> RunState:
        """Record the end of the attempt; never raises, because the end must not hide what led to
        it."""
        state = self.state
        state.state, state.reason, state.updated_unix_s, state.pid = name, reason, time.time(), None
        if name == "done":
            state.remaining_s, state.step = 0.0, state.steps
        path = self.folder / "state.json"
        try:
            records.write_json(path, state)
        except RecordError as e:
            try:
                # A full disk has no room for a new file, but the old one's block is there
                with path.open("r+", encoding="utf-8") as f:
                    f.write(json.dumps(records.to_json(state)) + "\n")
                    f.truncate()
            except OSError:
                print(f"{state.name}: {name}" + (f" ({reason})" if reason else "") + f"; {e}", file=sys.stderr)
        return state


def make(folder: Path, name: str, control: AttemptConfig, work: Callable[[Attempt], str | None]) -> RunState:
    """Do `work` in `folder` under its lock and return the state that it ended in; `work` returns a
    remark for a finished one.

    A diverged run is returned as it is, and so is a failed one unless `control.retry` says
    otherwise; `control.force` discards both. Problems of the user or the machine (HarnessError, out
    of memory) end as `failed` and are not raised. Exits that are requested from outside (Ctrl-C,
    SystemExit, a closed pipe) end as `interrupted` and are raised again; all other errors, as
    `failed`. BusyError when another process holds the lock.
    """
    with lock.hold(folder):
        if control.force:
            _discard(folder)
        previous = records.load_state(folder)
        if previous is not None and (
            previous.state == "diverged" or (previous.state == "failed" and control.retry is not Retry.failed)
        ):
            return previous
        state = dataclasses.replace(
            previous or RunState("running", attempt=0),
            state="running",
            reason=None,
            name=name,
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        state.attempt += 1
        attempt = Attempt(folder, state, killed=previous is not None and previous.state == "running")
        try:
            remark = work(attempt)
        except HarnessError as e:
            return attempt.end("failed", str(e))
        except Diverged as e:
            return attempt.end("diverged", str(e))
        except Interrupted as e:
            return attempt.end("interrupted", str(e))
        except (KeyboardInterrupt, SystemExit, BrokenPipeError) as e:
            attempt.end("interrupted", f"stopped by {_exit_name(e)}; launch again to go on")
            raise
        except BaseException as e:
            if out_of_memory(e):
                return attempt.end("failed", str(e))
            attempt.end("failed", f"{type(e).__name__}: {e}")
            raise
        return attempt.end("done", remark)


def _exit_name(error: BaseException) -> str:
    match error:
        case KeyboardInterrupt():
            return "Ctrl-C"
        case SystemExit():
            return f"exit code {error.code}"
        case _:
            return "a closed pipe"


def _discard(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == "lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
