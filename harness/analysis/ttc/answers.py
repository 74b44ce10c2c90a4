"""The answers of a study's evaluations: `ttc.json`, and the lines of `harness fit`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import records as record_files
from harness.analysis.ttc import curves as ttc_curves
from harness.analysis.ttc import emergence, exchange_rate, votes
from harness.analysis.ttc.break_even import UNITS, BreakEvenAnswer, study_break_even
from harness.analysis.ttc.curves import COSTS, Estimate, PassForecast
from harness.analysis.ttc.emergence import Audit
from harness.analysis.ttc.exchange_rate import Exchange
from harness.analysis.ttc.votes import EqualCost
from harness.records.ttc import TtcRecord, renamed

STUDY_FILE = "ttc.json"
FORECASTS = ("beta_binomial", "power_law", "plug_in")  # methods: fields of `PassForecast`
OLD_STUDY_FILE = "testtime.json"  # its name in older studies


@dataclass
class PerCorrect:
    cell: str
    strategy: str
    n: int
    energy_j: Estimate
    wall_s: Estimate
    order: str = "batched"


@dataclass
class Marginal:
    """The cost of one more right answer between two forced lengths of an end point, per problem.

    None where no answer is gained, or a cost is unknown.
    """

    end_point: str
    cost: str  # test_flop | tokens | wall_s | energy_j
    budget: str  # label of the control that costs more
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
    predicted: dict[str, float]  # forced length -> accuracy by S(r)
    measured: dict[str, float]


@dataclass
class StudyAnswers:
    exchange: list[Exchange]
    emergence: dict[str, Audit]  # "<control>, T=<temperature>" -> audit
    forecasts: list[PassForecast]
    depths: list[Depth]
    pareto: list[FrontPoint]
    per_correct: list[PerCorrect]  # at the last end point of each run
    break_evens: list[BreakEvenAnswer] = field(default_factory=list)
    equal_costs: list[EqualCost] = field(default_factory=list)
    marginal: list[Marginal] = field(default_factory=list)
    # Cell of a last end point -> limit of best_noisy as n grows
    noisy_limit: dict[str, float] = field(default_factory=dict)
    unfitted: dict[str, str] = field(default_factory=dict)  # law of a cell -> why there is no fit
    schema_version: int = record_files.SCHEMA_VERSION

    @staticmethod
    def upgraded(value: Any) -> Any:
        """The JSON value with the names that fields have now.

        `paybacks` and `arm` are the older ones.
        """
        if isinstance(value, dict):
            (value,) = renamed([value], "paybacks", "break_evens")
            if isinstance(rows := value.get("per_correct"), list):
                value["per_correct"] = renamed(rows, "arm", "order")
        return value


def answers(records: Sequence[TtcRecord], unfitted: dict[str, str], *, draws: int = 400, seed: int = 0) -> StudyAnswers:
    """The content of `ttc.json`.

    Controls and temperatures are audited apart: the null's T differs between them.
    """
    controls: dict[str, list[TtcRecord]] = {}
    forced: dict[str, list[TtcRecord]] = {}  # end point -> its forced lengths
    setups: dict[str, list[TtcRecord]] = {}  # each trades thought for training in its own way
    for record in records:
        controls.setdefault(f"{votes.setup(record)}, {record.label}, T={record.temperature:g}", []).append(record)
        setups.setdefault(votes.setup(record), []).append(record)
        if record.control.get("max_states") is not None:
            forced.setdefault(f"{record.name} {record.branch}, T={record.temperature:g}", []).append(record)
    last = ttc_curves.last_end_points(records)
    forecasts = [ttc_curves.forecast(record, record.samples // 4, seed=seed) for record in records]
    return StudyAnswers(
        exchange=[
            replace(exchange_rate.exchange(cells, basis, draws=draws, seed=seed), of=setup)
            for setup, cells in setups.items()
            for basis in exchange_rate.BASES
        ],
        emergence={name: emergence.audit(cells) for name, cells in controls.items()},
        forecasts=[f for f in forecasts if f is not None],
        depths=[d for name, cells in forced.items() if (d := _depth(name, cells)) is not None],
        pareto=_front(records),
        per_correct=_per_correct(last),
        break_evens=[
            study_break_even(setup, cells, unit, draws=draws, seed=seed)
            for setup, cells in setups.items()
            for unit in UNITS
        ],
        equal_costs=votes.equal_costs(records),
        marginal=[m for name, cells in forced.items() for m in marginal(name, cells)],
        noisy_limit={
            ttc_curves.cell_name(record): ttc_curves.noisy_verifier_limit(
                record, ttc["verifier_tpr"], ttc["verifier_fpr"]
            )
            for record in last
            if (ttc := record.config.get("ttc"))
        },
        unfitted=unfitted,
    )


def _depth(end_point: str, cells: Sequence[TtcRecord]) -> Depth | None:
    """Silent depth of one end point, with the accuracies that it predicts; None for other tasks."""
    if not (depth := ttc_curves.silent_depth(cells)):
        return None
    by_length = {str(record.control["max_states"]): record for record in cells}
    return Depth(
        end_point,
        cells[0].width,
        {str(k): value for k, (value, _) in depth.items()},
        {str(k): count for k, (_, count) in depth.items()},
        {length: ttc_curves.predicted_accuracy(depth, r) for length, r in by_length.items()},
        {length: sum(r.stats.greedy) / len(r.stats.greedy) for length, r in by_length.items()},
    )


def _front(records: Sequence[TtcRecord]) -> list[FrontPoint]:
    """The Pareto front of all cells, for each cost."""
    pairs = [(record, row) for record in records for row in record.rows]
    return [
        FrontPoint(
            name,
            ttc_curves.cell_name(r),
            row.strategy,
            row.n,
            float(ttc_curves.cost(row, name) or 0.0),
            row.accuracy or 0.0,
        )
        for name in COSTS
        for r, row in ttc_curves.pareto(pairs, name)
    ]


def _per_correct(records: Sequence[TtcRecord]) -> list[PerCorrect]:
    """Joules and seconds per correct answer of the strategies that need no verifier."""
    return [
        PerCorrect(
            ttc_curves.cell_name(record),
            row.strategy,
            row.n,
            ttc_curves.per_correct(record, row, "energy_j"),
            ttc_curves.per_correct(record, row, "wall_s"),
            row.order,
        )
        for record in records
        for row in record.rows
        if row.strategy in ("greedy", "sample", "majority")
    ]


def marginal(name: str, cells: Sequence[TtcRecord]) -> list[Marginal]:
    """Cost over accuracy gained between neighbouring forced lengths of one end point, greedily."""
    rows = [
        (record, row)
        for record in cells
        for row in record.rows
        if row.strategy == "greedy" and row.accuracy is not None
    ]
    rows.sort(key=lambda pair: pair[0].control["max_states"])
    out = []
    for (shorter, a), (longer, b) in itertools.pairwise(rows):
        gain = (b.accuracy or 0.0) - (a.accuracy or 0.0)
        for unit in COSTS:
            low, high = ttc_curves.cost(a, unit), ttc_curves.cost(b, unit)
            value = reason = None
            if low is None or high is None:
                reason = b.energy_reason if unit == "energy_j" else f"{unit} was not measured"
            elif gain <= 0:
                reason = "no more answers are right"
            else:
                value = (high - low) / gain
            out.append(Marginal(name, unit, longer.label, shorter.label, value, reason))
    return out


def write(folder: Path, study_answers: StudyAnswers) -> None:
    record_files.write_json(folder / STUDY_FILE, study_answers)


def read(folder: Path) -> StudyAnswers | None:
    """The answers that `harness fit` wrote for a study; None where it has not run."""
    path = next((p for p in (folder / STUDY_FILE, folder / OLD_STUDY_FILE) if p.exists()), None)
    if path is None:
        return None
    return record_files.load_json(path, StudyAnswers)


def lines(study_answers: StudyAnswers) -> list[str]:
    """A line per (samples fitted, k): root mean square error of each method, over its cells."""
    out = []
    for rate in study_answers.exchange:
        if rate.g is None:
            out.append(f"exchange, {rate.of}, {rate.basis}: none: {rate.reason}")
        else:
            interval = "no interval" if rate.low is None else f"95 % [{rate.low:.3g}, {rate.high:.3g}]"
            out.append(
                f"exchange, {rate.of}, {rate.basis}: g = {rate.g:.3g}, {interval}; {len(rate.points)} points"
                + (f"; {rate.note}" if rate.note else "")
            )
    for answer in study_answers.break_evens:
        q = answer.result
        where = f"break-even in {answer.unit}, {answer.task}, greedy accuracy {answer.accuracy:g}"
        if q.queries is None:
            out.append(f"{where}: none: {q.dominating + ': ' if q.dominating else ''}{q.reason}")
            continue
        interval = (
            "" if q.low is None else f", 95 % [{q.low:.3g}, {'unbounded' if q.high is None else f'{q.high:.3g}'}]"
        )
        note = f"; {q.note}" if q.note else ""
        out.append(
            f"{where}: {answer.cheap_to_ask} pays against {answer.cheap_to_train} from {q.queries:.3g} queries{interval}{note}"
        )
    for answer in study_answers.break_evens:
        if answer.lifetime:
            steps = [next(group) for _, group in itertools.groupby(answer.lifetime, key=lambda x: x.setting)]
            settings = "; ".join(f"from {x.queries:.0e} queries {x.setting}" for x in steps)
            out.append(
                f"cheapest over a lifetime in {answer.unit}, {answer.task}, greedy accuracy {answer.accuracy:g}: {settings}"
            )
    for name in dict.fromkeys(e.cost for e in study_answers.equal_costs):
        gains = [e.gain for e in study_answers.equal_costs if e.cost == name]
        beats = sum(g.low is not None and g.low > 0 for g in gains)
        loses = sum(g.high is not None and g.high < 0 for g in gains)
        out.append(
            f"votes against one longer thought of no more {name}: {beats} of {len(gains)} votes win, {loses} lose (95 %)"
        )
    out += [f"emergence, {k}: {v.verdict}: {v.reason}" for k, v in study_answers.emergence.items()]
    out += forecast_lines(study_answers.forecasts)
    out += [
        f"silent depth, {d.end_point}: " + ", ".join(f"S({k}) = {v:.2f}" for k, v in d.accuracy.items())
        for d in study_answers.depths
    ]
    if study_answers.unfitted:
        out.append(f"laws of single cells: {len(study_answers.unfitted)} have none, with their reasons in {STUDY_FILE}")
    return out


def forecast_lines(forecasts: Sequence[PassForecast]) -> list[str]:
    """A line per (samples fitted, k): root mean square error of each method over its cells."""
    out = []
    for fitted, k in dict.fromkeys((f.fitted, f.k) for f in forecasts):
        cells = [f for f in forecasts if (f.fitted, f.k) == (fitted, k)]
        parts = []
        for method in FORECASTS:
            errors = [v - f.measured for f in cells if (v := getattr(f, method)) is not None]
            rms = math.sqrt(math.fsum(e * e for e in errors) / len(errors)) if errors else None
            parts.append(f"{method.replace('_', ' ')} {'none' if rms is None else f'{rms:.3f}'} ({len(errors)} cells)")
        out.append(f"forecast of pass@{k} from {fitted} samples, rms error: {', '.join(parts)}")
    return out
