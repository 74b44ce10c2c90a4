"""What a study has spent, from the spend.jsonl of its runs, and whether its budget of energy is
used up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import records
from harness.errors import RecordError
from harness.records import SpendRow
from harness.units import J_PER_KWH

CHECK_PERIOD_S = 1.0  # how often a run looks at what its study has spent


@dataclass(frozen=True)
class Spent:
    """Joules of a study: measured, and an upper bound of what was not: its seconds at the cards'
    power limit.

    Without a limit (RAPL, a replayed trace) the highest mean power of a measured window stands in,
    which bounds nothing strictly.
    """

    measured_j: float
    unmeasured_s: float
    # None: time went unmeasured and no window says how much power it may have drawn
    unmeasured_bound_j: float | None

    @property
    def upper_j(self) -> float | None:
        return None if self.unmeasured_bound_j is None else self.measured_j + self.unmeasured_bound_j


def spent(study: Path) -> Spent:
    """Everything below a study folder: every run, evaluation and attempt, whether or not it ended
    in a point.

    Windows overlap where a run books lost work, and then count twice: a budget errs on the side of
    stopping early.
    """
    joules, dark_s, highest_w, limit_w = [0.0], 0.0, 0.0, 0.0
    for path in sorted([*study.glob("*/spend.jsonl"), *study.glob("*/ttc/spend.jsonl")]):
        for row in records.read_rows(path, SpendRow):
            limit_w = max(limit_w, row.limit_w or 0.0)
            if row.energy.energy_j is None:
                dark_s += row.wall_s
            else:
                joules.append(row.energy.energy_j)
                highest_w = max(highest_w, row.energy.power_w or 0.0)
    most_w = limit_w or highest_w
    bound = 0.0 if dark_s == 0 else dark_s * most_w if most_w else None
    return Spent(math.fsum(joules), dark_s, bound)


def exhausted(kwh: float | None, study: Path) -> str | None:
    """Why no more may be spent, in words; None while some of the budget is left, or where there is
    no budget.

    A study whose spending cannot be bounded, because nothing at all was measured, has used its
    budget up.
    """
    if kwh is None:
        return None
    try:
        s = spent(study)
    except RecordError as e:
        return f"budget.kwh={kwh:g}: what was spent cannot be read ({e})"
    if s.upper_j is None:
        return f"budget.kwh={kwh:g}: {s.unmeasured_s:.0f} s ran without a meter, so nothing bounds what they used"
    if s.upper_j < kwh * J_PER_KWH:
        return None
    dark = (
        f", {s.unmeasured_bound_j or 0:.3g} J of it a bound for {s.unmeasured_s:.0f} s unmeasured"
        if s.unmeasured_s
        else ""
    )
    return f"budget.kwh={kwh:g} is used up: {s.upper_j / J_PER_KWH:.4g} kWh spent in {study.name}{dark}"


def guard(kwh: float | None, study: Path, stop_reason: Callable[[], str | None]) -> Callable[[], str | None]:
    """A reason to stop: `stop_reason`'s, else the budget's. Asked at every update, so the files are
    read once in `CHECK_PERIOD_S`."""
    known: str | None = None
    due_s = 0.0

    def reason() -> str | None:
        nonlocal known, due_s
        if kwh is not None and known is None and time.monotonic() >= due_s:
            known, due_s = exhausted(kwh, study), time.monotonic() + CHECK_PERIOD_S
        return stop_reason() or known

    return reason
