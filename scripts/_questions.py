"""What nobody has published about a GPU's power sensor, asked of the card itself: one function per
question.

Every function takes a `Bench` and returns JSON-able findings; the numbers follow the open questions
of the measurement guide (1: does the counter see what instant readings miss, 2: the driver's sample
buffer, … 12: time to settle).
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pynvml
import torch
from _card import Bench, Json, copy, matmul, slopes, sources, spread, steady, time_per_call, transformer

from harness.power import sensor
from harness.power.sensor import after, poll


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
    """Counter against 25 ms looks under bursts of 25 ms each 101 ms, then each 100 ms at several
    phases.
    """
    beat = b.during(train_of(b, 0.025, 0.101), 60)
    locked = []
    for _ in range(max(2, round(20 * b.scale))):
        time.sleep(random.uniform(0, 0.1))
        locked.append(sources(b.during(train_of(b, 0.025, 0.1), 5)))
    flat, looks = spread(slopes(beat)), spread(beat.instant.w)
    continuous = None if flat is None or looks is None else flat < 0.5 * looks
    return {"counter_spread": flat, "instant_spread": looks, "counter_is_continuous": continuous, "locked": locked}


def q02(b: Bench) -> Json:
    """The driver's own buffer of power samples: spacing, depth, and its integral beside the
    counter's joules.
    """
    seen: list[tuple[int, float]] = []
    deepest, refused = 0, None

    def drain(stopped: Callable[[], bool]) -> None:
        nonlocal deepest, refused
        last = 0
        while not stopped() and refused is None:
            try:
                _kind, samples = pynvml.nvmlDeviceGetSamples(b.handle, pynvml.NVML_TOTAL_POWER_SAMPLES, last)
                seen.extend((int(x.timeStamp), 1e-3 * int(x.sampleValue.uiVal)) for x in samples)
                deepest, last = max(deepest, len(samples)), seen[-1][0] if seen else 0
            except pynvml.NVMLError_NotFound:  # type: ignore[attr-defined]
                pass  # nothing newer is there
            except pynvml.NVMLError as e:
                refused = str(e)
            time.sleep(min(1.0, b.scale))

    def load(stopped: Callable[[], bool]) -> None:
        quiet = after(30 * b.scale)  # half of it idle, half under load
        with beside(lambda _: drain(stopped)):
            while not stopped():
                if quiet():
                    b.actions.burst(min(1.0, b.scale))
                else:
                    time.sleep(0.1)

    wall_s = time.time() - time.monotonic()
    s = b.during(load, 60)
    if refused is not None or len(seen) < 3:
        return {"spacing_s": None, "reason": refused or f"{len(seen)} samples came"}
    t = np.array([x for x, _ in seen]) * 1e-6 - wall_s - s.origin_ns * 1e-9
    w = np.array([x for _, x in seen])
    out: Json = {"samples": len(seen), "deepest": deepest, "spacing_s": float(np.median(np.diff(t)))}
    ticks = [k for k, at in enumerate(s.hi_s) if t[0] <= at <= t[-1]]
    if len(ticks) < 3:
        return {**out, "integral_over_counter": None, "reason": "the counter did not tick inside the samples"}
    first, last = ticks[0], ticks[-1]
    inside = np.linspace(s.hi_s[first], s.hi_s[last], 10 * len(t))
    counter_j = s.joule[last] - s.joule[first]
    return {**out, "integral_over_counter": float(np.trapezoid(np.interp(inside, t, w), inside) / counter_j)}


def q03(b: Bench) -> Json:
    """Update periods and the window of instant readings, from 100 steps of load at random
    phases.
    """
    s, onsets = sensor.bursts(b.source, b.cards, 0, b.actions, max(3, round(100 * b.scale)))
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


@contextlib.contextmanager
def beside(work: Callable[[Callable[[], bool]], object]) -> Iterator[None]:
    """`work(stopped)` runs in a thread of its own meanwhile."""
    done = threading.Event()
    worker = threading.Thread(target=work, args=(done.is_set,))
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()


def read_cost(b: Bench, ids: list[int]) -> Json:
    took = []
    for _ in range(max(50, round(1000 * b.scale))):
        t = time.monotonic_ns()
        pynvml.nvmlDeviceGetFieldValues(b.handle, ids)
        took.append((time.monotonic_ns() - t) * 1e-9)
    return {f"p{q}_s": float(np.quantile(took, q / 100)) for q in (50, 99, 100)}


def q04(b: Bench) -> Json:
    """What a read costs idle and under load, what polling at several rates costs the load (there
    and back, so that a drift cancels), and idle power while polled at 1 Hz and at 100 Hz.
    """
    out: Json = {}
    for name, ids in (("1 field", [186]), ("3 fields", [186, 185, 83])):
        out[f"{name}, idle"] = read_cost(b, ids)
        with beside(train_of(b, 0.2, 0.2)):
            out[f"{name}, loaded"] = read_cost(b, ids)
    # short calls: a poll that holds the driver would show
    load, rates = matmul(b, 1024), (0, 10, 100, 500)
    calls = max(2, round(10 * b.scale / time_per_call(b, load, 20)))
    took: dict[int, list[float]] = {hz: [] for hz in rates}
    for hz in (*rates, *reversed(rates)):
        polled = functools.partial(poll, b.source, b.cards, 0, period_s=1 / hz) if hz else lambda stopped: None
        with beside(polled):
            took[hz].append(time_per_call(b, load, calls))
    base = statistics.mean(took[0])
    out["load_time_over_unpolled"] = {f"{hz} Hz": statistics.mean(took[hz]) / base for hz in rates[1:]}
    out["idle"] = {f"polled at {hz} Hz": sources(b.poll(10, 1 / hz)) for hz in (1, 100)}
    return out


def q05(b: Bench) -> Json:
    """Idle with a context, watts per resident GB, and the anchor: joules per FLOP of an 8192^3 bf16
    matmul.
    """
    b.actions.context()
    idle = sources(b.poll(60))
    memory = {}
    for gb in (1, 35, 70, 130) if b.cuda else ():
        if gb * 1e9 > 0.95 * torch.cuda.mem_get_info()[0]:
            continue
        block = torch.zeros(int(gb * 1e9), dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        memory[f"{gb} GB"] = sources(b.poll(20))
        del block
        torch.cuda.empty_cache()
    return {"idle_context": idle, "resident": memory, "anchor": [anchor(b, zeros=k > 4) for k in range(7)]}


def anchor(b: Bench, zeros: bool = False) -> Json:
    """Joules per FLOP of 8192^3 in bf16: before and after the ladders it must repeat within 2 %,
    else the card has drifted.
    """
    return steady(b, matmul(b, 8192, zeros), 10)


def q06(b: Bench) -> Json:
    """Counter, instant and average at idle and at a quarter, half, three quarters and all of the
    load.
    """
    out = {"idle": sources(b.poll(40))}
    for share in (0.25, 0.5, 0.75, 1.0):
        out[f"{share:.0%}"] = sources(b.during(train_of(b, 0.137 * share, 0.137), 40))
    return out


def q07(b: Bench) -> Json:
    """How late the counter is: where its straight lines say a burst began, less when it did."""
    s, onsets = sensor.bursts(b.source, b.cards, 0, b.actions, max(4, round(60 * b.scale)))
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
    """What the process list shows from here: this process, and a second one with a context of its
    own.
    """
    b.actions.context()
    second = None
    if b.cuda:
        code = "import sys, torch; torch.zeros(1, device='cuda'); print(1, flush=True); sys.stdin.read()"
        second = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert second.stdout is not None
        second.stdout.readline()  # it has its context now
    try:
        pids = [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(b.handle)]
    except pynvml.NVMLError as e:
        return {"processes": None, "reason": str(e)}
    finally:
        if second is not None:
            second.communicate()
    listed = None if second is None else second.pid in pids
    return {"processes": len(pids), "own_pid_listed": os.getpid() in pids, "second_pid_listed": listed}


def q11(b: Bench) -> Json:
    """E = P t + e FLOP + m bytes: matmuls of several sizes and copies; one matmul and a
    transformer's step are held out.
    """
    named = {f"matmul {n}": matmul(b, n) for n in (512, 1024, 2048, 8192)} | {"copy": copy(b)}
    rows = {name: steady(b, load, 6) for name, load in named.items()}
    held_out = {"matmul 4096": steady(b, matmul(b, 4096), 6), "transformer step": steady(b, transformer(b), 8)}
    out: Json = {"rows": rows, "held_out": held_out}
    known = [r for r in rows.values() if r["power_w"]]
    if len(known) < 4:
        return {**out, "p_w": None, "reason": "too few loads were measured"}

    def design(r: Json) -> list[float]:
        return [1.0, r["flop_per_s"], r["bytes_per_s"]]

    a, power = np.array([design(r) for r in known]), np.array([r["power_w"] for r in known])
    scale = a.max(axis=0)
    solved, *_ = np.linalg.lstsq(a / scale / power[:, None], np.ones(len(known)), rcond=None)
    law = solved / scale
    out |= dict(zip(("p_w", "j_per_flop", "j_per_byte"), law.tolist(), strict=True))
    for name, r in held_out.items():
        if r["power_w"]:
            out[f"residual, {name}"] = float(np.dot(design(r), law) / r["power_w"] - 1)
    return out


def q12(b: Bench) -> Json:
    """Seconds until idle power drifts less than 1 W over 5 s, after a minute of load."""
    b.actions.burst(max(1.0, 60 * b.scale))
    return {"settled_after_s": sensor.settle(b.source, b.cards, 0, give_up_s=max(11.0, 120 * b.scale))}


# part -> (function, seconds it takes at full length), in the order of what a first call should know
QUESTIONS: dict[str, tuple[Callable[[Bench], Json], float]] = {
    "q10": (q10, 20),
    "q08": (q08, 20),
    "q01": (q01, 185),
    "q11": (q11, 75),
    "q04": (q04, 130),
    "q06": (q06, 215),
    "q09": (q09, 40),
    "q05": (q05, 230),
    "q03": (q03, 270),
    "q07": (q07, 165),
    "q02": (q02, 70),
    "q12": (q12, 190),
}
