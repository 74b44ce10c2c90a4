"""Minimise  Q = sum_i w_i Huber_delta(ln f_i - ln y_i)  for many data sets and starts side by side, and certify the
optimum.

The sum, never the mean, and every test is relative to Q: general-purpose solvers compare a decrease with max(|Q|, 1),
and at Q ~ 1e-3 stop 15 % above the optimum while reporting success (`tests/laws/test_laws_published.py`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.laws.catalogue import AnyBound
from harness.laws.curve import CurveBound
from harness.laws.forms import Array, Bound
from harness.laws.result import Certificate
from harness.laws.solver.newton import (
    derivatives,
    frozen_coordinates,
    huber_sum,
    newton_decrement,
    newton_step,
    unit_diagonal,
)

DECREMENT_TOLERANCE = 1e-8  # of the certificate
AGREEMENT = 1e-6  # starts within this share of the best objective agree
MIN_AGREEING = 3
ROUNDING = 1e-9  # log residuals below this are rounding: the objective is never taken smaller than theirs
SOLVER = "variable projection starts, damped Newton on the Huber sum (float64)"

CURVE_SOLVER = "starts from a box, damped Newton on the Huber sum, complex-step derivatives (float64)"


@dataclass
class Solution:
    """R minimisations: `theta` (R, p), `objective` (R,), `decrement` (R,) = 0.5 g'H^-1 g / objective, `iterations` of
    the slowest.
    """

    theta: Array
    objective: Array
    decrement: Array
    iterations: int

    def at(self, rows: NDArray) -> Solution:
        return Solution(self.theta[rows], self.objective[rows], self.decrement[rows], self.iterations)

    def put(self, rows: NDArray, other: Solution) -> None:
        self.theta[rows], self.objective[rows], self.decrement[rows] = other.theta, other.objective, other.decrement


def rounding_floor(weight: Array) -> Array:
    """The objective of residuals that are rounding only; keeps relative tests meaningful on noise-free data."""
    return 0.5 * ROUNDING**2 * weight.sum(-1)


def minimise(
    bound: AnyBound,
    theta: Array,
    lny: Array,
    weight: Array,
    delta: float,
    max_iterations: int = 200,
    tolerance: float = 1e-15,
) -> Solution:
    """Minimise from each row of `theta` (R, p); `lny` and `weight` are (R, n) or (n,). Never ends above a start."""
    count = len(theta)
    theta = np.clip(theta, bound.lower, bound.upper)
    lny = np.broadcast_to(lny, (count, bound.n))
    weight = np.broadcast_to(weight, (count, bound.n))
    floor = rounding_floor(weight)
    here = derivatives(bound, theta, lny, weight, delta)
    decrement = np.full(count, np.inf)
    damping, stalled = np.full(count, 0.3), np.zeros(count, dtype=int)
    going = np.arange(count)
    iteration = 0
    for iteration in range(1, max_iterations + 1):  # noqa: B007 - its last value is reported
        frozen = frozen_coordinates(bound, theta[going], here.grad[going])
        decrement[going] = newton_decrement(here.grad[going], here.major[going], frozen)
        decrement[going] /= np.maximum(here.objective[going], floor[going])
        keep = (decrement[going] > tolerance) & (stalled[going] < 4) & (damping[going] < 1e8)
        going, frozen = going[keep], frozen[keep]
        if not len(going):
            break
        step = newton_step(bound, theta[going], here.at(going), frozen, damping[going])
        trial = np.clip(theta[going] + step, bound.lower, bound.upper)
        there = derivatives(bound, trial, lny[going], weight[going], delta)
        before = here.objective[going]
        better = there.objective < before
        gain = np.where(better, (before - there.objective) / np.maximum(before, floor[going]), 0.0)
        stalled[going] = np.where(better & (gain > 1e-14), 0, stalled[going] + better)
        damping[going] = np.where(better, damping[going] * 0.2, np.maximum(damping[going], 1e-4) * 8.0)
        theta[going[better]] = trial[better]
        here.put(going[better], there.at(better))
    return Solution(theta, here.objective, decrement, iteration)


# --- starts -----------------------------------------------------------------------------------------------------------
def nnls_gram(gram: Array, target: Array, fixed: dict[int, float]) -> tuple[Array, Array]:
    """Non-negative least squares min |Phi x - t|^2 from Gram matrices (..., q, q) and Phi't (..., q), by trying all
    supports.

    Exact for the few coefficients of a law (q <= 3: at most 7 supports). Coefficients in `fixed` keep their value.
    Returns x (..., q) and the objective x'Gx - 2 x't (..., ), to which |t|^2 is to be added.
    """
    q = target.shape[-1]
    base = np.zeros(q)
    for i, v in fixed.items():
        base[i] = v
    best_x = np.broadcast_to(base, target.shape).copy()
    best = np.einsum("...i,...ij,...j->...", best_x, gram, best_x) - 2 * (best_x * target).sum(-1)
    reduced = target - np.einsum("...ij,j->...i", gram, base)
    free = [i for i in range(q) if i not in fixed]
    for size in range(1, len(free) + 1):
        for support in itertools.combinations(free, size):
            s = list(support)
            sub = gram[..., s, :][..., :, s]
            ridge = 1e-13 * np.trace(sub, axis1=-2, axis2=-1)[..., None, None] * np.eye(size)
            x_s = np.linalg.solve(sub + ridge, reduced[..., s, None])[..., 0]
            x = np.broadcast_to(base, target.shape).copy()
            x[..., s] = x_s
            value = np.einsum("...i,...ij,...j->...", x, gram, x) - 2 * (x * target).sum(-1)
            take = (x_s >= 0).all(-1) & (value < best)
            best = np.where(take, value, best)
            best_x = np.where(take[..., None], x, best_x)
    return best_x, best


def project(bound: Bound, lny: Array, weight: Array, cells: Array) -> tuple[Array, Array]:
    """Variable projection: for each data set (R, n) and exponent cell the best coefficients for relative residuals.

    Returns coefficients (R, c, q) and the sum of squared relative residuals (R, c).
    """
    phi = bound.features(cells)  # c q n
    c, q, n = phi.shape
    lny, weight = np.atleast_2d(lny), np.atleast_2d(weight)
    inverse = np.exp(-lny)
    pairs = (phi[:, :, None, :] * phi[:, None, :, :]).reshape(c * q * q, n)
    gram = ((weight * inverse**2) @ pairs.T).reshape(len(lny), c, q, q)
    target = ((weight * inverse) @ phi.reshape(c * q, n).T).reshape(len(lny), c, q)
    x, value = nnls_gram(gram, target, bound.fixed_coefficients())
    return x, value + np.broadcast_to(weight, lny.shape).sum(1)[:, None]


def cold_start(bound: AnyBound, lny: Array, weight: Array, per_axis: int = 10) -> Array:
    """The best cell of a coarse exponent grid for each data set: (R, p)."""
    if isinstance(bound, CurveBound):
        return bound.cold_start(lny, weight)
    cells = bound.exponent_grid(per_axis)
    x, sse = project(bound, lny, weight, cells)
    best = sse.argmin(1)
    return bound.assemble(cells[best], x[np.arange(len(best)), best])


def starts(bound: AnyBound, lny: Array, weight: Array, count: int = 16, per_axis: int = 20) -> Array:
    """`count` distinct starts (count, p): the best cells, mutually far apart, half of them from the best tenth of the
    grid.
    """
    if isinstance(bound, CurveBound):
        return bound.starts(count)
    cells = bound.exponent_grid(per_axis)
    x, sse = project(bound, lny, weight, cells)
    order = np.argsort(sse[0], kind="stable")
    chosen = [int(order[0])]
    logs = np.log(cells) if cells.shape[1] else np.zeros((len(cells), 1))
    for pool in (order[: max(1, len(order) // 10)], order):
        while len(chosen) < min(count if pool is order else count // 2, len(pool)):
            distance = np.min([((logs[pool] - logs[k]) ** 2).sum(1) for k in chosen], axis=0)
            distance[np.isin(pool, chosen)] = -1.0
            chosen.append(int(pool[distance.argmax()]))
    theta = bound.assemble(cells[chosen], x[0, chosen])
    if len(theta) < count:  # fewer cells than starts: shift the best one, reproducibly
        shift = np.random.default_rng(0).normal(0.0, 0.3, (count - len(theta), theta.shape[1]))
        linear = np.arange(theta.shape[1]) >= 2 * len(bound.law.powers)
        moved = np.where(linear, theta[0] * np.exp(shift) + 0.05 * np.abs(shift), theta[0] + shift)
        theta = np.vstack([theta, np.where(bound.free, np.clip(moved, bound.lower, bound.upper), bound.origin)])
    return theta


def polish(bound: AnyBound, theta: Array, lny: Array, weight: Array, delta: float) -> Solution:
    """Minimise first with a delta of the residuals' size (a smooth problem), then with the delta asked for."""
    residual = bound.log_value(theta) - lny
    wide = max(delta, robust_delta(np.take(residual, int(huber_sum(residual, weight, delta).argmin()), axis=0)))
    first = minimise(bound, theta.copy(), lny, weight, wide, max_iterations=60, tolerance=1e-6)
    return minimise(bound, first.theta, lny, weight, delta)


