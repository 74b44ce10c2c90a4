"""One damped Newton step on Q = sum_i w_i Huber_delta(ln f_i - ln y_i), for many data sets and
points side by side.

Step: Newton on the Huber sum with the full second derivative, plus lambda times the Hessian of its
quadratic majoriser (weights w min(1, delta/|r|), as in iteratively re-weighted least squares).
lambda -> 0 is Newton and ends in a few steps once it is known which residuals exceed delta; large
lambda is a short majoriser step that cannot fail to descend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.laws.gram import Array, Column, gradient, gram
from harness.laws.solver.bound import BoundLaw

NDArrayBool = NDArray[np.bool_]
BLOCK_SIZE = 24_576  # numbers in one array of the derivatives


def huber_sum(residual: Array, weight: Array, delta: float) -> Array:
    """sum_i w_i Huber_delta(r_i) along the last axis."""
    size = np.abs(residual)
    clipped = np.minimum(size, delta)
    return (weight * clipped * (size - 0.5 * clipped)).sum(-1)


@dataclass
class Local:
    """The problem at R points: objective (R,), gradient (R, p), Hessian and that of its quadratic
    majoriser (R, p, p)."""

    objective: Array
    grad: Array
    newton: Array
    major: Array

    def at(self, rows: Column) -> Local:
        return Local(self.objective[rows], self.grad[rows], self.newton[rows], self.major[rows])

    def put(self, rows: Column, solved: Local) -> None:
        self.objective[rows], self.grad[rows] = solved.objective, solved.grad
        self.newton[rows], self.major[rows] = solved.newton, solved.major


def derivatives(bound: BoundLaw, theta: Array, target: Array, weight: Array, delta: float) -> Local:
    """In blocks of points whose arrays stay in the processor's cache."""
    count, p = (int(size) for size in theta.shape)
    out = Local(np.empty(count), np.empty((count, p)), np.empty((count, p, p)), np.empty((count, p, p)))
    block = max(16, BLOCK_SIZE // bound.n)
    for k in range(0, count, block):
        rows = slice(k, k + block)
        value, factors = bound.factors(theta[rows])
        w = weight[rows]
        residual = value - target[rows]
        size = np.abs(residual)
        clipped = np.minimum(size, delta)
        out.objective[rows] = (w * clipped * (size - 0.5 * clipped)).sum(-1)
        pull = w * np.copysign(clipped, residual)
        out.grad[rows] = gradient(factors, pull)
        out.major[rows] = gram(factors, w * (delta / np.maximum(size, delta)))
        out.newton[rows] = bound.hessian(theta[rows], factors, w * (size < delta), pull)
    return out


def frozen_coordinates(bound: BoundLaw, theta: Array, grad: Array) -> NDArrayBool:
    """Coordinates that do not move: fixed by the caller, or at a bound with the descent direction
    leading out."""
    return ~bound.free | ((theta <= bound.lower) & (grad > 0)) | ((theta >= bound.upper) & (grad < 0))


def _reduced(matrix: Array, frozen: NDArrayBool) -> Array:
    """The matrix with frozen rows and columns replaced by those of the identity."""
    live = ~frozen
    out = matrix * (live[:, :, None] & live[:, None, :])
    i = np.arange(int(matrix.shape[1]))
    out[:, i, i] += frozen
    return out


def unit_diagonal(major: Array) -> Array:
    """1/sqrt(diagonal) (R, p): scales the majoriser to a correlation matrix."""
    d = np.einsum("rii->ri", major)
    return 1.0 / np.sqrt(np.maximum(d, 1e-30 * np.maximum(d.max(1, keepdims=True), 1e-300)))


def newton_step(bound: BoundLaw, theta: Array, local: Local, frozen: NDArrayBool, damping: Array) -> Array:
    """A descent step (R, p). A coordinate that would cross its bound stops there, and the others
    are solved for again: clipping it alone would leave the valley that it shares with its partners
    (E with A and alpha), and stall."""
    scale = unit_diagonal(_reduced(local.major, frozen))
    outer = scale[:, :, None] * scale[:, None, :]
    ridge = 1e-12 * np.eye(theta.shape[1])
    h_major = local.major * outer + ridge
    h = local.newton * outer + damping[:, None, None] * h_major + ridge
    g = np.where(frozen, 0.0, local.grad) * scale
    step = _solve(h, g, frozen)
    # Not a descent direction (or no number): the Hessian is indefinite here, so take the
    # majoriser's step instead
    uphill = ~((step * g).sum(1) < 0)
    if uphill.any():
        h[uphill] = (1.0 + damping[uphill, None, None]) * h_major[uphill]
        step[uphill] = _solve(h[uphill], g[uphill], frozen[uphill])
    end = theta + step * scale
    crossed = ~frozen & ((end < bound.lower) | (end > bound.upper))
    if (some := crossed.any(1)).any():
        moved = np.where(crossed, (np.clip(end, bound.lower, bound.upper) - theta) / scale, 0.0)[some]
        pulled = g[some] + np.einsum("rij,rj->ri", h[some], moved)
        step[some] = moved + _solve(h[some], pulled, (frozen | crossed)[some])
    step *= scale
    # Beyond half a unit (a factor 1.6 in a term, 0.5 in an exponent) neither model of Q is trusted
    return step / np.maximum(1.0, 2.0 * np.abs(step).max(1, keepdims=True))


def _solve(h: Array, g: Array, frozen: NDArrayBool) -> Array:
    """-H^-1 g over the coordinates that are not frozen, 0 elsewhere; 0 everywhere where a pivot
    vanishes.

    Elimination of all R small systems side by side, ten times faster than a LAPACK call per system.
    It does without pivots because definite matrices need none, and a step from an indefinite one
    has to prove itself (`newton_step`).
    """
    a = np.ascontiguousarray(_reduced(h, frozen).transpose(1, 2, 0))
    x = -np.where(frozen, 0.0, g).T
    p = len(x)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for k in range(p - 1):
            factor = a[k + 1 :, k] / a[k, k]
            a[k + 1 :, k + 1 :] -= factor[:, None] * a[k, k + 1 :]
            x[k + 1 :] -= factor * x[k]
        for k in reversed(range(p)):
            x[k] = (x[k] - (a[k, k + 1 :] * x[k + 1 :]).sum(0)) / a[k, k]
        return np.where(np.isfinite(x).all(0), x, 0.0).T


def newton_decrement(grad: Array, major: Array, frozen: NDArrayBool) -> Array:
    """0.5 g'H^-1 g over the live coordinates, H the weighted Gauss-Newton Hessian with a 1e-13
    ridge."""
    scale = unit_diagonal(_reduced(major, frozen))
    h = major * scale[:, :, None] * scale[:, None, :] + 1e-13 * np.eye(grad.shape[1])
    g = np.where(frozen, 0.0, grad) * scale
    return -0.5 * (g * _solve(h, g, frozen)).sum(1)
