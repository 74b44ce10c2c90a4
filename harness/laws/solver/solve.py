"""Minimise Q = sum_i w_i Huber_delta(ln f_i - ln y_i) for many data sets and starts side by side,
and certify the optimum.

The sum, never the mean, and every test is relative to Q: general-purpose solvers compare a decrease
with max(|Q|, 1), and at Q ~ 1e-3 stop 15 % above the optimum while reporting success
(`tests/laws/test_laws_published.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.laws.gram import Array, Column
from harness.laws.result import Certificate
from harness.laws.solver.bound import BoundLaw
from harness.laws.solver.newton import (
    derivatives,
    frozen_coordinates,
    huber_sum,
    newton_decrement,
    newton_step,
    unit_diagonal,
)

DECREMENT_TOLERANCE = 1e-8  # of the certificate
AGREEMENT_TOLERANCE = 1e-6  # starts within this share of the best objective agree
MIN_AGREEING = 3
# log residuals below this are rounding: the objective is never taken smaller than theirs
ROUNDING = 1e-9


@dataclass
class Solution:
    """R minimisations: `theta` (R, p), `objective` (R,), `decrement` (R,) = 0.5 g'H^-1 g /
    objective, `iterations` of the slowest.
    """

    theta: Array
    objective: Array
    decrement: Array
    iterations: int

    def at(self, rows: Column) -> Solution:
        return Solution(self.theta[rows], self.objective[rows], self.decrement[rows], self.iterations)

    def put(self, rows: Column, solution: Solution) -> None:
        self.theta[rows], self.objective[rows], self.decrement[rows] = (
            solution.theta,
            solution.objective,
            solution.decrement,
        )


def rounding_floor(weight: Array) -> Array:
    """The objective of residuals that are rounding only; keeps relative tests meaningful on
    noise-free data."""
    return 0.5 * ROUNDING**2 * weight.sum(-1)


def minimise(
    bound: BoundLaw,
    theta: Array,
    target: Array,
    weight: Array,
    delta: float,
    max_iterations: int = 200,
    tolerance: float = 1e-15,
) -> Solution:
    """Minimise from each row of `theta` (R, p); `target` and `weight` are (R, n) or (n,). Never
    ends above a start."""
    count = len(theta)
    theta = np.clip(theta, bound.lower, bound.upper)
    target = np.broadcast_to(target, (count, bound.n))
    weight = np.broadcast_to(weight, (count, bound.n))
    floor = rounding_floor(weight)
    current = derivatives(bound, theta, target, weight, delta)
    decrement = np.full(count, np.inf)
    damping, stalled = np.full(count, 0.3), np.zeros(count, dtype=int)
    going = np.arange(count)
    iteration = 0
    for iteration in range(1, max_iterations + 1):  # noqa: B007 - its last value is reported
        frozen = frozen_coordinates(bound, theta[going], current.grad[going])
        decrement[going] = newton_decrement(current.grad[going], current.major[going], frozen)
        decrement[going] /= np.maximum(current.objective[going], floor[going])
        keep = (decrement[going] > tolerance) & (stalled[going] < 4) & (damping[going] < 1e8)
        going, frozen = going[keep], frozen[keep]
        if not len(going):
            break
        step = newton_step(bound, theta[going], current.at(going), frozen, damping[going])
        trial = np.clip(theta[going] + step, bound.lower, bound.upper)
        trial_values = derivatives(bound, trial, target[going], weight[going], delta)
        before = current.objective[going]
        better = trial_values.objective < before
        gain = np.where(better, (before - trial_values.objective) / np.maximum(before, floor[going]), 0.0)
        stalled[going] = np.where(better & (gain > 1e-14), 0, stalled[going] + better)
        damping[going] = np.where(better, damping[going] * 0.2, np.maximum(damping[going], 1e-4) * 8.0)
        theta[going[better]] = trial[better]
        current.put(going[better], trial_values.at(better))
    return Solution(theta, current.objective, decrement, iteration)


def polish(bound: BoundLaw, theta: Array, target: Array, weight: Array, delta: float) -> Solution:
    """Minimise first with a delta of the residuals' size (a smooth problem), then with the delta
    asked for."""
    residual = bound.model(theta) - target
    wide = max(delta, robust_delta(np.take(residual, int(huber_sum(residual, weight, delta).argmin()), axis=0)))
    first = minimise(bound, theta.copy(), target, weight, wide, max_iterations=60, tolerance=1e-6)
    return minimise(bound, first.theta, target, weight, delta)


def robust_delta(residual: Array) -> float:
    """1.345 x 1.4826 x median |r|: Huber's 95 % efficient choice for normal residuals."""
    return float(1.345 * 1.4826 * np.median(np.abs(residual)))


def multistart(bound: BoundLaw, delta: float) -> tuple[Array, float, Certificate]:
    """The best of 16 starts, of 64 more when fewer than three agree: theta (p,), objective,
    certificate."""
    best: Solution | None = None
    for count in (16, 80):
        best = polish(bound, bound.starts(count), bound.target, bound.weight, delta)
        floor = float(rounding_floor(bound.weight))
        agreeing = int(
            (best.objective <= best.objective.min() + AGREEMENT_TOLERANCE * max(best.objective.min(), floor)).sum()
        )
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


def certify(bound: BoundLaw, theta: Array, delta: float) -> Certificate:
    """Judge one parameter vector, wherever it comes from; `starts` are not counted here."""
    row = theta[None]
    local = derivatives(bound, row, bound.target[None], bound.weight[None], delta)
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
        at_bound=bound.at_bound(theta),
        solver=bound.solver,
        reason=None
        if passed
        else f"not converged: Newton decrement {decrement:.1e} of the objective, above {DECREMENT_TOLERANCE:g}",
    )
