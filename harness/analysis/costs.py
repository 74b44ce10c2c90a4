"""What a run of N parameters costs in FLOP, joules and seconds, from the records of a study.

Joules and seconds are those of the measured points, per FLOP of their rung, interpolated between
rungs in log N. Beyond the smallest and the largest measured rung, the rate of that rung holds up to
a factor of 4 in N; further out the cost is unknown, as it is where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.analysis import points as study_points
from harness.laws.gram import Array
from harness.records import RunRecord

MAX_SIZE_RATIO = 4.0  # in N, to the nearest measured rung; as in `forecast`
PerN = Callable[[Array], Array]


@dataclass(frozen=True)
class Costs:
    """Functions of N (arrays).

    None: the cost is unknown, for its `*_reason`. NaN: unknown at that N.
    """

    flop_per_token: PerN | None  # None: 6N
    flop_text: str  # what C counts
    j_per_flop: PerN | None = None
    joules_reason: str | None = None
    s_per_flop: PerN | None = None
    seconds_reason: str | None = None

    def flop(self, n: Array, d: Array) -> Array:
        """Training FLOP of N parameters on D tokens."""
        return (6.0 * n if self.flop_per_token is None else self.flop_per_token(n)) * d

    def joules(self, n: Array, d: Array) -> Array:
        return self._times_flop(self.j_per_flop, n, d)

    def seconds(self, n: Array, d: Array) -> Array:
        return self._times_flop(self.s_per_flop, n, d)

    def _times_flop(self, rate: PerN | None, n: Array, d: Array) -> Array:
        return np.full(np.shape(n), np.nan) if rate is None else rate(n) * self.flop(n, d)


def without_records(reason: str) -> Costs:
    """Costs without the records of a study: C = 6ND, joules and seconds unknown for `reason`."""
    return Costs(None, "C = 6 N D", joules_reason=reason, seconds_reason=reason)


def of_study(records: Sequence[RunRecord], n_column: str) -> Costs:
    """Costs from a study's fit points, with N counted as in `n_column` (a column of `PointTable`).

    FLOP per token are the records' causal count. Its ratio to 6N is interpolated between rungs;
    beyond them, the ratio of the nearest rung holds.
    """
    table = study_points.points(records)
    if not len(table):
        return without_records("the study has no points")
    n = np.asarray(getattr(table, n_column), dtype=float)
    ratio = _by_rung(n, table.train_flop, 6.0 * n * table.tokens, max_ratio=np.inf)
    assert ratio is not None
    devices = sorted({str(record.provenance.get("device")) for record in records if record.points})
    text = f"C = the study's causal count ({n_column})"
    if len(devices) > 1:
        reason = f"points of different devices are not pooled: {', '.join(devices)}"
        return Costs(lambda x: ratio(x) * 6.0 * x, text, joules_reason=reason, seconds_reason=reason)
    measured = np.isfinite(table.energy_j)
    reasons = "; ".join(f"{reason} ({count} points)" for reason, count in table.energy_excluded.items())
    return Costs(
        flop_per_token=lambda x: ratio(x) * 6.0 * x,
        flop_text=text,
        j_per_flop=_by_rung(
            n[measured], table.energy_j[measured], table.train_flop[measured], max_ratio=MAX_SIZE_RATIO
        ),
        joules_reason=None if measured.any() else f"not measured: {reasons}",
        s_per_flop=_by_rung(n, table.wall_s, table.train_flop, max_ratio=MAX_SIZE_RATIO),
    )


def _by_rung(n: Array, over: Array, under: Array, max_ratio: float) -> PerN | None:
    """sum(over) / sum(under) of each rung, interpolated in log-log in N.

    NaN at sizes further than a factor `max_ratio` outside the rungs.
    """
    if not len(n):
        return None
    sizes = np.unique(n)
    rate = np.log([over[n == s].sum() / under[n == s].sum() for s in sizes])

    def interpolated(x: Array) -> Array:
        x = np.asarray(x, dtype=float)
        inside = (x >= sizes[0] / max_ratio) & (x <= sizes[-1] * max_ratio)
        return np.where(inside, np.exp(np.interp(np.log(x), np.log(sizes), rate)), np.nan)

    return interpolated
