"""Joules of a window from the ticks of a counter, with a standard error and reason codes. Pure functions of `Series`.

Value (E1): the counter, interpolated between the two ticks around each edge, so that neither edge is rounded to a tick. When
the ticks happened comes from a comb fitted through many (`errorbar.tick_times`); the line between two is bent towards the instant readings
at its ends as far as these are seen to follow the counter (`errorbar.trust`). Integrals of instant (E2) and average power
(E3) are set beside it and never mixed in; they take over only where a card has no counter. Standard error, J, one sigma:
    sub-tick   0.44 dP u x (1 - x) per edge     x: share of the tick interval u gone by; dP: power levels around, highest minus lowest
    ticks      P dt per edge                dt: standard error of the comb, or of a tick's bracket where there is no comb
    cold edge  (u_a step_a + u_b step_b) / 6   bias where the power steps at an edge; added as an allowance, not corrected
A sum of windows or cards adds errors in quadrature, and to these the sum of what each is expected to read low at its edges (`errorbar.shortfall`):
where every window begins and ends with a step in power that error has one sign, and does not shrink as windows are added.
The gain of the card (about 5 % until calibrated) is common to all its windows and is not in the standard error.
Not seen: whether the counter samples or integrates inside a tick, and its latency; both are properties of the card.
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
POWER_FLOOR = 0.1  # without a counter: error of one update, as a share of the mean power
Z95 = 1.96
MOST_NOTES = 12


def window(
    series: list[Series], a_ns: int, b_ns: int, tolerance: float, ended: bool = False, step_s: float | None = None
) -> tuple[records.Measured, list[CardWindow]]:
    """Energy of all cards over [a, b] (CLOCK_MONOTONIC), and each card's part. `ended`: the sampler writes no more.
    `step_s`: mean length of the training steps inside, where there are any.

    A window that is merely too short for `tolerance` keeps its joules and error with the code WINDOW_TOO_SHORT and the
    verdict invalid: parts of a sum may be short when the sum is not (`total` judges that again).
    """
    parts = [card_window(s, s.time_s(a_ns), s.time_s(b_ns), ended, step_s) for s in series]
    return combine(parts, tolerance), parts


def combine(parts: list[CardWindow], tolerance: float) -> records.Measured:
    """Cards of one window added up: joules, standard errors (`_summed_se`), union of codes."""
    found = _union(c for p in parts for c in p.codes)
    source = "+".join(_union(p.source for p in parts if p.source)) or None
    notes = _union(n for p in parts for n in p.notes)
    missing = [p for p in parts if p.energy_j is None]
    if missing:
        reason = missing[0].reason or "no reading"
        return records.Measured(source=source, verdict="invalid", codes=found, reason=reason, notes=notes)
    energy = math.fsum(p.energy_j or 0.0 for p in parts)
    se, edge = _summed_se([(p.se_j or 0.0, p.edge_j) for p in parts])
    duration = parts[0].duration_s
    mean_w = energy / duration if duration > 0 else None
    out = records.Measured(energy, se, edge, power_w=mean_w, source=source, codes=found, notes=notes)
    return _judge(out, tolerance)


def net(measured: records.Measured, idle_w: float | None, seconds: float) -> records.Measured:
    """With the net of idle beside the gross: joules minus `idle_w` over the window; unchanged where either is unknown."""
    if measured.energy_j is None or idle_w is None:
        return measured
    return replace(measured, energy_net_j=measured.energy_j - idle_w * seconds, idle_power_w=idle_w)


def total(parts: list[records.Measured], tolerance: float = 0.03) -> records.Measured:
    """Sum of windows. Joules are None if any part's are; errors by `_summed_se`; codes united; the worst verdict.

    Short windows are judged again as a sum: WINDOW_TOO_SHORT stays only if 1.96 standard errors of the sum exceed `tolerance`.
    """
    if not parts:
        return records.Measured(reason="no window was measured")
    found = _union(c for p in parts for c in p.codes)
    source = "+".join(_union(p.source for p in parts if p.source)) or None
    missing = [p for p in parts if p.energy_j is None]
    if missing:
        alike = len({p.reason for p in missing}) == 1  # one cause is told once, however many windows it took
        more = "" if alike else f" (and {len(missing) - 1} more of {len(parts)} windows)"
        verdict = reason_codes.worst(p.verdict for p in parts)
        reason = f"{missing[0].reason}{more}"
        return records.Measured(source=source, verdict=verdict, codes=found, reason=reason, notes=_notes(parts))
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
        codes=[c for c in found if c != "WINDOW_TOO_SHORT"],
        notes=_notes(parts),
    )
    short = "WINDOW_TOO_SHORT" in found
    return _judge(out, tolerance) if short else replace(out, verdict=reason_codes.verdict(out.codes))


def refuse(measured: records.Measured, tolerance: float = 0.03) -> records.Measured:
    """What a point of a fit may use: an invalid window's joules become None, in words; valid and suspect ones stay."""
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


