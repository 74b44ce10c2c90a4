"""Sentences of a report, from fits and records: findings, warnings, and what was not measured."""

from __future__ import annotations

import math

from harness.analysis import energy as study_energy
from harness.analysis.points import CONVENTIONS
from harness.analysis.study_laws import FIT_NAMES
from harness.laws.result import Fit
from harness.laws.sentences import proportional
from harness.report.view import StudyView
from harness.units import si

# Nearly every power law with a free coefficient has these; they are listed below the tables
ROUTINE = {"STRONGLY_CORRELATED", "A_NOT_PINNED", "B_NOT_PINNED", "K_NOT_PINNED"}
HEADLINE_FITS = {"loss_nd", "loss_nd_heldout", "loss_compute", "energy_compute", "energy_idle_fixed", "loss_energy"}
ABILITIES = "Task accuracy or abilities: the measured quantity is validation loss."
NOT_SHOWN = (
    "Nothing beyond the sizes, tokens and compute that were run: the laws are drawn inside the span of their data.",
    "Transfer to other corpora, architectures, optimisers or hardware: one study holds all of these fixed.",
    ABILITIES,
    "Facility energy: joules are those of the metered device, without cooling, conversion or the rest of the host.",
    "Lack of fit: a bootstrap over trunks gives the spread of the estimate, not the error of the law's form.",
)


def number(value: float | None, digits: int = 3) -> str:
    """`number(0.48231) == "0.482"`, with at most `digits` digits; an en dash for None."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return text.replace("-", "−")


def percent(value: float | None, digits: int = 2) -> str:
    """A share as per cent with sign where negative."""
    return "–" if value is None else f"{100 * value:.{digits}f} %".replace("-", "−")


def with_interval(fit: Fit, name: str) -> str:
    """`0.482 [0.451, 0.513]`, to two digits of the interval's width.

    Marked if fixed or not pinned.
    """
    derived = name not in fit.params
    value = (fit.derived if derived else fit.params).get(name)
    bounds = (fit.derived_interval if derived else fit.interval).get(name)
    if name in fit.fixed:
        return f"{number(fit.fixed[name], 4)} (fixed)"
    if value is None or bounds is None:
        return number(value)
    low, high = bounds
    width = high - low
    if 1e-6 < width < 1e4 and abs(value) < 1e5:
        places = max(0, 1 - math.floor(math.log10(width)))
        text = f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]".replace("-", "−")
    else:
        text = f"{number(value)} [{number(low)}, {number(high)}]"
    return text + (" (not pinned)" if fit.identified.get(name) is False else "")


def greek(text: str) -> str:
    """Parameter names of the laws in Greek: alpha becomes α."""
    return text.replace("alpha", "α").replace("beta", "β")


def sentence(text: str) -> str:
    """`text` with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def worst(errors: list[float]) -> float:
    return max(abs(e) for e in errors)


def findings(view: StudyView) -> list[str]:
    """One sentence per result, numbers with their 95 % intervals.

    The first is the study's headline.
    """
    out = []
    if fit := view.trusted("loss_nd"):
        trunks = len(set(view.table.run_id))
        out.append(
            f"Loss is fitted by L = E + A/N^α + B/D^β with α = {with_interval(fit, 'alpha')}, "
            f"β = {with_interval(fit, 'beta')} and floor E = {with_interval(fit, 'E')} nat: "
            f"{fit.n_points} points of {trunks} trunks, rms residual {percent(fit.residual_rms)}."
        )
        out += _floor_sentence(view, fit) + _theory_sentence(view, fit)
    fit = view.trusted("loss_nd_heldout")
    if fit and fit.held_out:
        held_out = fit.held_out
        naive = [e for e in held_out.naive_relative_error if e is not None]
        line = f"; the log-log line through the last two rungs misses by {percent(worst(naive))}" if naive else ""
        comparison = (
            " On average the law loses to that line." if any(w.code == "WORSE_THAN_LINE" for w in fit.warnings) else ""
        )
        miss = percent(worst(held_out.relative_error))
        out.append(f"The largest rung ({held_out.label}), never fitted, is predicted within {miss}{line}.{comparison}")
    if fit := view.trusted("loss_compute"):
        g = fit.params.get("g")
        cut = f": ten times the compute removes {percent(1 - 10 ** (-g), 0)} of the loss above the floor" if g else ""
        out.append(f"Along the frontier L(C) has exponent g = {with_interval(fit, 'g')}{cut}.")
    if fit := view.trusted("energy_compute"):
        b = with_interval(fit, "b")
        test = proportional(fit)
        note = f" ({test})" if test else ""
        out.append(f"Energy grows as C^b with b = {b}{note}; b < 1 means that larger runs use the device better.")
    if rows := study_energy.by_rung(view.table):
        out.append(sentence(study_energy.crossover(rows, view.fits)))
    if fit := view.trusted("loss_energy"):
        out.append(f"Against joules the loss above its floor falls with exponent g = {with_interval(fit, 'g')}.")
    if not out:
        reason = view.unfitted.get("loss_nd") or "the certificate of every fit failed"
        out.append(f"No law could be fitted: {reason.rstrip('.')}.")
    return out


