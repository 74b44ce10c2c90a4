"""Curves of evaluations and their laws: voting, coverage, forecasts, silent depth, costs.

Everything follows from the counts per problem of `TtcRecord`, so intervals resample whole clusters
of problems. FLOP are useful ones (causal count); a missing number is None with a reason. Formulas:
`docs/conventions.md`, "Test-time compute".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness import laws
from harness.errors import FitError
from harness.laws import estimators, pass_at_k
from harness.laws.catalogue import law_named
from harness.laws.estimators import cluster_weights
from harness.laws.fitting import percentiles
from harness.laws.gram import Array
from harness.laws.result import Fit
from harness.laws.solver.bootstrap import DRAW_TOLERANCE, refit
from harness.records.ttc import TtcRecord, TtcRow

COSTS = ("test_flop", "tokens", "wall_s", "energy_j")
# Accuracy of one sample, above chance and at most, for curves over n that are not flat
MIN_ABOVE_CHANCE, MAX_SINGLE = 0.05, 0.98
CELL_LAWS = ("voting", "coverage", "pass_at_k")
MAX_CELL_DRAWS = 200  # bootstrap draws of a cell's laws: a study has hundreds of cells


@dataclass
class Estimate:
    """A number with its 95 % interval, or the reason why it is missing."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def cell_name(record: TtcRecord) -> str:
    return f"{record.name} {record.branch}, {record.label}, T={record.temperature:g}"


def fit_name(law: str, cell: str) -> str:
    """The name of a cell's law in `fits.json`; `cell` is its `cell_name`."""
    return f"ttc/{law}/{cell}"


def last_end_points(records: Sequence[TtcRecord]) -> list[TtcRecord]:
    """The records of the longest training of each run."""
    most: dict[str, int] = {}
    for record in records:
        most[record.run_id] = max(most.get(record.run_id, 0), record.tokens or 0)
    return [record for record in records if (record.tokens or 0) == most[record.run_id]]


# --- curves of one record -------------------------------------------------------------------------
def hits(record: TtcRecord) -> Array:
    """Right samples per problem (P,).

    What is right is the answer or the trace, as the record says.
    """
    return np.array(record.stats.trace_ok if record.accuracy_of == "trace" else record.stats.correct, dtype=float)


def powers_of_two(n_max: int) -> list[int]:
    """1, 2, 4 … up to `n_max`."""
    return [2**i for i in range(n_max.bit_length()) if 2**i <= n_max]


def fit_curve(
    law: str, x: Array, per_problem: Array, cluster: Sequence[int], *, error: bool, bootstrap: int, seed: int
) -> Fit:
    """`law` through the mean over problems of `per_problem` (P, n).

    The bootstrap refits the curves of resampled clusters. `error`: the law is of 1 - `per_problem`.
    """
    form = law_named(law)
    values = 1 - per_problem if error else per_problem
    y = values.mean(0)
    table = {form.symbols[0]: x, form.y: y}
    fit = laws.fit(law, table, bootstrap=0)
    fit.n_clusters = len(set(cluster))
    if bootstrap:
        bound = form.bind({form.symbols[0]: x}, y, np.ones(len(x)), {})
        curves = cluster_weights(cluster, bootstrap, seed) @ values
        refits = refit(bound, bound.internal(fit.params), curves, np.ones_like(curves), form.delta, seed)
        good = refits.decrement <= DRAW_TOLERANCE
        if good.sum() >= 20:
            external = bound.external(refits.theta[good])
            fit.draws = {k: v.tolist() for k, v in external.items()}
            fit.interval = {k: percentiles(v) for k, v in external.items()}
            fit.bootstrap = refits.counts(seed)
    return fit


def flat(record: TtcRecord) -> str | None:
    """Why the curves of a record over n have no shape to fit; None where they have one."""
    single = float(hits(record).mean()) / record.samples
    if record.chance + MIN_ABOVE_CHANCE <= single <= MAX_SINGLE:
        return None
    where = "at chance" if single < MAX_SINGLE else "nearly always right"
    return f"one sample is {where} ({single:.3f}): the curves over n are flat"


def voting_curve(record: TtcRecord) -> tuple[Array, Array]:
    """n (m,), and per problem the chance (P, m) that the majority of n samples is right."""
    n = powers_of_two(record.samples)
    right = [estimators.majority(record.stats.correct, record.stats.wrong, record.stats.unread, k) for k in n]
    return np.array(n, dtype=float), np.stack(right, 1)


def coverage_curve(record: TtcRecord) -> tuple[Array, Array]:
    """k (m,), and pass@k per problem (P, m)."""
    k = powers_of_two(record.samples)
    count = np.full(len(record.stats.correct), record.samples)
    return np.array(k, dtype=float), np.stack([estimators.pass_at_k(hits(record), count, i) for i in k], 1)