def card_window(s: Series, a: float, b: float, ended: bool = False, step_s: float | None = None) -> CardWindow:
    """One card over [a, b], seconds of the segment."""
    out = _value(s, a, b, ended)
    for code, note in interference.judge(s.looks, a, b) if b > a else []:
        out.codes, out.notes = _union([*out.codes, code]), [*out.notes, note]
    if out.energy_j is not None and s.card.counter == "ticks":
        plausibility.stationary(s, a, b, out, lambda t0, t1: _value(s, t0, t1, True).energy_j)
        if step_s is not None:
            plausibility.phase_lock(s, a, b, step_s, out)
    return out


def _value(s: Series, a: float, b: float, ended: bool) -> CardWindow:
    out = CardWindow(duration_s=b - a, codes=_standing_codes(s))
    if b < a:
        return _fail(out, "NO_SOURCE", f"the window ends {a - b:.3g} s before it begins")
    out.tick_period_s = s.tick_period_s()
    if s.trace:
        return _from_trace(s, a, b, out)
    if b == a:
        out.energy_j, out.se_j = 0.0, 0.0
        return out
    if any(since is not None and since <= b and (until is None or until >= a) for since, until in s.lost):
        return _fail(
            out,
            "GPU_LOST",
            f"the card was lost during the window (NVML 15 or 16); at least {rising_j(s, a, b):.4g} J were used",
        )
    return _from_counter(s, a, b, out, ended) if s.has_counter else _from_power(s, a, b, out, ended)


def rising_j(s: Series, a: float, b: float) -> float:
    """Lower bound of what was used in [a, b]: what the counter is seen to rise inside, J; pieces of a reset added up."""
    i, j = bisect_left(s.lo_s, a), bisect_right(s.hi_s, b)
    return math.fsum(s.joule[k + 1] - s.joule[k] for k in range(i, j - 1) if s.piece[k] == s.piece[k + 1])


# --- sources ---------------------------------------------------------------------------------------------------------
def _from_trace(s: Series, a: float, b: float, out: CardWindow) -> CardWindow:
    begin = s.begin_s()
    assert s.trace is not None
    assert begin is not None
    shift = s.trace.t_s[0] - begin
    first, last = s.trace.energy_to(a + shift), s.trace.energy_to(b + shift)
    out.source = s.card.label
    if first is None or last is None:
        length = s.trace.t_s[-1] - s.trace.t_s[0]
        return _fail(
            out,
            "NO_SOURCE",
            f"the replayed trace is {length:.4g} s long and does not cover the window; use a longer one",
        )
    out.energy_j, out.se_j = last - first, 0.0
    return out


def _from_counter(s: Series, a: float, b: float, out: CardWindow, ended: bool) -> CardWindow:
    u = out.tick_period_s or DEFAULT_TICK_S
    out.source = s.card.label
    n = len(s.hi_s)
    ka, kb = bisect_right(s.hi_s, a) - 1, bisect_left(s.hi_s, b)
    if ka + 1 < n and errorbar.tick(s, ka + 1, u)[0] <= a:
        ka += 1
    if kb < n and errorbar.tick(s, kb, u)[0] < b:
        kb += 1
    if ka < 0:
        first = (
            f"the first tick of the counter came {errorbar.tick(s, 0, u)[0] - a:.3g} s later"
            if n
            else "no tick of the counter was seen"
        )
        return _fail(out, "SAMPLER_GAP", f"nothing was read before the window began: {first}")
    if kb >= n:
        return _no_end(s, b, u, out, ended)
    if s.piece[ka] != s.piece[kb]:
        when, code = s.breaks[s.piece[ka]]
        return _fail(
            out, code, f"{_BROKEN[code]} {when - a:.3g} s into the window; at least {rising_j(s, a, b):.4g} J were used"
        )
    wide = s.energy_reads.inside(a - 2 * u, b + 2 * u, 5 * u)
    at_edge = [g for g in wide if any(g[0] < e + 2 * u and g[1] > e - 2 * u for e in (a, b))]
    missing = sum(min(h, b) - max(g, a) for g, h in wide if h > a and g < b)
    if at_edge or missing > 0.05 * (b - a):
        where = "at an edge of the window" if at_edge else f"for {missing:.3g} s of the window's {b - a:.3g} s"
        return _fail(out, "SAMPLER_GAP", f"no counter readings {where}; at least {rising_j(s, a, b):.4g} J were used")

    (ea, sa, ka, xa), (eb, sb, kb, xb) = errorbar.interpolate(s, ka, a, u), errorbar.interpolate(s, kb - 1, b, u)
    energy = eb - ea
    out.ticks = kb - ka
    out.energy_j = energy
    mean = energy / (b - a)
    if out.ticks < 3:
        out.codes.append("WINDOW_TOO_SHORT")
    edges = [errorbar.edge(s, k, x, mean, u) for k, x in ((ka, xa), (kb, xb))]
    out.se_j = math.hypot(*(scatter for scatter, _ in edges), sa, sb, sum(bias for _, bias in edges))
    out.edge_j = errorbar.shortfall(s, ka, xa, u, end=False) + errorbar.shortfall(s, kb, xb, u, end=True)
    still = max(s.lo_s[k + 1] - s.hi_s[k] for k in range(ka, kb + 1))  # polled all the while, and showing one value
    if still > 5 * u:
        out.codes.append("SOURCES_DISAGREE")
        out.notes.append(
            f"SOURCES_DISAGREE: the energy counter stood still for {still:.3g} s, though it ticks each {u:.3g} s"
        )
    if s.points and energy <= 0:
        return _fail(out, "STUCK", "the energy counter did not move during the window")
    if not wide:
        plausibility.cross_check(s, a, b, u, out)
    return out


