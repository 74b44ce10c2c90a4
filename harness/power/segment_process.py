"""A sampler's life as the meter sees it: its process, its file read so far, and the series made of
it."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import sysconfig
import threading
from dataclasses import dataclass, field
from pathlib import Path

from harness.power import segment_file
from harness.power.sampler import Spec
from harness.power.series import Series
from harness.units import S_PER_NS

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Segment:
    """One sampler's file, read so far, and what was made of it."""

    path: Path
    reader: segment_file.SegmentReader = field(init=False)
    series: list[Series] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    ended: bool = False  # nothing more will be written

    def __post_init__(self) -> None:
        self.reader = segment_file.SegmentReader(self.path)

    def poll(self) -> None:
        """Take in what was written since; notice the end of the process before reading, so that
        nothing is missed."""
        ended = self.process is None or self.process.poll() is not None
        rows = self.reader.poll()
        if not self.series and self.reader.header is not None:
            self.series = [Series(self.reader.header, i) for i in range(len(self.reader.header["cards"]))]
        for row in rows:
            if 0 <= row.card < len(self.series):
                self.series[row.card].add(row)
        for line in self.reader.take_looks():
            if 0 <= line["card"] < len(self.series):
                self.series[line["card"]].look(line)
        self.ended = ended

    def ask(self, control: bytes) -> None:
        """Write to the sampler's control pipe; a sampler that has ended is noticed by `poll`."""
        if self.process is not None and self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(control)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()

    @property
    def begin_ns(self) -> int | None:
        """When the last of its cards was first known, ns; None before that."""
        starts = [s.begin_s() for s in self.series]
        known = [t for t in starts if t is not None]
        return (
            self.series[0].origin_ns + math.ceil(max(known) / S_PER_NS) if known and len(known) == len(starts) else None
        )

    @property
    def last_ns(self) -> int | None:
        """Until when all cards are known, ns: their last tick, or reading."""
        end_times = [s.end_s() for s in self.series]
        known = [t for t in end_times if t is not None]
        return (
            self.series[0].origin_ns + math.floor(min(known) / S_PER_NS)
            if known and len(known) == len(end_times)
            else None
        )


def spawn(spec: Spec, folder: Path) -> Segment:
    """Start a sampler on a new file in `folder`; fills in the rest of `spec`. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = segment_file.find(folder, spec.attempt)
    spec.index = 1 + max((int(p.name.split(".")[1][1:]) for p in taken), default=-1)
    path = segment_file.path_of(folder, spec.attempt, spec.index)
    spec.path = str(path)
    spec.parent_pid = os.getpid()
    spec.follow_thread = threading.current_thread() is threading.main_thread()
    environment = dict(os.environ)
    # a checkout: the child may not find it by itself
    if str(PACKAGE_ROOT) != sysconfig.get_path("purelib"):
        environment["PYTHONPATH"] = os.pathsep.join(p for p in (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")) if p)
    # -P: a folder named harness in the working directory is not this package.
    command = [sys.executable, "-P", "-m", "harness.power.sampler", spec.argument()]
    with (folder / "sampler.log").open("ab") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, env=environment, bufsize=0
        )
    return Segment(path, process=process)


def last_words(folder: Path) -> str:
    """The last line that a sampler wrote to its log, for a message."""
    try:
        lines = (folder / "sampler.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it wrote nothing"
