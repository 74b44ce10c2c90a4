"""Parts of a window's standard error, and the times of ticks, from a card's `Series`. Pure;
`estimate` combines them.

A sensor that updates every u seconds (`tick_s`) puts its ticks on a line phi + k u. Two polls
bracket each tick by a poll period; a straight line through a hundred brackets reduces that error to
a tenth. Where the line leaves a bracket the sensor keeps no such time (jitter, a change of period),
and the middle of the bracket is used.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

from harness.power.series import Series, StepFunction

BOXCAR_S = 1.0  # length of the mean behind "average" on Ampere to Hopper
EDGE_S = 1.0  # on each side of an edge, where the power level is read
EDGE_ERROR_SHARE = 0.44  # standard error of an edge over its largest possible error; see `edge`
# of an update: delay after a tick at which its instant reading is certainly shown
SHOWN_AFTER = 0.25
MAX_SHAPE_TICKS, MIN_SHAPE_TICKS = 64, 16  # ticks before an edge that `trust` uses
MIN_RELATIVE_SPREAD = 0.01  # share of the mean; a smaller spread of power counts as none
# share of the mean: smallest spread of levels, because those inside a tick are not seen
MIN_LEVEL_SPREAD = 0.1
# share of the mean: a larger difference between instant readings and counter means a hidden level
MAX_RELATIVE_MISS = 0.02
BLOCK_READINGS = 5  # readings per block in the standard error of an integral of instant power
MAX_LINE_TICKS = 64  # on each side of the tick in question
MIN_LINE_TICKS = 8  # well-bracketed ticks that a line needs
MAX_LINE_DEVIATION = 4.0  # standard errors by which the line may pass outside a bracket


def interpolate(series: Series, k: int, t: float, tick_s: float) -> tuple[float, float, int, float]:
    """The counter at time `t`: value (J), standard error from the times of the ticks (J), the tick
    before `t`, and the share of the tick interval that has passed at `t`.

    `k` is that tick by the brackets of the polls; the line of ticks may put `t` into the
    neighbouring interval.
    """
    first, last = max(0, k - 1), min(len(series.hi_s) - 1, k + 2)
    first = first if series.piece[first] == series.piece[k] else k
    last = last if series.piece[last] == series.piece[k] else k + 1
    t_s, se_s = tick_times(series, first, last - first + 1, tick_s)
    i = min(max(bisect_right(t_s, t) - 1, 0), last - first - 1)
    length, rise = t_s[i + 1] - t_s[i], series.joule[first + i + 1] - series.joule[first + i]
    x, mean = (t - t_s[i]) / length, rise / length
    bend = 0.0
    before, after = (
        series.instant.at(t_s[i] + SHOWN_AFTER * tick_s),
        series.instant.at(t_s[i + 1] + SHOWN_AFTER * tick_s),
    )
    if before is not None and after is not None and 0 <= x <= 1:
        # Steeper ends would make the counter fall between them
        before, after = min(before, 3 * mean), min(after, 3 * mean)
        slopes = (x**3 - 2 * x**2 + x) * (before - mean) + (x**3 - x**2) * (after - mean)
        bend = trust(series, first + i, tick_s) * length * slopes
    error = mean * math.hypot((1 - x) * se_s[i], x * se_s[i + 1])
    return series.joule[first + i] + x * rise + bend, error, first + i, min(max(x, 0.0), 1.0)


def trust(series: Series, k: int, tick_s: float) -> float:
    """How well instant readings show the shape of the power inside ticks, 0 to 1: their correlation
    with the counter.

    For the ticks up to k it compares the mean of the readings at both ends of a tick interval with
    the counter's mean power in it. Readings that alias a fast load, or are locked to it, do not
    follow the counter; the line then stays straight.
    """
    first = max(0, k - MAX_SHAPE_TICKS)
    if (
        k - first < MIN_SHAPE_TICKS
        or series.piece[first] != series.piece[k]
        or not series.instant.w
        or not series.card.momentary
    ):
        return 0.0
    lo, hi = np.array(series.lo_s[first : k + 1]), np.array(series.hi_s[first : k + 1])
    tick_times_s = 0.5 * (np.maximum(lo, hi - tick_s) + hi)
    counted = np.diff(np.array(series.joule[first : k + 1])) / np.diff(tick_times_s)
    start = max(0, bisect_right(series.instant.t_s, tick_times_s[0]) - 1)
    times, watts = np.array(series.instant.t_s[start:]), np.array(series.instant.w[start:])
    shown = watts[np.maximum(np.searchsorted(times, tick_times_s + SHOWN_AFTER * tick_s, side="right") - 1, 0)]
    mean_shown = 0.5 * (shown[1:] + shown[:-1])
    if min(float(np.std(mean_shown)), float(np.std(counted))) < MIN_RELATIVE_SPREAD * float(np.mean(counted)):
        return 0.0
    return max(0.0, float(np.corrcoef(counted, mean_shown)[0, 1]))


def levels(series: Series, k: int, mean_w: float, tick_s: float) -> tuple[float, float]:
    """Lowest and highest power within `EDGE_S` of the tick interval k, W, from instant readings and
    slopes of the counter.

    Instant readings that see only a part of each update and are locked to the load always show one
    level. Their mean then differs from the counter's, and the hidden level may lie anywhere between
    0 and the card's limit. Readings that are means over a whole tick (Ada, old drivers) repeat the
    counter and show no level inside a tick; half and one and a half times the mean are assumed for
    them.
    """
    n = max(2, round(EDGE_S / tick_s))
    first, last = max(0, k - n), min(len(series.hi_s), k + 2 + n)
    hi, lo = np.array(series.hi_s[first:last]), np.array(series.lo_s[first:last])
    joule, piece = np.array(series.joule[first:last]), np.array(series.piece[first:last])
    if not series.points:
        lo = np.maximum(lo, hi - tick_s)
    same = np.diff(piece) == 0
    rise, doubt = np.diff(joule)[same], 0.5 * ((hi - lo)[1:] + (hi - lo)[:-1])[same]
    apart = np.diff(0.5 * (hi + lo))[same]
    sure = apart > doubt
    low = high = mean_w
    if sure.any():  # the fastest and the slowest slope that the brackets guarantee
        low = min(low, float(np.min(rise[sure] / (apart - doubt)[sure])))
        high = max(high, float(np.max(rise[sure] / (apart + doubt)[sure])))
    shown = np.array(series.instant.span(float(hi[0]), float(hi[-1])))
    if (
        len(shown) == 0
        or not series.card.momentary
        or _tell_nothing(series, hi[1:][same], rise / apart, mean_w, tick_s)
    ):
        return min(low, 0.5 * mean_w), max(high, 1.5 * mean_w)
    low, high = min(low, float(shown.min())), max(high, float(shown.max()))
    looks = series.instant.integral(float(hi[0]), float(hi[-1]))
    if looks is not None and same.all() and hi[-1] > hi[0]:
        counted = float(joule[-1] - joule[0]) / float(hi[-1] - hi[0])
        miss = looks / float(hi[-1] - hi[0]) - counted
        if abs(miss) > MAX_RELATIVE_MISS * counted + 3 * float(shown.std()) / math.sqrt(len(shown)):
            return (low, max(high, series.card.limit_w or 3 * counted)) if miss < 0 else (0.0, high)
    return low, high


def _tell_nothing(series: Series, ticks: np.ndarray, counted_w: np.ndarray, mean_w: float, tick_s: float) -> bool:
    """Whether the readings after `ticks` merely repeat the counter's mean power in the tick
    intervals before them."""
    shown = [series.instant.at(float(t) + SHOWN_AFTER * tick_s) for t in ticks]
    apart = [abs(w - c) for w, c in zip(shown, counted_w, strict=True) if w is not None]
    return not apart or float(np.median(apart)) < MIN_LEVEL_SPREAD * mean_w


def edge(series: Series, k: int, x: float, mean_w: float, tick_s: float) -> tuple[float, float]:
    """Error of the interpolation at share `x` of the interval between ticks k and k + 1: one sigma,
    and the bias of a cold edge, J.

    Assume a power that changes once, between two levels dP apart, anywhere inside the interval. A
    straight line then errs by at most dP u x (1 - x), and by 1/sqrt(3) = 0.58 of that in the root
    mean square; at a tick it is exact. The sum of two such bounded errors has shorter tails than a
    normal one, and instant readings bend the line, so that 1.96 x 0.44 of the bound covers 95 %.
    The factor 0.44 was fitted on other seeds than those with which scripts/bench/meter judges it.
    """
    length = tick(series, k + 1, tick_s)[0] - tick(series, k, tick_s)[0]
    low, high = levels(series, k, mean_w, tick_s)
    between = max(high - low, MIN_LEVEL_SPREAD * mean_w)
    return EDGE_ERROR_SHARE * between * length * x * (1 - x), edge_step(series, k, between, mean_w, tick_s) * length / 6


def edge_step(series: Series, k: int, levels: float, mean: float, tick_s: float) -> float:
    """Size of the step in power at the edge between ticks k and k + 1, W; 0 for a level that merely
    fluctuates.

    The step is unknown where a side has fewer than two tick intervals (the segment begins there, or
    nothing later has been read); the whole spread of levels is then assumed.
    """
    n = max(2, round(EDGE_S / tick_s))
    first, last = max(0, k - n), min(len(series.hi_s) - 1, k + 1 + n)
    if k - first < 2 or last - (k + 1) < 2 or series.piece[first] != series.piece[last]:
        return levels
    before = (series.joule[k] - series.joule[first]) / (tick(series, k, tick_s)[0] - tick(series, first, tick_s)[0])
    after = (series.joule[last] - series.joule[k + 1]) / (
        tick(series, last, tick_s)[0] - tick(series, k + 1, tick_s)[0]
    )
    step = abs(after - before)
    return step if step > max(0.25 * levels, 0.05 * mean) else 0.0


def shortfall(series: Series, k: int, x: float, tick_s: float, end: bool) -> float:
    """How much a straight line underestimates a window, J, if power steps exactly at its edge: dP
    u x (1 - x), where the edge lies at share `x` of the tick interval k.

    dP comes from two ticks on each side, so that short pauses count. Where no later tick has been
    read it comes from the next instant reading; without one the power is taken to step down to 0.
    Negative where power is lower inside than outside.
    """
    t, first, last = (
        [tick(series, k, tick_s)[0], tick(series, k + 1, tick_s)[0]],
        max(0, k - 2),
        min(len(series.hi_s) - 1, k + 3),
    )
    if first == k or series.piece[first] != series.piece[last]:
        return 0.0
    before = (series.joule[k] - series.joule[first]) / (t[0] - tick(series, first, tick_s)[0])
    if last > k + 1:
        after = (series.joule[last] - series.joule[k + 1]) / (tick(series, last, tick_s)[0] - t[1])
    else:
        after = series.instant.at(t[1] + SHOWN_AFTER * tick_s) or 0.0
    return (before - after if end else after - before) * (t[1] - t[0]) * x * (1 - x)


def average_se(reading: StepFunction, start_s: float, end_s: float, update_s: float) -> float:
    """Standard error of an integral of average power, J: a mean over the last `BOXCAR_S` smears
    each edge.

    Half of that length times the range of the mean around the window.
    """
    shown = reading.span(start_s, end_s + BOXCAR_S + update_s)
    return 0.5 * (BOXCAR_S + update_s) * (max(shown) - min(shown)) if shown else 0.0


def instant_se(reading: StepFunction, start_s: float, end_s: float, update_s: float) -> float:
    """Standard error of an integral of instant power, J: the scatter of block means. Blind to a
    load locked to the updates."""
    t = np.arange(start_s + update_s / 2, end_s, update_s)
    w = np.array(reading.w)[np.maximum(np.searchsorted(np.array(reading.t_s), t, side="right") - 1, 0)]
    # A level that begins just after the last reading inside is not among `w`
    around = reading.span(start_s - EDGE_S, end_s + EDGE_S)
    edges = (max(around) - min(around) if around else 0.0) * update_s / math.sqrt(6)
    blocks = len(w) // BLOCK_READINGS
    if blocks < 4:
        scatter = float(np.std(w)) * (end_s - start_s) if len(w) else 0.0
    else:
        means = w[: blocks * BLOCK_READINGS].reshape(blocks, BLOCK_READINGS).mean(axis=1)
        scatter = float(np.std(means, ddof=1)) * (end_s - start_s) / math.sqrt(blocks)
    return math.hypot(scatter, edges)


# --- when ticks happened
def tick(series: Series, k: int, tick_s: float) -> tuple[float, float]:
    """Time of tick k and half-width of its bracket, s. After a late poll the tick shown is the last
    one, at most `tick_s` old."""
    lo = series.lo_s[k] if series.points else max(series.lo_s[k], series.hi_s[k] - tick_s)
    return 0.5 * (lo + series.hi_s[k]), 0.5 * (series.hi_s[k] - lo)


def tick_times(series: Series, k: int, count: int, tick_s: float) -> tuple[list[float], list[float]]:
    """Times of the ticks k … k + count - 1 and the standard error of each, s."""
    brackets = [tick(series, i, tick_s) for i in range(k, k + count)]
    bracketed = [t for t, _ in brackets], [h / math.sqrt(3) for _, h in brackets]
    if series.points:
        return bracketed
    line = _line(series, k, tick_s)
    if line is None:
        return bracketed
    phase, period, centre, at_centre, per_tick = line
    times, errors = [0.0] * count, [0.0] * count
    following: int | None = None
    for i in reversed(range(count)):
        (t, half), n = brackets[i], round((brackets[i][0] - phase) / period)
        error = math.hypot(at_centre, per_tick * (n - centre))
        within = half + MAX_LINE_DEVIATION * error
        # The tick of the line that lies in this bracket, unless it belongs to the next one. After a
        # late poll a bracket is as long as the period and two ticks may fit: then the line does not
        # decide.
        fits = [m for m in (n - 1, n, n + 1) if abs(phase + m * period - t) <= within and m != following]
        if len(fits) != 1:
            return bracketed
        following = fits[0]
        times[i], errors[i] = phase + following * period, error
    return times, errors


def _line(series: Series, k: int, tick_s: float) -> tuple[float, float, float, float, float] | None:
    """Straight line through the ticks around k: phase, period, centre of the count, and the errors
    there and per tick away."""
    first, last = max(0, k - MAX_LINE_TICKS), min(len(series.hi_s), k + MAX_LINE_TICKS + 2)
    hi, lo = np.array(series.hi_s[first:last]), np.array(series.lo_s[first:last])
    half, middle = 0.5 * (hi - lo), 0.5 * (hi + lo)
    narrow = half <= 1.5 * np.median(half)
    if narrow.sum() < MIN_LINE_TICKS or tick_s < 4 * float(
        np.median(half)
    ):  # slower polls than ticks: a missed tick would stay unnoticed
        return None
    half, middle = half[narrow], middle[narrow]
    n = np.concatenate(
        [[0.0], np.cumsum(np.round(np.diff(middle) / tick_s))]
    )  # counted step by step: tick_s is not exact
    weight = 1 / half**2
    centre = float(np.average(n, weights=weight))
    spread = float(np.sum(weight * (n - centre) ** 2))
    period = float(np.sum(weight * (n - centre) * middle) / spread)
    phase = float(np.average(middle, weights=weight)) - period * centre
    # a uniform bracket of half-width h has the standard deviation h / sqrt(3)
    third = math.sqrt(1 / 3)
    at_centre, per_tick = third / math.sqrt(float(weight.sum())), third / math.sqrt(spread)
    if np.any(
        np.abs(phase + period * n - middle) > half + MAX_LINE_DEVIATION * np.hypot(at_centre, per_tick * (n - centre))
    ):
        return None
    return phase, period, centre, at_centre, per_tick
