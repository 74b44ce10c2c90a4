"""What a rung will cost on this machine, from what earlier runs measured on it; unknown where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import records
from harness.errors import RecordError
from harness.ladder import Rung
from harness.records import RunRecord


@dataclass(frozen=True)
class Rate:
    """Speed and energy of one finished run, over all of its points."""

    n_total: int
    flop_per_s: float
    j_per_flop: float | None


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
    energy = None if any(j is None for j in joules) else sum(j for j in joules if j is not None) / flop
    return Rate(record.counts.n_total, flop / sum(p.wall_s for p in record.points), energy)


def predict(rung: Rung, rates: Iterable[Rate]) -> tuple[float | None, float | None]:
    """Seconds and joules of training a rung, from the measured runs nearest in ln N; None where there is none within a factor 4."""
    size = math.log(rung.counts.n_total)
    near = [r for r in rates if abs(math.log(r.n_total) - size) <= math.log(4)]
    if not near:
        return None, None
    closest = min(abs(math.log(r.n_total) - size) for r in near)
    near = [r for r in near if abs(math.log(r.n_total) - size) <= closest + 1e-9]
    seconds = rung.spent_flop / (sum(r.flop_per_s for r in near) / len(near))
    energies = [r.j_per_flop for r in near if r.j_per_flop is not None]
    return seconds, rung.spent_flop * sum(energies) / len(energies) if energies else None
