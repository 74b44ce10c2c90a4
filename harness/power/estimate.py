"""Joules of a window from the ticks of a counter, with a standard error and reason codes. Pure.

Value (E1): the counter, interpolated between the two ticks around each edge, so that no edge is
rounded to a tick. The times of the ticks come from a line through many of them
(`errorbar.tick_times`). The interpolation is bent towards the instant readings at its ends as far
as these follow the counter (`errorbar.trust`). Integrals of instant (E2) and average power (E3) are
compared with E1 and never mixed into it; they replace it only where a card has no counter.

Standard error, J, one sigma, with u the tick interval, x the share of it that has passed at the
edge, P the mean power and dP the spread of power around the edge:

    sub-tick   0.44 dP u x (1 - x) per edge
    ticks      P dt per edge; dt: standard error of the line, or of a tick's bracket without a line
    cold edge  (u_a step_a + u_b step_b) / 6: the bias where power steps at an edge, as an allowance

A sum of windows or cards adds these errors in quadrature, and the sum of the expected
underestimates at the edges (`errorbar.shortfall`): where every window begins and ends with a step
in power, that error has one sign and does not shrink as windows are added. The gain of the card
(about 5 % until calibrated) is common to all its windows and is not in the standard error. Unknown:
whether the counter samples or integrates inside a tick, and its latency; both are properties of the
card.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import replace

from harness import records
from harness.power import errorbar, interference, plausibility, reason_codes
from harness.power.plausibility import CardWindow
from harness.power.series import Series

DEFAULT_TICK_S = 0.1  # until three ticks were seen
UPDATE_ERROR_SHARE = 0.1  # without a counter: error of one update, as a share of the mean power
Z95 = 1.96
MAX_NOTES = 12


def window(
    series: list[Series], start_ns: int, end_ns: int, tolerance: float, ended: bool = False, step_s: float | None = None
) -> tuple[records.Measured, list[CardWindow]]:
    """Energy of all cards from `start_ns` to `end_ns` (CLOCK_MONOTONIC), and each card's part.

    `ended`: the sampler writes no more. `step_s`: mean length of the training steps inside, where
    there are any.

    A window that is merely too short for `tolerance` keeps its joules and error with the code
    WINDOW_TOO_SHORT and the verdict invalid: parts of a sum may be short when the sum is not
    (`total` judges that again).
    """
    parts = [card_window(s, s.time_s(start_ns), s.time_s(end_ns), ended, step_s) for s in series]
    return combine(parts, tolerance), parts


def combine(parts: list[CardWindow], tolerance: float) -> records.Measured:
    """Cards of one window added up: joules, standard errors (`_summed_se`), union of codes."""
    codes = _union(c for p in parts for c in p.codes)
    source = "+".join(_union(p.source for p in parts if p.source)) or None
    notes = _union(n for p in parts for n in p.notes)
    missing = [p for p in parts if p.energy_j is None]
    if missing:
        reason = missing[0].reason or "no reading"
        return records.Measured(source=source, verdict="invalid", codes=codes, reason=reason, notes=notes)
    energy = math.fsum(p.energy_j or 0.0 for p in parts)
    se, edge = _summed_se([(p.se_j or 0.0, p.edge_j) for p in parts])
    duration = parts[0].duration_s
    mean_w = energy / duration if duration > 0 else None
    out = records.Measured(energy, se, edge, power_w=mean_w, source=source, codes=codes, notes=notes)
    return _judge(out, tolerance)


def net(measured: records.Measured, idle_w: float | None, seconds: float) -> records.Measured:
    """A copy with `energy_net_j`, the joules minus `idle_w` over the window; unchanged where either
    is unknown."""
    if measured.energy_j is None or idle_w is None:
        return measured
    return replace(measured, energy_net_j=measured.energy_j - idle_w * seconds, idle_power_w=idle_w)


def total(parts: list[records.Measured], tolerance: float = 0.03) -> records.Measured:
    """Sum of windows. Joules are None if any part's are; errors by `_summed_se`; codes united; the
    worst verdict.

    Short windows are judged again as a sum: WINDOW_TOO_SHORT stays only if 1.96 standard errors of
    the sum exceed `tolerance`.
    """
    if not parts:
        return records.Measured(reason="no window was measured")
    codes = _union(c for p in parts for c in p.codes)
    source = "+".join(_union(p.source for p in parts if p.source)) or None
    missing = [p for p in parts if p.energy_j is None]
    if missing:
        alike = len({p.reason for p in missing}) == 1  # a common cause is reported once
        more = "" if alike else f" (and {len(missing) - 1} more of {len(parts)} windows)"
        verdict = reason_codes.worst(p.verdict for p in parts)
        reason = f"{missing[0].reason}{more}"
        return records.Measured(source=source, verdict=verdict, codes=codes, reason=reason, notes=_notes(parts))
    energy = math.fsum(p.energy_j or 0.0 for p in parts)
    se, edge = _summed_se([(p.energy_se_j or 0.0, p.energy_edge_j or 0.0) for p in parts])
    seconds = [p.energy_j / p.power_w for p in parts if p.energy_j and p.power_w]
    timed = math.fsum(seconds) if len(seconds) == sum(1 for p in parts if p.energy_j) else 0.0
    net = [p.energy_net_j for p in parts if p.energy_net_j is not None]
    out = records.Measured(
        energy_j=energy,
        energy_se_j=se,
        energy_edge_j=edge,
        energy_net_j=math.fsum(net) if len(net) == len(parts) else None,
        idle_power_w=parts[0].idle_power_w if len({p.idle_power_w for p in parts}) == 1 else None,
        power_w=energy / timed if timed > 0 else None,
        source=source,
        codes=[c for c in codes if c != "WINDOW_TOO_SHORT"],
        notes=_notes(parts),
    )
    short = "WINDOW_TOO_SHORT" in codes
    return _judge(out, tolerance) if short else replace(out, verdict=reason_codes.verdict(out.codes))


def refuse(measured: records.Measured, tolerance: float = 0.03) -> records.Measured:
    """What a point of a fit may use: joules of an invalid window become None with a reason; valid
    and suspect ones stay."""
    if measured.energy_j is None or measured.verdict in ("valid", "suspect"):
        return measured
    reason = f"invalid: {', '.join(c for c in measured.codes if reason_codes.EFFECT[c] == reason_codes.INVALID)}"
    if "WINDOW_TOO_SHORT" in measured.codes and measured.power_w and measured.energy_se_j is not None:
        needed = Z95 * measured.energy_se_j / (tolerance * measured.power_w)
        reason += (
            f"; {measured.energy_j:.3g} J are known to ± {Z95 * measured.energy_se_j:.2g} J (95 %), wider than {tolerance:.1%}"
            f" or from under 3 ticks; this power needs a window of {needed:.2g} s or more"
        )
    return replace(measured, energy_j=None, energy_se_j=None, energy_edge_j=None, energy_net_j=None, reason=reason)


def card_window(
    series: Series, start_s: float, end_s: float, ended: bool = False, step_s: float | None = None
) -> CardWindow:
    """One card from `start_s` to `end_s`, seconds of the segment."""
    out = _value(series, start_s, end_s, ended)
    for code, note in interference.judge(series.looks, start_s, end_s) if end_s > start_s else []:
        out.codes, out.notes = _union([*out.codes, code]), [*out.notes, note]
    if out.energy_j is not None and series.card.counter == "ticks":
        plausibility.stationary(series, start_s, end_s, out, lambda t0, t1: _value(series, t0, t1, True).energy_j)
        if step_s is not None:
            plausibility.phase_lock(series, start_s, end_s, step_s, out)
    return out


def _value(series: Series, start_s: float, end_s: float, ended: bool) -> CardWindow:
    out = CardWindow(duration_s=end_s - start_s, codes=_standing_codes(series))
    if end_s < start_s:
        return _fail(out, "NO_SOURCE", f"the window ends {start_s - end_s:.3g} s before it begins")
    out.tick_period_s = series.tick_period_s()
    if series.trace:
        return _from_trace(series, start_s, end_s, out)
    if end_s == start_s:
        out.energy_j, out.se_j = 0.0, 0.0
        return out
    if any(
        since is not None and since <= end_s and (until is None or until >= start_s) for since, until in series.lost
    ):
        return _fail(
            out,
            "GPU_LOST",
            f"the card was lost during the window (NVML 15 or 16); at least {rising_j(series, start_s, end_s):.4g} J were used",
        )
    return (
        _from_counter(series, start_s, end_s, out, ended)
        if series.has_counter
        else _from_power(series, start_s, end_s, out, ended)
    )


def rising_j(series: Series, start_s: float, end_s: float) -> float:
    """Lower bound of the energy from `start_s` to `end_s`, J: the rise of the counter inside,
    summed over its resets."""
    i, j = bisect_left(series.lo_s, start_s), bisect_right(series.hi_s, end_s)
    return math.fsum(
        series.joule[k + 1] - series.joule[k] for k in range(i, j - 1) if series.piece[k] == series.piece[k + 1]
    )


# --- sources
def _from_trace(series: Series, start_s: float, end_s: float, out: CardWindow) -> CardWindow:
    begin = series.begin_s()
    assert series.trace is not None
    assert begin is not None
    shift = series.trace.t_s[0] - begin
    first, last = series.trace.energy_to(start_s + shift), series.trace.energy_to(end_s + shift)
    out.source = series.card.label
    if first is None or last is None:
        length = series.trace.t_s[-1] - series.trace.t_s[0]
        return _fail(
            out,
            "NO_SOURCE",
            f"the replayed trace is {length:.4g} s long and does not cover the window; use a longer one",
        )
    out.energy_j, out.se_j = last - first, 0.0
    return out


def _ticks_around(
    series: Series, start_s: float, end_s: float, out: CardWindow, ended: bool
) -> tuple[int, int] | CardWindow:
    """The tick before the window and the one after it; the refused window where the counter was not
    read throughout.
    """
    tick_s = out.tick_period_s or DEFAULT_TICK_S
    n = len(series.hi_s)
    ka, kb = bisect_right(series.hi_s, start_s) - 1, bisect_left(series.hi_s, end_s)
    if ka + 1 < n and errorbar.tick(series, ka + 1, tick_s)[0] <= start_s:
        ka += 1
    if kb < n and errorbar.tick(series, kb, tick_s)[0] < end_s:
        kb += 1
    if ka < 0:
        first = (
            f"the first tick of the counter came {errorbar.tick(series, 0, tick_s)[0] - start_s:.3g} s later"
            if n
            else "no tick of the counter was seen"
        )
        return _fail(out, "SAMPLER_GAP", f"nothing was read before the window began: {first}")
    if kb >= n:
        return _no_end(series, end_s, tick_s, out, ended)
    if series.piece[ka] != series.piece[kb]:
        when, code = series.breaks[series.piece[ka]]
        return _fail(
            out,
            code,
            f"{_BREAK_MESSAGES[code]} {when - start_s:.3g} s into the window; at least {rising_j(series, start_s, end_s):.4g} J were used",
        )
    wide = _gaps(series, start_s, end_s, tick_s)
    at_edge = [g for g in wide if any(g[0] < e + 2 * tick_s and g[1] > e - 2 * tick_s for e in (start_s, end_s))]
    missing = sum(min(h, end_s) - max(g, start_s) for g, h in wide if h > start_s and g < end_s)
    if at_edge or missing > 0.05 * (end_s - start_s):
        where = (
            "at an edge of the window" if at_edge else f"for {missing:.3g} s of the window's {end_s - start_s:.3g} s"
        )
        return _fail(
            out,
            "SAMPLER_GAP",
            f"no counter readings {where}; at least {rising_j(series, start_s, end_s):.4g} J were used",
        )
    return ka, kb


def _gaps(series: Series, start_s: float, end_s: float, tick_s: float) -> list[tuple[float, float]]:
    """Intervals in and around the window in which the counter was not read for five ticks."""
    return series.energy_reads.inside(start_s - 2 * tick_s, end_s + 2 * tick_s, 5 * tick_s)


def _from_counter(series: Series, start_s: float, end_s: float, out: CardWindow, ended: bool) -> CardWindow:
    tick_s = out.tick_period_s or DEFAULT_TICK_S
    out.source = series.card.label
    around = _ticks_around(series, start_s, end_s, out, ended)
    if isinstance(around, CardWindow):
        return around
    ka, kb = around
    (ea, sa, ka, xa), (eb, sb, kb, xb) = (
        errorbar.interpolate(series, ka, start_s, tick_s),
        errorbar.interpolate(series, kb - 1, end_s, tick_s),
    )
    energy = eb - ea
    out.ticks = kb - ka
    out.energy_j = energy
    mean = energy / (end_s - start_s)
    if out.ticks < 3:
        out.codes.append("WINDOW_TOO_SHORT")
    edges = [errorbar.edge(series, k, x, mean, tick_s) for k, x in ((ka, xa), (kb, xb))]
    out.se_j = math.hypot(*(scatter for scatter, _ in edges), sa, sb, sum(bias for _, bias in edges))
    out.edge_j = errorbar.shortfall(series, ka, xa, tick_s, end=False) + errorbar.shortfall(
        series, kb, xb, tick_s, end=True
    )
    still = max(
        series.lo_s[k + 1] - series.hi_s[k] for k in range(ka, kb + 1)
    )  # polled all the while, and showing one value
    if still > 5 * tick_s:
        out.codes.append("SOURCES_DISAGREE")
        out.notes.append(
            f"SOURCES_DISAGREE: the energy counter stood still for {still:.3g} s, though it ticks each {tick_s:.3g} s"
        )
    if series.points and energy <= 0:
        return _fail(out, "STUCK", "the energy counter did not move during the window")
    if not _gaps(series, start_s, end_s, tick_s):
        plausibility.cross_check(series, start_s, end_s, tick_s, out)
    return out


_BREAK_MESSAGES = {
    "COUNTER_RESET": "the energy counter went back (driver reload or GPU reset)",
    "RESET": "the energy counter went back and no wrap explains it",
    "GAP": "the energy counter may have wrapped unseen between two late reads",
    "IMPLAUSIBLE": "the energy counter rose faster than the card can draw",
}


def _no_end(series: Series, end_s: float, tick_s: float, out: CardWindow, ended: bool) -> CardWindow:
    """Why there is no tick after the window's end."""
    read_until = series.energy_reads.until_s or 0.0
    if series.lost and series.lost[-1][1] is None:
        return _fail(
            out, "GPU_LOST", "the card was lost just after the window, before its last tick was read (NVML 15 or 16)"
        )
    if ended:
        return _fail(
            out,
            "SAMPLER_DIED",
            f"the sampler ended {end_s - (series.hi_s[-1] if series.hi_s else 0.0):.3g} s before the window did, or just after",
        )
    if series.hi_s and read_until - series.hi_s[-1] > 5 * tick_s + 0.5:
        power = series.instant.at(read_until) or series.average.at(read_until)
        at = "" if power is None else f" while power reads {power:.4g} W"
        return _fail(
            out, "SOURCES_DISAGREE", f"the energy counter stands still since {read_until - series.hi_s[-1]:.3g} s{at}"
        )
    if series.denied:
        return _fail(out, "NO_PERMISSION", "the driver refuses to read the counter (NVML 4)")
    known = series.hi_s[-1] if series.hi_s else 0.0
    return _fail(
        out,
        "SAMPLER_GAP",
        f"no tick of the counter was read past the window's end; the last came {end_s - known:.3g} s before",
    )


