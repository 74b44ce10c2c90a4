"""Checks of a card's joules: agreement of its sources, drift of power, steps in time with the
sensor. Pure.

No check changes the value; each may add a code and its evidence to a `CardWindow`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.power import errorbar, interference
from harness.power.series import Series

MAX_DIFFERENCE = 0.03  # relative, between two sources
MIN_CHECKED_S = 5.0  # shorter windows are not cross-checked
MAX_DRIFT = 0.03  # relative, between the power of the first and the last third of a window
# of an update: the part that an instant reading sees at least (H100, A100: 25 of 100 ms)
MIN_LOOK_SHARE = 0.25
MIN_COVERAGE = 0.9  # share of a step that instant readings must see
MIN_STEPS = 5  # in a window that is checked for them


@dataclass
class CardWindow:
    """One card over one window: its joules, their parts, and the checks of them."""

    energy_j: float | None = None
    se_j: float | None = None
    edge_j: float = 0.0  # expected underestimate at its edges: adds up over windows, unlike `se_j`
    source: str | None = None
    codes: list[str] = field(default_factory=list)
    reason: str | None = None
    duration_s: float = 0.0
    e2_j: float | None = None  # integral of instant power
    e3_j: float | None = None  # integral of average power
    r2: float | None = None  # (E1 - E2) / E1
    r3: float | None = None
    # evidence of codes that rest on looks, `interference.judge`
    notes: list[str] = field(default_factory=list)
    ticks: int = 0
    tick_period_s: float | None = None


def cross_check(series: Series, start_s: float, end_s: float, tick_s: float, out: CardWindow) -> None:
    """Compare the integrals of instant (E2) and average power (E3) with the counter (E1).

    Agreement shows that one sensor is consistent, not that it is right. Instant readings miss most
    of the time on some cards, so a load locked to them makes E2 wrong while E1 and E3 are right; E3
    decides where the card has it.
    """
    assert out.energy_j is not None
    assert out.se_j is not None
    out.e2_j, out.e3_j = (
        reading.integral(start_s, end_s) if reading.reads.whole(start_s, end_s, 5 * tick_s) else None
        for reading in (series.instant, series.average)
    )
    if out.energy_j <= 0:
        return
    limits: list[tuple[float, float]] = []
    if out.e2_j is not None:
        out.r2 = 1 - out.e2_j / out.energy_j
        limits = [(out.r2, errorbar.instant_se(series.instant, start_s, end_s, tick_s))]
    if out.e3_j is not None:
        out.r3 = 1 - out.e3_j / out.energy_j
        limits = [(out.r3, errorbar.average_se(series.average, start_s, end_s, tick_s))]
    for r, se in limits:
        if end_s - start_s >= MIN_CHECKED_S and abs(r) > max(
            MAX_DIFFERENCE, 3 * math.hypot(out.se_j, se) / out.energy_j
        ):
            out.codes.append("SOURCES_DISAGREE")


def stationary(
    series: Series, start_s: float, end_s: float, out: CardWindow, value: Callable[[float, float], float | None]
) -> None:
    """NOT_STATIONARY where the mean power of the first and last third differ by more than 3 % and
    three standard errors.

    `value(start_s, end_s)`: joules of a part of the window.
    """
    if end_s - start_s < MIN_CHECKED_S or not out.energy_j or out.se_j is None:
        return
    third = (end_s - start_s) / 3
    thirds_j = [value(t, t + third) for t in (start_s, end_s - third)]
    if thirds_j[0] is None or thirds_j[1] is None:
        return
    if abs(thirds_j[1] - thirds_j[0]) > max(MAX_DRIFT * out.energy_j / 3, 3 * math.sqrt(2) * out.se_j):
        out.codes = [*out.codes, "NOT_STATIONARY"]
        out.notes.append(
            f"NOT_STATIONARY: {thirds_j[0] / third:.4g} W in the first third, {thirds_j[1] / third:.4g} W in the last"
        )


def phase_lock(series: Series, start_s: float, end_s: float, step_s: float, out: CardWindow) -> None:
    """PHASE_LOCK where instant readings would see under 90 % of a step, if all steps are alike; E2
    is then no check."""
    tick_s = out.tick_period_s
    if tick_s is None or out.ticks < 3:
        return
    i, j = bisect_left(series.hi_s, start_s), bisect_right(series.hi_s, end_s)
    # the period over the whole window, which the median of single spacings knows too roughly
    if j - i > 2:
        tick_s = (series.hi_s[j - 1] - series.hi_s[i]) / (j - 1 - i)
    look_s = series.look_s if series.look_s is not None else MIN_LOOK_SHARE * tick_s
    if look_s >= 0.99 * tick_s or out.ticks * look_s < step_s or end_s - start_s < MIN_STEPS * step_s:
        return
    seen = interference.phase_coverage(out.ticks, tick_s, look_s, step_s)
    if seen < MIN_COVERAGE:
        assumed = "" if series.look_s is not None else ", assumed: no sensor card"
        out.codes = [c for c in [*out.codes, "PHASE_LOCK"] if c != "SOURCES_DISAGREE"]
        out.notes.append(
            f"PHASE_LOCK: readings of {look_s * 1e3:.3g} ms{assumed} each {tick_s * 1e3:.4g} ms see {seen:.0%} of steps of {step_s * 1e3:.4g} ms"
        )
        out.e2_j = out.r2 = None
