"""What the evaluations of a study say besides its Fits: `ttc.json`, and the short lines that `harness fit` prints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import records
from harness.analysis.ttc import curves as ttc_curves
from harness.analysis.ttc import emergence, exchange_rate, votes
from harness.analysis.ttc.break_even import UNITS, Payback, payback
from harness.analysis.ttc.curves import COSTS, Estimate, Forecast
from harness.analysis.ttc.emergence import Audit
from harness.analysis.ttc.exchange_rate import Exchange
from harness.analysis.ttc.votes import EqualCost
from harness.records.ttc import TtcRecord

STUDY_FILE = "ttc.json"
OLD_STUDY_FILE = "testtime.json"  # its name in older studies


@dataclass
class PerCorrect:
    cell: str
    strategy: str
    n: int
    energy_j: Estimate
    wall_s: Estimate
    arm: str = "batched"


@dataclass
class Marginal:
    """What one more right answer costs from one forced budget to the next of an end point, per problem; None where none is gained."""

    end_point: str
    cost: str  # test_flop | tokens | wall_s | energy_j
    budget: str  # label of the dearer control
    instead_of: str
    per_extra_correct: float | None
    reason: str | None = None


@dataclass
class FrontPoint:
    cost: str  # test_flop | tokens | wall_s | energy_j
    cell: str
    strategy: str
    n: int
    spent: float
    accuracy: float


@dataclass
class Depth:
    end_point: str
    width: int | None
    accuracy: dict[str, float]  # products still to do -> accuracy
    problems: dict[str, int]
    predicted: dict[str, float]  # forced budget -> accuracy by S(r)
    measured: dict[str, float]


@dataclass
class StudyAnswers:
    exchange: list[Exchange]
    emergence: dict[str, Audit]  # "<control>, T=<temperature>" -> audit
    forecasts: list[Forecast]
    depths: list[Depth]
    pareto: list[FrontPoint]
    per_correct: list[PerCorrect]  # at the end point of the most training of each run
    paybacks: list[Payback] = field(default_factory=list)
    equal_costs: list[EqualCost] = field(default_factory=list)
    marginal: list[Marginal] = field(default_factory=list)
    noisy_limit: dict[str, float] = field(
        default_factory=dict
    )  # cell of a last end point -> where best_noisy goes as n grows
    unfitted: dict[str, str] = field(default_factory=dict)  # law of a cell -> why there is no fit
    schema_version: int = records.SCHEMA_VERSION


def answers(found: Sequence[TtcRecord], unfitted: dict[str, str], *, draws: int = 400, seed: int = 0) -> StudyAnswers:
    """Everything of `ttc.json`. Controls and temperatures are audited apart, because the null's T differs between them."""
    groups: dict[str, list[TtcRecord]] = {}
    forced: dict[str, list[TtcRecord]] = {}
    for r in found:
        groups.setdefault(f"{votes.kind(r)}, {r.label}, T={r.temperature:g}", []).append(r)
        if r.control.get("max_states") is not None:
            forced.setdefault(f"{r.name} {r.branch}, T={r.temperature:g}", []).append(r)
    depths = []
    for name, cells in forced.items():
        if not (s := ttc_curves.silent_depth(cells)):
            continue
        by_budget = {str(r.control["max_states"]): r for r in cells}
        depths.append(
            Depth(
                name,
                cells[0].width,
                {str(k): v for k, (v, _) in s.items()},
                {str(k): n for k, (_, n) in s.items()},
                {b: ttc_curves.predicted_accuracy(s, r) for b, r in by_budget.items()},
                {b: sum(r.stats.greedy) / len(r.stats.greedy) for b, r in by_budget.items()},
            )
        )
    pairs = [(r, row) for r in found for row in r.rows]
    front = [
        FrontPoint(
            c, ttc_curves.cell_name(r), row.strategy, row.n, float(ttc_curves.cost(row, c) or 0.0), row.accuracy or 0.0
        )
        for c in COSTS
        for r, row in ttc_curves.pareto(pairs, c)
    ]
    per = [
        PerCorrect(
            ttc_curves.cell_name(r),
            row.strategy,
            row.n,
            ttc_curves.per_correct(r, row, "energy_j"),
            ttc_curves.per_correct(r, row, "wall_s"),
            row.arm,
        )
        for r in ttc_curves.last_end_points(found)
        for row in r.rows
        if row.strategy in ("greedy", "sample", "majority")
    ]
    split = [f for r in found if (f := ttc_curves.forecast(r, r.samples // 4, seed=seed)) is not None]
    formats: dict[str, list[TtcRecord]] = {}  # each trades thought for training in its own way
    for r in found:
        formats.setdefault(votes.kind(r), []).append(r)
    rates = [
        replace(exchange_rate.exchange(cells, basis, draws=draws, seed=seed), of=of)
        for of, cells in formats.items()
        for basis in exchange_rate.BASES
    ]
    audits = {k: emergence.audit(v) for k, v in groups.items()}
    paid = [payback(of, cells, unit, draws=draws, seed=seed) for of, cells in formats.items() for unit in UNITS]
    extra = [m for name, cells in forced.items() for m in marginal(name, cells)]
    limits = {
        ttc_curves.cell_name(r): ttc_curves.noisy_verifier_limit(r, ttc["verifier_tpr"], ttc["verifier_fpr"])
        for r in ttc_curves.last_end_points(found)
        if (ttc := r.config.get("ttc"))
    }
    return StudyAnswers(
        rates, audits, split, depths, front, per, paid, votes.equal_costs(found), extra, limits, unfitted
    )


def marginal(name: str, budgets: Sequence[TtcRecord]) -> list[Marginal]:
    """Between neighbouring forced budgets of one end point, answered greedily: cost gained over accuracy gained."""
    rows = [(r, row) for r in budgets for row in r.rows if row.strategy == "greedy" and row.accuracy is not None]
    rows.sort(key=lambda pair: pair[0].control["max_states"])
    out = []
    for (less, a), (more, b) in itertools.pairwise(rows):
        gain = (b.accuracy or 0.0) - (a.accuracy or 0.0)
        for unit in COSTS:
            low, high = ttc_curves.cost(a, unit), ttc_curves.cost(b, unit)
            value = why = None
            if low is None or high is None:
                why = b.energy_reason if unit == "energy_j" else f"{unit} was not measured"
            elif gain <= 0:
                why = "no more answers are right"
            else:
                value = (high - low) / gain
            out.append(Marginal(name, unit, more.label, less.label, value, why))
    return out


FORECASTS = ("beta_binomial", "power_law", "plug_in")


def write(folder: Path, a: StudyAnswers) -> None:
    records.write_json(folder / STUDY_FILE, a)


def read(folder: Path) -> StudyAnswers | None:
    """What `harness fit` found for the evaluations of a study; None where it has not run."""
    path = next((p for p in (folder / STUDY_FILE, folder / OLD_STUDY_FILE) if p.exists()), folder / STUDY_FILE)
    return records.load_json(path, StudyAnswers) if path.exists() else None


def lines(a: StudyAnswers) -> list[str]:
    """A line per result."""
    out = []
    for e in a.exchange:
        if e.g is None:
            out.append(f"exchange, {e.of}, {e.basis}: none: {e.reason}")
        else:
            ends = "no interval" if e.low is None else f"95 % [{e.low:.3g}, {e.high:.3g}]"
            out.append(
                f"exchange, {e.of}, {e.basis}: g = {e.g:.3g}, {ends}; {len(e.points)} points"
                + (f"; {e.note}" if e.note else "")
            )
    for p in a.paybacks:
        q = p.result
        where = f"break-even in {p.unit}, {p.task}, greedy accuracy {p.accuracy:g}"
        if q.queries is None:
            out.append(f"{where}: none: {q.dominating + ': ' if q.dominating else ''}{q.reason}")
            continue
        ends = "" if q.low is None else f", 95 % [{q.low:.3g}, {'unbounded' if q.high is None else f'{q.high:.3g}'}]"
        note = f"; {q.note}" if q.note else ""
        out.append(
            f"{where}: {p.cheap_to_ask} pays against {p.cheap_to_train} from {q.queries:.3g} queries{ends}{note}"
        )
    for p in a.paybacks:
        if p.lifetime:
            steps = [next(group) for _, group in itertools.groupby(p.lifetime, key=lambda x: x.setting)]
            told = "; ".join(f"from {x.queries:.0e} queries {x.setting}" for x in steps)
            out.append(f"cheapest over a lifetime in {p.unit}, {p.task}, greedy accuracy {p.accuracy:g}: {told}")
    for name in dict.fromkeys(e.cost for e in a.equal_costs):
        gains = [e.gain for e in a.equal_costs if e.cost == name]
        beats = sum(g.low is not None and g.low > 0 for g in gains)
        loses = sum(g.high is not None and g.high < 0 for g in gains)
        out.append(
            f"votes against one longer thought of no more {name}: {beats} of {len(gains)} votes win, {loses} lose (95 %)"
        )
    out += [f"emergence, {k}: {v.verdict}: {v.reason}" for k, v in a.emergence.items()]
    out += forecast_lines(a.forecasts)
    out += [
        f"silent depth, {d.end_point}: " + ", ".join(f"S({k}) = {v:.2f}" for k, v in d.accuracy.items())
        for d in a.depths
    ]
    if a.unfitted:
        out.append(f"laws of single cells: {len(a.unfitted)} have none, with their reasons in {STUDY_FILE}")
    return out


def forecast_lines(found: Sequence[Forecast]) -> list[str]:
    """A line per (samples fitted, k): root mean square of the errors of each method, over the cells that it answers."""
    out = []
    for fitted, k in dict.fromkeys((f.fitted, f.k) for f in found):
        cells = [f for f in found if (f.fitted, f.k) == (fitted, k)]
        said = []
        for method in FORECASTS:
            missed = [v - f.measured for f in cells if (v := getattr(f, method)) is not None]
            rms = math.sqrt(math.fsum(m * m for m in missed) / len(missed)) if missed else None
            said.append(f"{method.replace('_', ' ')} {'none' if rms is None else f'{rms:.3f}'} ({len(missed)} cells)")
        out.append(f"forecast of pass@{k} from {fitted} samples, rms error: {', '.join(said)}")
    return out
