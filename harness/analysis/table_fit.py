"""One law fitted to a table of points: `fit_table`.

Two laws also take the raw data behind their points, where the table lacks these: `isoflop` the runs
whose optima it fits, `pass_at_k` the counts of correct samples per problem. `table_compare`
compares the approaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import laws
from harness.analysis import row_filter, tables
from harness.errors import FitError
from harness.laws.catalogue import law_named
from harness.laws.estimators import pass_at_k
from harness.laws.refuse import refuse_rows
from harness.laws.result import Fit, Warn

UNCHECKED = {
    "state": "rows of unfinished runs would not be noticed",
    "annealed": "rows without a decayed learning rate would not be noticed, and lie 0.04-0.09 nat too high",
}


def energy_symbol(law: str) -> str:
    """The symbol of joules in a law: `energy` if the law predicts them, else J, its variable."""
    return "energy" if law_named(law).y == "energy" else "J"


@dataclass(frozen=True)
class Fitted:
    """A Fit, its points (symbol -> values, with y), and the mask of those that were held out."""

    fit: Fit
    points: dict[str, NDArray]
    held_out: NDArray


def fit_table(table: tables.TableFile, law: str, columns: Mapping[str, str], **options: Any) -> Fit:
    """The Fit of `fit_points`, with the same options."""
    return fit_points(table, law, columns, **options).fit


def fit_points(
    table: tables.TableFile,
    law: str,
    columns: Mapping[str, str],
    *,
    sigma: str | None = None,
    cluster: str | None = None,
    fixed: Mapping[str, float] | None = None,
    keep: str | None = None,
    hold_out: str | None = None,
    delta: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Fitted:
    """Fit `law` to the rows of `table` where `keep` is true and `hold_out` is not.

    `columns`: symbol -> column; `sigma` and `cluster` are columns, `keep` and `hold_out` conditions
    of `row_filter`. Rows of one `run_id` are one cluster unless `cluster` says otherwise. The Fit
    counts the rows that the filter removes. Its 11 parameters are
    the options of `harness fit TABLE`.

    Raises FitError for conditions, columns, units and designs that cannot be right.
    """
    source, excluded = filtered(table, keep)
    raw = _raw_symbols(law, source, columns)
    chosen = tables.choose(source, law, columns, table.name, raw)
    origin = dict(chosen.columns) | {"table": f"{table.name} (sha256 {table.sha256})"}
    bars = None
    if sigma is not None:
        bars = error_bars(source, sigma, chosen, "loss" if raw else law_named(law).y, table.name)
        origin["sigma"] = sigma
    if raw is not None:
        unused = {"--cluster": cluster, "--fix": fixed, "--hold-out": hold_out, "--delta": delta}
        refuse_options(law, unused | ({"--sigma": sigma} if "loss" not in raw else {}), f"from {', '.join(raw)}")
        return _from_raw(law, chosen, origin, excluded, bars, bootstrap, seed)
    if cluster is None and "run_id" in source and len(set(source["run_id"])) < len(source["run_id"]):
        cluster = "run_id"
    if cluster is not None:
        origin["cluster"] = cluster
    mask = None if hold_out is None else _held_out_rows(hold_out, source)
    fit = laws.fit(
        law,
        chosen.table,
        delta=delta,
        bootstrap=bootstrap,
        seed=seed,
        cluster=None if cluster is None else _clusters(source, cluster, table.name),
        sigma=bars,
        fixed=fixed,
        hold_out=mask,
        hold_out_label=hold_out,
        columns=origin,
        excluded=excluded,
    )
    fit.warnings += not_judged(chosen)
    form = law_named(law)
    points = {s: chosen.table[s] for s in (*form.symbols, form.y)}
    mask = np.zeros(len(points[form.y]), dtype=bool) if mask is None else mask
    if form.simpler and (reason := _no_break({s: points[s][~mask] for s in ("C", "loss")})):
        fit.warnings.insert(0, Warn("BREAK_NOT_SHOWN", f"{reason}. Law {form.simpler} describes these points."))
    return Fitted(fit, points, mask)


def _no_break(points: dict[str, NDArray]) -> str | None:
    """Why the points (C, loss) do not show a break; None where they do."""
    offer = laws.broken.offer(points)
    return offer.reason if offer.broken is None else None


def _clusters(source: Mapping[str, NDArray], cluster: str, where: str) -> NDArray:
    """The column of clusters; raises FitError where a row has none."""
    values = row_filter.find_column(source, cluster, f"{where}, --cluster")
    missing = values == "" if row_filter.is_text(values) else np.isnan(values)
    if missing.any():
        raise FitError(
            f"{where}, --cluster {cluster}: {int(missing.sum())} of {len(missing)} rows have no entry, and would count as one "
            "trunk. Fill the column, or leave such rows out with --filter."
        )
    return values


def _held_out_rows(hold_out: str, source: Mapping[str, NDArray]) -> NDArray:
    """The mask of the rows where `hold_out` is true; raises FitError where there is none."""
    mask = row_filter.rows(hold_out, source)
    if not mask.any():
        raise FitError(f"--hold-out {hold_out!r} is true for none of the {len(mask)} rows. Choose another condition.")
    return mask


def _raw_symbols(law: str, source: Mapping[str, NDArray], columns: Mapping[str, str]) -> tuple[str, ...] | None:
    """The symbols that the law's points are made from, if the table lacks the points themselves."""
    form = law_named(law)
    return None if not form.made_from or form.y in source or form.y in columns else form.made_from


