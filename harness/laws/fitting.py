"""`fit`: one law, one table, one Fit, with certificate, intervals, identifiability, warnings and
held-out comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.errors import FitError
from harness.laws.catalogue import chosen
from harness.laws.gram import Array, Column
from harness.laws.held_out import held_out
from harness.laws.law import Law
from harness.laws.refuse import refuse_design, refuse_rows
from harness.laws.result import Certificate, Fit, Warn
from harness.laws.solver.bootstrap import METHODS, Draws, labels, resample
from harness.laws.solver.bound import BoundLaw
from harness.laws.solver.solve import ROUNDING, certify, multistart, robust_delta
from harness.laws.solver.trust import Evidence, exponents_at, identify, objective_at, warn
from harness.laws.table import Table, data_hash

MAX_SIGMA_RATIO = 1e4
MIN_DRAWS = 20  # fewer resamples that could be fitted give no intervals


def fit(
    law: str | Law,
    table: Table,
    *,
    delta: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    cluster: Column | None = None,
    sigma: Column | None = None,
    fixed: Mapping[str, float] | None = None,
    hold_out: Column | None = None,
    hold_out_label: str | None = None,
    columns: Mapping[str, str] | None = None,
    strata: Column | None = None,
    excluded: Mapping[str, int] | None = None,
    method: str = "auto",
) -> Fit:
    """Fit `law` to `table`, whose columns are the law's symbols (N, D, C, J, t) and its y (`loss`,
    `energy` ...). Its 14 parameters are the options of one public call, and its 71
    lines fill the 22 fields of a Fit.

    law        a name in `catalogue.NAMES`, or a law of the caller's (`Law.from_function`). Of the
               latter the certificate says the same, from central differences; a file stores its
               name and parameters, and `Fit.with_law` puts it back.
    table      a mapping of columns, or a data frame.

    delta      Huber's delta on the log residual; the objective is the sum over rows. None: the
               law's own, 1e-3 as in the literature, and 1 (least squares) for the laws of loss or
               accuracy itself.
    bootstrap  number of resamples; 0 for none (no intervals, no draws).
    cluster    trunk of each row, any labels: rows of one trunk are resampled together. None: every
               row on its own.
    strata     rung of each row, where several trunks (seeds) share one. None: N where it does, else
               none.
    method     auto, residual, cases or seeds: what is resampled, and so which noise the intervals
               reflect; see `harness.laws.solver.bootstrap`.
    sigma      error bar of each measurement, in its own unit; rows weigh (y/sigma)^2, normalised to
               mean 1.
    fixed      parameters that are given, not fitted, e.g. {"E": 1.034}.
    hold_out   boolean mask of rows that are predicted, never fitted.
    columns    symbol -> column of origin (N -> n_head), stored with the fit. excluded:
               reason -> rows that the caller removed.

    Raises FitError where no trustworthy fit can exist (see `refuse`). A fit that did not converge
    is returned with `certificate.passed = False`, and predictions from it raise.
    """
    form = chosen(law)
    fixed = {k: float(v) for k, v in (fixed or {}).items()}
    delta = form.delta if delta is None else delta
    check_resampling(bootstrap, seed)
    _check_arguments(form, fixed, delta, method)
    per_row = {"cluster": cluster, "strata": strata, "sigma": sigma, "hold_out": hold_out}
    sample = _sample(form, table, per_row, fixed)
    rows, y, weight, trunk, rung = sample.rows, sample.y, sample.weight, sample.trunk, sample.rung
    bound = form.bind(rows, y, weight, fixed)
    theta, objective, certificate = multistart(bound, delta)
    external = bound.external(theta[None])
    params = {n: float(external[n][0]) for n in form.params}
    residual = bound.model(theta[None])[0] - bound.target
    draws = resample(bound, theta, delta, bootstrap, seed, trunk, rung, method) if bootstrap else None
    if draws is not None and len(draws.theta) < MIN_DRAWS:
        draws = None
    drawn = bound.external(draws.theta) if draws else {}
    drawn = {n: v for n, v in drawn.items() if n not in fixed}
    derived_draws = derive_many(form, {**external, **drawn} if drawn else {})
    derived = derive(form, params) | _robust_exponents(form, bound, theta, residual, fixed)
    result = Fit(
        law=form.name,
        formula=form.formula,
        params=params,
        interval={n: [v, v] for n, v in fixed.items()} | {n: percentiles(v) for n, v in drawn.items()},
        derived=derived,
        derived_interval={n: percentiles(v) for n, v in derived_draws.items()},
        objective=objective,
        delta=delta,
        residual_rms=float(np.sqrt((residual**2).mean())),
        n_points=len(y),
        n_clusters=draws.blocks if draws else int(labels(trunk, len(y)).max()) + 1,
        certificate=certificate,
        identified={},
        excluded=dict(excluded or {}),
        fixed=fixed,
        columns=dict(columns or {}),
        span=_span(rows),
        bootstrap=draws.counts if draws else {},
        resampled=draws.method if draws else None,
        draws={n: v.tolist() for n, v in drawn.items()},
        residuals=residual.tolist(),
        data_hash=data_hash({**rows, form.y: y, "weight": weight}),
    )
    result.own_law = form
    evidence = Evidence(
        bound, rows, y, theta, objective, delta, params, result.interval, drawn, certificate,
        labels(rung if rung is not None else trunk, len(y)),
    )  # fmt: skip
    _judge(result, evidence, sample, draws, bootstrap)
    if sample.held_out.any():
        result.held_out, worse = held_out(result, sample.data, sample.y_all, sample.held_out, hold_out_label)
        result.warnings += worse
    return result


def _robust_exponents(
    form: Law, bound: BoundLaw, theta: Array, residual: Array, fixed: Mapping[str, float]
) -> dict[str, float]:
    """The exponents at a delta that is robust for these residuals, for comparison."""
    robust = robust_delta(residual)
    if robust <= 1e-9 or form.residual != "log":
        return {}
    refit = exponents_at(bound, theta, robust)
    return {f"{n}_at_robust_delta": v for n, v in refit.items() if n not in fixed}


def _judge(result: Fit, evidence: Evidence, sample: _Sample, draws: Draws | None, requested: int) -> None:
    """Say which parameters are identified, and warn of what the rows and the draws do not tell."""
    free = int(evidence.bound.free.sum())
    result.identified, unpinned = identify(evidence)
    result.warnings = [*_row_warnings(sample.rows, sample.y, sample.weight, free), *unpinned, *warn(evidence)]
    result.warnings += _bootstrap_warnings(draws, requested, free)


@dataclass(frozen=True)
class _Sample:
    """The rows of a table: all of them, and those that are fitted."""

    data: dict[str, Array]  # all rows, by symbol
    y_all: Array
    held_out: np.ndarray  # bool, per row of `data`
    rows: dict[str, Array]  # fitted rows, by symbol
    y: Array
    weight: Array
    trunk: Column | None
    rung: Column | None


def _sample(form: Law, table: Table, per_row: Mapping[str, Column | None], fixed: Mapping[str, float]) -> _Sample:
    """Read a table.

    FitError where a column is short, a row cannot be used or the design allows no fit.
    """
    data = form.read(table, with_y=True)
    y_all = data.pop(form.y)
    count = len(y_all)
    for name, values in {**data, **per_row}.items():
        if values is not None and len(values) != count:
            raise FitError(f"{name} has {len(values)} entries, {form.y} has {count}: one per row is needed.")
    refuse_rows(form, table)
    hold_out, sigma, cluster, strata = (per_row[k] for k in ("hold_out", "sigma", "cluster", "strata"))
    mask = np.zeros(count, dtype=bool) if hold_out is None else np.asarray(hold_out, dtype=bool)
    rows, y = {s: x[~mask] for s, x in data.items()}, y_all[~mask]
    refuse_design(form, rows, y, fixed)
    weight = _weights(form, y, None if sigma is None else np.asarray(sigma, dtype=np.float64)[~mask])
    trunk = None if cluster is None else np.asarray(cluster)[~mask]
    rung = _rungs(form, rows, trunk) if strata is None else np.asarray(strata)[~mask]
    return _Sample(data, y_all, mask, rows, y, weight, trunk, rung)


def evaluate(
    law: str | Law,
    table: Table,
    params: Mapping[str, float],
    *,
    delta: float | None = None,
    sigma: Column | None = None,
) -> tuple[float, Certificate]:
    """Objective and certificate of given parameters, without fitting: is a published optimum one?
    (`starts` stays 0.)
    """
    form = chosen(law)
    if missing := [n for n in form.params if n not in params]:
        raise FitError(f"law {form.name} needs the parameters {', '.join(missing)} as well.")
    rows = form.read(table, with_y=True)
    y = rows.pop(form.y)
    weight = _weights(form, y, None if sigma is None else np.asarray(sigma, dtype=np.float64))
    bound = form.bind(rows, y, weight, {})
    delta = form.delta if delta is None else delta
    theta = bound.internal(params)
    return objective_at(bound, theta, delta), certify(bound, theta, delta)


def derive(law: Law, params: Mapping[str, float]) -> dict[str, float]:
    """Quantities that follow from the parameters, by the law's `derived`."""
    many = derive_many(law, {n: np.array([v]) for n, v in params.items()})
    return {n: float(v[0]) for n, v in many.items() if len(v)}


