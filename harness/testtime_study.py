"""What the evaluations of a study say besides its Fits: `testtime.json`, and the short lines that `harness fit` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import emergence, exchange, records, testtime
from harness.emergence import Audit
from harness.exchange import Exchange
from harness.testtime import COSTS, BreakEven, Estimate, Forecast
from harness.ttc_records import TtcRecord

STUDY_FILE = "testtime.json"
PAYBACK_ACCURACY = 0.9


@dataclass
class PerCorrect:
    cell: str
    strategy: str
    n: int
    energy_j: Estimate
    wall_s: Estimate


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
class Payback:
    """From how many queries on the setting that is cheapest to ask pays for its training, at greedy accuracy `accuracy` or better."""

    task: str
    unit: str  # FLOP | s | J
    accuracy: float
    cheap_to_train: str
    cheap_to_ask: str
    result: BreakEven


@dataclass
class StudyAnswers:
    exchange: list[Exchange]
    emergence: dict[str, Audit]  # "<control>, T=<temperature>" -> audit
    forecasts: list[Forecast]
    depths: list[Depth]
    pareto: list[FrontPoint]
    per_correct: list[PerCorrect]
    paybacks: list[Payback] = field(default_factory=list)
    unfitted: dict[str, str] = field(default_factory=dict)  # law of a cell -> why there is no fit
    schema_version: int = records.SCHEMA_VERSION


def _kind(r: TtcRecord) -> list[str]:
    """Task, arm and format: what is never pooled."""
    return [str(r.task[k]) for k in ("name", "arm", "format") if r.task.get(k)]


def answers(found: Sequence[TtcRecord], unfitted: dict[str, str], *, draws: int = 400, seed: int = 0) -> StudyAnswers:
    """Everything of `testtime.json`. Controls and temperatures are audited apart, because the null's T differs between them."""
    groups: dict[str, list[TtcRecord]] = {}
    forced: dict[str, list[TtcRecord]] = {}
    for r in found:
        groups.setdefault(", ".join([*_kind(r), r.label, f"T={r.temperature:g}"]), []).append(r)
        if r.control.get("max_states") is not None:
            forced.setdefault(f"{r.name} {r.branch}, T={r.temperature:g}", []).append(r)
    depths = []
    for name, cells in forced.items():
        s = testtime.silent_depth(cells)
        by_budget = {str(r.control["max_states"]): r for r in cells}
        depths.append(
            Depth(
                name,
                cells[0].width,
                {str(k): v for k, (v, _) in s.items()},
                {str(k): n for k, (_, n) in s.items()},
                {b: testtime.predicted_accuracy(s, r) for b, r in by_budget.items()},
                {b: sum(r.stats.greedy) / len(r.stats.greedy) for b, r in by_budget.items()},
            )
        )
    pairs = [(r, row) for r in found for row in r.rows]
    front = [
        FrontPoint(
            c, testtime.cell_name(r), row.strategy, row.n, float(testtime.cost(row, c) or 0.0), row.accuracy or 0.0
        )
        for c in COSTS
        for r, row in testtime.pareto(pairs, c)
    ]
    per = [
        PerCorrect(
            testtime.cell_name(r),
            row.strategy,
            row.n,
            *(testtime.per_correct(r, row, c) for c in ("energy_j", "wall_s")),
        )
        for r, row in pairs
        if row.strategy in ("greedy", "sample", "majority")
    ]
    split = [f for r in found if (f := testtime.forecast(r, r.samples // 4, seed=seed)) is not None]
    formats: dict[str, list[TtcRecord]] = {}  # each trades thought for training in its own way
    for r in found:
        formats.setdefault(" ".join(_kind(r)), []).append(r)
    rates = [
        replace(exchange.exchange(cells, basis, draws=draws, seed=seed), of=of)
        for of, cells in formats.items()
        for basis in exchange.BASES
    ]
    audits = {k: emergence.audit(v) for k, v in groups.items()}
    paid = [p for of, cells in formats.items() for p in _paybacks(of, cells)]
    return StudyAnswers(rates, audits, split, depths, front, per, paid, unfitted)


def _paybacks(task: str, found: Sequence[TtcRecord], accuracy: float = PAYBACK_ACCURACY) -> list[Payback]:
    """Among the settings that reach `accuracy`: the cheapest to train against the cheapest to ask, in each unit that was measured."""
    out = []
    good = [
        (r, x)
        for r in found
        for x in r.rows
        if x.strategy == "greedy" and x.accuracy is not None and x.accuracy >= accuracy
    ]
    for unit in ("FLOP", "s", "J"):
        priced = []
        for r, x in good:
            train, query = {
                "FLOP": (r.train_flop, x.test_flop),
                "s": (r.train_wall_s, x.wall_s),
                "J": (r.train_energy.energy_j, x.energy_j),
            }[unit]
            if train is not None and query is not None:
                priced.append((testtime.cell_name(r), train, query))
        if priced:
            a, b = min(priced, key=lambda p: (p[1], p[2])), min(priced, key=lambda p: (p[2], p[1]))
            one = BreakEven(None, a[0], "it is the cheapest both to train and to ask")
            out.append(Payback(task, unit, accuracy, a[0], b[0], one if a[0] == b[0] else testtime.break_even(*a, *b)))
    return out


FORECASTS = ("beta_binomial", "power_law", "plug_in")


def write(folder: Path, a: StudyAnswers) -> None:
    records.write_json(folder / STUDY_FILE, a)


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
        found = f"{p.result.queries:.3g} queries" if p.result.queries is not None else f"none: {p.result.reason}"
        out.append(
            f"break-even in {p.unit}, {p.task}, accuracy {p.accuracy:g}: {p.cheap_to_ask} pays against {p.cheap_to_train} from {found}"
        )
    out += [f"emergence, {k}: {v.verdict}: {v.reason}" for k, v in a.emergence.items()]
    for f in a.forecasts:
        missed = {k: "none" if v is None else f"{v - f.measured:+.3f}" for k, v in vars(f).items() if k in FORECASTS}
        out.append(
            f"forecast, {f.cell}: pass@{f.k} {f.measured:.3f} from {f.fitted} samples; errors: "
            f"beta-binomial {missed['beta_binomial']}, power law {missed['power_law']}, plug-in {missed['plug_in']}"
        )
    out += [
        f"silent depth, {d.end_point}: " + ", ".join(f"S({k}) = {v:.2f}" for k, v in d.accuracy.items())
        for d in a.depths
    ]
    return out
