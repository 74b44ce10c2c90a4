"""A sum of terms bound to data: closed derivatives, and starts by variable projection; see
`BoundLaw`.

Shapes: R parameter vectors side by side, n rows of data, p parameters, q coefficients, c cells of
the exponent grid. Inside the solver logs of x are centred, features have mean 1 and y has geometric
mean 1, so that all parameters are of order one (condition number 1e7 -> 1e4 on the Chinchilla
points).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.laws.gram import Array, Factor, gram, project
from harness.laws.parameter import EXPONENT_BOUNDS, LOG_SHARE_BOUNDS
from harness.laws.table import Table

if TYPE_CHECKING:
    from harness.laws.forms import SumLaw
    from harness.laws.law import Law

# of y: where a term begins that the projection switched off; from 0 no gradient would bring it back
START_SHARE = 1e-3
MIN_TERM, MIN_LINEAR = 1e-8, 1e-9  # of y: a power term or a linear one below this is at its bound
EXPONENT_GRID = (0.03, 2.0)


class BoundSum:
    """A sum of terms with its data; see `BoundLaw`. `target` is ln y less its mean, or y."""

    solver = "variable projection starts, damped Newton on the Huber sum (float64)"
    coarse = False

    def __init__(self, law: SumLaw, table: Table, y: Array, weight: Array, fixed: Mapping[str, float]) -> None:
        self.sum, self.n, self.names = law, len(y), law.params
        self.law: Law = law
        self.fixed = dict(fixed)
        self.is_log = law.residual == "log"
        self._unit = float(np.exp(np.log(y).mean()))
        self.target = np.log(y) - np.log(self._unit) if self.is_log else y.copy()
        self.weight = weight
        logs = [np.log(np.asarray(table[t.symbol], dtype=np.float64)) for t in law.powers]
        # A fixed coefficient must stay one coordinate, so its term is not centred
        self._shift = [0.0 if t.coef in fixed else float(x.mean()) for t, x in zip(law.powers, logs, strict=True)]
        self._logx = [x - s for x, s in zip(logs, self._shift, strict=True)]
        self._slope = [
            np.stack([np.ones(self.n), t.sign * x], axis=1) for t, x in zip(law.powers, self._logx, strict=True)
        ]
        self._bend = [np.column_stack([m, m[:, 1] ** 2]) for m in self._slope]
        raw = [
            np.ones(self.n) if t.symbol is None else np.asarray(table[t.symbol], dtype=np.float64) for t in law.linears
        ]
        self._scale = [float(f.mean()) for f in raw]
        self._feature = [f / s for f, s in zip(raw, self._scale, strict=True)]
        self._linear = np.stack(self._feature, axis=1) if raw else np.zeros((self.n, 0))
        p = len(self.names)
        self.lower, self.upper = np.full(p, 0.0), np.full(p, np.inf)
        for k in range(len(law.powers)):
            self.lower[2 * k], self.upper[2 * k] = LOG_SHARE_BOUNDS
            self.lower[2 * k + 1], self.upper[2 * k + 1] = EXPONENT_BOUNDS
        self.free = np.array([n not in fixed for n in self.names])
        self.origin = np.zeros(p)
        if fixed:
            whole = self.internal({n: fixed.get(n, 1.0) for n in self.names})
            self.origin = np.where(self.free, 0.0, whole)

    # --- coordinates
    def internal(self, params: Mapping[str, float]) -> Array:
        """The law's own parameters -> the solver's vector (p,)."""
        theta = np.empty(len(self.names))
        for k, t in enumerate(self.sum.powers):
            e = params[t.exponent]
            with np.errstate(divide="ignore"):
                theta[2 * k] = np.log(params[t.coef]) + t.sign * e * self._shift[k] - np.log(self._unit)
            theta[2 * k + 1] = e
        for j, t in enumerate(self.sum.linears):
            theta[2 * len(self.sum.powers) + j] = params[t.coef] * self._scale[j] / self._unit
        return theta

    def external(self, theta: Array) -> dict[str, Array]:
        """The solver's vectors (R, p) -> the law's own parameters, each (R,)."""
        out: dict[str, Array] = {}
        for k, t in enumerate(self.sum.powers):
            e = theta[:, 2 * k + 1]
            out[t.coef] = np.exp(theta[:, 2 * k] - t.sign * e * self._shift[k] + np.log(self._unit))
            out[t.exponent] = e.copy()
        for j, t in enumerate(self.sum.linears):
            out[t.coef] = theta[:, 2 * len(self.sum.powers) + j] * self._unit / self._scale[j]
        for name, v in self.fixed.items():
            out[name] = np.full(len(theta), float(v))  # exactly as given, not through logs and back
        return out

    def distinct(self, rows: NDArray[np.bool_]) -> int:
        """The fewest distinct values, among `rows`, of a variable whose exponent is fitted (n where
        there is none)."""
        counts = [
            len(np.unique(np.round(self._logx[k][rows], 9)))
            for k, t in enumerate(self.sum.powers)
            if t.exponent not in self.fixed
        ]
        return min(counts, default=self.n)

    # --- model
    def _terms(self, theta: Array) -> tuple[list[Array], Array]:
        """Power terms, each (R, n), and the scaled model values f (R, n)."""
        terms = [np.exp(theta[:, 2 * k : 2 * k + 2] @ m.T) for k, m in enumerate(self._slope)]
        f = np.zeros((len(theta), self.n))
        for term in terms:
            f += term
        for j, feature in enumerate(self._feature):
            f += theta[:, 2 * len(terms) + j, None] * feature
        return terms, f

    def _scaled(self, f: Array) -> Array:
        """Scaled values of the law on the scale of `target`; a law that is zero gives a very low,
        finite logarithm."""
        return np.log(np.maximum(f, 1e-300)) if self.is_log else f * self._unit

    def model(self, theta: Array) -> Array:
        return self._scaled(self._terms(theta)[1])

    def factors(self, theta: Array) -> tuple[Array, list[Factor]]:
        """`model` (R, n) and its slopes: of ln f, a power term's are its share of f times 1 and
        sign ln x, a linear term's 1/f times its feature; of f, the same times f."""
        terms, f = self._terms(theta)
        inverse = 1.0 / np.maximum(f, 1e-300) if self.is_log else np.full(f.shape, self._unit)
        out = [Factor(2 * k, term * inverse, self._slope[k]) for k, term in enumerate(terms)]
        if self._feature:
            out.append(Factor(2 * len(terms), inverse, self._linear))
        return self._scaled(f), out

    def hessian(self, theta: Array, factors: list[Factor], weight: Array, v: Array) -> Array:
        """See `BoundLaw`. The second derivative of ln f is f''/f - J J', that of f is f'', and only
        (coef, exponent) pairs have f''. `factors`, taken at `theta`, hold all that is needed here.
        """
        out = gram(factors, weight - v if self.is_log else weight)
        for k in range(len(self.sum.powers)):
            bend = (v * factors[k].share) @ self._bend[k]
            a = slice(2 * k, 2 * k + 2)
            out[:, a, a] += bend[:, [0, 1, 1, 2]].reshape(-1, 2, 2)
        return out

    # --- starts
    def _project(self, cells: Array, target: Array, weight: Array) -> tuple[Array, Array]:
        """For each data set (R, n) and cell of exponents the best coefficients (R, c, q), of
        relative residuals where the residual is of ln y, and the sum of their squares (R, c)."""
        target, weight = np.atleast_2d(target), np.atleast_2d(weight)
        ones = np.ones(target.shape)
        scale, goal = (np.exp(-target), ones) if self.is_log else (ones, target / self._unit)
        return project(self._features(cells), scale, goal, weight, self._fixed_coefficients())

    def cold_start(self, target: Array, weight: Array, per_axis: int = 10) -> Array:
        """The best cell of a coarse exponent grid for each data set: (R, p)."""
        cells = self._exponent_grid(per_axis)
        x, sse = self._project(cells, target, weight)
        best = sse.argmin(1)
        return self._assemble(cells[best], x[np.arange(len(best)), best])

    def starts(self, count: int, per_axis: int = 20) -> Array:
        """`count` distinct starts (count, p): the best cells, mutually far apart, half of them from
        the best tenth of the grid.
        """
        cells = self._exponent_grid(per_axis)
        x, sse = self._project(cells, self.target, self.weight)
        order = np.argsort(sse[0], kind="stable")
        chosen = [int(order[0])]
        logs = np.log(cells) if cells.shape[1] else np.zeros((len(cells), 1))
        for pool in (order[: max(1, len(order) // 10)], order):
            while len(chosen) < min(count if pool is order else count // 2, len(pool)):
                distance = np.min([((logs[pool] - logs[k]) ** 2).sum(1) for k in chosen], axis=0)
                distance[np.isin(pool, chosen)] = -1.0
                chosen.append(int(pool[distance.argmax()]))
        theta = self._assemble(cells[chosen], x[0, chosen])
        if len(theta) < count:  # fewer cells than starts: shift the best one, reproducibly
            shift = np.random.default_rng(0).normal(0.0, 0.3, (count - len(theta), theta.shape[1]))
            linear = np.arange(len(self.names)) >= 2 * len(self.sum.powers)
            best: Array = theta[0]
            moved = np.where(linear, best * np.exp(shift) + 0.05 * np.abs(shift), best + shift)
            theta = np.vstack([theta, np.where(self.free, np.clip(moved, self.lower, self.upper), self.origin)])
        return theta

    def at_bound(self, theta: Array) -> list[str]:
        """Free parameters at, or running to, a bound: a term below 1e-8 of y, a floor below 1e-9 of
        y, an exponent at its limit.
        """
        out: list[str] = []
        linear = 2 * len(self.sum.powers)
        for i, name in enumerate(self.names):
            if not self.free[i]:
                continue
            is_coef = i < linear and i % 2 == 0
            low = theta[i] < np.log(MIN_TERM) if is_coef else theta[i] <= self.lower[i] + MIN_LINEAR
            if low or theta[i] >= self.upper[i] - MIN_LINEAR:
                out.append(name)
        return out

    def _exponent_grid(self, per_axis: int) -> Array:
        """Cells of exponents (c, number of power terms), log-spaced over 0.03-2; a fixed exponent
        has one value."""
        axes = [
            np.array([self.fixed[t.exponent]]) if t.exponent in self.fixed else np.geomspace(*EXPONENT_GRID, per_axis)
            for t in self.sum.powers
        ]
        if not axes:
            return np.zeros((1, 0))
        return np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)

    def _features(self, cells: Array) -> Array:
        """What the coefficients multiply, (c, q, n): y is linear in the coefficients once the
        exponents are given."""
        powers = [np.exp(t.sign * cells[:, k, None] * self._logx[k]) for k, t in enumerate(self.sum.powers)]
        linears = [np.broadcast_to(f, (len(cells), self.n)) for f in self._feature]
        return np.stack([*powers, *linears], axis=1)

    def _fixed_coefficients(self) -> dict[int, float]:
        """Coefficient index (order of `features`) -> scaled value, for the coefficients that are
        not fitted."""
        k = len(self.sum.powers)
        out = {i: float(np.exp(self.origin[2 * i])) for i, t in enumerate(self.sum.powers) if t.coef in self.fixed}
        return out | {
            k + j: float(self.origin[2 * k + j]) for j, t in enumerate(self.sum.linears) if t.coef in self.fixed
        }

    def _assemble(self, cells: Array, coefficients: Array) -> Array:
        """Exponents (R, .) and coefficients (R, q) -> solver vectors (R, p), inside the bounds."""
        k = len(self.sum.powers)
        theta = np.empty((len(cells), len(self.names)))
        with np.errstate(divide="ignore"):
            theta[:, 0 : 2 * k : 2] = np.log(coefficients[:, :k])
        theta[:, 1 : 2 * k : 2] = cells
        theta[:, 2 * k :] = coefficients[:, k:]
        theta[:, 0 : 2 * k : 2] = np.maximum(theta[:, 0 : 2 * k : 2], np.log(START_SHARE))
        theta = np.clip(theta, self.lower, self.upper)
        return np.where(self.free, theta, self.origin)