def derive_many(law: Law, params: Mapping[str, Array]) -> dict[str, Array]:
    """`derive` for arrays of draws; draws whose value is not finite (a term that vanished) are left
    out."""
    if law.derived is None or not params:
        return {}
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return {n: v[np.isfinite(v)] for n, v in law.derived(params).items()}


def percentiles(values: Array) -> list[float]:
    return [float(v) for v in np.quantile(values, [0.025, 0.975])]


def check_resampling(draws: int, seed: int) -> None:
    """FitError for a number of draws or a seed that no bootstrap can use."""
    if draws < 0 or 0 < draws < 40:
        raise FitError(f"bootstrap={draws}: give 0 for none, or at least 40 (1000 for a 95 % interval worth printing).")
    if seed < 0:
        raise FitError(f"seed={seed}: give 0 or a positive whole number.")


def _check_arguments(law: Law, fixed: dict[str, float], delta: float, method: str) -> None:
    if not (np.isfinite(delta) and delta > 0):
        raise FitError(
            f"delta={delta!r} must be a positive number; 1e-3 is usual, 1 is plain least squares of the logs."
        )
    if delta < ROUNDING:
        raise FitError(
            f"delta={delta:g} is below the rounding of a residual ({ROUNDING:g}); 1e-6 already is least absolute error."
        )
    if method not in METHODS:
        raise FitError(f"method={method!r} is unknown. Choose one of: {', '.join(METHODS)}.")
    for name, v in fixed.items():
        if name not in law.params:
            raise FitError(f"fixed: {name!r} is no parameter of {law.formula}; it has {', '.join(law.params)}.")
        c = law.coordinate(name)
        may_be_zero = not c.log and c.kind != "exponent"
        if not np.isfinite(v) or (v < 0 and (c.log or c.low >= 0)) or (v == 0 and not may_be_zero):
            raise FitError(f"fixed: {name}={v!r} must be {'zero or ' if may_be_zero else ''}a positive number.")


