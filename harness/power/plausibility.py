"""What stands beside a card's joules: cross-checks of its sources, drift of power, steps that keep time with the sensor. Pure.

None of these changes the value; each may add a code and the evidence for it to a `CardWindow`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.power import errorbar, interference
from harness.power.series import Series

DISAGREE = 0.03  # relative difference of two sources that needs a word
CHECK_FROM_S = 5.0  # shorter windows: the cross-check says nothing
DRIFT = 0.03  # relative difference of the power of a window's first and last third that needs a word
SHORTEST_LOOK = 0.25  # of an update: what instant readings are known to see at least (H100, A100: 25 of 100 ms)
PHASES_SEEN = 0.9
LEAST_STEPS = 5  # fewer steps repeat nothing


@dataclass
class CardWindow:
    """One card over one window: the value, what it is made of, and what stands beside it."""

    energy_j: float | None = None
    se_j: float | None = None
    edge_j: float = 0.0  # how much it is expected to read low at its edges: adds up over windows, unlike `se_j`
    source: str | None = None
    codes: list[str] = field(default_factory=list)
    reason: str | None = None
    duration_s: float = 0.0
    e2_j: float | None = None  # integral of instant power
    e3_j: float | None = None  # integral of average power
    r2: float | None = None  # (E1 - E2) / E1
    r3: float | None = None
    notes: list[str] = field(default_factory=list)  # evidence of codes that rest on looks, `watch.judge`
    ticks: int = 0
    tick_period_s: float | None = None


def cross_check(s: Series, a: float, b: float, u: float, out: CardWindow) -> None:
    """Set E2, E3 beside E1. Agreement shows consistency of one sensor, no truth.

    Instant readings miss most of the time on some cards, so a load locked to them makes E2 wrong while E1 and E3 are right:
    the average decides where there is one.
    """
    assert out.energy_j is not None
    assert out.se_j is not None
    out.e2_j, out.e3_j = (
        held.integral(a, b) if held.reads.whole(a, b, 5 * u) else None for held in (s.instant, s.average)
    )
    if out.energy_j <= 0:
        return
    limits: list[tuple[float, float]] = []
    if out.e2_j is not None:
        out.r2 = 1 - out.e2_j / out.energy_j
        limits = [(out.r2, errorbar.instant_se(s.instant, a, b, u))]
    if out.e3_j is not None:
        out.r3 = 1 - out.e3_j / out.energy_j
        limits = [(out.r3, errorbar.average_se(s.average, a, b, u))]
    for r, se in limits:
        if b - a >= CHECK_FROM_S and abs(r) > max(DISAGREE, 3 * math.hypot(out.se_j, se) / out.energy_j):
            out.codes.append("SOURCES_DISAGREE")


def stationary(s: Series, a: float, b: float, out: CardWindow, value: Callable[[float, float], float | None]) -> None:
    """NOT_STATIONARY where the mean power of the first and last third differ by more than 3 % and three standard errors.

    `value(a, b)`: joules of a part of the window.
    """
    if b - a < CHECK_FROM_S or not out.energy_j or out.se_j is None:
        return
    third = (b - a) / 3
    ends = [value(t, t + third) for t in (a, b - third)]
    if ends[0] is None or ends[1] is None:
        return
    if abs(ends[1] - ends[0]) > max(DRIFT * out.energy_j / 3, 3 * math.sqrt(2) * out.se_j):
        out.codes = [*out.codes, "NOT_STATIONARY"]
        out.notes.append(
            f"NOT_STATIONARY: {ends[0] / third:.4g} W in the first third, {ends[1] / third:.4g} W in the last"
        )


def phase_lock(s: Series, a: float, b: float, step_s: float, out: CardWindow) -> None:
    """PHASE_LOCK where instant readings, all steps alike, would see under 90 % of a step; their integral is then no check."""
    u = out.tick_period_s
    if u is None or out.ticks < 3:
        return
    i, j = bisect_left(s.hi_s, a), bisect_right(s.hi_s, b)
    if j - i > 2:  # the period over the whole window, which the median of single spacings knows too roughly
        u = (s.hi_s[j - 1] - s.hi_s[i]) / (j - 1 - i)
    look_s = s.look_s if s.look_s is not None else SHORTEST_LOOK * u
    if look_s >= 0.99 * u or out.ticks * look_s < step_s or b - a < LEAST_STEPS * step_s:
        return
    seen = interference.phase_coverage(out.ticks, u, look_s, step_s)
    if seen < PHASES_SEEN:
        assumed = "" if s.look_s is not None else ", assumed: no sensor card"
        out.codes = [c for c in [*out.codes, "PHASE_LOCK"] if c != "SOURCES_DISAGREE"]
        out.notes.append(
            f"PHASE_LOCK: readings of {look_s * 1e3:.3g} ms{assumed} each {u * 1e3:.4g} ms see {seen:.0%} of steps of {step_s * 1e3:.4g} ms"
        )
        out.e2_j = out.r2 = None
