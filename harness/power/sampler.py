"""The process that polls the sensor: `python -m harness.power.sampler SPEC`, started by
`meter.Meter`.

Standard library and `pynvml` only. It polls at absolute deadlines of the monotonic clock with
jitter (a fixed rhythm could lock to the load), writes a row whenever something changes, survives
every error of the sensor, and ends with its parent: when the control pipe on its standard input
closes, when its parent process changes, or when the kernel signals the parent's death. Requests to
stop (Ctrl-C, SIGTERM, Slurm's signals to all processes of a job) are not for it while its parent
lives: the trainer ends its block of updates first, and the joules of that block need every tick.

A thread in the trainer would not do: beside C code that holds the GIL it is late by up to 0.4 s.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import math
import os
import queue
import random
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.power.interference import owners
from harness.power.nvml import NvmlSource
from harness.power.rapl import RaplSource
from harness.power.replay import ReplaySource
from harness.power.segment_file import SEGMENT_SCHEMA, Recorder, Writer, boot_id, card_json
from harness.power.source import GPU_GONE, Card, Refused, Source
from harness.units import S_PER_NS

NS = 1_000_000_000
JITTER = 0.3  # of the period, to both sides
# Deadlines are this share of the period apart. A period that divides the sensor's own (10 ms of 100
# ms) would bracket every tick at the same place, and no number of ticks would tell where in the
# bracket they lie.
PERIOD_SHARE = 0.9721
# a poll later than this many periods after the one before is written whatever it says
MAX_POLL_PERIODS = 2.0
READY_WAIT_NS = 1 * NS  # for the first tick of each counter
LAST_TICK_WAIT_NS = NS // 2  # for one more tick after the parent's end
CLOCK_STEP_NS = 50_000_000
ANCHOR_NS = 60 * NS
PR_SET_PDEATHSIG = 1
# Signals that a terminal or a batch system sends to every process of a job; SIGTERM has a handler
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
POLL_NOW, LEAVE = b".", b"q"  # what the meter may write to the control pipe


@dataclass
class Spec:
    """What the sampler is told, as JSON in its one argument."""

    source: str  # its name in the power family
    path: str  # segment file to make
    period_s: float
    parent_pid: int
    attempt: int
    index: int  # of this segment within the attempt
    follow_thread: bool  # started from the main thread: the kernel may signal its end
    settings: dict[str, Any] = field(default_factory=dict)  # the fields of its config
    cuda_visible: str | None = None
    trace_origin_ns: int = 0  # when a replayed trace begins
    lock_wait_s: float = 5.0  # an earlier attempt's sampler needs up to 2 s to leave

    def argument(self) -> str:
        return json.dumps(asdict(self))


def make_source(spec: Spec) -> Source:
    """The one place that knows a source by its name. Raises ConfigError where its settings are
    wrong, asks no hardware."""
    s = spec.settings
    match spec.source:
        case "nvml":
            return NvmlSource(spec.cuda_visible, s["mig_whole_card"], s["period_s"])
        case "rapl":
            return RaplSource(s["root"], s["period_s"])
        case "replay":
            return ReplaySource(s["path"], spec.trace_origin_ns)
    raise TypeError(f"there is no power source {spec.source!r}")


class Sampler:
    """The loop. `run` returns why it ended."""

    def __init__(self, spec: Spec, source: Source, writer: Writer, cards: list[Card], control_fd: int) -> None:
        self.spec, self.source, self.writer, self.control_fd = spec, source, writer, control_fd
        self.period_ns = round(spec.period_s * NS * PERIOD_SHARE)
        self.recorder = Recorder(round(MAX_POLL_PERIODS * self.period_ns))
        self.cards = len(cards)
        # A card without a counter, or whose counter is read at will, has no tick to wait for.
        self.waits = [c.counter == "ticks" for c in cards]
        self.stop: str | None = None  # why to end, once that is known
        self.polls = self.missed = self.rows = 0
        # log-spaced histogram: gap of about 1.1**key ms -> how often
        self.gaps: dict[int, int] = {}
        self._resume_ns = [0] * len(cards)  # a lost card is asked once a second
        self._last_ns = [0] * len(cards)
        self._first_energy: list[float | None] = [None] * len(cards)
        self._ticked: set[int] = set()  # cards whose counter was seen to move
        self._step_ns = time.time_ns() - time.monotonic_ns()
        self._next_slow = self._next_anchor = 0
        self._looks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def run(self) -> str:
        start = time.monotonic_ns()
        self._next_slow, self._next_anchor = start + NS, start + ANCHOR_NS
        # Its calls may take milliseconds each; in the polling loop they would delay a deadline
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        ready, k = False, 0
        stop_at: int | None = None
        while True:
            if self.stop and stop_at is None:
                stop_at = time.monotonic_ns() + LAST_TICK_WAIT_NS
                self._ticked = set()
                self._first_energy = [None] * self.cards
            self._poll_cards()
            while not self._looks.empty():
                self.writer.put(self._looks.get())
            now = time.monotonic_ns()
            if not ready and (len(self._ticked) == self.cards or now - start > READY_WAIT_NS):
                ready = True
                self.writer.put({"kind": "ready", "mono_ns": now})
            if now >= self._next_slow:
                self._slow(now)
            if stop_at is not None and (now >= stop_at or len(self._ticked) == self.cards):
                self._stats(now)
                return self.stop or ""
            k, deadline = self._next_deadline(start, k)
            self._sleep_until(deadline)

    def _poll_cards(self) -> None:
        rows = []
        for card in range(self.cards):
            t0 = time.monotonic_ns()
            if t0 < self._resume_ns[card]:
                continue
            reading = self.source.read(card)
            t1 = time.monotonic_ns()
            self.polls += 1
            if self._last_ns[card]:
                key = round(math.log(max(t0 - self._last_ns[card], 1000) / 1e6, 1.1))
                self.gaps[key] = self.gaps.get(key, 0) + 1
            self._last_ns[card] = t0
            if reading.rc_energy in GPU_GONE or reading.rc_instant in GPU_GONE:
                self._resume_ns[card] = t1 + NS
            self._note_tick(card, reading.energy)
            row = self.recorder.offer(card, t0, t1, reading)
            if row is not None:
                rows.append(row)
        if rows:
            self.rows += len(rows)
            self.writer.put(*rows)

    def _watch(self) -> None:
        """A look at every card once a second, until the process ends or no card has anything to
        look at."""
        cards = list(range(self.cards))
        while cards and not self.stop:
            for card in list(cards):
                seen = self.source.watch(card)
                if seen is None:
                    cards.remove(card)
                    continue
                self._looks.put(look_line(card, time.monotonic_ns(), seen, self.spec.parent_pid))
            time.sleep(1.0)

    def _note_tick(self, card: int, energy: float | None) -> None:
        if not self.waits[card]:
            self._ticked.add(card)
        elif energy is not None:
            if self._first_energy[card] is None:
                self._first_energy[card] = energy
            if energy != self._first_energy[card]:
                self._ticked.add(card)

    def _next_deadline(self, start: int, k: int) -> tuple[int, int]:
        """The next deadline that is not past; the ones skipped are counted. Never a burst to catch
        up."""
        due = (time.monotonic_ns() - start) // self.period_ns
        if due > k:
            self.missed += due - k
        k = max(k, due) + 1
        return k, start + round(self.period_ns * (k + random.uniform(-JITTER, JITTER)))

    def _sleep_until(self, deadline: int) -> None:
        """Sleep until the deadline, or until the meter asks for something; once leaving, sleep
        alone."""
        left = max(0, deadline - time.monotonic_ns()) * S_PER_NS
        if self.stop:
            time.sleep(left)
        elif select.select([self.control_fd], [], [], left)[0]:
            request = os.read(self.control_fd, 64)
            if LEAVE in request:
                self.stop = "asked to"
            elif not request:
                self.stop = "the control pipe was closed"

    def _slow(self, now: int) -> None:
        """Once a second: is the parent there, did the wall clock move, how is the sampler doing."""
        self._next_slow = now + NS
        if os.getppid() != self.spec.parent_pid:
            self.stop = self.stop or "the parent process ended"
        step = time.time_ns() - time.monotonic_ns()
        if abs(step - self._step_ns) > CLOCK_STEP_NS:
            moved = (step - self._step_ns) * S_PER_NS
            self.writer.put({"kind": "event", "code": "CLOCK_STEP", "mono_ns": now, "moved_s": moved})
            self._step_ns = step
        if now >= self._next_anchor:
            self._next_anchor = now + ANCHOR_NS
            self.writer.put({"kind": "anchor", "mono_ns": now, "wall_ns": time.time_ns()})
        self._stats(now)

    def _stats(self, now: int) -> None:
        cpu = time.process_time()
        line = {"kind": "stats", "mono_ns": now, "polls": self.polls, "missed": self.missed, "rows": self.rows}
        self.writer.put({**line, "lost_lines": self.writer.lost_lines, "cpu_s": cpu, "gap_hist": self.gaps})


def look_line(card: int, mono_ns: int, seen: dict[str, Any], run_pid: int) -> dict[str, Any]:
    """One look as a line of the segment: process ids become those that are not the run's own."""
    pids = seen.pop("pids", None)
    foreign, hidden = (None, 0) if pids is None else owners(pids, run_pid)
    return {"kind": "watch", "card": card, "mono_ns": mono_ns, **seen, "foreign": foreign, "hidden": hidden}