def _weights(law: Law, y: Array, sigma: Array | None) -> Array:
    """(y/sigma)^2, mean 1: the objective is on ln y, whose error bar is sigma/y; 1/sigma^2 where it
    is on y itself."""
    if sigma is None:
        return np.ones(len(y))
    if (bad := ~(np.isfinite(sigma) & (sigma > 0))).any():
        i = int(np.flatnonzero(bad)[0])
        raise FitError(
            f"sigma, row {i}: {float(sigma[i])!r} is not a positive error bar. Floor it at the seed "
            "noise, or leave sigma out."
        )
    is_log = law.residual == "log"
    root = (y if is_log else 1.0) / sigma
    if (ratio := float(root.max() / root.min())) > MAX_SIGMA_RATIO:
        raise FitError(
            f"sigma: the {'relative ' if is_log else ''}error bars of two rows differ by a factor of {ratio:.3g} (limit "
            f"{MAX_SIGMA_RATIO:g}): a few rows would be all that is fitted. Floor sigma at the noise that all rows share."
        )
    weight = root**2
    return weight / weight.mean()


def _rungs(law: Law, rows: Mapping[str, Array], trunk: Column | None) -> Column | None:
    """N as the rung of each row where several trunks (seeds) share an N, else None: then the trunk
    is the block."""
    if trunk is None or "N" not in law.symbols:
        return None
    sizes = [set(trunk[rows["N"] == n].tolist()) for n in np.unique(rows["N"])]
    trunks = len(np.unique(trunk))
    nested = sum(len(s) for s in sizes) == trunks
    return rows["N"] if nested and len(sizes) < trunks < len(rows["N"]) else None


def _span(rows: Mapping[str, Array]) -> dict[str, list[float]]:
    """[min, max] of each symbol, and of C = 6ND where N and D are given."""
    values = dict(rows)
    if "N" in rows and "D" in rows:
        values["C"] = 6 * rows["N"] * rows["D"]
    return {s: [float(x.min()), float(x.max())] for s, x in values.items()}


def _row_warnings(rows: Mapping[str, Array], y: Array, weight: Array, free: int) -> list[Warn]:
    """Rows that say less than their number suggests: copies of one another, or outweighed by a
    few."""
    out: list[Warn] = []
    copies = len(y) - np.unique(np.stack([*rows.values(), y]), axis=1).shape[1]
    if copies:
        out.append(
            Warn(
                "DUPLICATE_ROWS",
                f"{copies} of {len(y)} rows repeat another one in every column of the law: if they are copies and not further "
                "runs, intervals are too narrow.",
            )
        )
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    if effective <= free:
        out.append(
            Warn(
                "FEW_WEIGH",
                f"the error bars leave {len(y)} rows the weight of {effective:.1f}, for {free} free parameters: a few rows "
                "decide. Floor sigma at the noise that all rows share, such as the lack of fit.",
            )
        )
    return out


def _bootstrap_warnings(draws: Draws | None, requested: int, free: int) -> list[Warn]:
    if requested == 0:
        return []
    if draws is None:
        return [
            Warn(
                "BOOTSTRAP_FAILED",
                f"fewer than {MIN_DRAWS} of {requested} resamples could be fitted: there are no intervals.",
            )
        ]
    out: list[Warn] = []
    failed = draws.counts["failed"]
    if failed > 0.05 * requested:
        out.append(
            Warn(
                "BOOTSTRAP_FAILURES",
                f"{failed} of {requested} resamples did not converge and are left out of the intervals.",
            )
        )
    if draws.between_dof is not None and draws.between_dof < 1.5:
        out.append(
            Warn(
                "FEW_BLOCKS",
                f"{draws.blocks} trunks or rungs leave {draws.between_dof:.1f} degrees of freedom, after {free} "
                "parameters, to judge the noise that the rows of one share; "
                + (
                    "intervals are very wide."
                    if draws.between_dof > 0
                    else "intervals hold the noise of single rows only."
                ),
            )
        )
    return out
