"""Parts of a window's standard error, read from a card's `Series`: each in J or W, each pure. Composed in `estimate`."""

from __future__ import annotations

import math

import numpy as np

from harness.power.series import Held, Series

BOXCAR_S = 1.0  # length of the mean behind "average" on Ampere to Hopper
EDGE_S = 1.0  # how far beside an edge the power level is looked at
BLOCK = 5  # readings per block in the standard error of an integral of instant power


def tick(s: Series, k: int, u: float) -> tuple[float, float]:
    """Time and half-width of tick k, s. After a late poll the value shown is that of the last update, at most u old."""
    lo = s.lo_s[k] if s.points else max(s.lo_s[k], s.hi_s[k] - u)
    return 0.5 * (lo + s.hi_s[k]), 0.5 * (s.hi_s[k] - lo)


def interpolate(s: Series, k: int, t: float, u: float) -> tuple[float, float]:
    """Counter at `t` between ticks k and k + 1, J, and its standard error from when those ticks were seen."""
    (t0, h0), (t1, h1) = tick(s, k, u), tick(s, k + 1, u)
    x = (t - t0) / (t1 - t0)
    slope = (s.joule[k + 1] - s.joule[k]) / (t1 - t0)
    return s.joule[k] + x * (s.joule[k + 1] - s.joule[k]), slope * math.hypot((1 - x) * h0, x * h1) / math.sqrt(3)


def spread(s: Series, a: float, b: float, ka: int, kb: int, u: float) -> float:
    """High minus low power in and just around the window, W: instant readings, and slopes of the counter beyond timing doubt."""
    shown = s.instant.span(a, b)
    by_readings = max(shown) - min(shown) if shown else 0.0
    first, last = max(0, ka - 1), min(len(s.hi_s), kb + 2)
    hi, joule, piece = np.array(s.hi_s[first:last]), np.array(s.joule[first:last]), np.array(s.piece[first:last])
    lo = np.array(s.lo_s[first:last])
    if not s.points:
        lo = np.maximum(lo, hi - u)
    same = np.diff(piece) == 0
    rise, doubt = np.diff(joule)[same], 0.5 * ((hi - lo)[1:] + (hi - lo)[:-1])[same]
    apart = np.diff(0.5 * (hi + lo))[same]
    sure = apart > doubt
    if not sure.any():
        return by_readings
    fastest = np.max(rise[sure] / (apart + doubt)[sure])
    slowest = np.min(rise[sure] / (apart - doubt)[sure])
    return max(by_readings, float(fastest - slowest))


def edge_step(s: Series, k: int, levels: float, mean: float, u: float) -> float:
    """How far the power level steps at the edge between ticks k and k + 1, W; 0 for a level that merely fluctuates.

    Where one side shows fewer than two tick intervals (the segment begins there, or nothing later was read yet) the
    step is not known, and the whole spread of levels is assumed.
    """
    n = max(2, round(EDGE_S / u))
    first, last = max(0, k - n), min(len(s.hi_s) - 1, k + 1 + n)
    if k - first < 2 or last - (k + 1) < 2 or s.piece[first] != s.piece[last]:
        return levels
    before = (s.joule[k] - s.joule[first]) / (tick(s, k, u)[0] - tick(s, first, u)[0])
    after = (s.joule[last] - s.joule[k + 1]) / (tick(s, last, u)[0] - tick(s, k + 1, u)[0])
    step = abs(after - before)
    return step if step > max(0.25 * levels, 0.05 * mean) else 0.0


def average_se(held: Held, a: float, b: float, u: float) -> float:
    """A mean over the last `BOXCAR_S` smears each edge: half of that length times the range of the mean around the window."""
    shown = held.span(a, b + BOXCAR_S + u)
    return 0.5 * (BOXCAR_S + u) * (max(shown) - min(shown)) if shown else 0.0


def instant_se(held: Held, a: float, b: float, u: float) -> float:
    """Looks of a part of each update: scatter of block means, J. Blind to a load locked to the update period."""
    t = np.arange(a + u / 2, b, u)
    w = np.array(held.w)[np.maximum(np.searchsorted(np.array(held.t_s), t, side="right") - 1, 0)]
    edges = (float(np.ptp(w)) if len(w) else 0.0) * u / math.sqrt(6)
    blocks = len(w) // BLOCK
    if blocks < 4:
        scatter = float(np.std(w)) * (b - a) if len(w) else 0.0
    else:
        means = w[: blocks * BLOCK].reshape(blocks, BLOCK).mean(axis=1)
        scatter = float(np.std(means, ddof=1)) * (b - a) / math.sqrt(blocks)
    return math.hypot(scatter, edges)
