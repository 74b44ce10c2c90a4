"""Sums over rows of products of slopes, for many parameter vectors side by side.

The Jacobian of a sum of terms is thin: the slope of ln f by a term's coefficient and by its exponent are both the term's
share of f, times numbers that only the data know. So it is kept as factors, and J'WJ becomes products of (R, n)
matrices with fixed ones, several times faster than a product of two (n, p) matrices for each of R parameter vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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
