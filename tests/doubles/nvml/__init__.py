"""Builds and scripts the double of libnvidia-ml.so.1 (`scripted_nvml.c`) that the real pynvml
loads.

    library = build(folder)  # once; needs cc
    script = Script([Card(trace=[(0, 100), (1, 100), (1, 500)])])
    # before the process that loads NVML starts:
    environment.update(script.environment(library, folder))
    # from the trace alone, never through the sensor model:
    script.truth_j(a_ns, b_ns)

A trace is a list of (seconds, watts): straight lines between, two rows at one time are a step, held
before and after. Second 0 is `origin_ns` on CLOCK_MONOTONIC, shared by all processes; with
`virtual=True` the clock stands where `scripted_set_time(seconds)` put it, and `scripted_reset()`
makes the next `nvmlInit` read the script again.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("scripted_nvml.c")
SONAME = "libnvidia-ml.so.1"
ENERGY, AVERAGE, INSTANT = "field:83", "field:185", "field:186"
Trace = list[tuple[float, float]]


class NoCompiler(RuntimeError):
    """There is no C compiler; a test skips on a laptop and fails in CI."""


def build(folder: Path, soname: bool = True, without: tuple[str, ...] = ()) -> Path:
    """Compile the library into `folder` and return its path.

    `soname=False` makes one that may be loaded into a test process without answering for the real
    library; `without` leaves out symbols, as an old driver does.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("the scripted NVML needs a C compiler: install gcc (apt-get install gcc) or set CC")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / SONAME
    options = [f"-Wl,-soname,{SONAME}"] if soname else []
    renamed = [f"-D{name}=absent_{name}" for name in without]
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O2",
        "-Wall",
        "-Werror",
        *options,
        *renamed,
        "-o",
        str(target),
        str(SOURCE),
        "-lm",
    ]
    subprocess.run(command, check=True)
    return target


def integral_j(trace: Trace, a_s: float, b_s: float) -> float:
    """Exact joules of a trace over [a, b]."""
    return _to(trace, b_s) - _to(trace, a_s)


def _to(trace: Trace, t: float) -> float:
    """Integral from the first knot to `t`; negative before it."""
    if t <= trace[0][0]:
        return trace[0][1] * (t - trace[0][0])
    total = 0.0
    for (t0, w0), (t1, w1) in itertools.pairwise(trace):
        if t <= t0:
            return total
        end = min(t, t1)
        w_end = w1 if t1 == t0 else w0 + (w1 - w0) * (end - t0) / (t1 - t0)
        total += 0.5 * (w0 + w_end) * (end - t0)
    return total + trace[-1][1] * max(0.0, t - trace[-1][0])


def square(low_w: float, high_w: float, step_s: float, duty: float, until_s: float, start_s: float = 0.0) -> Trace:
    """A load that is high for `duty` of each step and low for the rest."""
    out: Trace = [(start_s, high_w)]
    for k in range(math.ceil((until_s - start_s) / step_s)):
        t = start_s + k * step_s
        fall, rise = t + duty * step_s, t + step_s
        out += [(fall, high_w), (fall, low_w), (rise, low_w), (rise, high_w)]
    return out


@dataclass
class Card:
    """One scripted GPU; defaults are a Hopper board. Times in s, power in W."""

    trace: Trace
    uuid: str = field(default_factory=lambda: f"GPU-{uuid.uuid4()}")  # the sampler locks by it
    name: str = "Scripted H100"
    limit_w: float = 700.0
    period_s: float = 0.1
    phase_s: float = 0.0
    jitter_s: float = 0.0
    window_s: float = 0.025
    boxcar_s: float = 1.0
    gain: float = 1.0
    offset_w: float = 0.0
    counter: str = "continuous"  # or looks
    counter_start_j: float = 1e6
    reset_at_s: float | None = None
    freeze_at_s: float | None = None
    reset_when: Path | None = None  # resets, or freezes, when this file appears
    freeze_when: Path | None = None
    mig: str | None = None  # UUID of its one instance
    # (seconds, what, value) of settings that change: limit_w, mask (of clock reasons), clock, temp,
    # pid (negative: it leaves)
    events: list[tuple[float, str, float]] = field(default_factory=list)

    def lines(self, index: int) -> list[str]:
        numbers = ["limit_w", "period_s", "phase_s", "jitter_s", "window_s", "boxcar_s", "gain", "offset_w"]
        numbers += ["counter_start_j", "reset_at_s", "freeze_at_s"]
        settings = [("uuid", self.uuid), ("name", self.name), ("counter", self.counter)]
        settings += [(n, repr(getattr(self, n))) for n in numbers if getattr(self, n) is not None]
        settings += [(n, str(getattr(self, n))) for n in ("reset_when", "freeze_when", "mig") if getattr(self, n)]
        settings += [("at", f"{t!r} {what} {value!r}") for t, what, value in sorted(self.events, key=lambda e: e[0])]
        settings += [("knot", f"{t!r} {w!r}") for t, w in self.trace]
        return [f"gpu {index} {key} {value}" for key, value in settings]


@dataclass
class Fault:
    """`what` answers `code` on card `gpu` (-1: all) during [from_s, to_s), while the file `when`
    exists.

    `what` is a symbol, one of the fields above, or "*" for every symbol.
    """

    what: str
    code: int
    from_s: float = -math.inf
    to_s: float = math.inf
    gpu: int = -1
    when: Path | None = None

    def line(self) -> str:
        return f"fault {self.what} {self.gpu} {self.from_s!r} {self.to_s!r} {self.code} {self.when or ''}".rstrip()


@dataclass
class Script:
    cards: list[Card]
    faults: list[Fault] = field(default_factory=list)
    init_error: int = 0
    slow_us: int = 0  # extra time of each field read
    virtual: bool = False
    origin_ns: int = field(default_factory=time.monotonic_ns)

    def text(self) -> str:
        lines = [f"clock {'virtual' if self.virtual else 'real'}", f"origin_ns {self.origin_ns}"]
        lines += [f"init_error {self.init_error}"] if self.init_error else []
        lines += [f"slow_us {self.slow_us}"] if self.slow_us else []
        for i, card in enumerate(self.cards):
            lines += card.lines(i)
        lines += [f.line() for f in self.faults]
        return "\n".join(lines) + "\n"

    def environment(self, library: Path, folder: Path) -> dict[str, str]:
        """Write the script into `folder`; the variables with which a new process loads the double
        and plays it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "nvml_script.txt"
        path.write_text(self.text())
        search = [str(library.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {"SCRIPTED_NVML": str(path), "LD_LIBRARY_PATH": os.pathsep.join(s for s in search if s)}

    def seconds(self, ns: int) -> float:
        return (ns - self.origin_ns) * 1e-9

    def truth_j(self, a_ns: int, b_ns: int, cards: list[int] | None = None) -> float:
        """Exact joules of the cards (None: all) between two moments of CLOCK_MONOTONIC."""
        chosen = self.cards if cards is None else [self.cards[i] for i in cards]
        return sum(integral_j(c.trace, self.seconds(a_ns), self.seconds(b_ns)) for c in chosen)
