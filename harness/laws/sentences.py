"""A Fit in words, generated from the object only; and what the laws of energy say: whether joules
are proportional to FLOP, and the throughput at which idle power stops dominating."""

from __future__ import annotations

import numpy as np

from harness.laws.catalogue import is_from_counts, law_of
from harness.laws.forms import BALANCE
from harness.laws.result import Fit


def summary(fit: Fit) -> str:
    """Plain text of a fit. The first line says whether it converged; warnings come before the
    numbers they qualify."""
    c = fit.certificate
    if c.passed:
        head = f"{fit.law}: {fit.formula} on {fit.n_points} points; {c.starts_agreeing} of {c.starts} starts agree"
    else:
        head = f"NOT CONVERGED, do not use: {fit.law} on {fit.n_points} points: {c.reason}"
    lines = [head]
    lines += [f"  warning {w.code}: {w.message}" for w in fit.warnings]
    for name, value in fit.params.items():
        if name in fit.fixed:
            note = "fixed"
        else:
            note = _interval(fit.interval.get(name)) + (
                "" if fit.identified.get(name, True) else "  not pinned by the data"
            )
        lines.append(f"  {name:<8}= {value:<12.5g} {note}".rstrip())
    for name, value in fit.derived.items():
        lines.append(f"  {name:<8}= {value:<12.5g} {_interval(fit.derived_interval.get(name))}".rstrip())
    if (test := proportional(fit)) is not None:
        lines.append(f"  {test}")
    if is_from_counts(fit):
        lines.append(f"  negative log posterior {fit.objective:.6g}")
    elif law_of(fit).residual == "linear":
        lines.append(f"  residuals {fit.residual_rms:.4g} rms; half the sum of squares {fit.objective:.6g}")
    else:
        lines.append(
            f"  residuals {fit.residual_rms:.2%} rms of the log; Huber sum {fit.objective:.6g} at delta {fit.delta:g}"
        )
    if b := fit.bootstrap:
        lines.append(
            f"  intervals: {b['draws']} resamples of {_resampled(fit)}, "
            f"{b['failed']} failed"
            + (f", {b['cold_starts']} also started cold ({b['cold_better']} lower)" if "cold_starts" in b else "")
        )
    if fit.excluded:
        lines.append("  excluded: " + ", ".join(f"{n} rows {reason}" for reason, n in fit.excluded.items()))
    if (h := fit.held_out) is not None:
        hold = "" if h.inside is None else f" {h.inside} of {len(h.measured)} in their 95 % interval of one more run"
        lines.append(f"  held out, {h.label}:{hold}")
        for i, (p, m, e, naive) in enumerate(
            zip(h.predicted, h.measured, h.relative_error, h.naive_relative_error, strict=True)
        ):
            band = f" [{h.interval[i][0]:.5g}, {h.interval[i][1]:.5g}]" if h.interval else ""
            line = "no line" if naive is None else f"line {naive:+.2%}"
            lines.append(f"    predicted {p:.5g}{band}, measured {m:.5g}: {e:+.2%} ({line})")
    return "\n".join(lines)


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"95 % [{bounds[0]:.5g}, {bounds[1]:.5g}]"


def _resampled(fit: Fit) -> str:
    """What one resample draws; older files do not say."""
    units = f"{fit.n_clusters} independent units"
    return {"residual": f"the residuals of {units}", "seeds": f"the seeds of {units}"}.get(fit.resampled or "", units)


def proportional(fit: Fit) -> str | None:
    """The test of b = 1 for energy = k C^b, in words; None for other laws and without an interval.

    The p value is two-sided, from the share of bootstrap draws on the far side of 1; it is never
    below what their number resolves.
    """
    bounds = fit.interval.get("b")
    if law_of(fit).y != "energy" or bounds is None or "b" in fit.fixed:
        return None
    draws = np.asarray(fit.draws.get("b", []))
    p = ""
    if len(draws):
        tail = min(int((draws <= 1).sum()), int((draws >= 1).sum()))
        p = f", p = {max(2 * tail, 2) / (len(draws) + 1):.2g}" + (" at the most" if tail == 0 else "")
    if bounds[0] <= 1 <= bounds[1]:
        return f"b = 1 (joules proportional to FLOP) is not rejected at 5 %{p}"
    return f"b = 1 (joules proportional to FLOP) is rejected at 5 %{p}"


def balance(fit: Fit) -> tuple[float, list[float] | None] | None:
    """FLOP/s at which P_idle t = e C, with its 95 % interval; None where the fit has no positive
    P_idle and e."""
    value = fit.derived.get(BALANCE)
    return None if not value else (value, fit.derived_interval.get(BALANCE))
