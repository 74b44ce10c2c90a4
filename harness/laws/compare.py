"""The three approaches of Hoffmann et al. 2022 on one table, with their disagreement; and the
roll-out: what a law would have said had the top budgets not been run.

Approaches differ by more than their intervals on most published tables (0.706 against 0.561 on one,
same runs), so none is reported alone. A table has the columns C (FLOP), N, D (tokens) and loss;
rows are decayed end points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import FitError
from harness.laws import isoflop
from harness.laws.catalogue import chosen, law_named, law_of
from harness.laws.fitting import check_resampling, fit
from harness.laws.gram import Array, Column
from harness.laws.law import Law
from harness.laws.predict import frontier, predict, predict_interval
from harness.laws.result import Fit
from harness.laws.table import Table, column

ENVELOPE_POINTS = 2000  # of ln C, on which the lower envelope is looked up
NAMES = ("1 envelope", "2 parabola", "2 Akima", "3 L(N, D)")


@dataclass
class Approach:
    """One row of the comparison; numbers are None where the approach was refused, with `reason`."""

    name: str
    a: float | None  # exponent of N* = k C^a
    a_interval: list[float] | None
    n_at: float | None  # N* at the reference budget
    n_interval: list[float] | None
    points: int  # optima or rows that it rests on
    reason: str | None
    fit: Fit | None


@dataclass
class Comparison:
    rows: list[Approach]
    flop: float  # the reference budget
    spread: float | None  # largest difference of a
    disagree: list[str]  # pairs whose 95 % intervals of a do not overlap, in words


def approaches(
    table: Table, *, flop: float | None = None, bootstrap: int = 400, seed: int = 0, sigma: Column | None = None
) -> Comparison:
    """Approaches 1, 2 (parabola and Akima) and 3 on `table`; N* is compared at `flop` (default: the
    largest C).

    An approach that refuses the table has a row with its reason. Approach 3 takes C as 6 N D, so
    its N* is comparable only where the table's C is; with another count pass the C of 6 N D.
    """
    check_resampling(bootstrap, seed)
    c = column(table, "C", law_named("isoflop"))
    reference_flop = float(c.max()) if flop is None else flop
    makers = {
        NAMES[0]: lambda: envelope(table, bootstrap=bootstrap, seed=seed),
        NAMES[1]: lambda: isoflop.fit(table, sigma=sigma, bootstrap=bootstrap, seed=seed),
        NAMES[2]: lambda: isoflop.fit(table, method="akima", sigma=sigma, bootstrap=bootstrap, seed=seed),
        NAMES[3]: lambda: fit("chinchilla", table, sigma=sigma, bootstrap=bootstrap, seed=seed),
    }
    rows = [_row(name, make, reference_flop) for name, make in makers.items()]
    fitted = [r for r in rows if r.a is not None]
    values = [r.a for r in fitted if r.a is not None]
    disagree: list[str] = []
    for i, r in enumerate(fitted):
        for rival in fitted[i + 1 :]:
            x, y = r.a_interval, rival.a_interval
            if x and y and (x[1] < y[0] or y[1] < x[0]):
                disagree.append(
                    f"{r.name} and {rival.name}: a {r.a:.3f} [{x[0]:.3f}, {x[1]:.3f}] against "
                    f"{rival.a:.3f} [{y[0]:.3f}, {y[1]:.3f}]"
                )
    return Comparison(rows, reference_flop, max(values) - min(values) if len(values) > 1 else None, disagree)


def _row(name: str, make: Callable[[], Fit], reference_flop: float) -> Approach:
    try:
        f = make()
        if not f.certificate.passed:
            return Approach(name, None, None, None, None, f.n_points, f.certificate.reason, f)
        if law_of(f).questions == "run":
            best = frontier(f, [reference_flop], level=0.95, extrapolate=True)
            n, n_interval = float(best.N[0]), None if best.N_interval is None else best.N_interval[:, 0].tolist()
            return Approach(name, f.derived["a"], f.derived_interval.get("a"), n, n_interval, f.n_points, None, f)
        n = float(predict(f, {"C": np.array([reference_flop])}, extrapolate=True)[0])
        n_interval = None
        if f.draws:
            n_interval = [float(v[0]) for v in predict_interval(f, {"C": np.array([reference_flop])}, extrapolate=True)]
        return Approach(name, f.params["a"], f.interval.get("a"), n, n_interval, f.n_points, None, f)
    except FitError as e:
        return Approach(name, None, None, None, None, 0, str(e), None)


def envelope(table: Table, *, bootstrap: int = 1000, seed: int = 0) -> Fit:
    """Approach 1: N* = k C^a through the sizes on the lower envelope of loss against C; a Fit of
    law `isoflop`.

    Each size's points are joined in log-log; where its line is the lowest of all, it owns a stretch
    of C, and the middle of that stretch is its optimum. One point per size, because the rest of a
    stretch adds no evidence. Stretches that the ends of the data cut off, and those of the smallest
    and largest size, are left out: nothing says where they end. FitError with fewer than three
    sizes left.
    """
    law = law_named("isoflop")
    c, n, loss = (column(table, k, law) for k in ("C", "N", "loss"))
    sizes = np.unique(n)
    x = np.linspace(float(np.log(c.min())), float(np.log(c.max())), ENVELOPE_POINTS)
    curves = np.full((len(sizes), len(x)), np.inf)
    for i, size in enumerate(sizes):
        mine = n == size
        ln_c, where = np.unique(np.log(c[mine]), return_inverse=True)
        y = np.bincount(where, np.log(loss[mine])) / np.bincount(where)
        inside = (x >= ln_c[0]) & (x <= ln_c[-1])
        curves[i, inside] = np.interp(x[inside], ln_c, y)
    # without a rival nothing is an optimum
    owner = np.where(np.isfinite(curves).sum(0) >= 2, curves.argmin(0), -1)
    edges = np.flatnonzero(np.diff(owner)) + 1
    stretches = np.split(np.arange(len(x)), edges)[1:-1]
    longest: dict[int, Array] = {}
    for s in stretches:
        i = int(owner[s[0]])
        if 0 < i < len(sizes) - 1 and len(s) > len(longest.get(i, ())):
            longest[i] = x[s]
    if len(longest) < isoflop.MIN_SURVIVING:
        raise FitError(
            f"{len(longest)} of {len(sizes)} sizes own a whole stretch of the lower envelope, {isoflop.MIN_SURVIVING} are "
            "needed. Run more sizes, each at several D, over a wider range of C."
        )
    points = [
        isoflop.Optimum(
            float(np.exp(s.mean())),
            1,
            float(sizes[i]),
            float(np.exp(curves[i].min())),
            float(np.ptp(s) / 4),
            None,
            None,
        )
        for i, s in sorted(longest.items())
    ]
    return isoflop.line(points, weighted=False, bootstrap=bootstrap, seed=seed)


def text(comparison: Comparison) -> str:
    """The comparison as a Markdown table, the disagreement below it."""
    lines = [f"| approach | a (95 %) | N* at {comparison.flop:.3g} FLOP (95 %) | points |", "|---|---|---|---|"]
    for r in comparison.rows:
        if r.a is None:
            lines.append(f"| {r.name} | refused: {r.reason} | | {r.points} |")
            continue
        a = f"{r.a:.4f}" + (f" [{r.a_interval[0]:.4f}, {r.a_interval[1]:.4f}]" if r.a_interval else "")
        n = f"{r.n_at:.4g}" + (f" [{r.n_interval[0]:.4g}, {r.n_interval[1]:.4g}]" if r.n_interval else "")
        lines.append(f"| {r.name} | {a} | {n} | {r.points} |")
    if comparison.spread is not None:
        lines.append(f"\nLargest difference of a: {comparison.spread:.4f}.")
    lines += [f"Beyond their intervals: {d}." for d in comparison.disagree]
    return "\n".join(lines)


# --- roll-out
@dataclass
class Dropped:
    """The law without the rows above `kept_to`: its parameters, and its mean miss of the next rung
    and of the top one."""

    kept_to: float
    rungs_dropped: int
    n_points: int
    params: dict[str, float] | None
    next_error: float | None  # predicted / measured - 1
    top_error: float | None
    # of the log-log line through the lowest y of the last two rungs kept, at the top's lowest
    naive_top_error: float | None
    reason: str | None  # why there is no fit


def rollout(
    law: str | Law, table: Table, by: str | None = None, *, fixed: Mapping[str, float] | None = None
) -> list[Dropped]:
    """Drop the top rung of `by` (default: the law's first symbol), then the top two, and so on
    while a fit exists."""
    form = chosen(law)
    by = by or form.symbols[0]
    axis = column(table, by, form)
    groups = isoflop.budgets(axis)
    measured = column(table, form.y, form)
    out: list[Dropped] = []
    for k in range(len(groups)):
        rows_left = np.concatenate(groups[: len(groups) - k])
        hold = np.ones(len(axis), dtype=bool)
        hold[rows_left] = False
        edge = float(axis[rows_left].max())
        try:
            f = fit(law, table, bootstrap=0, fixed=fixed, hold_out=hold if k else None)
        except FitError as e:
            out.append(Dropped(edge, k, len(rows_left), None, None, None, None, str(e)))
            break
        if not f.certificate.passed:
            out.append(Dropped(edge, k, len(rows_left), None, None, None, None, f.certificate.reason))
            continue
        row = Dropped(edge, k, len(rows_left), f.params, None, None, None, None)
        if f.held_out is not None:
            error = np.full(len(measured), np.nan)
            error[hold] = f.held_out.relative_error
            row.next_error = float(error[groups[len(groups) - k]].mean())
            row.top_error = float(error[groups[-1]].mean())
            row.naive_top_error = _line_to_top(axis, measured, groups, len(groups) - k)
        out.append(row)
    return out


def _line_to_top(axis: Array, y: Array, groups: list[NDArray[np.intp]], rungs: int) -> float | None:
    """Miss of the line that any law has to beat; None with fewer than two rungs kept."""
    if rungs < 2:
        return None
    best = [int(g[y[g].argmin()]) for g in (groups[rungs - 2], groups[rungs - 1], groups[-1])]
    x, ln_y = np.log(axis[best]), np.log(y[best])
    return float(np.exp(ln_y[1] + (ln_y[1] - ln_y[0]) / (x[1] - x[0]) * (x[2] - x[1]) - ln_y[2]) - 1)


def rollout_text(rows: list[Dropped], by: str) -> str:
    """The roll-out as a Markdown table; every coefficient has its column, so that drift is seen."""
    fitted = [r.params for r in rows if r.params]
    names: list[str] = [] if not fitted else list(fitted[0])
    head = ["rungs dropped", f"{by} up to", "points", *names, "next rung", "top rung", "line at top"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        values = (
            [f"{r.params[n]:.5g}" for n in names] if r.params else [f"refused: {r.reason}", *[""] * (len(names) - 1)]
        )
        misses = ["" if e is None else f"{e:+.2%}" for e in (r.next_error, r.top_error, r.naive_top_error)]
        lines.append(
            "| " + " | ".join([str(r.rungs_dropped), f"{r.kept_to:.3g}", str(r.n_points), *values, *misses]) + " |"
        )
    return "\n".join(lines)
