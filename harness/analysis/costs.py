"""What a run of N parameters costs in FLOP, joules and seconds, from the records of a study; unknown where nothing was
measured.

Joules and seconds are those of the measured points, per FLOP of their rung, interpolated between rungs in log N. Beyond
the smallest and the largest measured rung the end's rate holds up to a factor 4 in N; further out the price is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.analysis import points as study_points
from harness.laws.gram import Array
from harness.records import RunRecord

REACH = 4.0  # factor in N beyond the measured rungs; as in `forecast`
PerN = Callable[[Array], Array]


@dataclass(frozen=True)
class Prices:
    """Functions of N (arrays); a price that is None is not known, and its `*_reason` says why. NaN: not known at that N."""

    flop_per_token: PerN | None  # None: 6N
    flop_text: str  # what C counts
    j_per_flop: PerN | None = None
    joules_reason: str | None = None
    s_per_flop: PerN | None = None
    seconds_reason: str | None = None
    where: str = ""  # on what it was measured

    def flop(self, n: Array, d: Array) -> Array:
        """Training FLOP of N parameters on D tokens."""
        return (6.0 * n if self.flop_per_token is None else self.flop_per_token(n)) * d

    def joules(self, n: Array, d: Array) -> Array:
        return self._priced(self.j_per_flop, n, d)

    def seconds(self, n: Array, d: Array) -> Array:
        return self._priced(self.s_per_flop, n, d)

    def _priced(self, rate: PerN | None, n: Array, d: Array) -> Array:
        return np.full(np.shape(n), np.nan) if rate is None else rate(n) * self.flop(n, d)


def without_records(why: str) -> Prices:
    """Prices where only files of fits are at hand: C = 6ND."""
    return Prices(None, "C = 6 N D", joules_reason=why, seconds_reason=why)


def of_study(records: Sequence[RunRecord], n_column: str) -> Prices:
    """Prices from a study's fit points, with N counted as in `n_column` (a column of `curves.PointTable`).

    FLOP per token are the records' own causal count; its ratio to 6N is interpolated between rungs, and beyond them that
    of the nearest rung holds.
    """
    t = study_points.points(records)
    if not len(t):
        return without_records("the study has no points")
    n = np.asarray(getattr(t, n_column), dtype=float)
    ratio = _by_rung(n, t.train_flop, 6.0 * n * t.tokens, reach=np.inf)
    assert ratio is not None
    devices = sorted({str(r.provenance.get("device")) for r in records if r.points})
    text = f"C = the study's causal count ({n_column})"
    if len(devices) > 1:
        why = f"points of different devices are not pooled: {', '.join(devices)}"
        return Prices(lambda x: ratio(x) * 6.0 * x, text, joules_reason=why, seconds_reason=why)
    measured = np.isfinite(t.energy_j)
    why = "; ".join(f"{reason} ({count} points)" for reason, count in t.energy_excluded.items())
    return Prices(
        flop_per_token=lambda x: ratio(x) * 6.0 * x,
        flop_text=text,
        j_per_flop=_by_rung(n[measured], t.energy_j[measured], t.train_flop[measured], reach=REACH),
        joules_reason=None if measured.any() else f"not measured: {why}",
        s_per_flop=_by_rung(n, t.wall_s, t.train_flop, reach=REACH),
        where=devices[0],
    )


def _by_rung(n: Array, over: Array, under: Array, reach: float) -> PerN | None:
    """sum(over) / sum(under) of each rung, interpolated in log-log; NaN further than `reach` outside the rungs."""
    if not len(n):
        return None
    sizes = np.unique(n)
    rate = np.log([over[n == s].sum() / under[n == s].sum() for s in sizes])

    def at(x: Array) -> Array:
        x = np.asarray(x, dtype=float)
        inside = (x >= sizes[0] / reach) & (x <= sizes[-1] * reach)
        return np.where(inside, np.exp(np.interp(np.log(x), np.log(sizes), rate)), np.nan)

    return at
