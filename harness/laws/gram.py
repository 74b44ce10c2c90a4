"""Sums over rows of products, for many parameter vectors side by side: of slopes, and of the
features of a sum of terms.

The Jacobian of a sum of terms is thin: the slope of ln f by a term's coefficient and by its
exponent are both the term's share of f, times numbers that only the data know. So it is kept as
factors, and J'WJ becomes products of (R, n) matrices with fixed ones, several times faster than a
product of two (n, p) matrices for each of R parameter vectors.

Variable projection: y is linear in a sum's coefficients once its exponents are given, so the best
ones follow from the Gram matrix of its features.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Column = NDArray[Any]  # of numbers, labels or truth values


def solve(matrix: Array, right: Array) -> Array:
    """numpy's solve of systems side by side, of one type."""
    return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)


@dataclass
class Factor:
    """Some columns of R Jacobians: J[r, i, first + m] = share[r, i] fixed[i, m]."""

    first: int
    share: Array  # (R, n)
    fixed: Array  # (n, m)


def jacobian(factors: list[Factor]) -> Array:
    """The whole (R, n, p)."""
    return np.concatenate([f.share[..., None] * f.fixed for f in factors], axis=2)


def gradient(factors: list[Factor], pull: Array) -> Array:
    """sum_i pull_i J_i (R, p)."""
    return np.concatenate([(pull * f.share) @ f.fixed for f in factors], axis=1)


def gram(factors: list[Factor], weight: Array) -> Array:
    """sum_i weight_i J_i J_i' (R, p, p)."""
    p = sum(f.fixed.shape[1] for f in factors)
    out = np.empty((len(weight), p, p))
    for k, f in enumerate(factors):
        mine = weight * f.share
        a = slice(f.first, f.first + f.fixed.shape[1])
        for g in factors[k:]:
            fixed = (f.fixed[:, :, None] * g.fixed[:, None, :]).reshape(len(f.fixed), -1)
            b = slice(g.first, g.first + g.fixed.shape[1])
            block = ((mine * g.share) @ fixed).reshape(len(weight), f.fixed.shape[1], -1)
            out[:, a, b] = block
            out[:, b, a] = block.transpose(0, 2, 1)
    return out


def nnls_gram(products: Array, target: Array, fixed: dict[int, float]) -> tuple[Array, Array]:
    """Non-negative least squares min |Phi x - t|^2 from Gram matrices (..., q, q) and Phi't (...,
    q), by trying all supports.

    Exact for the few coefficients of a law (q <= 3: at most 7 supports). Coefficients in `fixed`
    keep their value. Returns x (..., q) and the objective x'Gx - 2 x't (..., ), to which |t|^2 is
    to be added.
    """
    q = target.shape[-1]
    base = np.zeros(q)
    for i, v in fixed.items():
        base[i] = v
    best_x = np.broadcast_to(base, target.shape).copy()
    best: Array = np.einsum("...i,...ij,...j->...", best_x, products, best_x) - 2 * (best_x * target).sum(-1)
    reduced = target - np.einsum("...ij,j->...i", products, base)
    free = [i for i in range(q) if i not in fixed]
    for size in range(1, len(free) + 1):
        for support in itertools.combinations(free, size):
            s = list(support)
            sub = products[..., s, :][..., :, s]
            ridge = 1e-13 * np.trace(sub, axis1=-2, axis2=-1)[..., None, None] * np.eye(size)
            x_s = solve(sub + ridge, reduced[..., s, None])[..., 0]
            x = np.broadcast_to(base, target.shape).copy()
            x[..., s] = x_s
            value: Array = np.einsum("...i,...ij,...j->...", x, products, x) - 2 * (x * target).sum(-1)
            take = (np.min(x_s, axis=-1) >= 0) & np.less(value, best)
            best = np.where(take, value, best)
            best_x = np.where(take[..., None], x, best_x)
    return best_x, best


def project(phi: Array, scale: Array, goal: Array, weight: Array, fixed: dict[int, float]) -> tuple[Array, Array]:
    """The coefficients x (R, c, q) of features `phi` (c, q, n) that bring scale (x phi) nearest to
    `goal`, both (R, n), and the sum of weighted squares (R, c)."""
    c, q, n = phi.shape
    pairs = (phi[:, :, None, :] * phi[:, None, :, :]).reshape(c * q * q, n)
    products = ((weight * scale**2) @ pairs.T).reshape(len(scale), c, q, q)
    target = ((weight * scale * goal) @ phi.reshape(c * q, n).T).reshape(len(scale), c, q)
    x, value = nnls_gram(products, target, fixed)
    return x, value + (weight * goal**2).sum(1)[:, None]