def fit_cells(
    records: Sequence[TtcRecord], *, bootstrap: int = 200, seed: int = 0
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Voting law, coverage law and beta-binomial of each cell by `fit_name`, and why one is absent.

    A cell whose single samples are at chance or nearly all right has flat curves and gets no laws.
    """
    bootstrap = min(bootstrap, MAX_CELL_DRAWS)
    options = {"bootstrap": bootstrap, "seed": seed}
    fits: dict[str, Fit] = {}
    absent: dict[str, str] = {}
    for record in records:
        if reason := flat(record):
            absent |= {fit_name(law, cell_name(record)): reason for law in CELL_LAWS}
            continue
        cluster, count = record.stats.cluster, np.full(len(record.stats.correct), record.samples)
        jobs: tuple[Callable[[], Fit], ...] = (
            lambda cell=record, c=cluster: fit_curve("voting", *voting_curve(cell), c, error=True, **options),
            lambda cell=record, c=cluster: fit_curve("coverage", *coverage_curve(cell), c, error=False, **options),
            lambda cell=record, n=count: pass_at_k.fit(hits(cell), n, **options),
        )
        for law, job in zip(CELL_LAWS, jobs, strict=True):
            try:
                fits[fit_name(law, cell_name(record))] = job()
            except FitError as e:
                absent[fit_name(law, cell_name(record))] = str(e)
    return fits, absent


# --- forecast -------------------------------------------------------------------------------------
@dataclass
class PassForecast:
    """pass@k forecast from `fitted` samples per problem, scored on `k` other samples."""

    cell: str
    fitted: int
    k: int
    measured: float
    beta_binomial: float | None
    power_law: float | None
    plug_in: float
    reason: str | None = None  # why a forecast is missing


def forecast(record: TtcRecord, fitted: int, *, seed: int = 0) -> PassForecast | None:
    """The forecast of one cell; None for fewer than twice `fitted` samples.

    The split of the samples is hypergeometric: every subset has the same probability.
    """
    k = record.samples - fitted
    if fitted < 4 or k < fitted:
        return None
    right = hits(record).astype(int)
    seen = np.random.default_rng(seed).hypergeometric(right, record.samples - right, fitted)
    held_out = right - seen
    count = np.full(len(right), fitted)
    beta = pass_at_k.fit(seen, count, bootstrap=0)
    value, power, reason = None, None, None
    try:
        value = float(laws.predict(beta, {"k": np.array([float(k)])}, extrapolate=True)[0])
        x = np.array(powers_of_two(fitted), dtype=float)
        y = np.array([estimators.pass_at_k(seen, count, int(j)).mean() for j in x])
        power = float(
            laws.predict(
                laws.fit("coverage", {"k": x, "coverage": y}, bootstrap=0), {"k": np.array([k])}, extrapolate=True
            )[0]
        )
    except FitError as e:
        reason = str(e)
    plug_in = float((1 - (1 - seen / fitted) ** k).mean())
    return PassForecast(cell_name(record), fitted, k, float((held_out > 0).mean()), value, power, plug_in, reason)


def noisy_verifier_limit(record: TtcRecord, tpr: float, fpr: float) -> float:
    """Accuracy of best-of-n with a noisy verifier as n grows.

    The mean over problems of p t / (p t + (1 - p) f), with rates t and f of true and false
    positives.
    """
    p = hits(record) / record.samples
    accepted = p * tpr + (1 - p) * fpr
    return float(np.divide(p * tpr, accepted, out=np.zeros_like(p), where=accepted > 0).mean())


# --- costs ----------------------------------------------------------------------------------------
def cost(row: TtcRow, name: str) -> float | None:
    return getattr(row, name)


def pareto(pairs: Sequence[tuple[TtcRecord, TtcRow]], name: str) -> list[tuple[TtcRecord, TtcRow]]:
    """The Pareto front of cells by cost and accuracy, cheapest first."""
    candidates = [(c, -row.accuracy, i) for i, (_, row) in enumerate(pairs)
             if row.accuracy is not None and (c := cost(row, name)) is not None]  # fmt: skip
    best, front = -np.inf, []
    for _, negative, i in sorted(candidates):
        if -negative > best:
            best = -negative
            front.append(pairs[i])
    return front


def per_correct(record: TtcRecord, row: TtcRow, name: str, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """Cost of all queries, wrong answers included, over the number of right answers.

    The cost per query is taken as exact. The interval resamples problems where the record has their
    outcomes (greedy, one sample); otherwise it is that of the row's accuracy.
    """
    query = cost(row, name)
    if query is None:
        return Estimate(None, reason=row.energy_reason if name == "energy_j" else f"{name} was not measured")
    if not row.accuracy:
        return Estimate(None, reason=row.reason or "no answer was right")
    p = (
        np.array(record.stats.greedy, dtype=float)
        if row.strategy == "greedy"
        else np.array(record.stats.correct) / record.samples
    )
    if row.strategy in ("greedy", "sample"):
        accuracy = cluster_weights(record.stats.cluster, draws, seed) @ p
        low, high = np.percentile(accuracy, [2.5, 97.5]).tolist()
    else:
        low, high = row.accuracy_low, row.accuracy_high
    return Estimate(query / row.accuracy, query / high if high else None, query / low if low else None)


# --- silent depth ---------------------------------------------------------------------------------
def silent_depth(cells: Sequence[TtcRecord]) -> dict[int, tuple[float, int]]:
    """r -> (greedy accuracy with r products to do, problems), over lengths of ONE end point.

    r = size - max(length, 1), because the first product is read from the prompt with or without a
    written state. Empty for tasks other than `group`: the length of a text task is in tokens.
    """
    right: dict[int, list[bool]] = {}
    for record in cells:
        if (b := record.control.get("max_states")) is None or record.task["name"] != "group":
            continue
        for size, ok in zip(record.stats.size, record.stats.greedy, strict=True):
            right.setdefault(max(size - max(b, 1), 0), []).append(ok)
    return {k: (float(np.mean(v)), len(v)) for k, v in sorted(right.items())}


def predicted_accuracy(depth: dict[int, tuple[float, int]], record: TtcRecord) -> float:
    """acc(b) = sum over sizes of P(size) S(size - max(b, 1)), for one forced length b."""
    b = max(record.control["max_states"], 1)
    return float(np.mean([depth[max(size - b, 0)][0] for size in record.stats.size]))
