"""Golden-section search, vectorised: minima of many functions of one variable side by side."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from harness.laws.gram import Array

GOLDEN_RATIO = (math.sqrt(5.0) - 1) / 2


def golden_section(cost: Callable[[Array], Array], low: Array, high: Array, steps: int) -> Array:
    """The x of least `cost` between `low` and `high`, elementwise; each step shrinks the bracket by
    0.618.

    `low`, `high` and the values of `cost` broadcast against each other. With several minima in a
    bracket, one of them.
    """
    for _ in range(steps):
        left, right = high - GOLDEN_RATIO * (high - low), low + GOLDEN_RATIO * (high - low)
        lower = cost(left) < cost(right)
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    return (low + high) / 2
