"""How the runs of a study stand: the table of states, and the live display of a sweep.

Reads files only, imports no torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from harness import console, records
from harness.console import TextTable
from harness.errors import RecordError
from harness.records import RunState
from harness.records.ttc import FOLDER
from harness.runtime.lock import is_held
from harness.units import duration, si

NUMBERS = ("step", "loss/nat", "tokens/s", "W")
REDRAW_S = 2.0
REPEAT_S = 30.0  # between two lines of one running run, where there is no terminal


def describe(run_dir: Path) -> tuple[str, RunState | None]:
    """State of a run as its files say: a `running` one whose lock nobody holds has died; `damaged`:
    state.json cannot be read.
    """
    try:
        state = records.load_state(run_dir) if run_dir.exists() else None
    except RecordError as e:
        return "damaged", RunState("damaged", reason=str(e), name=run_dir.name)
    if state is None:
        return "not started", None
    if state.state == "running" and not is_held(run_dir):
        return "died", state
    return state.state, state


def folder_table(folder: Path) -> tuple[TextTable, bool]:
    """The table of every run and evaluation below a study folder, and whether all of them are
    done.
    """
    run_dirs = sorted(p.parent for pattern in ("*/state.json", "*/ttc/state.json") for p in folder.glob(pattern))
    if not run_dirs:
        raise RecordError(f"{folder} holds no runs. A study folder has one folder per run, such as runs/cpu.")
    states = [describe(run_dir) for run_dir in run_dirs]
    names = ["" if state is None else state.name for _, state in states]
    return table(list(zip(names, run_dirs, strict=True))), all(name == "done" for name, _ in states)


def table(runs: list[tuple[str, Path]]) -> TextTable:
    """One row per run (name, folder)."""
    rows = []
    for run_name, run_dir in runs:
        state_name, state = describe(run_dir)
        run_id = run_dir.parent.name if run_dir.name == FOLDER else run_dir.name
        numbers = [None] * 4 if state is None else _numbers(state)
        rows.append([run_name, run_id, state_name, *numbers, (state and state.reason) or ""])
    return TextTable(rows, ["run", "id", "state", *NUMBERS, "reason"], "lllrrrrl")


def _numbers(state: RunState) -> list[str | None]:
    """The cells of `NUMBERS`."""
    return [
        f"{state.step:,}/{state.steps:,}" if state.steps else None,
        None if state.loss_nat is None else f"{state.loss_nat:.4f}",
        None if state.tokens_per_s is None else si(state.tokens_per_s),
        None if state.power_w is None else f"{state.power_w:.0f}",
    ]


class SweepProgress:
    """A thread that shows the runs (name, folder): redrawn in place on a terminal, else a plain
    line per change and every half minute.
    """

    def __init__(
        self, runs: list[tuple[str, Path]], flop: list[float], out: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.runs, self.flop, self.out, self.clock = runs, flop, out, clock
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)
        self._live = console.live(out) if out.isatty() else None
        self._shown: dict[Path, tuple[str, float]] = {}  # folder -> state and time of its last line
        # time and share when training was first seen to go on
        self._pace_from: tuple[float, float] | None = None
        self._share_before = self._share_done()

    def __enter__(self) -> SweepProgress:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        self.show()
        if self._live is not None:
            self._live.stop()

    def _loop(self) -> None:
        while not self._done.wait(REDRAW_S):
            self.show()

    def show(self) -> None:
        """Redraw the terminal, or write a line for each run that has news."""
        if self._live is not None:
            self._live.update(console.renderable(self._live.console.width, *self._screen()), refresh=True)
            return
        for name, run_dir in self.runs:
            self._write_news(name, run_dir)
        self.out.flush()

    def _screen(self) -> list[TextTable | str]:
        states = [(name, *describe(run_dir)) for name, run_dir in self.runs]
        rows = [
            [name, *_numbers(state), duration(state.remaining_s)]
            for name, state_name, state in states
            if state_name == "running" and state is not None
        ]
        done = sum(state_name == "done" for _, state_name, _ in states)
        head = f"{done} of {len(states)} runs done, {len(rows)} running, {duration(self._left_s())} left"
        return [head, *([TextTable(rows, ["run", *NUMBERS, "left"], "lrrrrr")] if rows else [])]

    def _share_done(self) -> float:
        """Share of the sweep's FLOP that is trained."""
        done = 0.0
        for (_, run_dir), flop in zip(self.runs, self.flop, strict=True):
            name, state = describe(run_dir)
            if name == "done":
                done += flop
            elif state is not None and state.steps:
                done += flop * state.step / state.steps
        return done / sum(self.flop)

    def _left_s(self) -> float | None:
        """Seconds left for the sweep at the pace since its first updates; unknown before: starting
        workers says nothing of it.
        """
        share, now_s = self._share_done(), self.clock()
        if self._pace_from is None and share > self._share_before:
            self._pace_from = now_s, share
        if self._pace_from is None or share <= self._pace_from[1]:
            return 0.0 if share >= 1.0 else None
        since_s, before = self._pace_from
        return (now_s - since_s) * (1 - share) / (share - before)

    def _write_news(self, name: str, run_dir: Path) -> None:
        state_name, state = describe(run_dir)
        before, shown_at_s = self._shown.get(run_dir, ("not started", float("-inf")))
        if state_name == before and (state_name != "running" or self.clock() - shown_at_s < REPEAT_S):
            return
        self._shown[run_dir] = (state_name, self.clock())
        if state_name == "running" and state is not None:
            line = _line(name, state) + f"; sweep {duration(self._left_s())} left"
        else:
            line = f"{name}: {state_name}" + (f" ({state.reason})" if state and state.reason else "")
        self.out.write(line + "\n")


def _line(name: str, state: RunState) -> str:
    parts = [f"{name}: step {state.step:,}/{state.steps:,}"]
    if state.loss_nat is not None:
        parts.append(f"loss {state.loss_nat:.4f} nat")
    parts.append(f"{si(state.tokens_per_s)} tokens/s")
    if state.power_w is not None:
        parts.append(f"{state.power_w:.0f} W")
    parts.append(f"{duration(state.remaining_s)} left")
    return ", ".join(parts)
