"""Approach 2 of Hoffmann et al. 2022 (arXiv:2203.15556): the best size N* at each of several
budgets C, then the line ln N* = ln k + a ln C.

Per budget a local fit of ln loss against ln N, either a parabola through the 5-7 sizes around the
lowest run or an Akima spline through all of them (Porian et al. 2024, arXiv:2406.19146). A budget
whose optimum the data do not contain is refused with its reason (`GUARDS`): without these guards
published grids give exponents of 1.21 and -0.47 where the guarded ones are 0.87 and 0.74. The line
weighs each budget by the spread of its ln N* under the noise of the losses.

A parabola is not the shape of a real isoFLOP curve, so off-centre grids bias N* without any noise:
with sizes within x2 and centres drifting from x1/3 to x3 over four decades, a = 0.5139 reads as
0.5231 from parabolas of the loss and as 0.5143 from parabolas of its logarithm, which are used here
(`tests/laws/test_laws_isoflop.py`).

Units: C in FLOP, N in parameters, loss in nat per token. n sizes of one budget, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import FitError
from harness.laws.catalogue import law_named
from harness.laws.fitting import check_resampling
from harness.laws.fitting import fit as fit_law
from harness.laws.gram import Array, Column
from harness.laws.result import Fit, Warn
from harness.laws.table import Table, column

GUARDS = {
    "sizes": "fewer than 4 sizes",
    "concave": "the curve is concave",
    "outside": "the optimum lies outside the sizes run",
    "edge": "the lowest run is the smallest or largest size",
    "step": "the optimum lies more than one grid step from the lowest run",
    "noise": "the curvature is below two standard errors",
}
METHODS = ("parabola", "akima")
MIN_SIZES = 4
MIN_BUDGETS, MIN_SURVIVING = 4, 3
SPREAD_FLOOR = 1 / 3  # of the grid step in ln N: no curve locates its minimum better than that
# rows whose ln C lies this little above the smallest are one budget: steps are whole numbers
BUDGET_TOLERANCE = 0.05
MAX_NAMED = 4  # refused budgets that a message names
AKIMA_POINTS = 25  # per interval between two sizes
DRAWS = 200  # of noise, for the spread of ln N*


@dataclass
class Optimum:
    """One budget's answer, or why it has none."""

    flop: float  # geometric mean of the budget's rows
    sizes: int  # distinct N
    n_star: float | None
    loss_star: float | None  # of the fitted curve at n_star
    spread: float | None  # standard deviation of ln n_star, floored at a third of the grid step
    refused: str | None  # key of GUARDS
    reason: str | None  # in words