def _floor_sentence(view: StudyView, fit: Fit) -> list[str]:
    if view.oracle_nat is None or "E" not in fit.interval:
        return []
    low, high = fit.interval["E"]
    inside = "contains" if low <= view.oracle_nat <= high else "misses"
    return [f"The fitted floor's interval {inside} the true floor of {number(view.oracle_nat, 4)} nat."]


def _theory_sentence(view: StudyView, fit: Fit) -> list[str]:
    if view.theory is None:
        return []
    parts = []
    for name, symbol in (("alpha", "α"), ("beta", "β")):
        parts.append(f"{symbol} {verdict(fit, name, view.theory[name])} ({number(view.theory[name])})")
    return ["Against theory: " + ", ".join(parts) + "."]


def verdict(fit: Fit, name: str, expected: float) -> str:
    """Whether an exponent agrees with theory or misses it, or is not pinned by the data."""
    if fit.identified.get(name) is False or name not in fit.interval:
        return "is not pinned by these data"
    low, high = fit.interval[name]
    return "agrees" if low <= expected <= high else "misses"


def fit_warnings(view: StudyView, *, all_of_them: bool) -> list[str]:
    """The warnings of the fits; without `all_of_them`, the important ones of headline fits."""
    out: dict[str, None] = {}
    for name, fit in view.fits.items():
        for w in fit.warnings:
            if all_of_them or (w.code not in ROUTINE and name in HEADLINE_FITS):
                out[f"{FIT_NAMES.get(name, name)}: {w.message} ({w.code})"] = None
    return list(out)


def warnings(view: StudyView) -> list[str]:
    """What to know before the numbers: failed fits, warnings, untuned rates, lost runs."""
    out = []
    for name, fit in view.fits.items():
        if not fit.certificate.passed:
            out.append(f"{FIT_NAMES.get(name, name)} did not converge: {fit.certificate.reason}. It is not drawn.")
    out += fit_warnings(view, all_of_them=False)
    for c in view.rates:
        if c.at_edge and c.resolved:
            out.append(
                f"Learning rate of {c.rung} (seed {c.seed}): the best of the rates tried is ×{c.best:g}, at the edge, "
                f"{percent(-c.relative[c.best])} below the rule's; its losses are not those of a tuned run."
            )
    stale = view.fits.get("loss_nd")
    if stale is not None and stale.n_points != len(view.table):
        out.append(
            f"The fits are of {stale.n_points} points and the records hold {len(view.table)} now: run harness fit again."
        )
    if (repeated := view.table.epochs > 1 + 1e-9).any():
        out.append(
            f"{int(repeated.sum())} points saw tokens more than once (up to {number(float(view.table.epochs.max()))} times); "
            "D counts them each time, which L(N, D) does not allow for."
        )
    out += [f"Energy of {r.rung}: {r.flag}." for r in study_energy.by_rung(view.table) if r.flag]
    for state, count in view.excluded.items():
        out.append(f"{count} {'run is' if count == 1 else 'runs are'} {state} and left out.")
    if view.noise is None and len(view.table):
        out.append("No rung was run with a second seed: the seed noise is unknown.")
    return out


