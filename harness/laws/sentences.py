"""A Fit in words, generated from the object only."""

from __future__ import annotations

from harness.laws.catalogue import law_named
from harness.laws.energy import proportional
from harness.laws.result import Fit


def summary(fit: Fit) -> str:
    """Plain text of a fit. The first line says whether it converged; warnings come before the numbers they qualify."""
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
    if fit.law == "pass_at_k" and not fit.residuals:
        lines.append(f"  negative log posterior {fit.objective:.6g}")
    elif law_named(fit.law).plain:
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


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"95 % [{ends[0]:.5g}, {ends[1]:.5g}]"


def _resampled(fit: Fit) -> str:
    """What one resample draws; older files do not say."""
    units = f"{fit.n_clusters} independent units"
    return {"residual": f"the residuals of {units}", "seeds": f"the seeds of {units}"}.get(fit.resampled or "", units)
