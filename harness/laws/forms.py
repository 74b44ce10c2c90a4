"""The laws, as sums of terms, and a law bound to data: values, log-space Jacobian and curvature for many parameter
vectors at once.

Every law here is  y = sum_k coef_k x_k^(sign exponent_k) + sum_j coef_j feature_j  with non-negative coefficients.
That covers

    chinchilla     L = E + A/N^alpha + B/D^beta      Hoffmann et al. 2022, arXiv:2203.15556, approach 3
    loss_compute   L = E + A C^-g                    saturating law on a frontier or a fixed-ratio ladder
    loss_energy    L = E + A J^-g                    the same against joules
    energy_power   energy = k C^b                    b < 1: larger runs use the device better
    energy_idle    energy = P_idle t + e C           idle watts and joules per FLOP
    isoflop        N* = k C^a                        optima of budgets, see `isoflop`; approaches 1 and 2
    kaplan_n _d _c _ns                               power laws without a floor; N_c, D_c ... are derived

Laws of another shape are in `catalogue`, bound by `curve.CurveBound`; nothing in `solve` knows about terms except the
variable-projection start, which asks for `features`.

Shapes: R parameter vectors side by side, n rows of data, p parameters, q coefficients, c cells of the exponent grid.
Inside the solver logs of x are centred, features have mean 1 and y has geometric mean 1, so that all parameters are of
order one (condition number 1e7 -> 1e4 on the Chinchilla points).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import FitError
from harness.laws.gram import Array, Factor, gram

Table = Mapping[str, NDArray]

EXPONENT_BOUNDS = (0.005, 5.0)
KAPLAN = "Kaplan et al. 2020, arXiv:2001.08361, eq."
LOG_SHARE_BOUNDS = (-25.0, 25.0)  # ln of a power term's size at the centre of the data, relative to the mean of y


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
class Law:
    name: str
    formula: str
    y: str  # table key of the measured quantity
    powers: tuple[Power, ...] = ()
    linears: tuple[Linear, ...] = ()
    units: str = ""
    source: str = ""
    max_decades: float = 2.0  # of extrapolation
    delta: float = 1e-3  # of Huber's function where the caller gives none
    plain: bool = False  # residuals are those of ln y
    unit_range: bool = False  # y is any positive number

    @property
    def params(self) -> list[str]:
        """Names in the order of the internal vector: (coef, exponent) per power term, then the linear coefficients."""
        return [n for t in self.powers for n in (t.coef, t.exponent)] + [t.coef for t in self.linears]

    @property
    def exponents(self) -> list[str]:
        return [t.exponent for t in self.powers]

    @property
    def symbols(self) -> list[str]:
        return [t.symbol for t in self.powers] + [t.symbol for t in self.linears if t.symbol]

    @property
    def floor(self) -> str | None:
        """Name of the constant term, if the law has one."""
        return next((t.coef for t in self.linears if t.symbol is None), None)


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("chinchilla", "L = E + A/N^alpha + B/D^beta", "loss",
            (Power("A", "alpha", "N"), Power("B", "beta", "D")), (Linear("E"),),
            "N parameters, D tokens, loss nat per token", "Hoffmann et al. 2022, arXiv:2203.15556, approach 3"),
        Law("loss_compute", "L = E + A C^-g", "loss", (Power("A", "g", "C"),), (Linear("E"),),
            "C training FLOP, loss nat per token", "saturating power law; Henighan et al. 2020, arXiv:2010.14701"),
        Law("loss_energy", "L = E + A J^-g", "loss", (Power("A", "g", "J"),), (Linear("E"),),
            "J joule of training, loss nat per token", "loss_compute with measured joules for FLOP"),
        Law("energy_power", "energy = k C^b", "energy", (Power("k", "b", "C", +1),), (),
            "C FLOP, energy joule; b < 1: larger runs use the device better", "power law of measured energy, one device"),
        Law("energy_idle", "energy = P_idle t + e C", "energy", (), (Linear("P_idle", "t"), Linear("e", "C")),
            "t seconds, C FLOP, energy joule; P_idle watt, e joule per FLOP", "idle power and joules per operation"),
        Law("isoflop", "N* = k C^a", "n_star", (Power("k", "a", "C", +1),), (),
            "C FLOP of a budget, n_star parameters", "Hoffmann et al. 2022, approaches 1 and 2: line through optima"),
        Law("kaplan_n", "L = (N_c/N)^alpha_N, A = N_c^alpha_N", "loss", (Power("A", "alpha_N", "N"),), (),
            "N parameters without embeddings, loss nat per token, data and compute ample", f"{KAPLAN} 1.1"),
        Law("kaplan_d", "L = (D_c/D)^alpha_D, A = D_c^alpha_D", "loss", (Power("A", "alpha_D", "D"),), (),
            "D tokens, loss nat per token, size ample", f"{KAPLAN} 1.2"),
        Law("kaplan_c", "L = (C_c/C)^alpha_C, A = C_c^alpha_C", "loss", (Power("A", "alpha_C", "C"),), (),
            "C FLOP at the best size, loss nat per token", f"{KAPLAN} 1.3"),
        Law("kaplan_ns", "L = (N_c/N)^alpha_N + (S_c/S)^alpha_S, A = N_c^alpha_N, B = S_c^alpha_S", "loss",
            (Power("A", "alpha_N", "N"), Power("B", "alpha_S", "S")), (),
            "N parameters, S steps at small batch, loss nat per token; no floor", f"{KAPLAN} 1.6"),
    )
}  # fmt: skip


class Described(Protocol):
    """What `column` asks of any law."""

    @property
    def name(self) -> str: ...
    @property
    def y(self) -> str: ...
    @property
    def symbols(self) -> list[str]: ...
    @property
    def unit_range(self) -> bool: ...


def column(table: Table, key: str, law: Described) -> Array:
    """One column as float64; FitError when missing, not one-dimensional, not finite, or not positive (logs are
    taken); a share must lie in 0..1.
    """
    if key not in table:
        raise FitError(
            f"law {law.name} needs the column {key!r}; the table has {', '.join(sorted(table)) or 'none'}. "
            f"Needed: {', '.join([*dict.fromkeys(law.symbols), law.y])}."
        )
    values = np.asarray(table[key], dtype=np.float64)
    if values.ndim != 1:
        raise FitError(f"column {key!r} has {values.ndim} dimensions; give one value per row.")
    if law.unit_range and key == law.y:
        if (bad := ~((values >= 0) & (values <= 1))).any():
            i = int(np.flatnonzero(bad)[0])
            raise FitError(
                f"column {key!r}, row {i}: {float(values[i])!r} is no share of 1 ({int(bad.sum())} such rows), and law "
                f"{law.name} is one of {key} between 0 and 1. Divide percentages by 100 and drop unmeasured rows."
            )
        return values
    bad = ~np.isfinite(values) | (values <= 0)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise FitError(
            f"column {key!r}, row {i}: {float(values[i])!r} is not a positive number ({int(bad.sum())} such rows), and "
            f"the law {law.name} takes its logarithm. Drop the rows of failed or unmeasured runs and count "
            "them as excluded."
        )
    if law.name == "pass_at_k" and key == "k" and (values % 1 > 0).any():
        raise FitError(
            f"column 'k' holds {float(values[values % 1 > 0][0]):g}: k counts samples, so it is a whole number."
        )
    return values


def value(law: Law, params: Mapping[str, Array | float], table: Table) -> Array:
    """y of the law at the rows of `table`. Parameters may be arrays of shape (R, 1): then the result is (R, n)."""
    out: Array | float = 0.0
    for t in law.powers:
        x = np.asarray(table[t.symbol], dtype=np.float64)
        out = out + params[t.coef] * np.exp(t.sign * np.asarray(params[t.exponent]) * np.log(x))
    for t in law.linears:
        out = out + params[t.coef] * (
            np.ones(_rows(law, table)) if t.symbol is None else np.asarray(table[t.symbol], dtype=np.float64)
        )
    return np.asarray(out)


def _rows(law: Law, table: Table) -> int:
    return len(np.asarray(table[law.symbols[0]]))


class Bound:
    """A law with its data: evaluates R parameter vectors at once in scaled coordinates.

    Attributes: `lny` (n,) scaled log measurements; `weight` (n,), mean 1; `free`, `lower`, `upper`, `origin` (p,):
    which coordinates move, their bounds, and the values of those that do not.
    """

    def __init__(self, law: Law, table: Table, y: Array, weight: Array, fixed: Mapping[str, float]) -> None:
        self.law, self.n, self.names = law, len(y), law.params
        self.fixed = dict(fixed)
        self._unit = float(np.exp(np.log(y).mean()))
        self.lny = np.log(y) - np.log(self._unit)
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
        for k, t in enumerate(self.law.powers):
            e = params[t.exponent]
            with np.errstate(divide="ignore"):
                theta[2 * k] = np.log(params[t.coef]) + t.sign * e * self._shift[k] - np.log(self._unit)
            theta[2 * k + 1] = e
        for j, t in enumerate(self.law.linears):
            theta[2 * len(self.law.powers) + j] = params[t.coef] * self._scale[j] / self._unit
        return theta

    def external(self, theta: Array) -> dict[str, Array]:
        """The solver's vectors (R, p) -> the law's own parameters, each (R,)."""
        out: dict[str, Array] = {}
        for k, t in enumerate(self.law.powers):
            e = theta[:, 2 * k + 1]
            out[t.coef] = np.exp(theta[:, 2 * k] - t.sign * e * self._shift[k] + np.log(self._unit))
            out[t.exponent] = e.copy()
        for j, t in enumerate(self.law.linears):
            out[t.coef] = theta[:, 2 * len(self.law.powers) + j] * self._unit / self._scale[j]
        for name, v in self.fixed.items():
            out[name] = np.full(len(theta), float(v))  # exactly as given, not through logs and back
        return out

    def distinct(self, rows: NDArray[np.bool_]) -> int:
        """The fewest distinct values, among `rows`, of a variable whose exponent is fitted (n where there is none)."""
        counts = [
            len(np.unique(np.round(self._logx[k][rows], 9)))
            for k, t in enumerate(self.law.powers)
            if t.exponent not in self.fixed
        ]
        return min(counts, default=self.n)

    # --- model -------------------------------------------------------------------------------------------------------
    def _terms(self, theta: Array) -> tuple[list[Array], Array]:
        """Power terms, each (R, n), and the scaled model values f (R, n)."""
        terms = [np.exp(theta[:, 2 * k : 2 * k + 2] @ m.T) for k, m in enumerate(self._slope)]
        f = np.zeros((len(theta), self.n))
        for term in terms:
            f += term
        for j, feature in enumerate(self._feature):
            f += theta[:, 2 * len(terms) + j, None] * feature
        return terms, f

    def log_value(self, theta: Array) -> Array:
        """ln f (R, n); a law that is zero everywhere gives a very low, finite value."""
        return np.log(np.maximum(self._terms(theta)[1], 1e-300))

    def factors(self, theta: Array) -> tuple[Array, list[Factor]]:
        """ln f (R, n) and its slopes: a power term's are its share of f times 1 and sign ln x, a linear term's 1/f times
        its feature."""
        terms, f = self._terms(theta)
        inverse = 1.0 / np.maximum(f, 1e-300)
        out = [Factor(2 * k, term * inverse, self._slope[k]) for k, term in enumerate(terms)]
        if self._feature:
            out.append(Factor(2 * len(terms), inverse, self._linear))
        return np.log(np.maximum(f, 1e-300)), out

    def hessian(self, theta: Array, factors: list[Factor], weight: Array, v: Array) -> Array:
        """sum_i weight_i J_i J_i' + v_i d2 ln f_i / d theta2 (R, p, p), where the second is f''/f - J J', and only (coef,
        exponent) pairs have f''. `factors`, taken at `theta`, hold all that is needed here.
        """
        out = gram(factors, weight - v)
        for k in range(len(self.law.powers)):
            bend = (v * factors[k].share) @ self._bend[k]
            a = slice(2 * k, 2 * k + 2)
            out[:, a, a] += bend[:, [0, 1, 1, 2]].reshape(-1, 2, 2)
        return out

    # --- for variable projection -------------------------------------------------------------------------------------
    def exponent_grid(self, per_axis: int) -> Array:
        """Cells of exponents (c, number of power terms), log-spaced over 0.03-2; a fixed exponent has one value."""
        axes = [
            np.array([self.fixed[t.exponent]]) if t.exponent in self.fixed else np.geomspace(0.03, 2.0, per_axis)
            for t in self.law.powers
        ]
        if not axes:
            return np.zeros((1, 0))
        return np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)

    def features(self, cells: Array) -> Array:
        """What the coefficients multiply, (c, q, n): y is linear in the coefficients once the exponents are given."""
        powers = [np.exp(t.sign * cells[:, k, None] * self._logx[k]) for k, t in enumerate(self.law.powers)]
        linears = [np.broadcast_to(f, (len(cells), self.n)) for f in self._feature]
        return np.stack([*powers, *linears], axis=1)

    def fixed_coefficients(self) -> dict[int, float]:
        """Coefficient index (order of `features`) -> scaled value, for the coefficients that are not fitted."""
        k = len(self.law.powers)
        out = {i: float(np.exp(self.origin[2 * i])) for i, t in enumerate(self.law.powers) if t.coef in self.fixed}
        return out | {
            k + j: float(self.origin[2 * k + j]) for j, t in enumerate(self.law.linears) if t.coef in self.fixed
        }

    def assemble(self, cells: Array, coefficients: Array) -> Array:
        """Exponents (R, .) and coefficients (R, q) -> solver vectors (R, p), inside the bounds."""
        k = len(self.law.powers)
        theta = np.empty((len(cells), len(self.names)))
        with np.errstate(divide="ignore"):
            theta[:, 0 : 2 * k : 2] = np.log(coefficients[:, :k])
        theta[:, 1 : 2 * k : 2] = cells
        theta[:, 2 * k :] = coefficients[:, k:]
        # A term that the projection switched off starts at 1e-3 of y: from -inf no gradient would bring it back
        theta[:, 0 : 2 * k : 2] = np.maximum(theta[:, 0 : 2 * k : 2], np.log(1e-3))
        theta = np.clip(theta, self.lower, self.upper)
        return np.where(self.free, theta, self.origin)


def data_hash(columns: Mapping[str, Array]) -> str:
    """sha256 over the sorted column names and their float64 bytes, 16 hex digits."""
    h = hashlib.sha256()
    for name in sorted(columns):
        h.update(name.encode() + b"\0" + np.ascontiguousarray(columns[name], dtype="<f8").tobytes())
    return h.hexdigest()[:16]
