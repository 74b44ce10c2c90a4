"""What a rung will cost on this machine, from what earlier runs measured on it; unknown where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import records
from harness.config.ladder import Rung
from harness.errors import RecordError
from harness.laws.estimators import Z95
from harness.records import RunRecord

NEAR = 4.0  # a size further than this factor from every measured one is not forecast


@dataclass(frozen=True)
class Rate:
    """Speed and energy of one finished run, over all of its points."""

    n_total: int
    flop_per_s: float
    j_per_flop: float | None
    j_per_flop_se: float | None  # of the meter's reading


@dataclass(frozen=True)
class Forecast:
    """Seconds and joules of a run; None where nothing near it was measured. `low_j`, `high_j`: 95 %, the card's common gain not in it."""

    seconds: float | None = None
    energy_j: float | None = None
    low_j: float | None = None
    high_j: float | None = None


def measured_rates(runs: Path, device: str) -> list[Rate]:
    """Rates of all finished runs below `runs` on a device of this name. Unreadable records are passed over: this is a forecast."""
    rates = []
    for path in sorted(runs.glob("*/*/record.json")):
        try:
            record = records.load_record(path.parent)
        except RecordError:
            continue
        if record.provenance.get("device") == device and record.points:
            rates.append(_rate(record))
    return rates


def _rate(record: RunRecord) -> Rate:
    flop = sum(p.train_flop for p in record.points)
    joules = [p.energy.energy_j for p in record.points]
    errors = [p.energy.energy_se_j or 0.0 for p in record.points]
    measured = all(j is not None for j in joules)
    energy = sum(j for j in joules if j is not None) / flop if measured else None
    # Points share their trunk's windows, so their errors add up
    return Rate(
        record.counts.n_total,
        flop / sum(p.wall_s for p in record.points),
        energy,
        sum(errors) / flop if measured else None,
    )


def predict(rung: Rung, rates: Iterable[Rate]) -> Forecast:
    """Cost of training a rung, from the measured runs nearest in ln N; unknown where there is none within a factor of 4.

    Interval: at a size that was measured, the scatter of its runs (Student's t) and the meter's error; at another one, joules per FLOP may be
    anything between those of the nearest sizes on both sides, or beyond the one side that there is by as much as their spread.
    """
    size = math.log(rung.counts.n_total)
    near = [r for r in rates if abs(math.log(r.n_total) - size) <= math.log(NEAR)]
    if not near:
        return Forecast()
    closest = min(abs(math.log(r.n_total) - size) for r in near)
    chosen = [r for r in near if abs(math.log(r.n_total) - size) <= closest + 1e-9]
    seconds = rung.spent_flop / (sum(r.flop_per_s for r in chosen) / len(chosen))
    known = [(r.j_per_flop, r.j_per_flop_se or 0.0) for r in chosen if r.j_per_flop is not None]
    if not known:
        return Forecast(seconds)
    mean = sum(j for j, _ in known) / len(known)
    half = Z95 * max(se for _, se in known)
    if len(known) > 1:
        sd = math.sqrt(sum((j - mean) ** 2 for j, _ in known) / (len(known) - 1))
        from scipy import stats

        half = math.hypot(half, stats.t.ppf(0.975, len(known) - 1) * sd)  # of one more run, not of the mean
    low, high = mean - half, mean + half
    if closest > 1e-9:
        others = [r.j_per_flop for r in near if r.j_per_flop is not None and r not in chosen]
        if not others:
            return Forecast(
                seconds, rung.spent_flop * mean
            )  # one size alone says nothing about another's joules per FLOP
        low, high = min(low, *others), max(high, *others)
        sides = {r.n_total > rung.counts.n_total for r in near if r.j_per_flop is not None}
        if len(sides) == 1:  # nothing measured beyond: it may go on as it went so far
            beyond = max(abs(j - mean) for j in others)
            low, high = min(low, mean - beyond), max(high, mean + beyond)
    return Forecast(seconds, rung.spent_flop * mean, rung.spent_flop * max(0.0, low), rung.spent_flop * high)