_BROKEN = {
    "COUNTER_RESET": "the energy counter went back (driver reload or GPU reset)",
    "RESET": "the energy counter went back and no wrap explains it",
    "GAP": "the energy counter may have wrapped unseen between two late reads",
    "IMPLAUSIBLE": "the energy counter rose faster than the card can draw",
}


def _no_end(s: Series, b: float, u: float, out: CardWindow, ended: bool) -> CardWindow:
    """Why there is no tick after the window's end."""
    read_until = s.energy_reads.until_s or 0.0
    if s.lost and s.lost[-1][1] is None:
        return _fail(
            out, "GPU_LOST", "the card was lost just after the window, before its last tick was read (NVML 15 or 16)"
        )
    if ended:
        return _fail(
            out,
            "SAMPLER_DIED",
            f"the sampler ended {b - (s.hi_s[-1] if s.hi_s else 0.0):.3g} s before the window did, or just after",
        )
    if s.hi_s and read_until - s.hi_s[-1] > 5 * u + 0.5:
        power = s.instant.at(read_until) or s.average.at(read_until)
        at = "" if power is None else f" while power reads {power:.4g} W"
        return _fail(
            out, "SOURCES_DISAGREE", f"the energy counter stands still since {read_until - s.hi_s[-1]:.3g} s{at}"
        )
    if s.denied:
        return _fail(out, "NO_PERMISSION", "the driver refuses to read the counter (NVML 4)")
    known = s.hi_s[-1] if s.hi_s else 0.0
    return _fail(
        out,
        "SAMPLER_GAP",
        f"no tick of the counter was read past the window's end; the last came {b - known:.3g} s before",
    )


def _from_power(s: Series, a: float, b: float, out: CardWindow, ended: bool) -> CardWindow:
    """No counter: average power if there is one, else instant."""
    u = max(s.card.power_period_s, s.period_s)
    held, average = s.power, s.power is s.average
    out.source = (s.card.average_label if average else s.card.instant_label) or s.card.label
    if not average:
        out.codes.append("INSTANT_ONLY")
    energy = held.integral(a, b)
    until = held.reads.until_s or -1.0
    if energy is None or until < b:
        code = "SAMPLER_DIED" if ended and energy is not None else "NO_PERMISSION" if s.denied else "SAMPLER_GAP"
        edge = "before the window began" if energy is None else "past the window's end"
        return _fail(out, code, f"no power reading {edge}")
    gaps = held.reads.inside(a, b, 5 * u)
    if gaps:
        return _fail(
            out,
            "SAMPLER_GAP",
            f"no power readings for {sum(h - g for g, h in gaps):.3g} s around the window of {b - a:.3g} s",
        )
    out.energy_j = energy
    out.ticks = int((b - a) / u)
    if out.ticks < 3:
        out.codes.append("WINDOW_TOO_SHORT")
    smear = errorbar.average_se(held, a, b, u) if average or not s.card.momentary else 0.0
    looks = 0.0 if average else errorbar.instant_se(held, a, b, u)
    floor = POWER_FLOOR * energy / (b - a) * u
    out.se_j = math.hypot(smear, looks, floor)
    return out


# --- codes --------------------------------------------------------------------------------------------------------------
def _notes(parts: list[records.Measured]) -> list[str]:
    """Evidence of the parts of a sum, the first few: a long run repeats itself, and its spend rows hold them all."""
    return _union(n for p in parts for n in p.notes)[:MOST_NOTES]


def _standing_codes(s: Series) -> list[str]:
    """What holds for every window of this card."""
    return [
        *s.card.codes,
        *(["NO_COUNTER"] if not s.has_counter else []),
        *(["MIG_WHOLE_CARD"] if s.card.mig else []),
    ]


def _judge(measured: records.Measured, tolerance: float) -> records.Measured:
    found = list(measured.codes)
    energy, se = measured.energy_j or 0.0, measured.energy_se_j or 0.0
    if "WINDOW_TOO_SHORT" not in found and Z95 * se > tolerance * energy:
        found.append("WINDOW_TOO_SHORT")
    return replace(measured, codes=found, verdict=reason_codes.verdict(found))


def _summed_se(parts: list[tuple[float, float]]) -> tuple[float, float]:
    """Standard error of a sum of (standard error, expected shortfall), and the summed shortfall, J."""
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
