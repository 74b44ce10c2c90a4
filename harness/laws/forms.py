"""Sums of terms: laws that are linear in their coefficients. `solver.bound_sum` fits them with
closed derivatives and starts by variable projection.

Every law here is  y = sum_k coef_k x_k^(sign exponent_k) + sum_j coef_j feature_j
with non-negative coefficients. That covers

    chinchilla          L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, approach 3)
    loss_compute        L = E + A C^-g: a frontier, or a ladder of fixed ratio
    loss_energy         L = E + A J^-g: the same against joules
    energy_power        energy = k C^b: with b < 1 larger runs use the device better
    energy_idle         energy = P_idle t + e C: idle watts and joules per FLOP
    isoflop             N* = k C^a: optima of budgets, see `isoflop`; approaches 1 and 2
    kaplan_n _d _c _ns  power laws without a floor; N_c, D_c ... are derived

Laws of another shape are in `catalogue`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.errors import FitError
from harness.laws.gram import Array
from harness.laws.law import Law, Need, Values
from harness.laws.parameter import EXPONENT_BOUNDS, Coordinate, exponent, floor, term
from harness.laws.solver.bound import BoundLaw
from harness.laws.solver.bound_sum import BoundSum
from harness.laws.table import Table

KAPLAN = "Kaplan et al. 2020, arXiv:2001.08361, eq."
BALANCE = "flop_per_s_balance"  # of energy = P_idle t + e C: where both terms are equal
MAX_CONDITION = 30.0  # of the scaled columns of linear terms


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
        ones = np.ones(next(iter(x.values())).shape)
        for t in self.linears:
            out = out + p[t.coef] * (ones if t.symbol is None else x[t.symbol])
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
        coordinate = floor(t.coef) if t.symbol is None else Coordinate(t.coef, 0.0, np.inf, (0.0, 1.0), log=False)
        coordinates.append(coordinate)
    symbols = dict.fromkeys([t.symbol for t in powers] + [t.symbol for t in linears if t.symbol])
    return SumLaw(
        name, formula, y, tuple(symbols), tuple(coordinates), _Sum(powers, linears), units, source,
        powers=powers, linears=linears, **options,
    )  # fmt: skip


def _compute_optimal(p: Values) -> dict[str, Array]:
    """a and G of N* = G (C/6)^a, and g of L* = E + c C^-g, for L = E + A/N^alpha + B/D^beta
    (Hoffmann et al. 2022, eq. 4)."""
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
    """N, u above the ln N at which A/N^alpha alone uses up loss - E, and the D that reaches this
    loss with it."""
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