def lock_card(uuid: str, wait_s: float) -> Path | None:
    """Hold the one lock of a physical card on this host until the process ends; raises Refused if
    another holds it.

    Returns the lock file; None where none can be made: then two meters of one card would not notice
    each other.
    """
    shared = Path("/dev/shm")
    folder = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    path = folder / f"scaling-harness-{hashlib.sha256(uuid.encode()).hexdigest()[:16]}.lock"
    end = time.monotonic() + wait_s
    while True:
        fd = _open_lock(path)
        if fd is None:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                # not one that its last holder removed
                if path.stat().st_ino == os.fstat(fd).st_ino:
                    return path
        except BlockingIOError:
            if time.monotonic() > end:
                raise Refused(
                    "NO_SOURCE",
                    f"another meter is measuring {uuid} on this host, and the joules of a shared card cannot be told"
                    " apart. Run one metered run per card, or choose power=unmetered for this one.",
                ) from None
        os.close(fd)
        time.sleep(0.05)


def _open_lock(path: Path) -> int | None:
    # another user's file in a sticky folder opens without O_CREAT
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    return None


def _follow_parent(spec: Spec) -> None:
    """Third line of defence after the pipe and getppid: the kernel signals the end of the parent's
    thread (Linux)."""
    if spec.follow_thread and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != spec.parent_pid:
        sys.exit("the parent ended before its sampler began")