def _from_power(series: Series, start_s: float, end_s: float, out: CardWindow, ended: bool) -> CardWindow:
    """No counter: average power if there is one, else instant."""
    tick_s = max(series.card.power_period_s, series.period_s)
    reading, average = series.power, series.power is series.average
    out.source = (series.card.average_label if average else series.card.instant_label) or series.card.label
    if not average:
        out.codes.append("INSTANT_ONLY")
    energy = reading.integral(start_s, end_s)
    until = reading.reads.until_s or -1.0
    if energy is None or until < end_s:
        code = "SAMPLER_DIED" if ended and energy is not None else "NO_PERMISSION" if series.denied else "SAMPLER_GAP"
        edge = "before the window began" if energy is None else "past the window's end"
        return _fail(out, code, f"no power reading {edge}")
    gaps = reading.reads.inside(start_s, end_s, 5 * tick_s)
    if gaps:
        return _fail(
            out,
            "SAMPLER_GAP",
            f"no power readings for {sum(h - g for g, h in gaps):.3g} s around the window of {end_s - start_s:.3g} s",
        )
    out.energy_j = energy
    out.ticks = int((end_s - start_s) / tick_s)
    if out.ticks < 3:
        out.codes.append("WINDOW_TOO_SHORT")
    smear = errorbar.average_se(reading, start_s, end_s, tick_s) if average or not series.card.momentary else 0.0
    looks = 0.0 if average else errorbar.instant_se(reading, start_s, end_s, tick_s)
    floor = UPDATE_ERROR_SHARE * energy / (end_s - start_s) * tick_s
    out.se_j = math.hypot(smear, looks, floor)
    return out


