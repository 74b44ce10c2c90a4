"""When not to believe a fit: profiles and warnings after it; `refuse` has what comes before.
Thresholds are those of docs/conventions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.laws.gram import Array
from harness.laws.refuse import MAX_COLLINEARITY
from harness.laws.result import Certificate, Warn
from harness.laws.solver.bound import BoundLaw
from harness.laws.solver.solve import huber_sum, minimise, robust_delta, rounding_floor

MAX_OBJECTIVE_RATIO = 1.05  # an objective within 5 % of the best is not told apart from it
MAX_FLOOR_RANGE = 0.2  # of the smallest measured y: a floor that may move further is not pinned
MAX_INTERVAL_RATIO = {
    "exponent": 3.0,
    "coefficient": 10.0,
}  # interval end / start beyond which a parameter is not pinned
# no leave-one-out above this: one of many rarely decides, and the top losses are still dropped
# together
MAX_LEFT_OUT_BLOCKS = 300


# --- profiles
def profile(
    bound: BoundLaw, table: Mapping[str, Array], y: Array, theta: Array, name: str, values: Array, delta: float
) -> Array:
    """Objective with `name` held at each of `values` and everything else refitted (from the optimum
    and from a cold start).
    """
    refits = [bound.law.bind(table, y, bound.weight, {**bound.fixed, name: float(v)}) for v in values]
    i = bound.names.index(name)
    warm = np.repeat(theta[None], len(values), axis=0)
    warm[:, i] = [b.origin[i] for b in refits]
    cold = np.concatenate([b.cold_start(b.target, b.weight) for b in refits])
    rough = minimise(refits[0], np.concatenate([warm, cold]), bound.target, bound.weight, 5 * delta, 40, 1e-6)
    starts = np.concatenate([rough.theta, warm])
    most = 60 if bound.coarse else 200
    result = minimise(refits[0], starts, bound.target, bound.weight, delta, most, tolerance=1e-10)
    return result.objective.reshape(3, len(values)).min(0)


def flat_range(values: Array, objectives: Array, best: float) -> tuple[float, float] | None:
    """Where the profile lies within 5 % of `best`, edges by linear interpolation; None where it
    never does."""
    limit = MAX_OBJECTIVE_RATIO * best
    inside = np.flatnonzero(objectives <= limit)
    if not len(inside):
        return None
    edges: list[float] = []
    for k, step in ((inside[0], -1), (inside[-1], 1)):
        v = values[k]
        if 0 <= k + step < len(values):
            q0, q1 = objectives[k], objectives[k + step]
            v += (values[k + step] - v) * (limit - q0) / (q1 - q0)
        edges.append(float(v))
    return edges[0], edges[1]


# --- after
@dataclass
class Evidence:
    """What the warnings are drawn from."""

    bound: BoundLaw
    table: Mapping[str, Array]  # rows of the fit
    y: Array
    theta: Array
    objective: float
    delta: float
    params: dict[str, float]
    interval: dict[str, list[float]]
    draws: dict[str, Array]
    certificate: Certificate
    block: NDArray[np.intp]


def identify(e: Evidence) -> tuple[dict[str, bool], list[Warn]]:
    """For each parameter whether the data pin it, with a warning for each one that they do not."""
    law, fixed = e.bound.law, e.bound.fixed
    best = max(e.objective, float(rounding_floor(e.bound.weight)))
    identified: dict[str, bool] = {}
    warnings: list[Warn] = []
    coarse = e.bound.coarse
    for c in law.coordinates:
        name, kind = c.name, c.kind
        if name in fixed:
            continue
        value, interval = e.params[name], e.interval.get(name)
        why: str | None = None
        if name in e.certificate.at_bound:
            why = f"its optimum is at a bound ({value:.4g})"
        elif kind == "floor" and e.y.min() > 0:
            grid = np.unique(np.concatenate([np.linspace(0, 0.999 * float(e.y.min()), 9 if coarse else 24), [value]]))
            flat = flat_range(grid, profile(e.bound, e.table, e.y, e.theta, name, grid, e.delta), best)
            if flat and flat[1] - flat[0] > MAX_FLOOR_RANGE * e.y.min():
                why = f"any value from {flat[0]:.3g} to {flat[1]:.3g} is within 5 % of the best objective"
            elif interval and interval[0] <= 1e-6 * e.y.min():
                why = f"its 95 % interval reaches down to 0 (up to {interval[1]:.3g})"
        elif kind == "exponent":
            grid = np.unique(np.clip(value * np.geomspace(0.25, 4.0, 9 if coarse else 17), *c.limits))
            flat = flat_range(grid, profile(e.bound, e.table, e.y, e.theta, name, grid, e.delta), best)
            if flat and flat[1] / flat[0] > MAX_INTERVAL_RATIO["exponent"]:
                why = f"any value from {flat[0]:.3g} to {flat[1]:.3g} is within 5 % of the best objective"
            elif interval and interval[1] / interval[0] > MAX_INTERVAL_RATIO["exponent"]:
                why = f"its 95 % interval is {interval[0]:.3g} to {interval[1]:.3g}"
        elif kind == "scale" and (side := _unbounded(e, name, best)):
            why = side
            warnings.append(Warn(f"{name.upper()}_UNBOUNDED", f"{name} is bounded on one side only: {side}."))
        elif kind == "level":
            if interval and interval[1] - interval[0] > 0.5 * np.ptp(e.y):
                why = f"its 95 % interval is {interval[0]:.3g} to {interval[1]:.3g}, over half the range of the data"
        elif interval and interval[1] > MAX_INTERVAL_RATIO["coefficient"] * max(interval[0], 0.0):
            why = f"its 95 % interval is {interval[0]:.3g} to {interval[1]:.3g}; quote y at a reference point instead"
        identified[name] = why is None
        if why:
            warnings.append(Warn(f"{name.upper()}_NOT_PINNED", f"{name} is not pinned by these data: {why}."))
        if interval and kind == "exponent" and (interval[0] <= c.limits[0] * 1.01 or interval[1] >= c.limits[1] * 0.99):
            warnings.append(
                Warn("INTERVAL_UNBOUNDED", f"the 95 % interval of {name} runs to the bound of its search range.")
            )
    return identified, warnings


def _unbounded(e: Evidence, name: str, best: float) -> str | None:
    """In words, whether the profile of a scale (R_D, x1 ...) stays within 5 % of the best to a
    factor 100 away."""
    value = e.params[name]
    grid = value * np.geomspace(1e-2, 1e2, 9)
    inside = profile(e.bound, e.table, e.y, e.theta, name, grid, e.delta) <= MAX_OBJECTIVE_RATIO * best
    if inside[0] and inside[-1]:
        return f"any value from {grid[0]:.3g} to {grid[-1]:.3g} is within 5 % of the best objective"
    if inside[-1]:
        return f"not bounded above: {grid[-1]:.3g} is within 5 % of the best objective"
    if inside[0]:
        return f"not bounded below: {grid[0]:.3g} is within 5 % of the best objective"
    return None


def warn(e: Evidence) -> list[Warn]:
    """Degrees of freedom, bounds, delta, correlation, influence; in the order in which a reader
    should meet them."""
    law, bound = e.bound.law, e.bound
    out: list[Warn] = []
    dof = bound.n - int(bound.free.sum())
    if dof < 5:
        out.append(
            Warn(
                "FEW_DEGREES",
                f"{dof} residual degrees of freedom ({bound.n} rows): the fit cannot be judged by its residuals.",
            )
        )
    if e.certificate.at_bound:
        named = ", ".join(f"{n} = {e.params[n]:.4g}" for n in e.certificate.at_bound)
        out.append(Warn("AT_BOUND", f"at a bound: {named}. The law's form, not the noise, is the usual reason."))
    residual = bound.model(e.theta[None])[0] - bound.target
    beyond = float((np.abs(residual) > e.delta).mean())
    if law.delta < 1 and beyond < 0.02 and np.abs(residual).max() > 1e-9:
        out.append(
            Warn(
                "DELTA_LARGE",
                f"{beyond:.0%} of the residuals exceed delta={e.delta:g}: this is least squares, "
                "outliers count in full.",
            )
        )
    if law.residual == "log":
        out += _delta_warning(e, residual)
    for coef, exponent in law.pairs:
        if coef in e.draws and exponent in e.draws and len(e.draws[coef]) > 20:
            a, b = np.log(np.maximum(e.draws[coef], 1e-300)), e.draws[exponent]
            if a.std() > 0 and b.std() > 0 and abs(corr := float(np.corrcoef(a, b)[0, 1])) > MAX_COLLINEARITY:
                out.append(
                    Warn(
                        "STRONGLY_CORRELATED",
                        f"ln {coef} and {exponent} correlate at {corr:.4f}: never quote {coef} alone.",
                    )
                )
    return out + _influence(e)


def _delta_warning(e: Evidence, residual: Array) -> list[Warn]:
    """An exponent that another usual delta moves by more than its standard error, or by a quarter
    of itself."""
    robust = robust_delta(residual)
    if robust <= 1e-9:
        return []
    moved: list[str] = []
    for name, value in exponents_at(e.bound, e.theta, robust).items():
        limit = 0.25 * e.params[name]
        if name in e.interval:
            limit = min(limit, (e.interval[name][1] - e.interval[name][0]) / 3.92)
        if name not in e.bound.fixed and abs(value - e.params[name]) > limit:
            moved.append(f"{name} {e.params[name]:.4g} -> {value:.4g}")
    if not moved:
        return []
    return [
        Warn(
            "DELTA_SENSITIVE",
            f"exponents move by more than a standard error or a quarter when delta goes from {e.delta:g} to "
            f"{robust:.2g} (1.345 robust standard deviations of the residuals): {', '.join(moved)}.",
        )
    ]


def exponents_at(bound: BoundLaw, theta: Array, delta: float) -> dict[str, float]:
    """The exponents refitted with another delta, from the optimum `theta`."""
    refit = minimise(bound, theta[None].copy(), bound.target, bound.weight, delta)
    values = bound.external(refit.theta)
    return {n: float(values[n][0]) for n in bound.law.exponents}


def _influence(e: Evidence) -> list[Warn]:
    """Refit without each block, without the top 2 % of losses, and without D/N < 2; warn where a
    pinned parameter leaves its interval.
    """
    watched = [
        n for n in (*e.bound.law.exponents, e.bound.law.floor) if n and n in e.interval and n not in e.bound.fixed
    ]
    if not watched:
        return []
    cases: list[tuple[str, NDArray[np.bool_]]] = []
    blocks = int(e.block.max()) + 1
    if blocks <= MAX_LEFT_OUT_BLOCKS:
        for b in range(blocks):
            rows = np.flatnonzero(e.block == b)
            place = ", ".join(f"{s}={float(np.asarray(e.table[s])[rows[0]]):.4g}" for s in e.bound.law.symbols)
            cases.append(
                (f"the block of {len(rows)} rows at {place}" if len(rows) > 1 else f"the row {place}", e.block != b)
            )
    if e.bound.n >= 50:
        cases.append(("the top 2 % of losses", e.y <= np.quantile(e.y, 0.98)))
    if e.bound.law.symbols[:2] == ("N", "D"):
        ratio = np.asarray(e.table["D"], dtype=np.float64) / np.asarray(e.table["N"], dtype=np.float64)
        cases.append(("the rows with D/N < 2", ratio >= 2))
    need = int(e.bound.free.sum())
    cases = [
        (label, keep) for label, keep in cases if not keep.all() and keep.sum() > need and e.bound.distinct(keep) >= 3
    ]
    if not cases:
        return []
    weight = np.stack([keep for _, keep in cases]) * e.bound.weight
    refit = minimise(
        e.bound, np.repeat(e.theta[None], len(cases), axis=0), e.bound.target, weight, e.delta, tolerance=1e-9
    )
    values = e.bound.external(refit.theta)
    out: list[Warn] = []
    for i, (label, _) in enumerate(cases):
        moved = [
            f"{n} {e.params[n]:.4g} -> {float(values[n][i]):.4g}"
            for n in watched
            if not e.interval[n][0] <= float(values[n][i]) <= e.interval[n][1]
        ]
        if moved:
            out.append(
                Warn("INFLUENTIAL", f"without {label}, parameters leave their 95 % interval: {', '.join(moved)}.")
            )
    return out[:5] if len(out) <= 5 else [*out[:4], Warn("INFLUENTIAL", f"and {len(out) - 4} more blocks do the same.")]


def objective_at(bound: BoundLaw, theta: Array, delta: float) -> float:
    """The unscaled Huber sum at one solver vector (p,)."""
    return float(huber_sum(bound.model(theta[None])[0] - bound.target, bound.weight, delta))
