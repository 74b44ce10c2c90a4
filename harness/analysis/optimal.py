"""The best run for a budget and the cheapest run for a loss, in FLOP and in joules, with intervals.

Intervals are 95 % percentiles of the answers that the fit's bootstrap draws give. They hold the
noise of the rows, not the error of the law's form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from harness import laws
from harness.analysis.costs import Costs
from harness.errors import FitError
from harness.laws.catalogue import LAWS, law_of
from harness.laws.gram import Array
from harness.laws.result import Fit
from harness.laws.solver.golden import golden_section

MIN_LOG_RATIO = -math.log(1e3)  # of the first N of a search along a contour to the smallest fitted
MAX_LOG_DISTANCE = 100.0  # of a bisection in ln x, from the data to both sides
BISECTIONS = 64
MAX_DRAWS = 1000  # more draws change an interval by less than its printed digits
Interval = list[float | None]  # 95 %; None: unbounded on that side


@dataclass
class Choice:
    """One run that answers a question.

    None is unknown; joules and seconds have a `*_reason` for it.
    """

    question: str
    n: float | None  # parameters, in the fit's convention
    d: float | None  # tokens
    flop: float | None
    loss_nat: float
    joules: float | None = None
    seconds: float | None = None
    interval: dict[str, Interval] = field(default_factory=dict)  # quantity above -> its interval
    joules_reason: str | None = None
    seconds_reason: str | None = None
    decades_outside: float = 0.0  # of compute, beyond the span of the fit
    notes: list[str] = field(default_factory=list)


def best_for_flop(fit: Fit, costs: Costs, flop: float, *, extrapolate: bool = False) -> Choice:
    """The run of least loss for `flop` FLOP, with N, D and its loss.

    For laws L(C) the loss alone.
    """
    if law_of(fit).questions == "loss":
        table = {"C": np.array([flop])}
        loss = float(laws.predict(fit, table, extrapolate=extrapolate)[0])
        choice = Choice(f"best loss for {flop:.4g} FLOP", None, None, flop, loss)
        choice.notes.append("law L(C) says nothing about N and D: fit law chinchilla for them.")
        choice.decades_outside = outside(fit, flop)
        if fit.draws:
            low, high = laws.predict_interval(fit, table, extrapolate=extrapolate)
            choice.interval["loss_nat"] = [float(low[0]), float(high[0])]
        choice.joules_reason = choice.seconds_reason = "it depends on N, and this law has no N"
        return choice
    best = laws.frontier(fit, [flop], costs.flop_per_token, level=0.95, extrapolate=extrapolate)
    n, d = float(best.N[0]), float(best.D[0])
    choice = _run_with_costs(f"best loss for {flop:.4g} FLOP", fit, costs, n, d, float(best.L[0]))
    if best.N_interval is not None and best.L_interval is not None:
        sizes = best.N_interval[:, 0]
        choice.interval["n"] = _interval(sizes)
        # D falls as N rises
        choice.interval["d"] = _interval(flop / costs.flop(sizes, np.ones(2))[::-1])
        choice.interval["loss_nat"] = _interval(best.L_interval[:, 0])
    return choice


def cheapest_for_loss(fit: Fit, costs: Costs, loss: float, *, extrapolate: bool = False) -> list[Choice]:
    """The run of least FLOP that reaches `loss`, and that of least joules if these were measured.

    The two differ wherever joules per FLOP depend on N. Raises FitError for a loss at or below the
    floor.
    """
    law = law_of(fit)
    floor = fit.params[law.floor] if law.floor else 0.0
    if loss <= floor:
        interval = fit.interval.get(law.floor or "")
        band = f" (95 % {interval[0]:.4g} to {interval[1]:.4g})" if interval else ""
        raise FitError(
            f"--loss {loss:g} is not above the floor {law.floor or 'y'} = {floor:.4g}{band} of {fit.law}: no compute reaches it. Ask for a higher loss."
        )
    if law.questions == "loss":
        return [_run_of_one_variable(fit, loss, "C", extrapolate)]
    goals: list[tuple[str, Callable[[Array, Array], Array]]] = [
        (f"cheapest compute for a loss of {loss:g} nat", costs.flop)
    ]
    if costs.j_per_flop is not None:
        goals.append((f"cheapest joules for a loss of {loss:g} nat", costs.joules))
    out = []
    for question, cost in goals:
        n, d = cheapest(fit, {k: np.array([v]) for k, v in fit.params.items()}, loss, cost)
        if not np.isfinite(n[0]):
            out.append(
                _unknown_run(question, loss, "no run of this loss has an N within a factor 4 of the measured rungs")
            )
            continue
        # `predict` refuses a run too far outside the data
        predicted = laws.predict(fit, {"N": n, "D": d}, extrapolate=extrapolate)
        choice = _run_with_costs(question, fit, costs, float(n[0]), float(d[0]), float(predicted[0]))
        if fit.draws:
            params = {k: np.asarray(fit.draws.get(k, [v]))[:MAX_DRAWS] for k, v in fit.params.items()}
            count = max(len(v) for v in params.values())
            n, d = cheapest(fit, {k: np.broadcast_to(v, (count,)) for k, v in params.items()}, loss, cost)
            never = float((~np.isfinite(n)).mean())
            choice.interval = {"n": _quantiles(n), "d": _quantiles(d), "flop": _quantiles(costs.flop(n, d))}
            for name, cost_of_draw in (("joules", costs.joules(n, d)), ("seconds", costs.seconds(n, d))):
                if getattr(choice, name) is None:
                    continue
                unknown = float(np.isnan(cost_of_draw[np.isfinite(n)]).mean()) if np.isfinite(n).any() else 0.0
                if unknown:
                    choice.notes.append(
                        f"no interval of {name}: in {unknown:.0%} of the draws the run lies beyond the measured rungs."
                    )
                else:
                    choice.interval[name] = _quantiles(cost_of_draw)
            if never:
                choice.notes.append(f"in {never:.1%} of the draws no run reaches this loss: the floor lies above it.")
        out.append(choice)
    return out


def from_energy_laws(
    fits: dict[str, Fit], choices: list[Choice], loss: float | None, *, extrapolate: bool
) -> list[Choice]:
    """Joules from fitted energy laws, where no record gives them.

    energy = k C^b gives joules by FLOP alone and fills them into `choices` in place. L = E + A J^-g
    gives the joules of its own frontier; they are returned as further answers.
    """
    energy = next((f for f in fits.values() if f.law in LAWS and LAWS[f.law].of("energy", "C")), None)
    for c in choices:
        if energy is not None and c.joules is None and c.flop is not None:
            table = {"C": np.array([c.flop])}
            c.joules = float(laws.predict(energy, table, extrapolate=extrapolate)[0])
            c.joules_reason = None
            c.notes.append("joules: by law energy = k C^b, which depends on FLOP alone; its cheapest joules are these.")
            if energy.draws:
                low, high = laws.predict_interval(energy, table, extrapolate=extrapolate)
                c.interval["joules"] = [float(low[0]), float(high[0])]
    frontier = next((f for f in fits.values() if f.law in LAWS and LAWS[f.law].of("loss", "J")), None)
    if frontier is None or loss is None or loss <= frontier.params.get(law_of(frontier).floor or "", 0.0):
        return []
    return [_run_of_one_variable(frontier, loss, "J", extrapolate)]


def cheapest(
    fit: Fit, params: dict[str, Array], loss: float, cost_of: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """N and D, each (R,), of the least `cost_of(N, D)` on L(N, D) = loss, for R parameter sets.

    Both are inf where no run reaches the loss. The search follows the contour of this loss, from
    the N at which D would be infinite. The cost along it may have several minima, because measured
    joules per FLOP bend at each rung: the best interval of a grid is searched by golden section.
    """
    law = law_of(fit)
    columns = {k: v[:, None] for k, v in params.items()}
    ok = np.ones(len(next(iter(params.values()))), dtype=bool)
    if law.floor:
        ok = loss > params[law.floor]
        columns[law.floor] = np.where(ok[:, None], columns[law.floor], loss - 1.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):

        def run_at(u: Array) -> tuple[Array, Array]:
            return law.contour(columns, loss, u) if law.contour else _contour(fit, columns, loss, u)

        def cost(u: Array) -> Array:
            value = cost_of(*run_at(u))
            return np.where(np.isfinite(value), value, np.inf)

        grid = np.geomspace(1e-4, 30.0, 500)
        costs = cost(np.broadcast_to(grid, (len(ok), len(grid))))
        k = np.clip(costs.argmin(1), 1, len(grid) - 2)
        ok &= np.isfinite(costs.min(1))
        left, right = grid[k - 1][:, None], grid[k + 1][:, None]
        n, d = run_at(golden_section(cost, left, right, steps=60))
        # The minimum may lie just beyond the measured N, where the cost is unknown: take the grid's
        # best point
        edge = ~np.isfinite(cost_of(n, d)[:, 0])
        grid_n, grid_d = run_at(grid[costs.argmin(1)][:, None])
    n, d = np.where(edge, grid_n[:, 0], n[:, 0]), np.where(edge, grid_d[:, 0], d[:, 0])
    return np.where(ok, n, np.inf), np.where(ok, d, np.inf)


def outside(fit: Fit, flop: float) -> float:
    """Decades of compute beyond the fitted span of C (6ND for a law of N and D); 0 inside it."""
    low, high = fit.span["C"]
    return max(0.0, math.log10(flop / high), math.log10(low / flop))


def _contour(fit: Fit, params: dict[str, Array], loss: float, u: Array) -> tuple[Array, Array]:
    """N (R, m) from 1/1000 of the fit's smallest N, and the D at which the law reaches `loss`."""
    n = np.broadcast_to(fit.span["N"][0] * np.exp(u + MIN_LOG_RATIO), (len(next(iter(params.values()))), u.shape[1]))
    return n, _invert(lambda d: law_of(fit).value(params, {"N": n, "D": d}), loss, fit.span["D"], n.shape)


