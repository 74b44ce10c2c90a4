"""How the runs of a study stand: the table of states, and the live display of a sweep. Reads files only, imports no torch."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from harness import records
from harness.errors import RecordError
from harness.records import RunState
from harness.records.ttc import FOLDER
from harness.runtime.lock import is_held
from harness.units import duration, si


def describe(run_dir: Path) -> tuple[str, RunState | None]:
    """State of a run as its files say: a `running` one whose lock nobody holds has died; `damaged`: state.json cannot be read."""
    try:
        state = records.load_state(run_dir) if run_dir.exists() else None
    except RecordError as e:
        return "damaged", RunState("damaged", reason=str(e), name=run_dir.name)
    if state is None:
        return "not started", None
    if state.state == "running" and not is_held(run_dir):
        return "died", state
    return state.state, state


def folder_table(folder: Path) -> tuple[str, bool]:
    """The table of every run and evaluation below a study folder, and whether all of them are done."""
    run_dirs = sorted(p.parent for pattern in ("*/state.json", "*/ttc/state.json") for p in folder.glob(pattern))
    if not run_dirs:
        raise RecordError(f"{folder} holds no runs. A study folder has one folder per run, such as runs/cpu.")
    names = {d: s.name for d in run_dirs if (s := describe(d)[1]) is not None}
    return table([(names[d], d) for d in run_dirs]), all(describe(d)[0] == "done" for d in run_dirs)


def table(runs: list[tuple[str, Path]]) -> str:
    """One line per run (name, folder): id, state, step, loss, tokens/s, watts, reason."""
    rows = [("run", "id", "state", "step", "loss/nat", "tokens/s", "W", "")]
    for run_name, run_dir in runs:
        name, s = describe(run_dir)
        rows.append(
            (
                run_name,
                run_dir.parent.name if run_dir.name == FOLDER else run_dir.name,
                name,
                f"{s.step:,}/{s.steps:,}" if s and s.steps else "–",
                f"{s.loss_nat:.4f}" if s and s.loss_nat is not None else "–",
                si(s.tokens_per_s) if s else "–",
                f"{s.power_w:.0f}" if s and s.power_w is not None else "–",
                (s.reason or "") if s else "",
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(7)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[7]]).rstrip() for r in rows)


class Progress:
    """A thread that shows the runs (name, folder): redrawn in place on a terminal, else a plain line per change and every half minute."""

    def __init__(
        self, runs: list[tuple[str, Path]], flop: list[float], out: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.runs, self.flop, self.out, self.clock = runs, flop, out, clock
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)
        self._lines = 0
        self._said: dict[Path, tuple[str, float]] = {}
        self._pace_from: tuple[float, float] | None = None  # time and share when training was first seen to go on
        self._share_before = self._share_done()

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        self.show()

    def _loop(self) -> None:
        while not self._done.wait(2.0):
            self.show()

    def show(self) -> None:
        if self.out.isatty():
            width = shutil.get_terminal_size().columns  # a line that wraps would not be taken back
            text = "\n".join(line[: width - 1] for line in self._screen().split("\n"))
            self.out.write((f"\x1b[{self._lines}F\x1b[J" if self._lines else "") + text + "\n")
            self._lines = text.count("\n") + 1
        else:
            for name, run_dir in self.runs:
                self._say(name, run_dir)
        self.out.flush()

    def _screen(self) -> str:
        stands = [(name, *describe(run_dir)) for name, run_dir in self.runs]
        running = [_line(name, s) for name, state, s in stands if state == "running" and s is not None]
        done = sum(state == "done" for _, state, _ in stands)
        head = f"{done} of {len(stands)} runs done, {len(running)} running, {duration(self._left_s())} left"
        return "\n  ".join([head, *running])

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
        """Seconds left for the sweep at the pace since its first updates; unknown before: starting workers says nothing of it."""
        share, now_s = self._share_done(), self.clock()
        if self._pace_from is None and share > self._share_before:
            self._pace_from = now_s, share
        if self._pace_from is None or share <= self._pace_from[1]:
            return 0.0 if share >= 1.0 else None
        since_s, before = self._pace_from
        return (now_s - since_s) * (1 - share) / (share - before)

    def _say(self, name: str, run_dir: Path) -> None:
        state, s = describe(run_dir)
        before, at = self._said.get(run_dir, ("not started", float("-inf")))
        if state == before and (state != "running" or self.clock() - at < 30):
            return
        self._said[run_dir] = (state, self.clock())
        if state == "running" and s is not None:
            line = _line(name, s) + f"; sweep {duration(self._left_s())} left"
        else:
            line = f"{name}: {state}" + (f" ({s.reason})" if s and s.reason else "")
        self.out.write(line + "\n")


def _line(name: str, s: RunState) -> str:
    parts = [f"{name}: step {s.step:,}/{s.steps:,}"]
    if s.loss_nat is not None:
        parts.append(f"loss {s.loss_nat:.4f} nat")
    parts.append(f"{si(s.tokens_per_s)} tokens/s")
    if s.power_w is not None:
        parts.append(f"{s.power_w:.0f} W")
    parts.append(f"{duration(s.remaining_s)} left")
    return ", ".join(parts)