def _from_raw(
    law: str,
    chosen: tables.Chosen,
    origin: dict[str, str],
    excluded: dict[str, int],
    bars: NDArray | None,
    bootstrap: int,
    seed: int,
) -> Fitted:
    table = chosen.table
    if "correct" in table:
        fit = laws.pass_at_k.fit(table["correct"], table["samples"], bootstrap=bootstrap, seed=seed)
        fit.columns = origin
        points = _coverage(table["correct"], table["samples"])
    else:
        refuse_rows(law_named("chinchilla"), table)
        fit = laws.isoflop.fit(table, sigma=bars, bootstrap=bootstrap, seed=seed, columns=origin)
        fit.warnings += not_judged(chosen)
        best = [p for p in laws.isoflop.optima(table, sigma=bars, seed=seed) if p.n_star is not None]
        points = {"C": np.array([p.flop for p in best]), "n_star": np.array([p.n_star for p in best], dtype=np.float64)}
    fit.excluded = excluded | fit.excluded
    return Fitted(fit, points, np.zeros(len(next(iter(points.values()))), dtype=bool))


def _coverage(correct: NDArray, samples: NDArray) -> dict[str, NDArray]:
    """The unbiased pass@k at powers of 2, up to the fewest samples of a problem."""
    k = 2 ** np.arange(int(np.log2(samples.min())) + 1)
    return {"k": k.astype(np.float64), "coverage": np.array([pass_at_k(correct, samples, int(j)).mean() for j in k])}


def not_judged(chosen: tables.Chosen) -> list[Warn]:
    """A warning for the columns about its rows that the table lacks."""
    unknown = [f"column {c!r} is missing: {effect}." for c, effect in UNCHECKED.items() if c not in chosen.table]
    return [Warn("ROWS_NOT_JUDGED", " ".join(unknown))] if unknown else []


def refuse_options(law: str, options: Mapping[str, object], source: str = "") -> None:
    """Raise FitError for options that the law would ignore."""
    if ignored := [flag for flag, value in options.items() if value not in (None, {}, [])]:
        raise FitError(f"{', '.join(ignored)} means nothing to --law {law} {source}".rstrip() + ". Leave it out.")


def error_bars(source: Mapping[str, NDArray], name: str, chosen: tables.Chosen, y: str, where: str) -> NDArray:
    """The column of error bars of `y`.

    Raises FitError where one is not positive or is above its y.
    """
    bars = tables.number_column(source, name, "sigma", where)
    if (bad := ~(np.isfinite(bars) & (bars > 0))).any():
        i = int(np.flatnonzero(bad)[0])
        raise FitError(
            f"{where}: --sigma {name}: row {i + 1} of {len(bars)} holds {bars[i]:g} ({int(bad.sum())} such rows), which is not an error "
            "bar. Floor it at the seed noise, or leave such rows out with --filter."
        )
    if y in chosen.table:
        _possible_bars(bars, chosen.table[y], name, where)
    return bars


def filtered(table: tables.TableFile, keep: str | None) -> tuple[dict[str, NDArray], dict[str, int]]:
    """The rows to fit or hold out, and reason -> rows that the filter removes."""
    if keep is None:
        return table.columns, {}
    mask = row_filter.rows(keep, table.columns)
    if not mask.any():
        raise FitError(f"--filter {keep!r} keeps none of the {len(table)} rows of {table.name}.")
    return {n: v[mask] for n, v in table.columns.items()}, {f"failing the filter {keep}": int((~mask).sum())}


def _possible_bars(bars: NDArray, y: NDArray, name: str, where: str) -> None:
    """Raise FitError for bars above their y; `laws.fit` rejects those that are not positive."""
    with np.errstate(invalid="ignore"):
        share = bars / y
    if (large := share > 1).any():
        i = int(np.flatnonzero(large)[0])
        raise FitError(
            f"{where}: --sigma {name}: row {i + 1} has the error bar {bars[i]:g} on a measurement of {y[i]:g}. Give one "
            "standard error in the unit of the measurement (not 1/sigma^2, not per cent)."
        )