def _invert(value: Callable[[Array], Array], loss: float, span: list[float], shape: tuple[int, ...]) -> Array:
    """The x (shape) at which a falling function equals `loss`, by bisection of ln x.

    0 or inf where it lies beyond every x.
    """
    first, last = math.log(span[0]) - MAX_LOG_DISTANCE, math.log(span[1]) + MAX_LOG_DISTANCE
    low, high = np.full(shape, first), np.full(shape, last)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            above = value(np.exp(middle)) > loss
            low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(high == last, np.inf, np.where(low == first, 0.0, np.exp((low + high) / 2)))


def _run_of_one_variable(fit: Fit, loss: float, symbol: str, extrapolate: bool) -> Choice:
    """The x at which a law of x alone reaches `loss`; x is FLOP or joules."""
    law = law_of(fit)
    quantity, word = {"C": ("flop", "compute"), "J": ("joules", "joules")}[symbol]

    def invert(params: dict[str, Array]) -> Array:
        rows = len(next(iter(params.values())))
        return _invert(lambda x: law.value(params, {symbol: x}), loss, fit.span[symbol], (rows, 1))[:, 0]

    x = float(invert({k: np.array([[v]]) for k, v in fit.params.items()})[0])
    if not 0 < x < math.inf:
        raise FitError(
            f"--loss {loss:g}: by {fit.formula} it takes {symbol} = {x:g}. The fitted curve is flat there, so a loss does not "
            f"determine the {word}."
        )
    # Refuses an x too far outside the data
    laws.predict(fit, {symbol: np.array([x])}, extrapolate=extrapolate)
    choice = Choice(f"cheapest {word} for a loss of {loss:g} nat, by {fit.formula}", None, None, None, loss)
    setattr(choice, quantity, x)
    low, high = fit.span[symbol]
    choice.decades_outside = max(0.0, math.log10(x / high), math.log10(low / x))
    if fit.draws:
        count = len(next(iter(fit.draws.values())))
        draws = {k: np.asarray(fit.draws.get(k, [v] * count), dtype=np.float64)[:, None] for k, v in fit.params.items()}
        choice.interval[quantity] = _quantiles(invert(draws))
    choice.joules_reason = None if choice.joules is not None else "it depends on N, and this law has no N"
    choice.seconds_reason = "it depends on N, and this law has no N"
    return choice


