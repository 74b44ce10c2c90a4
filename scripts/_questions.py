"""What nobody has published about a GPU's power sensor, asked of the card itself: one function per question.

Every function takes a `Bench` and returns JSON-able findings; the numbers follow the open questions of the measurement guide
(1: does the counter see what instant readings miss, 2: the driver's sample buffer, … 12: time to settle). A load whose form
only a GPU has (memory, matmuls of several sizes) comes from torch; without CUDA such a finding is None with its reason.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pynvml

from harness.power import sensor
from harness.power.nvml import NvmlSource
from harness.power.sensor import Actions, after, poll
from harness.power.series import Series

Json = dict[str, Any]
NO_CUDA: Json = {"value": None, "reason": "needs a CUDA device"}


@dataclass
class Bench:
    """A card, a load, and how much of each experiment's length is wanted (1: all; less in a smoke run)."""

    source: NvmlSource
    facts: list[Json]
    actions: Actions
    cuda: bool
    scale: float = 1.0

    def poll(self, seconds: float, period_s: float = 0.005) -> Series:
        return poll(self.source, self.facts, 0, after(max(1.5, seconds * self.scale)), period_s)[0]

    def during(self, load: Callable[[Callable[[], bool]], None], seconds: float) -> Series:
        """Poll while `load(stopped)` runs beside it."""
        done = threading.Event()
        worker = threading.Thread(target=load, args=(done.is_set,))
        worker.start()
        series = self.poll(seconds)
        done.set()
        worker.join()
        return series

    @property
    def handle(self) -> Any:
        return pynvml.nvmlDeviceGetHandleByIndex(self.facts[0]["index"])


def slopes(s: Series) -> np.ndarray:
    """Mean power between the counter's ticks, W."""
    t = 0.5 * (np.array(s.lo_s) + np.array(s.hi_s))
    return np.diff(np.array(s.joule)) / np.diff(t) if len(t) > 1 else np.array([])


def spread(values: Any) -> float | None:
    """95 % range over the mean; None with too few values."""
    v = np.asarray(values, dtype=float)
    return float((np.quantile(v, 0.975) - np.quantile(v, 0.025)) / np.mean(v)) if len(v) > 4 and np.mean(v) else None


def sources(s: Series) -> Json:
    """Joules by counter, instant and average over the stretch that all cover."""
    if len(s.hi_s) < 3:
        return {"seconds": None, "reason": "the counter did not tick"}
    a, b = s.hi_s[1], s.hi_s[-1]
    out: Json = {"seconds": b - a, "counter_j": s.joule[-1] - s.joule[1]}
    return {**out, "instant_j": s.instant.integral(a, b), "average_j": s.average.integral(a, b)}


def train_of(b: Bench, on_s: float, every_s: float) -> Callable[[Callable[[], bool]], None]:
    """A load of bursts at a fixed rhythm."""

    def load(stopped: Callable[[], bool]) -> None:
        start, k = time.monotonic(), 0
        while not stopped():
            b.actions.burst(on_s)
            k += 1
            time.sleep(max(0.0, start + k * every_s - time.monotonic()))

    return load


def q01(b: Bench) -> Json:
    """Counter against 25 ms looks under bursts of 25 ms each 101 ms, then each 100 ms at several phases."""
    beat = b.during(train_of(b, 0.025, 0.101), 60)
    locked = []
    for _ in range(max(2, round(20 * b.scale))):
        time.sleep(random.uniform(0, 0.1))
        locked.append(sources(b.during(train_of(b, 0.025, 0.1), 5)))
    flat, looks = spread(slopes(beat)), spread(beat.instant.w)
    continuous = None if flat is None or looks is None else flat < 0.5 * looks
    return {"counter_spread": flat, "instant_spread": looks, "counter_is_continuous": continuous, "locked": locked}


def q02(b: Bench) -> Json:
    """The driver's own buffer of power samples."""
    seen, last, errors = [], 0, []
    idle_until, end = after(30 * b.scale), after(60 * b.scale)
    while not end():
        try:
            _kind, samples = pynvml.nvmlDeviceGetSamples(b.handle, pynvml.NVML_TOTAL_POWER_SAMPLES, last)
            seen += [(int(x.timeStamp), int(x.sampleValue.uiVal)) for x in samples]
            last = seen[-1][0] if seen else 0
        except pynvml.NVMLError as e:
            errors.append(str(e))
        if idle_until():
            b.actions.burst(min(1.0, b.scale))
        else:
            time.sleep(min(1.0, b.scale))
    gaps = [y[0] - x[0] for x, y in itertools.pairwise(seen)]
    return {
        "samples": len(seen),
        "spacing_s": statistics.median(gaps) * 1e-6 if gaps else None,
        "errors": sorted(set(errors)),
    }


