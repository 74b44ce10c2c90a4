"""Laws that are not sums of power terms: any function of data and parameters, in solver coordinates of order one.

`Curve` describes such a law, `CurveBound` binds it to data with the attributes and methods that `solve` uses of
`forms.Bound`. Derivatives are complex steps (Squire & Trapp 1998): exact to rounding, no formula to get wrong; functions
must therefore take complex parameters, and compare real parts only. Second derivatives are central differences of them.

Shapes: R parameter vectors side by side, n rows, p parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from harness.laws.forms import Array, Table
from harness.laws.gram import Factor, gram

STEP = 1e-30  # complex step: its square vanishes, so the derivative has no truncation error
SECOND = 1e-5  # of the central difference of first derivatives
POOL = 4096  # points of the start box that are looked at


@dataclass(frozen=True)
class Param:
    """A parameter and its solver coordinate q.

    log: q = ln value, else value. `share`: the parameter is an amount of y, so ln y's mean is subtracted (or y's mean
    divides it). `anchor` (exponent, symbol, factor): for a coefficient of x^exponent, q = ln coef + factor exponent
    mean(ln x), its term's size at the centre of the data. `centre`: a place on the axis of that symbol, so the symbol's
    mean is subtracted. `low`, `high` bound q; starts are drawn from `start`.
    kind: what is judged of it afterwards: exponent, floor, coefficient, scale (a place or a decay) or level.
    """

    name: str
    low: float
    high: float
    start: tuple[float, float]
    kind: str = "coefficient"
    log: bool = True
    share: bool = False
    anchor: tuple[str, str, float] | None = None
    centre: str | None = None


@dataclass(frozen=True)
class Curve:
    name: str
    formula: str
    y: str
    symbols: list[str]
    parameters: tuple[Param, ...]
    function: Callable[[Mapping[str, Array], Mapping[str, Array]], Array]
    units: str
    source: str
    plain: bool = False  # residuals of y itself, by default least squares; else of ln y, Huber at 1e-3
    unit_range: bool = False  # y lies in [0, 1] and may be 0
    linear: tuple[str, ...] = ()  # symbols that enter as they are, not through their logarithm
    needs: int = 3  # distinct values of the first symbol
    max_decades: float = 2.0  # of extrapolation
    powers: tuple[()] = ()  # so that what asks a sum of terms for its terms finds none here
    linears: tuple[()] = ()

    @property
    def delta(self) -> float:
        return 1.0 if self.plain else 1e-3

    @property
    def params(self) -> list[str]:
        return [p.name for p in self.parameters]

    @property
    def exponents(self) -> list[str]:
        return [p.name for p in self.parameters if p.kind == "exponent"]

    @property
    def floor(self) -> str | None:
        return next((p.name for p in self.parameters if p.kind == "floor"), None)


class CurveBound:
    """A `Curve` with its data; see `forms.Bound` for the meaning of the attributes. `lny` holds y itself for plain
    residuals."""

    def __init__(self, law: Curve, table: Table, y: Array, weight: Array, fixed: Mapping[str, float]) -> None:
        self.law, self.n, self.names = law, len(y), law.params
        self.fixed, self.weight = dict(fixed), weight
        self.lny = y.copy() if law.plain else np.log(y)
        self._data = {s: np.asarray(table[s], dtype=np.float64) for s in law.symbols}
        self._mean = {s: float((x if s in law.linear else np.log(x)).mean()) for s, x in self._data.items()}
        self._unit = float(y.mean()) if law.plain else float(np.exp(np.log(y).mean()))
        self.lower = np.array([p.low for p in law.parameters])
        self.upper = np.array([p.high for p in law.parameters])
        self.free = np.array([n not in fixed for n in self.names])
        self.origin = np.zeros(len(self.names))
        if fixed:
            self.origin = np.where(self.free, 0.0, self.internal({n: fixed.get(n, 1.0) for n in self.names}))
            self.lower = np.where(self.free, self.lower, np.minimum(self.lower, self.origin))
            self.upper = np.where(self.free, self.upper, np.maximum(self.upper, self.origin))

    def _shift(self, p: Param, params: Mapping[str, Array]) -> Array | float:
        """What is added to ln value (or to value) to make it the coordinate."""
        if p.name in self.fixed:
            return 0.0  # a fixed parameter must stay one coordinate whatever its partners do
        out: Array | float = -np.log(self._unit) if p.share and p.log else 0.0
        if p.anchor:
            exponent, symbol, factor = p.anchor
            out = out + factor * params[exponent] * self._mean[symbol]
        return out - self._mean[p.centre] if p.centre else out

    def internal(self, params: Mapping[str, float]) -> Array:
        theta = np.empty(len(self.names))
        values = {k: np.asarray(v, dtype=np.float64) for k, v in params.items()}
        for i, p in enumerate(self.law.parameters):
            with np.errstate(divide="ignore"):
                raw = np.log(values[p.name]) if p.log else values[p.name]
            scale = self._unit if p.share and not p.log and p.name not in self.fixed else 1.0
            theta[i] = raw / scale + self._shift(p, values)
        return theta

    def _decode(self, theta: Array) -> dict[str, Array]:
        """Coordinates (R, p), real or complex -> parameters (R, 1); anchors point at exponents, which come first."""
        out: dict[str, Array] = {}
        order = sorted(range(len(self.names)), key=lambda i: self.law.parameters[i].anchor is not None)
        for i in order:
            p = self.law.parameters[i]
            q = theta[:, i, None] - self._shift(p, out)
            scale = self._unit if p.share and not p.log and p.name not in self.fixed else 1.0
            out[p.name] = np.exp(q) if p.log else q * scale
        return out

    def external(self, theta: Array) -> dict[str, Array]:
        values = self._decode(theta)
        out = {n: values[n][:, 0] for n in self.names}
        return out | {n: np.full(len(theta), float(v)) for n, v in self.fixed.items()}

    def distinct(self, rows: NDArray[np.bool_]) -> int:
        return min(len(np.unique(x[rows])) for x in self._data.values())

    def _value(self, theta: Array) -> Array:
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            f = self.law.function(self._decode(theta), self._data)
            return f if self.law.plain else np.log(np.where(f.real > 1e-300, f, 1e-300))

    def log_value(self, theta: Array) -> Array:
        """ln f, or f for plain residuals, (R, n). Where f is not a number it is far away, so that no step goes there."""
        value = self._value(theta)
        return np.where(np.isfinite(value), value, 1e6)

    def factors(self, theta: Array) -> tuple[Array, list[Factor]]:
        """ln f or f (R, n), and its slopes, zero for coordinates that the caller fixed."""
        jac = self._slopes(theta)
        one = np.ones((self.n, 1))
        return self.log_value(theta), [Factor(k, jac[k], one) for k in range(len(jac))]

    def _slopes(self, theta: Array) -> Array:
        """(p, R, n)"""
        out = np.zeros((len(self.names), len(theta), self.n))
        for k in np.flatnonzero(self.free):
            unit = np.zeros(theta.shape[1])
            unit[k] = STEP
            shifted = cast(Array, theta + 1j * unit)  # complex where the types say real
            out[k] = np.nan_to_num(self._value(shifted).imag / STEP, nan=0.0, posinf=0.0, neginf=0.0)
        return out

    def hessian(self, theta: Array, factors: list[Factor], weight: Array, v: Array) -> Array:
        """sum_i weight_i J_i J_i' + v_i d2 f_i / d theta2 (R, p, p), the second by differences of slopes around `theta`."""
        count, p = theta.shape
        moves = SECOND * np.concatenate([np.eye(p)[self.free], -np.eye(p)[self.free]])
        slopes = self._slopes((theta[:, None, :] + moves).reshape(-1, p))  # one call for all moves
        pulled = np.einsum("rn,prmn->rmp", v, slopes.reshape(p, count, len(moves), self.n))
        half = len(moves) // 2
        out = np.zeros((count, p, p))
        out[:, self.free] = (pulled[:, :half] - pulled[:, half:]) / (2 * SECOND)
        return (out + out.transpose(0, 2, 1)) / 2 + gram(factors, weight)

    # --- starts ------------------------------------------------------------------------------------------------------
    def pool(self, seed: int = 0) -> Array:
        """Points of the start box (POOL, p), uniform, the same for every call."""
        box = np.array([p.start for p in self.law.parameters])
        theta = np.random.default_rng(seed).uniform(box[:, 0], box[:, 1], (POOL, len(box)))
        return np.where(self.free, np.clip(theta, self.lower, self.upper), self.origin)

    def starts(self, count: int) -> Array:
        """The best of the pool and, for half of them, points far from those already chosen among its best tenth."""
        pool = self.pool()
        miss = (np.abs(self.log_value(pool) - self.lny) * np.sqrt(self.weight)).sum(1)
        order = np.argsort(miss, kind="stable")
        chosen = list(order[: count // 2])
        rest = order[: POOL // 10]
        width = np.maximum(pool.std(0), 1e-12)
        while len(chosen) < count:
            apart = np.min([(((pool[rest] - pool[k]) / width) ** 2).sum(1) for k in chosen], axis=0)
            chosen.append(int(rest[apart.argmax()]))
        return pool[chosen].copy()

    def cold_start(self, lny: Array, weight: Array) -> Array:
        """The best of 256 points of the pool for each data set (R, n): (R, p)."""
        pool = self.pool()[:256]
        values = self.log_value(pool)
        lny, weight = np.atleast_2d(lny), np.atleast_2d(weight)
        miss = np.stack([(np.abs(v - lny) * np.sqrt(weight)).sum(1) for v in values], axis=1)
        return pool[miss.argmin(1)].copy()

    def at_bound(self, theta: Array) -> list[str]:
        near = (theta <= self.lower + 1e-6) | (theta >= self.upper - 1e-6)
        return [n for n, at, free in zip(self.names, near, self.free, strict=True) if at and free]