def main(argument: str) -> int:
    spec = Spec(**json.loads(argument))
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None if os.getppid() == spec.parent_pid else sys.exit(0))
    _follow_parent(spec)
    writer = Writer(Path(spec.path))
    try:
        source = make_source(spec)
        cards = source.open()
        locks = [lock_card(c.uuid, spec.lock_wait_s) for c in cards] if source.exclusive else []
    except (Refused, ConfigError) as e:
        refused = e if isinstance(e, Refused) else Refused("NO_SOURCE", str(e))
        writer.put({"kind": "refused", "code": refused.code, "reason": refused.reason})
        return 3
    writer.put(header(spec, source, cards, locked=None not in locks))
    sampler = Sampler(spec, source, writer, cards, sys.stdin.fileno())

    def leave(_signal: int, _frame: object) -> None:
        if os.getppid() != spec.parent_pid:  # the kernel tells of its death, as asked
            sampler.stop = sampler.stop or "the parent process ended"

    signal.signal(signal.SIGTERM, leave)
    why = sampler.run()
    writer.put({"kind": "end", "why": why, "mono_ns": time.monotonic_ns()})
    writer.close()
    source.close()
    for lock in locks:
        if lock is not None:
            with contextlib.suppress(OSError):
                lock.unlink()
    return 0


def header(spec: Spec, source: Source, cards: list[Card], locked: bool) -> dict[str, Any]:
    """First line of a segment."""
    return {
        "kind": "header",
        "schema_version": SEGMENT_SCHEMA,
        "source": spec.source,
        "energy_unit_j": source.energy_unit_j,
        "power_unit_w": source.power_unit_w,
        "period_s": spec.period_s,
        "attempt": spec.attempt,
        "index": spec.index,
        "boot_id": boot_id(),
        "host": socket.gethostname(),
        "origin_ns": time.monotonic_ns(),
        "wall_ns": time.time_ns(),
        "locked": locked,
        "cards": [card_json(c) for c in cards],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