def q03(b: Bench) -> Json:
    """Update periods and the window of instant readings, from 100 steps of load at random phases."""
    s, onsets = sensor.bursts(b.source, b.facts, 0, b.actions, max(3, round(100 * b.scale)))
    period = {
        n: statistics.median(np.diff(h.t_s)) if len(h.t_s) > 3 else None
        for n, h in (("instant", s.instant), ("average", s.average))
    }
    return {
        "counter_period_s": s.tick_period_s(),
        "reading_period_s": period,
        "instant_window_s": sensor.instant_window(s, onsets),
        "bursts": len(onsets),
    }


def q04(b: Bench) -> Json:
    """What a read costs, and what polling costs the load (blocks off, on, on, off)."""
    out: Json = {}
    for name, ids in (("1 field", [186]), ("3 fields", [186, 185, 83])):
        took = []
        for _ in range(max(50, round(1000 * b.scale))):
            t = time.monotonic_ns()
            pynvml.nvmlDeviceGetFieldValues(b.handle, ids)
            took.append((time.monotonic_ns() - t) * 1e-9)
        out[name] = {f"p{q}_s": float(np.quantile(took, q / 100)) for q in (50, 99, 100)}
    blocks: dict[str, list[float]] = {"off": [], "on": []}
    for state in ("off", "on", "on", "off") * max(1, round(2 * b.scale)):
        done = threading.Event()
        poller = threading.Thread(target=poll, args=(b.source, b.facts, 0, done.is_set, 0.01))
        if state == "on":
            poller.start()
        t = time.monotonic()
        for _ in range(max(2, round(30 * b.scale))):
            b.actions.burst(0.5)
        blocks[state].append(time.monotonic() - t)
        done.set()
        if state == "on":
            poller.join()
    return {**out, "load_with_over_without": statistics.mean(blocks["on"]) / statistics.mean(blocks["off"])}


