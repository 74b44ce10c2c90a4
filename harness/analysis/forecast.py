"""What a rung will cost on this machine, from earlier runs on it.

Unknown where nothing was measured.
"""

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

MAX_SIZE_RATIO = 4.0  # in N, between a rung and a measured run that can stand for it


@dataclass(frozen=True)
class Rate:
    """Speed and energy of one finished run, over all of its points."""

    n_total: int
    flop_per_s: float
    j_per_flop: float | None
    j_per_flop_se: float | None  # of the meter's reading


@dataclass(frozen=True)
class Forecast:
    """Seconds and joules of a run; None where no run of similar size was measured.

    `low_j` and `high_j` are the 95 % interval, without the error of the card's gain, which all runs
    share.
    """

    seconds: float | None = None
    energy_j: float | None = None
    low_j: float | None = None
    high_j: float | None = None


def measured_rates(runs: Path, device: str) -> list[Rate]:
    """Rates of all finished runs below `runs` on a device of this name.

    Unreadable records are skipped.
    """
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


def estimate_cost(rung: Rung, rates: Iterable[Rate]) -> Forecast:
    """Cost of training a rung, from the measured runs that are nearest in ln N.

    The cost is unknown without a run within a factor of 4 in N. The interval at a measured size is
    the scatter of its runs (Student's t) and the meter's error. At another size it spans the joules
    per FLOP of the nearest sizes on both sides; with one side only, it extends beyond that side by
    their spread.
    """
    size = math.log(rung.counts.n_total)
    near = [r for r in rates if abs(math.log(r.n_total) - size) <= math.log(MAX_SIZE_RATIO)]
    if not near:
        return Forecast()
    closest = min(abs(math.log(r.n_total) - size) for r in near)
    chosen = [r for r in near if abs(math.log(r.n_total) - size) <= closest + 1e-9]
    seconds = rung.spent_flop / (sum(r.flop_per_s for r in chosen) / len(chosen))
    metered = [(r.j_per_flop, r.j_per_flop_se or 0.0) for r in chosen if r.j_per_flop is not None]
    if not metered:
        return Forecast(seconds)
    mean = sum(j for j, _ in metered) / len(metered)
    half = Z95 * max(se for _, se in metered)
    if len(metered) > 1:
        sd = math.sqrt(sum((j - mean) ** 2 for j, _ in metered) / (len(metered) - 1))
        from scipy import stats

        # Of one more run, not of the mean
        half = math.hypot(half, stats.t.ppf(0.975, len(metered) - 1) * sd)
    low, high = mean - half, mean + half
    if closest > 1e-9:
        further = [r.j_per_flop for r in near if r.j_per_flop is not None and r not in chosen]
        if not further:
            # One size says nothing about the joules per FLOP of another
            return Forecast(seconds, rung.spent_flop * mean)
        low, high = min(low, *further), max(high, *further)
        sides = {r.n_total > rung.counts.n_total for r in near if r.j_per_flop is not None}
        if len(sides) == 1:  # the trend between the measured sizes may continue beyond them
            beyond = max(abs(j - mean) for j in further)
            low, high = min(low, mean - beyond), max(high, mean + beyond)
    return Forecast(seconds, rung.spent_flop * mean, rung.spent_flop * max(0.0, low), rung.spent_flop * high)
