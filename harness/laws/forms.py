"""Sums of terms: laws that are linear in their coefficients, with closed derivatives and starts by variable projection.

Every law here is  y = sum_k coef_k x_k^(sign exponent_k) + sum_j coef_j feature_j  with non-negative coefficients.
That covers

    chinchilla     L = E + A/N^alpha + B/D^beta      Hoffmann et al. 2022, arXiv:2203.15556, approach 3
    loss_compute   L = E + A C^-g                    saturating law on a frontier or a fixed-ratio ladder
    loss_energy    L = E + A J^-g                    the same against joules
    energy_power   energy = k C^b                    b < 1: larger runs use the device better
    energy_idle    energy = P_idle t + e C           idle watts and joules per FLOP
    isoflop        N* = k C^a                        optima of budgets, see `isoflop`; approaches 1 and 2
    kaplan_n _d _c _ns                               power laws without a floor; N_c, D_c ... are derived

Laws of another shape are in `catalogue`.

Shapes: R parameter vectors side by side, n rows of data, p parameters, q coefficients, c cells of the exponent grid.
Inside the solver logs of x are centred, features have mean 1 and y has geometric mean 1, so that all parameters are of
order one (condition number 1e7 -> 1e4 on the Chinchilla points).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import FitError
from harness.laws.gram import Array, Factor, gram, project
from harness.laws.law import BoundLaw, Law, Need, Values
from harness.laws.parameter import EXPONENT_BOUNDS, LOG_SHARE_BOUNDS, Coordinate, exponent, floor, term
from harness.laws.table import Table

KAPLAN = "Kaplan et al. 2020, arXiv:2001.08361, eq."
BALANCE = "flop_per_s_balance"  # of energy = P_idle t + e C: where both terms are equal
MAX_CONDITION = 30.0  # of the scaled columns of linear terms
START_SHARE = 1e-3  # of y: where a term begins that the projection switched off; from 0 no gradient would bring it back
MIN_TERM, MIN_LINEAR = 1e-8, 1e-9  # of y: a power term or a linear one below this is at its bound
EXPONENT_GRID = (0.03, 2.0)


@dataclass(frozen=True)
class Power:
    """coef x^(sign exponent)."""

    coef: str
    exponent: str
    symbol: str
    sign: int = -1


@dataclass(frozen=True)
class Linear:
    """coef x, or the constant coef where `symbol` is None."""

    coef: str
    symbol: str | None = None


@dataclass(frozen=True)
class _Sum:
    """The function of a sum of terms."""

    powers: tuple[Power, ...]
    linears: tuple[Linear, ...]

    def __call__(self, p: Values, x: Values) -> Array:
        out: Array | float = 0.0
        for t in self.powers:
            out = out + p[t.coef] * np.exp(t.sign * p[t.exponent] * np.log(x[t.symbol]))
        one = np.ones(next(iter(x.values())).shape)
        for t in self.linears:
            out = out + p[t.coef] * (one if t.symbol is None else x[t.symbol])
        return np.asarray(out)


@dataclass(frozen=True)
class SumLaw(Law):
    """A law that is a sum of terms; `sum_of` makes one."""

    powers: tuple[Power, ...] = ()
    linears: tuple[Linear, ...] = ()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(t.coef, t.exponent) for t in self.powers]

    def distinct_needed(self, fixed: Mapping[str, float]) -> list[Need]:
        count = 4 if self.floor and len(self.powers) == 1 else 3
        return [
            Need(t.symbol, count, f"{t.exponent} of {self.formula}", f", or fix {t.exponent}")
            for t in self.powers
            if t.exponent not in fixed
        ]

    def is_crossed(self, fixed: Mapping[str, float]) -> bool:
        return sum(t.exponent not in fixed for t in self.powers) == 2

    def refuse_design(self, columns: Values, y: Array, fixed: Mapping[str, float]) -> None:
        """FitError where linear terms are collinear over these rows."""
        if len(self.linears) < 2 or any(t.coef in fixed for t in self.linears):
            return
        scaled = np.stack([columns[str(t.symbol)] / y for t in self.linears], axis=1)
        condition = float(np.linalg.cond(scaled / np.linalg.norm(scaled, axis=0)))
        if condition > MAX_CONDITION:
            raise FitError(
                f"{' and '.join(str(t.symbol) for t in self.linears)} are collinear (scaled condition number "
                f"{condition:.0f}, limit {MAX_CONDITION:.0f}): at constant throughput time is proportional to FLOP. "
                f"Fix {self.linears[0].coef} at a measured baseline."
            )

    def search(self) -> tuple[str, str]:
        low, high = EXPONENT_BOUNDS
        return (
            "variable projection on 20 exponents per axis over 0.03-2, best and far-apart 16 (then 80) cells",
            f"exponents {low}-{high:g}; ln of a term relative to y -25..25; others >= 0",
        )

    def bind(self, table: Table, y: Array, weight: Array, fixed: Mapping[str, float]) -> BoundLaw:
        return BoundSum(self, table, y, weight, fixed)


def sum_of(
    name: str,
    formula: str,
    y: str,
    powers: tuple[Power, ...],
    linears: tuple[Linear, ...],
    units: str,
    source: str,
    **options: Any,
) -> SumLaw:
    """A sum of terms as a law; `options` are the other fields of `Law`."""
    coordinates: list[Coordinate] = []
    for t in powers:
        coordinates += [term(t.coef, t.exponent, t.symbol, t.sign), exponent(t.exponent)]
    for t in linears:
        one = floor(t.coef) if t.symbol is None else Coordinate(t.coef, 0.0, np.inf, (0.0, 1.0), log=False)
        coordinates.append(one)
    symbols = dict.fromkeys([t.symbol for t in powers] + [t.symbol for t in linears if t.symbol])
    return SumLaw(
        name, formula, y, tuple(symbols), tuple(coordinates), _Sum(powers, linears), units, source,
        powers=powers, linears=linears, **options,
    )  # fmt: skip


def _compute_optimal(p: Values) -> dict[str, Array]:
    """a and G of N* = G (C/6)^a, and g of L* = E + c C^-g, for L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, eq. 4)."""
    alpha, beta, a, b = p["alpha"], p["beta"], p["A"], p["B"]
    return {
        "a": beta / (alpha + beta),
        "G": np.exp((np.log(alpha) + np.log(a) - np.log(beta) - np.log(b)) / (alpha + beta)),
        "g": alpha * beta / (alpha + beta),
    }


def _best_size(p: Values, flop: Array) -> Array:
    """N* of the same law where C = 6ND."""
    alpha, beta, a, b = p["alpha"], p["beta"], p["A"], p["B"]
    ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    return ratio * (flop / 6) ** (beta / (alpha + beta))


def _contour(p: Values, loss: float, u: Array) -> tuple[Array, Array]:
    """N, u above the ln N at which A/N^alpha alone uses up loss - E, and the D that reaches this loss with it."""
    room = loss - p["E"]
    n = np.exp((np.log(p["A"]) - np.log(room)) / p["alpha"] + u)
    left = room - p["A"] * n ** -p["alpha"]
    return n, np.where(left > 0, (p["B"] / np.maximum(left, 1e-300)) ** (1 / p["beta"]), np.inf)


def kaplan_scales(p: Values) -> dict[str, Array]:
    """N_c, D_c, C_c, S_c of (N_c/N)^alpha_N and its like, whose coefficient is N_c^alpha_N."""
    exponents = [n for n in p if n.startswith("alpha_")]
    return {f"{e[-1]}_c": np.exp(np.log(p[coef]) / p[e]) for coef, e in zip(("A", "B"), exponents, strict=False)}


def _balance(p: Values) -> dict[str, Array]:
    """The FLOP/s at which P_idle t = e C."""
    return {BALANCE: p["P_idle"] / p["e"]}


SUMS: dict[str, SumLaw] = {
    law.name: law
    for law in (
        sum_of("chinchilla", "L = E + A/N^alpha + B/D^beta", "loss",
            (Power("A", "alpha", "N"), Power("B", "beta", "D")), (Linear("E"),),
            "N parameters, D tokens, loss nat per token", "Hoffmann et al. 2022, arXiv:2203.15556, approach 3",
            derived=_compute_optimal, optimum=_best_size, contour=_contour, questions="run"),
        sum_of("loss_compute", "L = E + A C^-g", "loss", (Power("A", "g", "C"),), (Linear("E"),),
            "C training FLOP, loss nat per token", "saturating power law; Henighan et al. 2020, arXiv:2010.14701",
            questions="loss"),
        sum_of("loss_energy", "L = E + A J^-g", "loss", (Power("A", "g", "J"),), (Linear("E"),),
            "J joule of training, loss nat per token", "loss_compute with measured joules for FLOP"),
        sum_of("energy_power", "energy = k C^b", "energy", (Power("k", "b", "C", +1),), (),
            "C FLOP, energy joule; b < 1: larger runs use the device better", "power law of measured energy, one device"),
        sum_of("energy_idle", "energy = P_idle t + e C", "energy", (), (Linear("P_idle", "t"), Linear("e", "C")),
            "t seconds, C FLOP, energy joule; P_idle watt, e joule per FLOP", "idle power and joules per operation",
            derived=_balance),
        sum_of("isoflop", "N* = k C^a", "n_star", (Power("k", "a", "C", +1),), (),
            "C FLOP of a budget, n_star parameters", "Hoffmann et al. 2022, approaches 1 and 2: line through optima",
            made_from=("C", "N", "loss")),
        sum_of("kaplan_n", "L = (N_c/N)^alpha_N, A = N_c^alpha_N", "loss", (Power("A", "alpha_N", "N"),), (),
            "N parameters without embeddings, loss nat per token, data and compute ample", f"{KAPLAN} 1.1",
            derived=kaplan_scales),
        sum_of("kaplan_d", "L = (D_c/D)^alpha_D, A = D_c^alpha_D", "loss", (Power("A", "alpha_D", "D"),), (),
            "D tokens, loss nat per token, size ample", f"{KAPLAN} 1.2", derived=kaplan_scales),
        sum_of("kaplan_c", "L = (C_c/C)^alpha_C, A = C_c^alpha_C", "loss", (Power("A", "alpha_C", "C"),), (),
            "C FLOP at the best size, loss nat per token", f"{KAPLAN} 1.3", derived=kaplan_scales, questions="loss"),
        sum_of("kaplan_ns", "L = (N_c/N)^alpha_N + (S_c/S)^alpha_S, A = N_c^alpha_N, B = S_c^alpha_S", "loss",
            (Power("A", "alpha_N", "N"), Power("B", "alpha_S", "S")), (),
            "N parameters, S steps at small batch, loss nat per token; no floor", f"{KAPLAN} 1.6", derived=kaplan_scales),
    )
}  # fmt: skip


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

    # --- coordinates -------------------------------------------------------------------------------------------------
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
        """The fewest distinct values, among `rows`, of a variable whose exponent is fitted (n where there is none)."""
        counts = [
            len(np.unique(np.round(self._logx[k][rows], 9)))
            for k, t in enumerate(self.sum.powers)
            if t.exponent not in self.fixed
        ]
        return min(counts, default=self.n)

    # --- model -------------------------------------------------------------------------------------------------------
    def _terms(self, theta: Array) -> tuple[list[Array], Array]:
        """Power terms, each (R, n), and the scaled model values f (R, n)."""
        terms = [np.exp(theta[:, 2 * k : 2 * k + 2] @ m.T) for k, m in enumerate(self._slope)]
        f = np.zeros((len(theta), self.n))
        for one in terms:
            f += one
        for j, feature in enumerate(self._feature):
            f += theta[:, 2 * len(terms) + j, None] * feature
        return terms, f

    def _scaled(self, f: Array) -> Array:
        """Scaled values of the law on the scale of `target`; a law that is zero gives a very low, finite logarithm."""
        return np.log(np.maximum(f, 1e-300)) if self.is_log else f * self._unit

    def model(self, theta: Array) -> Array:
        return self._scaled(self._terms(theta)[1])

    def factors(self, theta: Array) -> tuple[Array, list[Factor]]:
        """`model` (R, n) and its slopes: of ln f, a power term's are its share of f times 1 and sign ln x, a linear term's
        1/f times its feature; of f, the same times f."""
        terms, f = self._terms(theta)
        inverse = 1.0 / np.maximum(f, 1e-300) if self.is_log else np.full(f.shape, self._unit)
        out = [Factor(2 * k, term * inverse, self._slope[k]) for k, term in enumerate(terms)]
        if self._feature:
            out.append(Factor(2 * len(terms), inverse, self._linear))
        return self._scaled(f), out

    def hessian(self, theta: Array, factors: list[Factor], weight: Array, v: Array) -> Array:
        """See `BoundLaw`. The second derivative of ln f is f''/f - J J', that of f is f'', and only (coef, exponent) pairs
        have f''. `factors`, taken at `theta`, hold all that is needed here.
        """
        out = gram(factors, weight - v if self.is_log else weight)
        for k in range(len(self.sum.powers)):
            bend = (v * factors[k].share) @ self._bend[k]
            a = slice(2 * k, 2 * k + 2)
            out[:, a, a] += bend[:, [0, 1, 1, 2]].reshape(-1, 2, 2)
        return out

    # --- starts ------------------------------------------------------------------------------------------------------
    def _project(self, cells: Array, target: Array, weight: Array) -> tuple[Array, Array]:
        """For each data set (R, n) and cell of exponents the best coefficients (R, c, q), of relative residuals where the
        residual is of ln y, and the sum of their squares (R, c)."""
        target, weight = np.atleast_2d(target), np.atleast_2d(weight)
        one = np.ones(target.shape)
        scale, goal = (np.exp(-target), one) if self.is_log else (one, target / self._unit)
        return project(self._features(cells), scale, goal, weight, self._fixed_coefficients())

    def cold_start(self, target: Array, weight: Array, per_axis: int = 10) -> Array:
        """The best cell of a coarse exponent grid for each data set: (R, p)."""
        cells = self._exponent_grid(per_axis)
        x, sse = self._project(cells, target, weight)
        best = sse.argmin(1)
        return self._assemble(cells[best], x[np.arange(len(best)), best])

    def starts(self, count: int, per_axis: int = 20) -> Array:
        """`count` distinct starts (count, p): the best cells, mutually far apart, half of them from the best tenth of the
        grid.
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
        """Free parameters at, or running to, a bound: a term below 1e-8 of y, a floor below 1e-9 of y, an exponent at its
        limit.
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
        """Cells of exponents (c, number of power terms), log-spaced over 0.03-2; a fixed exponent has one value."""
        axes = [
            np.array([self.fixed[t.exponent]]) if t.exponent in self.fixed else np.geomspace(*EXPONENT_GRID, per_axis)
            for t in self.sum.powers
        ]
        if not axes:
            return np.zeros((1, 0))
        return np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)

    def _features(self, cells: Array) -> Array:
        """What the coefficients multiply, (c, q, n): y is linear in the coefficients once the exponents are given."""
        powers = [np.exp(t.sign * cells[:, k, None] * self._logx[k]) for k, t in enumerate(self.sum.powers)]
        linears = [np.broadcast_to(f, (len(cells), self.n)) for f in self._feature]
        return np.stack([*powers, *linears], axis=1)

    def _fixed_coefficients(self) -> dict[int, float]:
        """Coefficient index (order of `features`) -> scaled value, for the coefficients that are not fitted."""
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