def robust_delta(residual: Array) -> float:
    """1.345 x 1.4826 x median |r|: Huber's 95 % efficient choice for normal residuals."""
    return float(1.345 * 1.4826 * np.median(np.abs(residual)))


def multistart(bound: AnyBound, delta: float) -> tuple[Array, float, Certificate]:
    """The best of 16 starts, of 64 more when fewer than three agree: theta (p,), objective, certificate."""
    best: Solution | None = None
    for count in (16, 80):
        best = polish(bound, starts(bound, bound.lny, bound.weight, count), bound.lny, bound.weight, delta)
        floor = float(rounding_floor(bound.weight))
        agreeing = int((best.objective <= best.objective.min() + AGREEMENT * max(best.objective.min(), floor)).sum())
        if agreeing >= MIN_AGREEING:
            break
    assert best is not None
    k = int(best.objective.argmin())
    cert = certify(bound, best.theta[k], delta)
    cert.starts, cert.starts_agreeing = len(best.objective), agreeing
    if agreeing < MIN_AGREEING:
        cert.passed = False
        note = f"only {agreeing} of {cert.starts} starts reach the best objective (three are needed)"
        cert.reason = f"{cert.reason}; {note}" if cert.reason else note
    return best.theta[k], float(best.objective[k]), cert


