"""Parts of a window's standard error, and when ticks really happened, read from a card's `Series`: each pure. Composed in `estimate`.

A sensor that updates every u seconds puts its ticks on a line phi + k u. Each poll pair brackets its tick by a poll period; a
straight line through a hundred brackets knows them a tenth as badly. Where the line leaves any bracket the sensor keeps
no such time (jitter, a change of period), and the middle of the bracket stands.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

from harness.power.series import Held, Series

BOXCAR_S = 1.0  # length of the mean behind "average" on Ampere to Hopper
EDGE_S = 1.0  # how far beside an edge the power level is looked at
SUB_TICK = 0.44  # standard error of an edge is this share of the largest error that it can have; see `edge`
LOOK = 0.25  # of an update: how long after a tick its instant reading is surely shown
SHAPE_TICKS, LEAST_SHAPE = 64, 16  # ticks looked back at for `trust`, and the fewest that tell anything
FLAT = 0.01  # share of the mean below which a spread of power is none
LEVEL_FLOOR = 0.1  # high minus low is taken as at least this share of the mean: levels inside a tick are not seen
UNSEEN = 0.02  # share of the mean by which instant readings may miss the counter before a hidden level is assumed
BLOCK = 5  # readings per block in the standard error of an integral of instant power
REACH = 64  # ticks on each side of the one asked for
LEAST = 8  # fewer well-bracketed ticks fit no line
SLACK = 4.0  # standard errors of the line by which it may pass outside a bracket


def interpolate(s: Series, k: int, t: float, u: float) -> tuple[float, float, int, float]:
    """Counter at `t`, J, its standard error from when the ticks were seen, the tick before `t`, and the share of its interval gone by.

    `k` is that tick by the brackets of the polls; the comb may put `t` into the interval beside it.
    """
    first, last = max(0, k - 1), min(len(s.hi_s) - 1, k + 2)
    first = first if s.piece[first] == s.piece[k] else k
    last = last if s.piece[last] == s.piece[k] else k + 1
    t_s, se_s = tick_times(s, first, last - first + 1, u)
    i = min(max(bisect_right(t_s, t) - 1, 0), last - first - 1)
    length, rise = t_s[i + 1] - t_s[i], s.joule[first + i + 1] - s.joule[first + i]
    x, mean = (t - t_s[i]) / length, rise / length
    bend = 0.0
    before, after = s.instant.at(t_s[i] + LOOK * u), s.instant.at(t_s[i + 1] + LOOK * u)
    if before is not None and after is not None and 0 <= x <= 1:
        # Steeper ends would make the counter fall between them
        before, after = min(before, 3 * mean), min(after, 3 * mean)
        slopes = (x**3 - 2 * x**2 + x) * (before - mean) + (x**3 - x**2) * (after - mean)
        bend = trust(s, first + i, u) * length * slopes
    error = mean * math.hypot((1 - x) * se_s[i], x * se_s[i + 1])
    return s.joule[first + i] + x * rise + bend, error, first + i, min(max(x, 0.0), 1.0)


def trust(s: Series, k: int, u: float) -> float:
    """How far instant readings tell the shape of the power inside ticks, 0 to 1: their correlation with the counter.

    Over the ticks up to k: the mean of the readings at both ends of a tick interval against the counter's mean power in it.
    Readings that alias a fast load, or stand locked to it, do not follow the counter, and the line stays straight.
    """
    first = max(0, k - SHAPE_TICKS)
    if k - first < LEAST_SHAPE or s.piece[first] != s.piece[k] or not s.instant.w or not s.card.momentary:
        return 0.0
    lo, hi = np.array(s.lo_s[first : k + 1]), np.array(s.hi_s[first : k + 1])
    at = 0.5 * (np.maximum(lo, hi - u) + hi)
    counted = np.diff(np.array(s.joule[first : k + 1])) / np.diff(at)
    start = max(0, bisect_right(s.instant.t_s, at[0]) - 1)
    times, watts = np.array(s.instant.t_s[start:]), np.array(s.instant.w[start:])
    shown = watts[np.maximum(np.searchsorted(times, at + LOOK * u, side="right") - 1, 0)]
    ends = 0.5 * (shown[1:] + shown[:-1])
    if min(float(np.std(ends)), float(np.std(counted))) < FLAT * float(np.mean(counted)):
        return 0.0
    return max(0.0, float(np.corrcoef(counted, ends)[0, 1]))


def levels(s: Series, k: int, mean_w: float, u: float) -> tuple[float, float]:
    """Lowest and highest power within `EDGE_S` of the tick interval k, W: instant readings, and slopes of the counter.

    Instant readings that see a part of each update and are locked to the load show one level for ever. That their mean misses
    the counter's gives it away: then the hidden level may be anything from nothing to the card's limit. Readings that are means over a whole
    tick (Ada, old drivers) repeat the counter and show no level inside one: then half and one and a half times the mean are assumed.
    """
    n = max(2, round(EDGE_S / u))
    first, last = max(0, k - n), min(len(s.hi_s), k + 2 + n)
    hi, lo = np.array(s.hi_s[first:last]), np.array(s.lo_s[first:last])
    joule, piece = np.array(s.joule[first:last]), np.array(s.piece[first:last])
    if not s.points:
        lo = np.maximum(lo, hi - u)
    same = np.diff(piece) == 0
    rise, doubt = np.diff(joule)[same], 0.5 * ((hi - lo)[1:] + (hi - lo)[:-1])[same]
    apart = np.diff(0.5 * (hi + lo))[same]
    sure = apart > doubt
    low = high = mean_w
    if sure.any():  # the fastest and the slowest slope that the brackets leave no doubt of
        low = min(low, float(np.min(rise[sure] / (apart - doubt)[sure])))
        high = max(high, float(np.max(rise[sure] / (apart + doubt)[sure])))
    shown = np.array(s.instant.span(float(hi[0]), float(hi[-1])))
    if len(shown) == 0 or not s.card.momentary or _tell_nothing(s, hi[1:][same], rise / apart, mean_w, u):
        return min(low, 0.5 * mean_w), max(high, 1.5 * mean_w)
    low, high = min(low, float(shown.min())), max(high, float(shown.max()))
    looks = s.instant.integral(float(hi[0]), float(hi[-1]))
    if looks is not None and same.all() and hi[-1] > hi[0]:
        counted = float(joule[-1] - joule[0]) / float(hi[-1] - hi[0])
        miss = looks / float(hi[-1] - hi[0]) - counted
        if abs(miss) > UNSEEN * counted + 3 * float(shown.std()) / math.sqrt(len(shown)):
            return (low, max(high, s.card.limit_w or 3 * counted)) if miss < 0 else (0.0, high)
    return low, high


def _tell_nothing(s: Series, ticks: np.ndarray, counted_w: np.ndarray, mean_w: float, u: float) -> bool:
    """Whether the readings after `ticks` are what the counter says of the tick intervals before them, as far as polls tell."""
    shown = [s.instant.at(float(t) + LOOK * u) for t in ticks]
    apart = [abs(w - c) for w, c in zip(shown, counted_w, strict=True) if w is not None]
    return not apart or float(np.median(apart)) < LEVEL_FLOOR * mean_w


def edge(s: Series, k: int, x: float, mean_w: float, u: float) -> tuple[float, float]:
    """Error of the interpolation at share `x` of the interval between ticks k and k + 1, J: one sigma, and the bias of a cold edge.

    A power that changes once between two levels dP apart, anywhere inside the interval: a straight line errs by at most dP u x (1 - x), and by
    1/sqrt(3) = 0.58 of that rms; at a tick it is exact. The sum of two such bounded errors has shorter tails than a normal one, and instant readings
    bend the line, so that 1.96 x 0.44 of the bound holds 95 % (fitted on seeds that scripts/bench/meter, which judges it, does not use).
    """
    length = tick(s, k + 1, u)[0] - tick(s, k, u)[0]
    low, high = levels(s, k, mean_w, u)
    between = max(high - low, LEVEL_FLOOR * mean_w)
    return SUB_TICK * between * length * x * (1 - x), edge_step(s, k, between, mean_w, u) * length / 6


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


def shortfall(s: Series, k: int, x: float, u: float, end: bool) -> float:
    """How much a window reads low by a straight line, J, if power steps just at its edge, at share `x` of the tick interval k: dP u x (1 - x).

    From two ticks on each side, so that short pauses show; where no later tick was read yet, from the instant reading after it, and
    without one the step down is taken as the whole of the power. Negative where there is less power inside than outside.
    """
    t, first, last = [tick(s, k, u)[0], tick(s, k + 1, u)[0]], max(0, k - 2), min(len(s.hi_s) - 1, k + 3)
    if first == k or s.piece[first] != s.piece[last]:
        return 0.0
    before = (s.joule[k] - s.joule[first]) / (t[0] - tick(s, first, u)[0])
    if last > k + 1:
        after = (s.joule[last] - s.joule[k + 1]) / (tick(s, last, u)[0] - t[1])
    else:
        after = s.instant.at(t[1] + LOOK * u) or 0.0
    return (before - after if end else after - before) * (t[1] - t[0]) * x * (1 - x)


def average_se(held: Held, a: float, b: float, u: float) -> float:
    """A mean over the last `BOXCAR_S` smears each edge: half of that length times the range of the mean around the window."""
    shown = held.span(a, b + BOXCAR_S + u)
    return 0.5 * (BOXCAR_S + u) * (max(shown) - min(shown)) if shown else 0.0


def instant_se(held: Held, a: float, b: float, u: float) -> float:
    """Looks of a part of each update: scatter of block means, J. Blind to a load locked to the update period."""
    t = np.arange(a + u / 2, b, u)
    w = np.array(held.w)[np.maximum(np.searchsorted(np.array(held.t_s), t, side="right") - 1, 0)]
    # A level that begins just after the last reading inside is not among `w`
    around = held.span(a - EDGE_S, b + EDGE_S)
    edges = (max(around) - min(around) if around else 0.0) * u / math.sqrt(6)
    blocks = len(w) // BLOCK
    if blocks < 4:
        scatter = float(np.std(w)) * (b - a) if len(w) else 0.0
    else:
        means = w[: blocks * BLOCK].reshape(blocks, BLOCK).mean(axis=1)
        scatter = float(np.std(means, ddof=1)) * (b - a) / math.sqrt(blocks)
    return math.hypot(scatter, edges)


# --- when ticks happened ---------------------------------------------------------------------------------------------------
def tick(s: Series, k: int, u: float) -> tuple[float, float]:
    """Time of tick k and half-width of its bracket, s. After a late poll the tick shown is the last one, at most u old."""
    lo = s.lo_s[k] if s.points else max(s.lo_s[k], s.hi_s[k] - u)
    return 0.5 * (lo + s.hi_s[k]), 0.5 * (s.hi_s[k] - lo)


def tick_times(s: Series, k: int, count: int, u: float) -> tuple[list[float], list[float]]:
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
