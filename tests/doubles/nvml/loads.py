"""Families of power traces on which an estimator is judged, with the moments at which windows may
begin and end.

The two-level load of the guide (237 ms steps, 71 % at 650 W, 1 % jitter) is one of several: what
helps there and hurts elsewhere is tuning, not accuracy.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from doubles.nvml import Trace, square

LEAD_S = 3.0  # load before second 0, so that the sensor's means are filled


@dataclass(frozen=True)
class Load:
    trace: Trace
    marks: list[float] | None  # step boundaries, s; None: windows may begin anywhere


def steps(until_s: float, seed: int, low_w: float = 250.0, high_w: float = 650.0, step_s: float = 0.237) -> Load:
    """Steps with 1 % jitter, 71 % of each at the high level; windows begin and end with a step."""
    chance, t = random.Random(seed), -LEAD_S
    trace, marks = [(t, high_w)], []
    while t < until_s + 2:
        step = step_s * (1 + chance.gauss(0, 0.01))
        trace += [(t + 0.71 * step, high_w), (t + 0.71 * step, low_w), (t + step, low_w), (t + step, high_w)]
        if t > 0:
            marks.append(t)
        t += step
    return Load(trace, marks)


def shaped_steps(until_s: float, seed: int) -> Load:
    """Four phases per step (forward, backward, reduce, optimiser) with ramps of 5 to 20 ms between
    their levels.
    """
    chance, t = random.Random(seed), -LEAD_S
    phases = [(0.3, 560.0, 0.005), (0.45, 680.0, 0.01), (0.15, 300.0, 0.02), (0.1, 420.0, 0.01)]
    level, trace, marks = 420.0, [(t, 420.0)], []
    while t < until_s + 2:
        step = 0.31 * (1 + chance.gauss(0, 0.01))
        if t > 0:
            marks.append(t)
        for share, watts, ramp in phases:
            trace += [(t + ramp, watts), (t + share * step, watts)]
            level, t = watts, t + share * step
    assert level == phases[-1][1]
    return Load(trace, marks)


def walk(until_s: float, seed: int) -> Load:
    """Straight lines between levels that wander from 100 to 700 W, a new one each 30 to 300 ms."""
    chance, t, w = random.Random(seed), -LEAD_S, 400.0
    trace = [(t, w)]
    while t < until_s + 2:
        t += chance.uniform(0.03, 0.3)
        w = min(700.0, max(100.0, w + chance.gauss(0, 80)))
        trace.append((t, w))
    return Load(trace, None)


def anywhere(load: Load) -> Load:
    return Load(load.trace, None)


def families(until_s: float, seed: int) -> dict[str, Load]:
    """All loads, the guide's first. `until_s` is how long they last."""
    end = until_s + 2 + LEAD_S
    guide = steps(until_s, seed)
    return {
        "training steps, windows of whole steps": guide,
        "training steps, windows anywhere": anywhere(guide),
        "four phases per step, whole steps": shaped_steps(until_s, seed),
        "four phases per step, anywhere": anywhere(shaped_steps(until_s, seed)),
        "short steps of 41 ms, anywhere": anywhere(steps(until_s, seed, step_s=0.041)),
        "slow square of 1.7 s, anywhere": Load(square(100, 600, 1.7, 0.4, end, -LEAD_S), None),
        "step of 2.5 updates, anywhere": Load(square(250, 650, 0.25, 0.5, end, -LEAD_S), None),
        "locked to the update, anywhere": Load(square(100, 700, 0.1, 0.25, end, -LEAD_S), None),
        "random walk, anywhere": walk(until_s, seed),
        "ramp, anywhere": Load([(-LEAD_S, 100.0), (until_s, 700.0)], None),
        "flat, anywhere": Load([(-LEAD_S, 400.0)], None),
    }
