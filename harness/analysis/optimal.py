"""Answers from fits: the best run for a budget, the cheapest run for a loss, in FLOP and in joules, with intervals.

Intervals are 95 % percentiles over the fit's bootstrap draws: each draw is asked the same question. They hold the noise
of the rows, not the error of the law's form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from harness import laws
from harness.analysis.costs import Prices
from harness.errors import FitError
from harness.laws.catalogue import LAWS, law_of
from harness.laws.gram import Array
from harness.laws.result import Fit
from harness.laws.solver.golden import golden_section

LOG_REACH = math.log(1e3)  # below the smallest N of a fit, where the search along a contour begins
BISECTION_REACH = 100.0  # of ln x on both sides of the data
BISECTIONS = 64
MAX_DRAWS = 1000  # asked; more change an interval by less than its own digits
Ends = list[float | None]  # a 95 % interval; None: unbounded on that side


@dataclass
class Choice:
    """One run that answers a question. What is None is not known; `*_reason` says why for joules and seconds."""

    question: str
    n: float | None  # parameters, in the fit's convention
    d: float | None  # tokens
    flop: float | None
    loss_nat: float
    joules: float | None = None
    seconds: float | None = None
    interval: dict[str, Ends] = field(default_factory=dict)  # of the quantities above, where they have one
    joules_reason: str | None = None
    seconds_reason: str | None = None
    decades_outside: float = 0.0  # of compute, beyond the span that the fit has seen
    notes: list[str] = field(default_factory=list)


def best_for_flop(fit: Fit, prices: Prices, flop: float, *, extrapolate: bool = False) -> Choice:
    """The run of least loss for `flop` FLOP: N, D and the loss there. For laws L(C) the loss alone."""
    if law_of(fit).questions == "loss":
        table = {"C": np.array([flop])}
        loss = float(laws.predict(fit, table, extrapolate=extrapolate)[0])
        choice = Choice(f"best loss for {flop:.4g} FLOP", None, None, flop, loss)
        choice.notes.append("law L(C) knows no N and D: fit law chinchilla for them.")
        choice.decades_outside = outside(fit, flop)
        if fit.draws:
            low, high = laws.predict_interval(fit, table, extrapolate=extrapolate)
            choice.interval["loss_nat"] = [float(low[0]), float(high[0])]
        choice.joules_reason = choice.seconds_reason = "they depend on N"
        return choice
    best = laws.frontier(fit, [flop], prices.flop_per_token, level=0.95, extrapolate=extrapolate)
    n, d = float(best.N[0]), float(best.D[0])
    choice = _priced(f"best loss for {flop:.4g} FLOP", fit, prices, n, d, float(best.L[0]))
    if best.N_interval is not None and best.L_interval is not None:
        ends = best.N_interval[:, 0]
        choice.interval["n"] = _ends(ends)
        choice.interval["d"] = _ends(flop / prices.flop(ends, np.ones(2))[::-1])  # D falls as N rises, at one budget
        choice.interval["loss_nat"] = _ends(best.L_interval[:, 0])
    return choice


def cheapest_for_loss(fit: Fit, prices: Prices, loss: float, *, extrapolate: bool = False) -> list[Choice]:
    """The run of least FLOP that reaches `loss`, and, where joules were measured, the run of least joules.

    They differ wherever joules per FLOP depend on N. FitError at or below the floor.
    """
    law = law_of(fit)
    floor = fit.params[law.floor] if law.floor else 0.0
    if loss <= floor:
        ends = fit.interval.get(law.floor or "")
        band = f" (95 % {ends[0]:.4g} to {ends[1]:.4g})" if ends else ""
        raise FitError(
            f"--loss {loss:g} is not above the floor {law.floor or 'y'} = {floor:.4g}{band} of {fit.law}: by this law no compute reaches it."
        )
    if law.questions == "loss":
        return [_along(fit, loss, "C", extrapolate)]
    goals: list[tuple[str, Callable[[Array, Array], Array]]] = [
        (f"cheapest compute for a loss of {loss:g} nat", prices.flop)
    ]
    if prices.j_per_flop is not None:
        goals.append((f"cheapest joules for a loss of {loss:g} nat", prices.joules))
    out = []
    for question, price in goals:
        n, d = cheapest(fit, {k: np.array([v]) for k, v in fit.params.items()}, loss, price)
        if not np.isfinite(n[0]):
            out.append(
                _unpriced(question, loss, "no run of this loss has an N within a factor 4 of the measured rungs")
            )
            continue
        predicted = laws.predict(fit, {"N": n, "D": d}, extrapolate=extrapolate)  # refuses what lies too far outside
        choice = _priced(question, fit, prices, float(n[0]), float(d[0]), float(predicted[0]))
        if fit.draws:
            params = {k: np.asarray(fit.draws.get(k, [v]))[:MAX_DRAWS] for k, v in fit.params.items()}
            count = max(len(v) for v in params.values())
            n, d = cheapest(fit, {k: np.broadcast_to(v, (count,)) for k, v in params.items()}, loss, price)
            never = float((~np.isfinite(n)).mean())
            choice.interval = {"n": _quantiles(n), "d": _quantiles(d), "flop": _quantiles(prices.flop(n, d))}
            for name, priced in (("joules", prices.joules(n, d)), ("seconds", prices.seconds(n, d))):
                if getattr(choice, name) is None:
                    continue
                unknown = float(np.isnan(priced[np.isfinite(n)]).mean()) if np.isfinite(n).any() else 0.0
                if unknown:
                    choice.notes.append(
                        f"no interval of {name}: in {unknown:.0%} of the draws the run lies beyond the measured rungs."
                    )
                else:
                    choice.interval[name] = _quantiles(priced)
            if never:
                choice.notes.append(f"in {never:.1%} of the draws no run reaches this loss: the floor lies above it.")
        out.append(choice)
    return out


def from_energy_laws(
    fits: dict[str, Fit], choices: list[Choice], loss: float | None, *, extrapolate: bool
) -> list[Choice]:
    """Joules from fitted energy laws, where no record gives them: fills `choices` in place, returns further answers.

    energy = k C^b knows joules through FLOP alone; L = E + A J^-g gives the joules of its own frontier.
    """
    energy = next((f for f in fits.values() if f.law in LAWS and LAWS[f.law].of("energy", "C")), None)
    for c in choices:
        if energy is not None and c.joules is None and c.flop is not None:
            table = {"C": np.array([c.flop])}
            c.joules = float(laws.predict(energy, table, extrapolate=extrapolate)[0])
            c.joules_reason = None
            c.notes.append(
                "joules: law energy = k C^b, which knows them through FLOP alone; its cheapest joules are these."
            )
            if energy.draws:
                low, high = laws.predict_interval(energy, table, extrapolate=extrapolate)
                c.interval["joules"] = [float(low[0]), float(high[0])]
    frontier = next((f for f in fits.values() if f.law in LAWS and LAWS[f.law].of("loss", "J")), None)
    if frontier is None or loss is None or loss <= frontier.params.get(law_of(frontier).floor or "", 0.0):
        return []
    return [_along(frontier, loss, "J", extrapolate)]


def cheapest(
    fit: Fit, params: dict[str, Array], loss: float, price: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """N and D, each (R,), of the least `price(N, D)` on L(N, D) = loss, for R parameter sets (R,); inf where there is none.

    The run moves along the contour of this loss, from the N at which D would be infinite. The price along it need not have
    one minimum (measured joules bend at each rung): a grid, then golden section in its cell.
    """
    law = law_of(fit)
    columns = {k: v[:, None] for k, v in params.items()}
    ok = np.ones(len(next(iter(params.values()))), dtype=bool)
    if law.floor:
        ok = loss > params[law.floor]
        columns[law.floor] = np.where(ok[:, None], columns[law.floor], loss - 1.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):

        def at(u: Array) -> tuple[Array, Array]:
            return law.contour(columns, loss, u) if law.contour else _contour(fit, columns, loss, u)

        def cost(u: Array) -> Array:
            value = price(*at(u))
            return np.where(np.isfinite(value), value, np.inf)

        grid = np.geomspace(1e-4, 30.0, 500)
        costs = cost(np.broadcast_to(grid, (len(ok), len(grid))))
        k = np.clip(costs.argmin(1), 1, len(grid) - 2)
        ok &= np.isfinite(costs.min(1))
        left, right = grid[k - 1][:, None], grid[k + 1][:, None]
        n, d = at(golden_section(cost, left, right, steps=60))
        # The last midpoint may lie just beyond the measured N, where there is no price: then the grid's own best point
        edge = ~np.isfinite(price(n, d)[:, 0])
        n0, d0 = at(grid[costs.argmin(1)][:, None])
    n, d = np.where(edge, n0[:, 0], n[:, 0]), np.where(edge, d0[:, 0], d[:, 0])
    return np.where(ok, n, np.inf), np.where(ok, d, np.inf)


def outside(fit: Fit, flop: float) -> float:
    """Decades of compute beyond the fitted span of C (6ND where the law has N and D); 0 inside it."""
    low, high = fit.span["C"]
    return max(0.0, math.log10(flop / high), math.log10(low / flop))


def _contour(fit: Fit, params: dict[str, Array], loss: float, u: Array) -> tuple[Array, Array]:
    """N, from a factor 1000 below those of the fit, and the D (R, m) at which the law of N and D reaches `loss`."""
    n = np.broadcast_to(fit.span["N"][0] * np.exp(u - LOG_REACH), (len(next(iter(params.values()))), u.shape[1]))
    return n, _reached(lambda d: law_of(fit).value(params, {"N": n, "D": d}), loss, fit.span["D"], n.shape)


def _reached(value: Callable[[Array], Array], loss: float, span: list[float], shape: tuple[int, ...]) -> Array:
    """The x of `shape` at which a falling function is `loss`, by bisection of ln x; 0 or inf where it lies beyond every x."""
    ends = math.log(span[0]) - BISECTION_REACH, math.log(span[1]) + BISECTION_REACH
    low, high = np.full(shape, ends[0]), np.full(shape, ends[1])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            above = value(np.exp(middle)) > loss
            low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(high == ends[1], np.inf, np.where(low == ends[0], 0.0, np.exp((low + high) / 2)))


def _along(fit: Fit, loss: float, symbol: str, extrapolate: bool) -> Choice:
    """x at which a law of x alone reaches `loss`, x being FLOP or joules."""
    law = law_of(fit)
    what = {"C": ("flop", "compute"), "J": ("joules", "joules")}[symbol]

    def invert(params: dict[str, Array]) -> Array:
        rows = len(next(iter(params.values())))
        return _reached(lambda x: law.value(params, {symbol: x}), loss, fit.span[symbol], (rows, 1))[:, 0]

    x = float(invert({k: np.array([[v]]) for k, v in fit.params.items()})[0])
    if not 0 < x < math.inf:
        raise FitError(
            f"--loss {loss:g}: by {fit.formula} it takes {symbol} = {x:g}. The fitted curve is flat there, so no {what[1]} can be "
            "named for a loss."
        )
    laws.predict(fit, {symbol: np.array([x])}, extrapolate=extrapolate)  # refuses what lies too far outside
    choice = Choice(f"cheapest {what[1]} for a loss of {loss:g} nat, by {fit.formula}", None, None, None, loss)
    setattr(choice, what[0], x)
    low, high = fit.span[symbol]
    choice.decades_outside = max(0.0, math.log10(x / high), math.log10(low / x))
    if fit.draws:
        count = len(next(iter(fit.draws.values())))
        drawn = {k: np.asarray(fit.draws.get(k, [v] * count), dtype=np.float64)[:, None] for k, v in fit.params.items()}
        choice.interval[what[0]] = _quantiles(invert(drawn))
    choice.joules_reason = None if choice.joules is not None else "they depend on N, which this law does not know"
    choice.seconds_reason = "they depend on N, which this law does not know"
    return choice


def _priced(question: str, fit: Fit, prices: Prices, n: float, d: float, loss: float) -> Choice:
    size, tokens = np.array([n]), np.array([d])
    choice = Choice(question, n, d, float(prices.flop(size, tokens)[0]), loss)
    choice.decades_outside = outside(fit, 6 * n * d)
    far = f"no rung within a factor 4 of N = {n:.3g} was measured"
    joules, seconds = float(prices.joules(size, tokens)[0]), float(prices.seconds(size, tokens)[0])
    choice.joules = joules if math.isfinite(joules) else None
    choice.joules_reason = None if choice.joules is not None else prices.joules_reason or far
    choice.seconds = seconds if math.isfinite(seconds) else None
    choice.seconds_reason = None if choice.seconds is not None else prices.seconds_reason or far
    return choice


def _unpriced(question: str, loss: float, why: str) -> Choice:
    return Choice(question, None, None, None, loss, joules_reason=why, seconds_reason=why)


def _quantiles(values: Array) -> Ends:
    """2.5 and 97.5 % of draws that may be infinite (NaN, a price of an infinite run, counts as infinite)."""
    ordered = np.sort(np.where(np.isnan(values), np.inf, values))
    at = [ordered[int(q * (len(ordered) - 1) + 0.5)] for q in (0.025, 0.975)]
    return _ends(np.array(at))


def _ends(pair: Array) -> Ends:
    return [float(v) if math.isfinite(v) else None for v in pair]