def not_measured(view: StudyView) -> list[str]:
    """One line for each missing quantity, with the reason from the record."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in view.unfitted.items():
        by_reason.setdefault(reason, []).append(FIT_NAMES.get(name, name))
    out = [f"{'; '.join(names)}: {reason}" for reason, names in by_reason.items()]
    out += [f"Energy of {count} points: {reason}" for reason, count in view.table.energy_excluded.items()]
    mfu: dict[str, int] = {}
    for p in (p for record in view.records for p in record.points if p.mfu is None):
        mfu[p.mfu_reason or "no reason recorded"] = mfu.get(p.mfu_reason or "no reason recorded", 0) + 1
    out += [f"MFU of {count} points: {reason}" for reason, count in mfu.items()]
    if view.floor.reason:
        out.append(f"True floor: {view.floor.reason}")
    if not view.rates:
        out.append("Learning-rate check: no probe runs with optim.lr_scale other than 1")
    return out


def checklist(view: StudyView) -> list[tuple[str, str]]:
    """The reporting checklist of a scaling fit, filled from records and fits."""
    fit = view.fits.get("loss_nd")
    states = {"done": len(view.records)} | view.excluded
    hyper = {str(record.hyper.get("rule")) for record in view.records}
    schedules = {str(record.config.get("schedule", {}).get("kind")) for record in view.records}
    devices = {str(record.provenance.get("device")) for record in view.records}
    seeds = sorted({record.seed for record in view.records})
    phase_totals = [
        p.get("energy_j") for record in view.records for phase, p in record.spent.items() if phase != "total"
    ]
    joules = [e for e in phase_totals if e is not None]
    lines = [
        ("Runs by state", _counts(states)),
        ("Rows left out", _counts(view.table.excluded)),
        (
            "N and FLOP conventions",
            f"N = {CONVENTIONS[0]}; C = causal count × tokens trained; others in the points table",
        ),
        (
            "Loss",
            "validation, nat per scored token; corpus "
            + ", ".join(sorted({str(record.corpus.get("corpus_id")) for record in view.records})),
        ),
        ("Schedule, annealing", f"{', '.join(sorted(schedules))}; only annealed end points enter fits"),
        ("Hyperparameter rule", "; ".join(sorted(hyper))),
        (
            "Rate check",
            f"{len(view.rates)} sweeps, {sum(c.at_edge for c in view.rates)} with the best at an edge"
            if view.rates
            else "none",
        ),
        ("Seeds and noise", _noise(view, seeds)),
        ("Hardware", ", ".join(sorted(devices))),
        (
            "Energy spent",
            si(sum(joules), "J") + f" over {len(joules)} of {len(phase_totals)} phase totals"
            if joules
            else "not measured",
        ),
    ]
    if fit:
        c, b = fit.certificate, fit.bootstrap
        lines += [
            ("Objective", f"sum of Huber terms of log residuals, delta {fit.delta:g}: {number(fit.objective, 6)}"),
            ("Starts", f"{c.starts}, of which {c.starts_agreeing} agree with the best; {c.solver}"),
            ("Certificate", "passed" if c.passed else f"FAILED: {c.reason}"),
            ("Newton decrement, condition", f"{number(c.newton_decrement, 2)}, {number(c.condition, 2)}"),
            ("Intervals", f"95 % percentiles, bootstrap over {fit.n_clusters} independent units: {_counts(b)}"),
            ("Data hash", fit.data_hash or "–"),
        ]  # fmt: skip
    return lines


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _noise(view: StudyView, seeds: list[int]) -> str:
    shown_seeds = ", ".join(map(str, seeds[:5])) + (" …" if len(seeds) > 5 else "")
    if view.noise is None:
        return f"seeds {shown_seeds}; no budget was repeated, so the noise is unknown"
    pooled = f"{view.noise.groups} budgets, {view.noise.dof} degrees of freedom"
    return f"seeds {shown_seeds}; sd of ln loss {percent(view.noise.sd_ln)}, pooled over {pooled}"
