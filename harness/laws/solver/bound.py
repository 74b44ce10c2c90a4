"""A law bound to data, in solver coordinates of order one: what the solver sees (`BoundLaw`), and
that of any function.

`bound_sum` has a faster one for sums of power terms. Derivatives are complex steps (Squire & Trapp
1998): exact to rounding, no formula to get wrong; a law's function must therefore take complex
parameters, and compare real parts only. Of a caller's function they are central differences. Second
derivatives are central differences of the first.

Shapes: R parameter vectors side by side, n rows of data, p parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from harness.laws.gram import Array, Factor, gram
from harness.laws.parameter import Coordinate
from harness.laws.table import Table

if TYPE_CHECKING:
    from harness.laws.law import Law

COMPLEX_STEP = 1e-30  # its square vanishes, so the derivative has no truncation error
FIRST_STEP = 6e-6  # of central differences of a function: the cube root of the rounding
SECOND_STEP = 1e-5  # of central differences of complex-step derivatives
# of central differences of central differences, which carry more rounding
SECOND_STEP_OF_DIFFERENCES = 1e-4
MAX_POOL = 4096  # points of the start box that are looked at
COLD_POOL = 256  # of them, that a cold start looks at
NO_VALUE = 1e6  # what a law is taken to be where it is no number, so that no step goes there


class BoundLaw(Protocol):
    """A law with its data, for R parameter vectors at once in solver coordinates.

    `target` (n,) holds what residuals are taken from: ln y for the residual "log", y for "linear"
    (both perhaps in scaled units). `weight` (n,) has mean 1. `free`, `lower`, `upper`, `origin`
    (p,): which coordinates move, their bounds, and the values of those that do not. `coarse`: a
    value is dear, so profiles have few points.
    """

    law: Law
    n: int
    names: list[str]
    fixed: dict[str, float]
    target: Array
    weight: Array
    free: NDArray[np.bool_]
    lower: Array
    upper: Array
    origin: Array
    solver: str
    coarse: bool

    def internal(self, params: Mapping[str, float]) -> Array:
        """The law's own parameters as a solver vector (p,)."""
        ...

    def external(self, theta: Array) -> dict[str, Array]:
        """Solver vectors (R, p) as the law's own parameters, each (R,)."""
        ...

    def distinct(self, rows: NDArray[np.bool_]) -> int:
        """The fewest distinct values, among `rows`, of a variable that must have several (n where
        there is none)."""
        ...

    def model(self, theta: Array) -> Array:
        """The law (R, n) on the scale of `target`."""
        ...

    def factors(self, theta: Array) -> tuple[Array, list[Factor]]:
        """`model` and its slopes."""
        ...

    def hessian(self, theta: Array, factors: list[Factor], weight: Array, v: Array) -> Array:
        """sum_i weight_i J_i J_i' + v_i d2 model_i / d theta2 (R, p, p); `factors` were taken at
        `theta`."""
        ...

    def starts(self, count: int) -> Array:
        """`count` starts (count, p) that fit the data well or lie far apart."""
        ...

    def cold_start(self, target: Array, weight: Array, per_axis: int = 10) -> Array:
        """A start (R, p) for each data set (R, n), from nothing."""
        ...

    def at_bound(self, theta: Array) -> list[str]:
        """Free parameters at, or running to, a bound."""
        ...