def certify(bound: AnyBound, theta: Array, delta: float) -> Certificate:
    """Judge one parameter vector, wherever it comes from; `starts` are not counted here."""
    row = theta[None]
    local = derivatives(bound, row, bound.lny[None], bound.weight[None], delta)
    grad, major = local.grad, local.major
    frozen = frozen_coordinates(bound, row, grad)
    objective = max(float(local.objective[0]), float(rounding_floor(bound.weight)))
    decrement = float(newton_decrement(grad, major, frozen)[0]) / objective
    live = ~frozen[0]
    scale = unit_diagonal(major)[0]
    h = (major[0] * np.outer(scale, scale))[np.ix_(live, live)]
    condition = float(np.linalg.cond(h)) if live.any() else 1.0
    passed = decrement <= DECREMENT_TOLERANCE
    return Certificate(
        passed=passed,
        newton_decrement=decrement,
        gradient_norm=float(np.linalg.norm(np.where(frozen, 0.0, grad)[0] * scale)),
        starts=0,
        starts_agreeing=0,
        condition=min(condition, 1e300),
        at_bound=at_bound(bound, theta),
        solver=CURVE_SOLVER if isinstance(bound, CurveBound) else SOLVER,
        reason=None
        if passed
        else f"not converged: Newton decrement {decrement:.1e} of the objective, above {DECREMENT_TOLERANCE:g}",
    )


def at_bound(bound: AnyBound, theta: Array) -> list[str]:
    """Free parameters at, or running to, a bound: a term below 1e-8 of y, a floor below 1e-9 of y, an exponent at its
    limit.
    """
    if isinstance(bound, CurveBound):
        return bound.at_bound(theta)
    out = []
    linear = 2 * len(bound.law.powers)
    for i, name in enumerate(bound.names):
        if not bound.free[i]:
            continue
        is_coef = i < linear and i % 2 == 0
        low = theta[i] < np.log(1e-8) if is_coef else theta[i] <= bound.lower[i] + 1e-9
        if low or theta[i] >= bound.upper[i] - 1e-9:
            out.append(name)
    return out
