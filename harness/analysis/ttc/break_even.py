"""From how many queries on does a setting that is dearer to train and cheaper to ask pay? Q* = (train_b - train_a) / (query_a - query_b).

Both settings answer greedily and reach one accuracy: each line (size, format, control) has the training cost at which its monotone
envelope passes that accuracy, interpolated in log cost as for the exchange rate; a line whose first end point is already above it stands
with that end point. Compared are the line that is cheapest to train so far and the one that is then cheapest to ask. FLOP, joules and
seconds each name their own pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.analysis.ttc import exchange_rate
from harness.analysis.ttc.curves import BreakEven, break_even
from harness.analysis.ttc.exchange_rate import Curve
from harness.laws.gram import Array
from harness.records.ttc import TtcRecord

ACCURACY = 0.9
UNITS = ("FLOP", "s", "J")
LIFETIMES = tuple(10.0**k for k in range(13))  # queries
NAMES = {"FLOP": "FLOP", "s": "seconds", "J": "joules"}


@dataclass
class Payback:
    """The two settings with what each costs to train to `accuracy` and to ask once, in `unit`; None where nothing was measured or reached."""

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
    """The cheapest setting of all, training and that many queries together."""

    queries: float
    setting: str
    cost: float


def lifetimes(settings: dict[str, tuple[float, float]]) -> list[Lifetime]:
    """What to train for 1 to 1e12 queries: of all settings that reach the accuracy, the one with the least train + queries x query."""
    out = []
    for queries in LIFETIMES:
        total = {name: train + queries * query for name, (train, query) in settings.items()}
        best = min(total, key=lambda name: total[name])
        out.append(Lifetime(queries, best, total[best]))
    return out


def price(r: TtcRecord, unit: str) -> tuple[float, float] | None:
    """(training, one greedy query) in `unit`; None where either is unknown."""
    row = next((x for x in r.rows if x.strategy == "greedy"), None)
    if row is None:
        return None
    train, query = {
        "FLOP": (r.train_flop, row.test_flop),
        "s": (r.train_wall_s, row.wall_s),
        "J": (r.train_energy.energy_j, row.energy_j),
    }[unit]
    return (train, query) if train and query else None


def reached(curve: Curve, target: float) -> tuple[float, float] | None:
    """(training, query) cost at `target`, or those of a first end point above it."""
    train, query, accuracy = curve
    return (float(train[0]), float(query[0])) if accuracy[0] >= target else exchange_rate.crossing(curve, target)


def payback(
    task: str, found: Sequence[TtcRecord], unit: str, *, accuracy: float = ACCURACY, draws: int = 400, seed: int = 0
) -> Payback:
    """Q* in one unit, with its 95 % interval: problems are resampled by cluster, and seeds where there are enough, for the same two
    settings. Training and query costs are taken as exact."""

    def settings(curves: dict[str, dict[str, Curve]]) -> dict[str, tuple[float, float]]:
        at = {f"{of}, {line}": reached(c, accuracy) for of, lines in curves.items() for line, c in lines.items()}
        return {name: both for name, both in at.items() if both}

    if not any(price(r, unit) for r in found):
        reasons = {r.train_energy.reason for r in found if r.train_energy.reason} if unit == "J" else set()
        why = f"no setting has both costs in {NAMES[unit]}" + "".join(f"; {x}" for x in sorted(reasons))
        return Payback(task, unit, accuracy, None, None, BreakEven(None, reason=why))
    drawn = exchange_rate.resampled(found, lambda r: price(r, unit), _greedy, lambda r: r.label, draws=draws, seed=seed)
    first = settings(next(drawn))
    if not first:
        why = f"no setting reaches greedy accuracy {accuracy:g}"
        return Payback(task, unit, accuracy, None, None, BreakEven(None, reason=why))
    a = min(first, key=lambda k: first[k])
    b = min(first, key=lambda k: first[k][::-1])
    both = [[first[k][i] for k in (a, b)] for i in (0, 1)]
    best = lifetimes(first)
    if a == b:
        one = BreakEven(None, a, "it is the cheapest both to train and to ask")
        return Payback(task, unit, accuracy, a, b, one, both[0], both[1], best)
    result = break_even(a, *first[a], b, *first[b])
    if result.queries is not None:
        values = [v for s in map(settings, drawn) if (v := _drawn(s.get(a), s.get(b))) is not None]
        result.low, result.high, result.note = _interval(values, draws)
        if note := exchange_rate.seed_note(len({r.seed for r in found})):
            result.note = f"{result.note}; {note}" if result.note else note
    return Payback(task, unit, accuracy, a, b, result, both[0], both[1], best)


def _drawn(a: tuple[float, float] | None, b: tuple[float, float] | None) -> float | None:
    """Q* of one resampling: 0 where b costs no more on both sides or a alone falls short of the accuracy, infinite the other way round."""
    if a is None or b is None:
        return None if a is b else 0.0 if a is None else math.inf
    one = break_even("a", *a, "b", *b)
    return one.queries if one.queries is not None else {"a": math.inf, "b": 0.0}.get(one.dominating or "")


def _interval(values: list[float], draws: int) -> tuple[float | None, float | None, str]:
    """(low, high, note): percentiles, high None where more than 2.5 % of the resamplings never break even."""
    if len(values) < 0.9 * draws or not values:
        return (
            None,
            None,
            f"no interval: both settings fall short of the accuracy in {draws - len(values)} of {draws} resamplings",
        )
    low, high = float(np.quantile(values, 0.025, method="lower")), float(np.quantile(values, 0.975, method="higher"))
    if high < math.inf:
        return low, high, ""
    never = sum(v == math.inf for v in values) / len(values)
    if low == math.inf:
        return None, None, f"no interval: {never:.0%} of the resamplings never break even"
    return low, None, f"unbounded above: {never:.0%} of the resamplings never break even"


def _greedy(r: TtcRecord) -> Array:
    return np.array(r.stats.greedy, dtype=float)
