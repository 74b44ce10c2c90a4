"""What a fit says about rows it has not seen: predictions, intervals from the stored draws, the
compute-optimal frontier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.errors import FitError
from harness.laws.catalogue import law_of
from harness.laws.gram import Array
from harness.laws.result import Fit
from harness.laws.solver.golden import golden_section
from harness.laws.table import Table

MAX_LOG_SIZE_RATIO = float(np.log(1e3))  # of the search for the best N
GRID_POINTS = 200  # points of ln N where there is no closed form


@dataclass
class Frontier:
    """The loss-optimal N and D at each budget C, with the loss there; `*_interval` is (2, m) or
    None where there are no draws.
    """

    C: Array
    N: Array
    D: Array
    L: Array
    N_interval: Array | None = None
    L_interval: Array | None = None


def predict(fit: Fit, table: Table, *, force: bool = False, extrapolate: bool = False) -> Array:
    """The law's value at each row of `table` (keys: the law's symbols, e.g. N and D).

    FitError for a fit without a certificate (unless `force`) and beyond two decades outside the
    fitted span (unless `extrapolate`).
    """
    _require(fit, table, force, extrapolate)
    return law_of(fit).value(fit.params, table)


def predict_interval(
    fit: Fit,
    table: Table,
    level: float = 0.95,
    *,
    new_run: bool = False,
    force: bool = False,
    extrapolate: bool = False,
) -> tuple[Array, Array]:
    """Percentile interval (low, high) of the law's value at each row, from the bootstrap draws.

    `new_run` adds the scatter of one more run (residual standard deviation): the interval that a
    measurement should fall into.
    """
    _require(fit, table, force, extrapolate)
    if not fit.draws:
        raise FitError(f"this fit of {fit.law} has no bootstrap draws, so no interval. Fit again with bootstrap=1000.")
    law = law_of(fit)
    values = law.value(_columns(fit), table)
    if new_run:
        free = len(fit.params) - len(fit.fixed)
        sd = fit.residual_rms * np.sqrt(fit.n_points / max(fit.n_points - free, 1))
        scatter = sd * np.random.default_rng(fit.bootstrap.get("seed", 0)).normal(size=values.shape)
        values = values * np.exp(scatter) if law.residual == "log" else values + scatter
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def _columns(fit: Fit) -> dict[str, Array]:
    """Parameter draws as columns (R, 1); fixed parameters as they are."""
    count = len(next(iter(fit.draws.values())))
    return {n: np.asarray(fit.draws.get(n, [v] * count))[:, None] for n, v in fit.params.items()}


def _require(fit: Fit, table: Table, force: bool, extrapolate: bool) -> None:
    if not fit.certificate.passed and not force:
        raise FitError(
            f"this fit of {fit.law} has no certificate: {fit.certificate.reason}. Fit other rows or a law of fewer parameters; in "
            "Python, force=True predicts from it all the same."
        )
    law = law_of(fit)
    columns = law.read(table)
    if len({len(c) for c in columns.values()}) > 1:
        raise FitError(f"the columns {', '.join(columns)} have different lengths.")
    if "N" in columns and "D" in columns:
        columns = {"C": 6 * columns["N"] * columns["D"]} | columns
    if extrapolate:
        return
    for s, x in columns.items():
        if s not in fit.span:
            raise FitError(
                f"this fit of {fit.law} does not say over which {s} it was made, so how far {s} lies outside is not known. Fit again."
            )
        low, high = fit.span[s]
        if not (low > 0 and x.min() > 0):
            continue  # a column of any sign has no decades
        decades = max(float(np.log10(x.max() / high)), float(np.log10(low / x.min())))
        if decades > law.max_decades:
            raise FitError(
                f"{s} lies {decades:.1f} decades outside the fitted span {low:.3g} to {high:.3g} (limit "
                f"{law.max_decades:g}): law {fit.law} was never tested there. Pass extrapolate=True "
                "(--extrapolate) to go on, and say so."
            )


def frontier(
    fit: Fit,
    C: Array | list[float],
    fpt_of_n: Callable[[Array], Array] | None = None,
    *,
    level: float | None = None,
    force: bool = False,
    extrapolate: bool = False,
) -> Frontier:
    """N*, D*, L* of a law of N and D at training budgets `C` (FLOP).

    For chinchilla with 6ND in closed form, N* = G (C/6)^a; with `fpt_of_n` (training FLOP per token
    of a model with N parameters, vectorised, increasing) by golden-section search along fpt(N)
    D = C. `level` adds percentile intervals from the draws (at most 200 of them with `fpt_of_n`).
    """
    law = law_of(fit)
    if law.questions != "run":
        raise FitError(
            f"a frontier needs law chinchilla or another of N and D; this fit is {fit.law}. Predict from it directly."
        )
    budget = np.asarray(C, dtype=np.float64)
    n, d = _optimum(fit, {k: np.array([[v]]) for k, v in fit.params.items()}, budget, fpt_of_n)
    table = {"N": n[0], "D": d[0]}
    # fpt(N) D = C may differ from 6ND by a factor; the span is judged on 6ND, as it was recorded
    loss = predict(fit, table, force=force, extrapolate=extrapolate)
    out = Frontier(budget, n[0], d[0], loss)
    if level is not None and fit.draws:
        params = _columns(fit)
        if fpt_of_n is not None:
            params = {k: v[:200] for k, v in params.items()}
        n, d = _optimum(fit, params, budget, fpt_of_n)
        losses = law.value(params, {"N": n, "D": d})
        tails = [(1 - level) / 2, (1 + level) / 2]
        out.N_interval, out.L_interval = np.quantile(n, tails, axis=0), np.quantile(losses, tails, axis=0)
    return out


def _optimum(
    fit: Fit, params: dict[str, Array], budget: Array, fpt_of_n: Callable[[Array], Array] | None
) -> tuple[Array, Array]:
    """N* and D*, each (R, m), for parameter columns (R, 1) and budgets (m,).

    Without a closed form, N* is searched for on a grid over the N of the fit and a factor 1000
    beyond, then by golden section in its cell; with one, within a factor 1000 of the optimum at
    6ND.
    """
    law = law_of(fit)

    def per_token(n: Array) -> Array:
        return 6 * n if fpt_of_n is None else fpt_of_n(n)

    def loss(log_n: Array) -> Array:
        size = np.exp(log_n)
        return law.value(params, {"N": size, "D": np.broadcast_to(budget / per_token(size), size.shape)})

    if law.optimum is not None:
        n = law.optimum(params, budget)
        if fpt_of_n is None:
            return n, budget / (6 * n)
        low, high = np.maximum(np.log(n) - MAX_LOG_SIZE_RATIO, 0.0), np.log(n) + MAX_LOG_SIZE_RATIO
    else:
        rows = len(next(iter(params.values())))
        bounds = np.log(fit.span["N"]) + np.array([-MAX_LOG_SIZE_RATIO, MAX_LOG_SIZE_RATIO])
        grid = np.linspace(max(float(bounds[0]), 0.0), float(bounds[1]), GRID_POINTS)
        losses = np.stack([loss(np.full((rows, len(budget)), float(g))) for g in grid])
        k = np.clip(losses.argmin(0), 1, GRID_POINTS - 2)
        low, high = grid[k - 1], grid[k + 1]
    n = np.exp(golden_section(loss, low, high, steps=70))  # 13.8 in ln N shrinks below 1e-13
    return n, budget / per_token(n)