def _run_with_costs(question: str, fit: Fit, costs: Costs, n: float, d: float, loss: float) -> Choice:
    size, tokens = np.array([n]), np.array([d])
    choice = Choice(question, n, d, float(costs.flop(size, tokens)[0]), loss)
    choice.decades_outside = outside(fit, 6 * n * d)
    far = f"no rung within a factor 4 of N = {n:.3g} was measured"
    joules, seconds = float(costs.joules(size, tokens)[0]), float(costs.seconds(size, tokens)[0])
    choice.joules = joules if math.isfinite(joules) else None
    choice.joules_reason = None if choice.joules is not None else costs.joules_reason or far
    choice.seconds = seconds if math.isfinite(seconds) else None
    choice.seconds_reason = None if choice.seconds is not None else costs.seconds_reason or far
    return choice


def _unknown_run(question: str, loss: float, reason: str) -> Choice:
    return Choice(question, None, None, None, loss, joules_reason=reason, seconds_reason=reason)


def _quantiles(values: Array) -> Interval:
    """2.5 and 97.5 % of draws that may be infinite.

    NaN, the cost of an infinite run, counts as inf.
    """
    ordered = np.sort(np.where(np.isnan(values), np.inf, values))
    return _interval(np.array([ordered[int(q * (len(ordered) - 1) + 0.5)] for q in (0.025, 0.975)]))


def _interval(pair: Array) -> Interval:
    return [float(v) if math.isfinite(v) else None for v in pair]