# --- codes
def _notes(parts: list[records.Measured]) -> list[str]:
    """The first `MAX_NOTES` notes of the parts of a sum; the run's spend rows hold all of them."""
    return _union(n for p in parts for n in p.notes)[:MAX_NOTES]


def _standing_codes(series: Series) -> list[str]:
    """Codes of every window of this card."""
    return [
        *series.card.codes,
        *(["NO_COUNTER"] if not series.has_counter else []),
        *(["MIG_WHOLE_CARD"] if series.card.mig else []),
    ]


def _judge(measured: records.Measured, tolerance: float) -> records.Measured:
    codes = list(measured.codes)
    energy, se = measured.energy_j or 0.0, measured.energy_se_j or 0.0
    if "WINDOW_TOO_SHORT" not in codes and Z95 * se > tolerance * energy:
        codes.append("WINDOW_TOO_SHORT")
    return replace(measured, codes=codes, verdict=reason_codes.verdict(codes))


def _summed_se(parts: list[tuple[float, float]]) -> tuple[float, float]:
    """Standard error of a sum of (standard error, expected shortfall), and the summed shortfall,
    J."""
    edge = math.fsum(e for _, e in parts)
    return parts[0] if len(parts) == 1 else (math.hypot(edge, *(se for se, _ in parts)), edge)


def _fail(out: CardWindow, code: str, reason: str) -> CardWindow:
    out.codes = _union([*out.codes, code])
    out.energy_j = out.se_j = None
    out.reason = f"{code}: {reason}"
    return out


def _union(items: Iterable[str]) -> list[str]:
    """Distinct items in order of first appearance."""
    return list(dict.fromkeys(items))
