"""The joules of a study by rung: per token, per FLOP, the idle share, and the card's floor.

All values are gross and over the fit points of a rung, unless a name says net. The floor is the
vendor's board power over its dense bf16 peak (`harness.hardware`). No training on random data at
full power lies below it, so a lower value is flagged with what to check first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.analysis.points import PointTable
from harness.analysis.study_laws import measured_idle_w
from harness.console import TextTable
from harness.hardware import floor_j_per_flop
from harness.laws.result import Fit
from harness.laws.sentences import balance
from harness.units import si

MAX_FLOOR_RATIO = 15.0  # on a rung that idle power does not dominate


@dataclass(frozen=True)
class RungJoules:
    rung: str
    n_total: float
    points: int
    flop_per_s: float
    power_w: float
    j_per_token: float
    j_per_flop: float
    net_j_per_flop: float | None
    bare_share: float | None  # of the joules: the device without a context
    context_share: float | None  # what the resident context adds to that
    idle_share: float | None  # both together
    of_floor: float | None  # J/FLOP over the card's floor
    flag: str = ""


def by_rung(table: PointTable) -> list[RungJoules]:
    """One row per rung with measured joules, smallest first.

    None where several devices were used.
    """
    measured = table.where(np.isfinite(table.energy_j))
    if len(set(measured.device)) != 1:
        return []
    idle = measured_idle_w(measured)
    idle_w = None if isinstance(idle, str) else idle
    floor = floor_j_per_flop(str(measured.device[0]))
    return [_rung(measured.where(measured.rung == rung), rung, idle_w, floor) for rung in measured.rungs()]


def _rung(points: PointTable, rung: str, idle_w: float | None, floor: float | None) -> RungJoules:
    joules, flop, seconds = (float(a.sum()) for a in (points.energy_j, points.train_flop, points.wall_s))
    idle = None if idle_w is None else idle_w * seconds / joules
    bare_w = float(points.idle_bare_w.mean())  # NaN where one is unknown
    bare = None if idle is None or not np.isfinite(bare_w) else bare_w * seconds / joules
    ratio = None if floor is None else joules / flop / floor
    flag = ""
    if ratio is not None and ratio < 1:
        flag = "below the card's floor: check the precision (below bf16), constant data, a lowered power limit, then the FLOP count"
    elif ratio is not None and ratio > MAX_FLOOR_RATIO and idle is not None and idle < 0.5:
        flag = f"above {MAX_FLOOR_RATIO:g} times the floor though idle power does not explain it"
    elif idle is not None and idle > 1:
        flag = "less than idle power: the idle baseline does not belong to these runs"
    return RungJoules(
        rung=rung,
        n_total=float(points.n_total[0]),
        points=len(points),
        flop_per_s=flop / seconds,
        power_w=joules / seconds,
        j_per_token=joules / float(points.tokens.sum()),
        j_per_flop=joules / flop,
        net_j_per_flop=None if idle is None else (1 - idle) * joules / flop,
        bare_share=bare,
        context_share=None if bare is None or idle is None else idle - bare,
        idle_share=idle,
        of_floor=ratio,
        flag=flag,
    )


def crossover(rows: Sequence[RungJoules], fits: dict[str, Fit]) -> str:
    """Where idle power stops dominating (P t = e C): the throughput, and the size reaching it."""
    trusted = [f for n in ("energy_idle_fixed", "energy_idle") if (f := fits.get(n)) and f.certificate.passed]
    balanced = next(((f, b) for f in trusted if (b := balance(f)) is not None), None)
    if balanced is None or not rows:
        return "where idle power stops dominating is unknown: no trusted fit of energy = P t + e C"
    fit, (flop_per_s, interval) = balanced
    band = "" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]"
    origin = "measured" if fit.fixed else "fitted"
    head = f"idle power ({fit.params['P_idle']:.4g} W, {origin}) equals e x FLOP/s at {flop_per_s:.3g} FLOP/s{band}"
    n = [_size_at(rows, x) for x in (flop_per_s, *(interval or []))]
    if isinstance(n[0], str):
        return f"{head}: {n[0]}"
    sizes = "" if interval is None else f" [{' to '.join(x if isinstance(x, str) else si(x) for x in n[1:])}]"
    return f"{head}: about N = {si(n[0])}{sizes}; idle dominates below"


def _size_at(rows: Sequence[RungJoules], flop_per_s: float) -> float | str:
    """N at which the rungs, joined by straight lines in log-log, first reach this throughput."""
    if all(r.flop_per_s < flop_per_s for r in rows):
        return "beyond the largest rung: idle dominates all"
    if rows[0].flop_per_s >= flop_per_s:
        return "below the smallest rung: idle dominates none"
    k = next(i for i, r in enumerate(rows) if r.flop_per_s >= flop_per_s)
    low, high = rows[k - 1], rows[k]
    share = np.log(flop_per_s / low.flop_per_s) / np.log(high.flop_per_s / low.flop_per_s)
    return float(low.n_total * (high.n_total / low.n_total) ** share)


HEAD = [
    "rung",
    "FLOP/s",
    "W",
    "J/token",
    "pJ/FLOP",
    "net pJ/FLOP",
    "idle share",
    "of which context",
    "times floor",
    "to check",
]


def row_texts(r: RungJoules) -> list[str]:
    """A row of text below `HEAD`; a dash is not measured."""

    def formatted(value: float | None, style: str) -> str:
        return "–" if value is None else format(value, style)

    pico = [None if x is None else 1e12 * x for x in (r.j_per_flop, r.net_j_per_flop)]
    return [
        r.rung, f"{r.flop_per_s:.3g}", f"{r.power_w:.4g}", f"{r.j_per_token:.3g}", *(formatted(x, ".3g") for x in pico),
        formatted(r.idle_share, ".0%"), formatted(r.context_share, ".0%"), formatted(r.of_floor, ".3g"), r.flag or "–",
    ]  # fmt: skip


def context(table: PointTable, rows: Sequence[RungJoules], fits: dict[str, Fit]) -> list[str]:
    """The lines that go with the table: the card's floor, and where idle power stops dominating."""
    device = str(table.device[np.isfinite(table.energy_j)][0])
    floor = floor_j_per_flop(device)
    value = "none known" if floor is None else f"{1e12 * floor:.3g} pJ/FLOP, board power over dense bf16 peak"
    return [f"floor of {device}: {value}", crossover(rows, fits)]


def printed(table: PointTable, fits: dict[str, Fit]) -> list[TextTable | str]:
    """The table and its lines for `console.show`; empty where no joules were measured."""
    rows = by_rung(table)
    return (
        ["joules by rung, gross", TextTable([row_texts(r) for r in rows], HEAD), *context(table, rows, fits)]
        if rows
        else []
    )