class BoundFunction:
    """Any law with its data; see `BoundLaw`."""

    def __init__(self, law: Law, table: Table, y: Array, weight: Array, fixed: Mapping[str, float]) -> None:
        self.law, self.n, self.names = law, len(y), law.params
        self.fixed, self.weight = dict(fixed), weight
        self.coarse = True
        how = "complex-step derivatives" if law.analytic else "central differences"
        self.solver = f"starts from a box, damped Newton on the Huber sum, {how} (float64)"
        is_log = law.residual == "log"
        self.target = np.log(y) if is_log else y.copy()
        self._data = {s: np.asarray(table[s], dtype=np.float64) for s in law.symbols}
        self._mean = {s: float((x if s in law.linear else np.log(x)).mean()) for s, x in self._data.items()}
        self._unit = float(np.exp(np.log(y).mean())) if is_log else float(y.mean())
        self.lower = np.array([c.low for c in law.coordinates])
        self.upper = np.array([c.high for c in law.coordinates])
        self.free = np.array([n not in fixed for n in self.names])
        self.origin = np.zeros(len(self.names))
        if fixed:
            self.origin = np.where(self.free, 0.0, self.internal({n: fixed.get(n, 1.0) for n in self.names}))
            self.lower = np.where(self.free, self.lower, np.minimum(self.lower, self.origin))
            self.upper = np.where(self.free, self.upper, np.maximum(self.upper, self.origin))

    def _shift(self, c: Coordinate, params: Mapping[str, Array]) -> Array | float:
        """What is added to ln value (or to value) to make it the coordinate."""
        if c.name in self.fixed:
            return 0.0  # a fixed parameter must stay one coordinate whatever its partners do
        out: Array | float = -np.log(self._unit) if c.share and c.log else 0.0
        if c.anchor:
            exponent, symbol, factor = c.anchor
            out = out + factor * params[exponent] * self._mean[symbol]
        return out - self._mean[c.centre] if c.centre else out

    def _scale(self, c: Coordinate) -> float:
        """What a coordinate that is no logarithm is multiplied by."""
        return c.unit * (self._unit if c.share and not c.log and c.name not in self.fixed else 1.0)

    def internal(self, params: Mapping[str, float]) -> Array:
        theta = np.empty(len(self.names))
        values = {k: np.asarray(v, dtype=np.float64) for k, v in params.items()}
        for i, c in enumerate(self.law.coordinates):
            with np.errstate(divide="ignore"):
                raw = np.log(values[c.name]) if c.log else values[c.name]
            theta[i] = raw / self._scale(c) + self._shift(c, values)
        return theta

    def _decode(self, theta: Array) -> dict[str, Array]:
        """Coordinates (R, p), real or complex -> parameters (R, 1); anchors point at exponents,
        which come first."""
        out: dict[str, Array] = {}
        order = sorted(range(len(self.names)), key=lambda i: self.law.coordinates[i].anchor is not None)
        for i in order:
            c = self.law.coordinates[i]
            q = theta[:, i, None] - self._shift(c, out)
            out[c.name] = np.exp(q) if c.log else q * self._scale(c)
        return {name: out[name] for name in self.names}

    def external(self, theta: Array) -> dict[str, Array]:
        values = self._decode(theta)
        out = {n: values[n][:, 0] for n in self.names}
        return out | {n: np.full(len(theta), float(v)) for n, v in self.fixed.items()}

    def distinct(self, rows: NDArray[np.bool_]) -> int:
        columns = self._data.values() if self.law.analytic else ()
        return min((len(np.unique(x[rows])) for x in columns), default=self.n)

    def _value(self, theta: Array) -> Array:
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            f = self.law.function(self._decode(theta), self._data)
            return np.log(np.where(f.real > 1e-300, f, 1e-300)) if self.law.residual == "log" else f

    def model(self, theta: Array) -> Array:
        value = self._value(theta)
        return np.where(np.isfinite(value), value, NO_VALUE)

    def factors(self, theta: Array) -> tuple[Array, list[Factor]]:
        """`model` and its slopes, zero for coordinates that the caller fixed."""
        jac = self._slopes(theta)
        ones = np.ones((self.n, 1))
        return self.model(theta), [Factor(k, jac[k], ones) for k in range(len(jac))]

    def _slopes(self, theta: Array) -> Array:
        """(p, R, n)"""
        out = np.zeros((len(self.names), len(theta), self.n))
        for k in np.flatnonzero(self.free):
            slope = self._complex_step(theta, int(k)) if self.law.analytic else self._difference(theta, int(k))
            out[k] = np.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
        return out

    def _complex_step(self, theta: Array, k: int) -> Array:
        unit = np.zeros(theta.shape[1])
        unit[k] = COMPLEX_STEP
        shifted = cast(Array, theta + 1j * unit)  # complex where the types say real
        return self._value(shifted).imag / COMPLEX_STEP

    def _difference(self, theta: Array, k: int) -> Array:
        """The slope between two points inside the bounds."""
        inside = np.clip(theta, self.lower, self.upper)
        step = FIRST_STEP * np.maximum(1.0, np.abs(inside[:, k]))
        up, down = inside.copy(), inside.copy()
        up[:, k] = np.minimum(inside[:, k] + step, self.upper[k])
        down[:, k] = np.maximum(inside[:, k] - step, self.lower[k])
        with np.errstate(invalid="ignore"):
            return (self._value(up) - self._value(down)) / (up[:, k] - down[:, k])[:, None]

    def hessian(self, theta: Array, factors: list[Factor], weight: Array, v: Array) -> Array:
        """See `BoundLaw`; second derivatives are differences of slopes around `theta`."""
        count, p = theta.shape
        step = SECOND_STEP if self.law.analytic else SECOND_STEP_OF_DIFFERENCES
        moves = step * np.concatenate([np.eye(p)[self.free], -np.eye(p)[self.free]])
        slopes = self._slopes((theta[:, None, :] + moves).reshape(-1, p))  # one call for all moves
        pulled = np.einsum("rn,prmn->rmp", v, slopes.reshape(p, count, len(moves), self.n))
        half = len(moves) // 2
        out = np.zeros((count, p, p))
        out[:, self.free] = (pulled[:, :half] - pulled[:, half:]) / (2 * step)
        return (out + out.transpose(0, 2, 1)) / 2 + gram(factors, weight)

    # --- starts
    def pool(self, seed: int = 0) -> Array:
        """Points of the start box (MAX_POOL, p), uniform, the same for every call."""
        box = np.array([c.start for c in self.law.coordinates])
        theta = np.random.default_rng(seed).uniform(box[:, 0], box[:, 1], (MAX_POOL, len(box)))
        return np.where(self.free, np.clip(theta, self.lower, self.upper), self.origin)

    def starts(self, count: int) -> Array:
        """The best of the pool and, for half of them, points far from those already chosen among
        its best tenth."""
        pool = self.pool()
        miss = (np.abs(self.model(pool) - self.target) * np.sqrt(self.weight)).sum(1)
        order = np.argsort(miss, kind="stable")
        chosen = list(order[: count // 2])
        rest = order[: MAX_POOL // 10]
        width = np.maximum(pool.std(0), 1e-12)
        while len(chosen) < count:
            apart = np.min([(((pool[rest] - pool[k]) / width) ** 2).sum(1) for k in chosen], axis=0)
            chosen.append(int(rest[apart.argmax()]))
        return pool[chosen].copy()

    def cold_start(self, target: Array, weight: Array, per_axis: int = 10) -> Array:
        """The best of `COLD_POOL` points of the pool for each data set (R, n): (R, p)."""
        pool = self.pool()[:COLD_POOL]
        values = self.model(pool)
        target, weight = np.atleast_2d(target), np.atleast_2d(weight)
        miss = np.stack([(np.abs(v - target) * np.sqrt(weight)).sum(1) for v in values], axis=1)
        return pool[miss.argmin(1)].copy()

    def at_bound(self, theta: Array) -> list[str]:
        near = (theta <= self.lower + 1e-6) | (theta >= self.upper - 1e-6)
        return [n for n, bounded, free in zip(self.names, near, self.free, strict=True) if bounded and free]