def q05(b: Bench) -> Json:
    """Idle with a context, watts per resident GB, and the anchor: joules per FLOP of an 8192^3 bf16 matmul."""
    b.actions.context()
    if not b.cuda:
        return {"idle_context": sources(b.poll(60)), "anchor": NO_CUDA}
    import torch

    idle = sources(b.poll(60))
    memory = {}
    for gb in (1, 35, 70, 130):
        if gb * 1e9 > 0.95 * torch.cuda.mem_get_info()[0]:
            continue
        block = torch.zeros(int(gb * 1e9), dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        memory[f"{gb} GB"] = sources(b.poll(20))
        del block
        torch.cuda.empty_cache()
    return {"idle_context": idle, "resident": memory, "anchor": [matmul(b, 8192, 10, zeros=k > 4) for k in range(7)]}


def matmul(b: Bench, n: int, seconds: float, zeros: bool = False) -> Json:
    """Joules per FLOP of a square bf16 matmul over whole calls, measured well inside a longer load."""
    import torch

    x = (
        torch.zeros(n, n, device="cuda", dtype=torch.bfloat16)
        if zeros
        else torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
    )
    y, out = x.clone(), torch.empty_like(x)
    marks: list[tuple[float, int]] = []

    def load(stopped: Callable[[], bool]) -> None:
        count = 0
        while not stopped():
            for _ in range(max(1, int(1e13 / (2 * n**3)))):
                torch.mm(x, y, out=out)
                count += 1
            torch.cuda.synchronize()
            marks.append((time.monotonic(), count))

    s = b.during(load, seconds)
    origin = s.origin_ns * 1e-9
    kept = [(t - origin, c) for t, c in marks if s.hi_s and s.hi_s[0] + 1.5 < t - origin < s.hi_s[-1]]
    if len(kept) < 2:
        return {"size": n, "j_per_flop": None, "reason": "too short"}
    (t0, c0), (t1, c1) = kept[0], kept[-1]
    joules = float(np.interp(t1, s.hi_s, s.joule) - np.interp(t0, s.hi_s, s.joule))
    flop = 2.0 * n**3 * (c1 - c0)
    return {
        "size": n,
        "zeros": zeros,
        "j_per_flop": joules / flop,
        "flop_per_s": flop / (t1 - t0),
        "power_w": joules / (t1 - t0),
    }


def q06(b: Bench) -> Json:
    """Counter, instant and average at idle and at a quarter, half, three quarters and all of the load."""
    out = {"idle": sources(b.poll(40))}
    for share in (0.25, 0.5, 0.75, 1.0):
        out[f"{share:.0%}"] = sources(b.during(train_of(b, 0.137 * share, 0.137), 40))
    return out


def q07(b: Bench) -> Json:
    """How late the counter is: where its straight lines say a burst began, less when it did."""
    s, onsets = sensor.bursts(b.source, b.facts, 0, b.actions, max(4, round(60 * b.scale)))
    late = []
    for begin, _ in onsets:
        t = 0.5 * (np.array(s.lo_s) + np.array(s.hi_s))
        k = int(np.searchsorted(t, begin)) - 1
        if k < 2 or k + 4 >= len(t):
            continue
        e = np.array(s.joule)
        low = (e[k - 1] - e[k - 2]) / (t[k - 1] - t[k - 2])
        high = (e[k + 4] - e[k + 3]) / (t[k + 4] - t[k + 3])
        if high - low > 20:
            gained = e[k + 3] - e[k] - low * (t[k + 3] - t[k])
            late.append(float(t[k + 3] - gained / (high - low) - begin))
    return {
        "latency_s": statistics.median(late) if late else None,
        "sd_s": statistics.stdev(late) if len(late) > 2 else None,
        "bursts": len(late),
    }


def q08(b: Bench) -> Json:
    """Does the field's time stamp stand between updates, or move with each call?"""
    moved = calls = 0
    last: tuple[int, float | None] | None = None
    end = after(10 * b.scale)
    while not end():
        r = b.source.read(0)
        if last is not None and r.stamp_us is not None and r.energy == last[1]:
            calls += 1
            moved += r.stamp_us != last[0]
        last = (r.stamp_us or 0, r.energy)
        time.sleep(0.002)
    return {"calls_between_updates": calls, "moved_share": moved / calls if calls else None}


def q09(b: Bench) -> Json:
    """Throttle counters (74, 75, 269, 270, 271) over 30 s at full load."""

    def read() -> dict[int, int | None]:
        values = pynvml.nvmlDeviceGetFieldValues(b.handle, [74, 75, 269, 270, 271])
        return {v.fieldId: int(v.value.ullVal) if v.nvmlReturn == 0 else None for v in values}

    try:
        before, t = read(), time.monotonic()
        b.actions.burst(max(1.0, 30 * b.scale))
        later = read()
    except pynvml.NVMLError as e:
        return {"per_second": None, "reason": str(e)}
    seconds = time.monotonic() - t
    rise: dict[str, float | None] = {}
    for field, start in before.items():
        end = later[field]
        rise[str(field)] = None if start is None or end is None else (end - start) / seconds
    return {"per_second": rise}


def q10(b: Bench) -> Json:
    """What the process list shows from here."""
    b.actions.context()
    try:
        pids = [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(b.handle)]
    except pynvml.NVMLError as e:
        return {"processes": None, "reason": str(e)}
    return {"processes": len(pids), "own_pid_listed": os.getpid() in pids}


def q11(b: Bench) -> Json:
    """E = P t + e FLOP: matmuls of several sizes, the last one held out."""
    if not b.cuda:
        return {"rows": None, "reason": NO_CUDA["reason"]}
    rows = [r for r in (matmul(b, n, 6) for n in (512, 1024, 2048, 8192, 4096)) if r.get("power_w")]
    if len(rows) < 4:
        return {"rows": rows, "reason": "too few sizes were measured"}
    power, rate = np.array([r["power_w"] for r in rows]), np.array([r["flop_per_s"] for r in rows])
    (p, e), *_ = np.linalg.lstsq(np.stack([np.ones(len(rows) - 1), rate[:-1]], axis=1), power[:-1], rcond=None)
    return {
        "rows": rows,
        "p_w": float(p),
        "j_per_flop": float(e),
        "held_out_residual": float((p + e * rate[-1]) / power[-1] - 1),
    }


def q12(b: Bench) -> Json:
    """Seconds until idle power drifts less than 1 W over 5 s, after a minute of load."""
    b.actions.burst(max(1.0, 60 * b.scale))
    return {"settled_after_s": sensor.settle(b.source, b.facts, 0, give_up_s=max(11.0, 120 * b.scale))}


# step -> (function, seconds it takes at full length)
QUESTIONS: dict[str, tuple[Callable[[Bench], Json], float]] = {
    "q01": (q01, 185),
    "q02": (q02, 70),
    "q03": (q03, 270),
    "q04": (q04, 140),
    "q05": (q05, 230),
    "q06": (q06, 215),
    "q07": (q07, 165),
    "q08": (q08, 20),
    "q09": (q09, 40),
    "q10": (q10, 10),
    "q11": (q11, 60),
    "q12": (q12, 190),
}