def fit(
    table: Table,
    *,
    method: str = "parabola",
    window: int | None = 7,
    weighted: bool = True,
    sigma: Column | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> Fit:
    """N* = k C^a from a table of runs with the columns C, N and loss: a Fit of law `isoflop`.

    `sigma` is the error bar of each loss (nat); without it the noise is the scatter about each
    budget's parabola. Each refused budget is a warning BUDGET_REFUSED, and its rows are counted in
    `excluded` by reason. Raises FitError with fewer than four budgets in the table or fewer than
    three that survive. Its 8 parameters are the choices of the method.
    """
    check_resampling(bootstrap, seed)
    points = optima(table, method=method, window=window, sigma=sigma, seed=seed)
    if len(points) < MIN_BUDGETS:
        raise FitError(
            f"column 'C' holds {len(points)} budgets (values within {BUDGET_TOLERANCE:.0%} are one); approach 2 needs "
            f"{MIN_BUDGETS}, spaced x2-x4, each run at 6 sizes or more. Add budgets, or fit law chinchilla."
        )
    surviving = [p for p in points if p.refused is None]
    if len(surviving) < MIN_SURVIVING:
        refusals = [f"C={p.flop:.3g}: {p.reason}" for p in points if p.refused]
        why = "; ".join(
            [
                *refusals[:MAX_NAMED],
                *([f"and {len(refusals) - MAX_NAMED} more budgets"] if len(refusals) > MAX_NAMED else []),
            ]
        )
        raise FitError(
            f"{len(surviving)} of {len(points)} budgets have an optimum inside their data, {MIN_SURVIVING} are needed. {why}. "
            "Run sizes on both sides of each minimum."
        )
    result = line(surviving, weighted=weighted, bootstrap=bootstrap, seed=seed, columns=columns)
    refused = [p for p in points if p.refused]
    for p in refused:
        label = f"isoFLOP budgets refused: {GUARDS[str(p.refused)]}"
        result.excluded[label] = result.excluded.get(label, 0) + p.sizes
    result.warnings = [Warn("BUDGET_REFUSED", f"C={p.flop:.3g}: {p.reason}.") for p in refused] + result.warnings
    return result


def line(
    points: list[Optimum],
    *,
    weighted: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> Fit:
    """ln N* = ln k + a ln C through optima, least squares with weight 1/spread^2 (or 1)."""
    if missing := [p for p in points if p.n_star is None or p.loss_star is None or p.spread is None]:
        raise FitError(f"the budget C={missing[0].flop:.3g} has no optimum: {missing[0].reason}. Leave it out.")
    c = np.array([p.flop for p in points])
    n = np.array([p.n_star for p in points], dtype=np.float64)
    error = n * np.array([p.spread for p in points], dtype=np.float64)
    # delta beyond every residual is least squares, which the source of this approach uses; hence no
    # DELTA_LARGE
    result = fit_law(
        "isoflop", {"C": c, "n_star": n}, sigma=error if weighted else None, delta=1e3,
        bootstrap=bootstrap, seed=seed, columns=columns,
    )  # fmt: skip
    result.warnings = [w for w in result.warnings if not w.code.startswith("DELTA")]
    return result


def optima(
    table: Table,
    *,
    method: str = "parabola",
    window: int | None = 7,
    log_loss: bool = True,
    guards: tuple[str, ...] = tuple(GUARDS),
    sigma: Column | None = None,
    seed: int = 0,
) -> list[Optimum]:
    """The optimum of each budget, in order of C. `window` sizes around the lowest run enter a
    parabola (None: all); `log_loss=False` fits the loss itself. `guards`: which refusals apply (an
    Akima minimum at an end is always one).
    """
    if method not in METHODS:
        raise FitError(f"method={method!r} is unknown. Choose one of: {', '.join(METHODS)}.")
    if unknown := set(guards) - set(GUARDS):
        raise FitError(f"guards: {', '.join(sorted(unknown))} unknown. Choose from: {', '.join(GUARDS)}.")
    if window is not None and window < 5:
        raise FitError(f"window={window} is too small: a parabola needs 5-7 sizes around the lowest run.")
    law = law_named("isoflop")
    c, n, loss = (column(table, k, law) for k in ("C", "N", "loss"))
    if len({len(c), len(n), len(loss)}) > 1:
        raise FitError(f"C, N and loss have {len(c)}, {len(n)} and {len(loss)} entries: one per row is needed.")
    noise = None if sigma is None else np.asarray(sigma, dtype=np.float64) / (loss if log_loss else 1.0)
    rng = np.random.default_rng(seed)
    out: list[Optimum] = []
    for rows in budgets(c):
        order, where = np.unique(np.log(n[rows]), return_inverse=True)
        count = np.bincount(where)
        measured = np.log(loss[rows]) if log_loss else loss[rows]
        y = np.bincount(where, measured) / count  # seeds of one size enter with their mean
        bar = None if noise is None else np.sqrt(np.bincount(where, noise[rows] ** 2)) / count
        minimum = _minimum(order, y, bar, method, window, guards, rng)
        loss_star = None if minimum.y is None else float(np.exp(minimum.y) if log_loss else minimum.y)
        star = None if minimum.x is None else float(np.exp(minimum.x))
        flop = float(np.exp(np.log(c[rows]).mean()))
        if c[rows].max() == c[rows].min():
            flop = float(c[rows][0])
        out.append(Optimum(flop, len(order), star, loss_star, minimum.spread, minimum.refused, minimum.reason))
    return out


def budgets(c: Array) -> list[NDArray[np.intp]]:
    """Row indices of each budget, in order of C: a new one begins more than `BUDGET_TOLERANCE` in
    ln C above its first row.

    Steps from row to row would chain a continuous range of C into one budget.
    """
    order = np.argsort(c, kind="stable")
    log_c = np.log(c[order])
    begins: list[int] = []
    first = log_c[0] if len(log_c) else 0.0
    for i, ln_c in enumerate(log_c):
        if ln_c > first + BUDGET_TOLERANCE:
            begins.append(i)
            first = ln_c
    return np.split(order, begins)


@dataclass
class _Minimum:
    x: float | None = None
    y: float | None = None
    spread: float | None = None
    refused: str | None = None
    reason: str | None = None


def _refuse(guard: str, detail: str) -> _Minimum:
    return _Minimum(refused=guard, reason=f"{GUARDS[guard]} ({detail})")


def _minimum(
    x: Array, y: Array, bar: Array | None, method: str, window: int | None, guards: tuple[str, ...],
    rng: np.random.Generator,
) -> _Minimum:  # fmt: skip
    """The minimum of one budget's curve over x = ln N, ascending."""
    if len(x) < MIN_SIZES:  # three points fix a parabola exactly, so this guard is never off
        return _refuse("sizes", f"{len(x)} run")
    lowest = int(y.argmin())
    step = float(np.diff(x).mean())
    near = slice(None) if window is None else slice(max(0, lowest - window // 2), lowest + window // 2 + 1)
    inside = x[near], y[near]
    if len(inside[0]) < MIN_SIZES and "sizes" in guards:
        return _refuse("sizes", f"{len(inside[0])} around the lowest")
    if "edge" in guards and lowest in (0, len(x) - 1):
        return _refuse("edge", f"N={np.exp(x[lowest]):.3g}")
    centre = inside[0].mean()
    design = np.vander(inside[0] - centre, 3)
    solve = np.linalg.pinv(design)  # (3, n)
    coef = solve @ inside[1]
    residual = inside[1] - design @ coef
    dof = max(len(residual) - 3, 1)
    noise = np.full(len(x), np.sqrt((residual**2).sum() / dof)) if bar is None else bar
    if method == "akima":
        from scipy.interpolate import Akima1DInterpolator  # pyright: ignore[reportMissingTypeStubs]

        fine = np.linspace(float(x[0]), float(x[-1]), AKIMA_POINTS * (len(x) - 1))
        curve: Array = Akima1DInterpolator(x, y)(fine)
        k = int(curve.argmin())
        if k in (0, len(fine) - 1):
            return _refuse("edge", f"N={np.exp(fine[k]):.3g}")
        curves: Array = Akima1DInterpolator(x, y + noise * rng.normal(size=(DRAWS, len(x))), axis=1)(fine)
        drawn = fine[curves.argmin(1)]
        return _Minimum(float(fine[k]), float(curve[k]), max(float(drawn.std(ddof=1)), SPREAD_FLOOR * step))
    if "concave" in guards and coef[0] <= 0:
        return _refuse("concave", f"curvature {2 * coef[0]:.3g}")
    vertex = centre - coef[1] / (2 * coef[0])
    if "outside" in guards and not x[0] <= vertex <= x[-1]:
        return _refuse(
            "outside", f"N={np.exp(np.clip(vertex, -700, 700)):.3g}, run {np.exp(x[0]):.3g} to {np.exp(x[-1]):.3g}"
        )
    error = float(np.sqrt(((solve[0] * noise[near]) ** 2).sum()))
    if "noise" in guards and coef[0] < 2 * error:
        return _refuse("noise", f"{coef[0]:.2g} against {error:.2g}")
    if "step" in guards and abs(vertex - x[lowest]) > 1.01 * np.diff(x[max(0, lowest - 1) : lowest + 2]).max():
        return _refuse("step", f"N={np.exp(vertex):.3g}, lowest run {np.exp(x[lowest]):.3g}")
    moved = (inside[1] + noise[near] * rng.normal(size=(DRAWS, len(inside[1])))) @ solve.T
    moved = moved[moved[:, 0] > 0]
    drawn = np.clip(centre - moved[:, 1] / (2 * moved[:, 0]), x[0], x[-1])
    spread = float(drawn.std(ddof=1)) if len(drawn) > DRAWS // 2 else float(x[-1] - x[0])
    bottom = coef[2] - coef[1] ** 2 / (4 * coef[0])
    return _Minimum(float(vertex), float(bottom), max(spread, SPREAD_FLOOR * step))
