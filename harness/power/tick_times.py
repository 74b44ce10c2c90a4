"""When the counter's ticks really happened: between the two polls that show one, or on a regular comb fitted through many.

A sensor that updates every u seconds puts its ticks on a line phi + k u. Each poll pair brackets its tick by a poll period; a
straight line through a hundred brackets knows them a tenth as badly. Where the line leaves any bracket the sensor keeps
no such time (jitter, a change of period), and the middle of the bracket stands. Pure functions of `Series`.
"""

from __future__ import annotations

import math

import numpy as np

from harness.power.series import Series

REACH = 64  # ticks on each side of the one asked for
LEAST = 8  # fewer well-bracketed ticks fit no line
SLACK = 4.0  # standard errors of the line by which it may pass outside a bracket


def tick(s: Series, k: int, u: float) -> tuple[float, float]:
    """Time of tick k and half-width of its bracket, s. After a late poll the tick shown is the last one, at most u old."""
    lo = s.lo_s[k] if s.points else max(s.lo_s[k], s.hi_s[k] - u)
    return 0.5 * (lo + s.hi_s[k]), 0.5 * (s.hi_s[k] - lo)


def times(s: Series, k: int, count: int, u: float) -> tuple[list[float], list[float]]:
    """Times of the ticks k … k + count - 1 and the standard error of each, s."""
    asked = [tick(s, i, u) for i in range(k, k + count)]
    plain = [t for t, _ in asked], [h / math.sqrt(3) for _, h in asked]
    if s.points:
        return plain
    line = _line(s, k, u)
    if line is None:
        return plain
    phase, period, centre, at_centre, per_tick = line
    found, errors = [0.0] * count, [0.0] * count
    following: int | None = None
    for i in reversed(range(count)):
        (t, half), n = asked[i], round((asked[i][0] - phase) / period)
        error = math.hypot(at_centre, per_tick * (n - centre))
        within = half + SLACK * error
        # Which tick of the line it was: one alone in the bracket, and not the one that the next bracket holds. After a late
        # poll a bracket is as long as the period, and two may fit: then the line does not tell.
        fits = [m for m in (n - 1, n, n + 1) if abs(phase + m * period - t) <= within and m != following]
        if len(fits) != 1:
            return plain
        following = fits[0]
        found[i], errors[i] = phase + following * period, error
    return found, errors


def _line(s: Series, k: int, u: float) -> tuple[float, float, float, float, float] | None:
    """Straight line through the ticks around k: phase, period, centre of the count, and the errors there and per tick away."""
    first, last = max(0, k - REACH), min(len(s.hi_s), k + REACH + 2)
    hi, lo = np.array(s.hi_s[first:last]), np.array(s.lo_s[first:last])
    half, middle = 0.5 * (hi - lo), 0.5 * (hi + lo)
    narrow = half <= 1.5 * np.median(half)
    if narrow.sum() < LEAST or u < 4 * float(np.median(half)):  # slower polls than ticks: a missed tick would go unseen
        return None
    half, middle = half[narrow], middle[narrow]
    n = np.concatenate([[0.0], np.cumsum(np.round(np.diff(middle) / u))])  # counted step by step: u is not exact
    weight = 1 / half**2
    centre = float(np.average(n, weights=weight))
    spread = float(np.sum(weight * (n - centre) ** 2))
    period = float(np.sum(weight * (n - centre) * middle) / spread)
    phase = float(np.average(middle, weights=weight)) - period * centre
    third = math.sqrt(1 / 3)  # a uniform bracket of half-width h has the standard deviation h / sqrt(3)
    at_centre, per_tick = third / math.sqrt(float(weight.sum())), third / math.sqrt(spread)
    if np.any(np.abs(phase + period * n - middle) > half + SLACK * np.hypot(at_centre, per_tick * (n - centre))):
        return None
    return phase, period, centre, at_centre, per_tick
