"""The number of queries from which costlier training with cheaper answers costs less in all.

Q* = (train_b - train_a) / (query_a - query_b). Both settings answer greedily and reach the same
accuracy. Each line (size, format, control) has the training cost at which its monotone envelope
passes that accuracy, interpolated in log cost as for the exchange rate; a line whose first end
point is above the accuracy has the cost of that end point. The line that is cheapest to train is
compared with the line that is cheapest to ask. FLOP, joules and seconds each have their own pair of
lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.analysis.ttc import exchange_rate
from harness.analysis.ttc.exchange_rate import Curve
from harness.laws.gram import Array
from harness.records.ttc import TtcRecord

ACCURACY = 0.9
UNITS = ("FLOP", "s", "J")
LIFETIMES = tuple(10.0**k for k in range(13))  # queries
NAMES = {"FLOP": "FLOP", "s": "seconds", "J": "joules"}


@dataclass
class BreakEven:
    """Queries from which the setting that costs more to train and less to ask costs less in all.

    None where one setting dominates, or a cost is unknown.
    """

    queries: float | None
    dominating: str | None = None
    reason: str | None = None
    low: float | None = None  # 95 %
    high: float | None = None  # None with a `low`: unbounded
    note: str = ""  # what the interval excludes, or why there is none


@dataclass
class BreakEvenAnswer:
    """Two settings, with the costs of training each to `accuracy` and of asking it once, in `unit`.

    None where no cost was measured, or no setting reaches the accuracy.
    """

    task: str
    unit: str  # FLOP | s | J
    accuracy: float
    cheap_to_train: str | None
    cheap_to_ask: str | None
    result: BreakEven
    train: list[float] | None = None  # of the two, in the order above
    query: list[float] | None = None
    lifetime: list[Lifetime] = field(default_factory=list)


@dataclass
class Lifetime:
    """The setting that costs least, with training and `queries` queries together."""

    queries: float
    setting: str
    cost: float


def break_even(
    a: str, train_a: float | None, query_a: float | None, b: str, train_b: float | None, query_b: float | None
) -> BreakEven:
    """Q* = (train_b - train_a) / (query_a - query_b) at equal accuracy.

    All costs have the same unit.
    """
    if train_a is None or query_a is None or train_b is None or query_b is None:
        return BreakEven(None, reason="a cost was not measured")
    train, query = train_b - train_a, query_a - query_b
    if train == 0 and query == 0:
        return BreakEven(None, reason="the two settings cost the same")
    if train >= 0 and query <= 0:
        return BreakEven(None, a, f"{a} costs no more to train and no more to ask")
    if train <= 0 and query >= 0:
        return BreakEven(None, b, f"{b} costs no more to train and no more to ask")
    return BreakEven(train / query)


def lifetimes(settings: dict[str, tuple[float, float]]) -> list[Lifetime]:
    """The setting of least train + queries x query, for 1 to 1e12 queries.

    `settings`: name -> (training cost, cost of one query), at equal accuracy.
    """
    out = []
    for queries in LIFETIMES:
        total = {name: train + queries * query for name, (train, query) in settings.items()}
        best = min(total, key=lambda name: total[name])
        out.append(Lifetime(queries, best, total[best]))
    return out


def costs(record: TtcRecord, unit: str) -> tuple[float, float] | None:
    """Costs of training and of one greedy query in `unit`; None where either is unknown."""
    row = next((x for x in record.rows if x.strategy == "greedy"), None)
    if row is None:
        return None
    train, query = {
        "FLOP": (record.train_flop, row.test_flop),
        "s": (record.train_wall_s, row.wall_s),
        "J": (record.train_energy.energy_j, row.energy_j),
    }[unit]
    return (train, query) if train and query else None


def cost_at(curve: Curve, target: float) -> tuple[float, float] | None:
    """Costs of training and of a query at accuracy `target`, or of a first end point above it."""
    train, query, accuracy = curve
    return (float(train[0]), float(query[0])) if accuracy[0] >= target else exchange_rate.crossing(curve, target)


def study_break_even(
    task: str, records: Sequence[TtcRecord], unit: str, *, accuracy: float = ACCURACY, draws: int = 400, seed: int = 0
) -> BreakEvenAnswer:
    """Q* in one unit, with its 95 % interval.

    The interval resamples clusters of problems, and seeds where there are enough of them, for the
    same two settings. Training and query costs are taken as exact.
    """

    def settings(curves: dict[str, dict[str, Curve]]) -> dict[str, tuple[float, float]]:
        pairs = {f"{of}, {line}": cost_at(c, accuracy) for of, lines in curves.items() for line, c in lines.items()}
        return {name: pair for name, pair in pairs.items() if pair}

    if not any(costs(record, unit) for record in records):
        reasons = (
            {record.train_energy.reason for record in records if record.train_energy.reason} if unit == "J" else set()
        )
        reason = f"no setting has both costs in {NAMES[unit]}" + "".join(f"; {x}" for x in sorted(reasons))
        return BreakEvenAnswer(task, unit, accuracy, None, None, BreakEven(None, reason=reason))
    resamplings = exchange_rate.resampled(
        records, lambda r: costs(r, unit), _greedy, lambda r: r.label, draws=draws, seed=seed
    )
    first = settings(next(resamplings))
    if not first:
        reason = f"no setting reaches greedy accuracy {accuracy:g}"
        return BreakEvenAnswer(task, unit, accuracy, None, None, BreakEven(None, reason=reason))
    a = min(first, key=lambda k: first[k])
    b = min(first, key=lambda k: first[k][::-1])
    train, query = ([first[k][i] for k in (a, b)] for i in (0, 1))
    best = lifetimes(first)
    if a == b:
        dominant = BreakEven(None, a, "it is the cheapest both to train and to ask")
        return BreakEvenAnswer(task, unit, accuracy, a, b, dominant, train, query, best)
    result = break_even(a, *first[a], b, *first[b])
    if result.queries is not None:
        values = [v for s in map(settings, resamplings) if (v := _resampled_queries(s.get(a), s.get(b))) is not None]
        result.low, result.high, result.note = _interval(values, draws)
        if note := exchange_rate.seed_note(len({record.seed for record in records})):
            result.note = f"{result.note}; {note}" if result.note else note
    return BreakEvenAnswer(task, unit, accuracy, a, b, result, train, query, best)


def _resampled_queries(a: tuple[float, float] | None, b: tuple[float, float] | None) -> float | None:
    """Q* of one resampling: 0 where b dominates or a misses the accuracy, inf for the reverse.

    None where both settings miss the accuracy.
    """
    if a is None or b is None:
        return None if a is b else 0.0 if a is None else math.inf
    result = break_even("a", *a, "b", *b)
    return result.queries if result.queries is not None else {"a": math.inf, "b": 0.0}.get(result.dominating or "")


def _interval(values: list[float], draws: int) -> tuple[float | None, float | None, str]:
    """Percentiles and a note; `high` is None where 2.5 % of the resamplings never break even."""
    if len(values) < 0.9 * draws or not values:
        missing = draws - len(values)
        return None, None, f"no interval: both settings miss the accuracy in {missing} of {draws} resamplings"
    low, high = float(np.quantile(values, 0.025, method="lower")), float(np.quantile(values, 0.975, method="higher"))
    if high < math.inf:
        return low, high, ""
    never = sum(v == math.inf for v in values) / len(values)
    if low == math.inf:
        return None, None, f"no interval: {never:.0%} of the resamplings never break even"
    return low, None, f"unbounded above: {never:.0%} of the resamplings never break even"


def _greedy(record: TtcRecord) -> Array:
    return np.array(record.stats.greedy, dtype=float)
