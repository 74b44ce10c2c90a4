"""One law fitted to anybody's table of points: `fit_table`.

Two laws also take what precedes their points, where the table has no column of these: `isoflop` the runs whose optima it
fits, `pass_at_k` the counts of correct samples per problem. `table_compare` lays the approaches side by side.
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
    "state": "whether every row is a finished run is not known",
    "annealed": "whether every row had its learning rate decayed is not known; an un-annealed row lies 0.04-0.09 nat too high",
}


def energy_symbol(law: str) -> str:
    """What joules are to a law: its measured quantity (energy laws) or its variable J (loss against joules)."""
    return "energy" if law_named(law).y == "energy" else "J"


@dataclass(frozen=True)
class Fitted:
    """A Fit, the points behind it (the law's symbols and y) and which of them were held out."""

    fit: Fit
    points: dict[str, NDArray]
    held_out: NDArray


def fit_table(table: tables.TableFile, law: str, columns: Mapping[str, str], **options: Any) -> Fit:
    """`fit_points` for its Fit alone."""
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
    bootstrap: int = 4000,
    seed: int = 0,
) -> Fitted:
    """Fit `law` to the rows of `table` where the condition `keep` holds, without those where `hold_out` holds.

    `columns`: symbol -> column; `sigma`, `cluster`: columns. Where the table has this project's `run_id` and a run has
    several rows, these are one cluster unless `cluster` says otherwise. Raises FitError for conditions, columns, units
    and designs that cannot be right. The Fit names its columns, and counts what the filter removed.
    """
    where = table.name
    source, excluded = kept(table, keep)
    before = _before(law, source, columns)
    chosen = tables.choose(source, law, columns, where, before)
    origin = dict(chosen.columns) | {"table": f"{table.name} (sha256 {table.sha256})"}
    bars = None
    if sigma is not None:
        bars = error_bars(source, sigma, chosen, "loss" if before else law_named(law).y, where)
        origin["sigma"] = sigma
    if before is not None:
        given = {"--cluster": cluster, "--fix": fixed, "--hold-out": hold_out, "--delta": delta}
        refuse_options(law, given | ({"--sigma": sigma} if "loss" not in before else {}), f"from {', '.join(before)}")
        return _from_before(law, chosen, origin, excluded, bars, bootstrap, seed)
    if cluster is None and "run_id" in source and len(set(source["run_id"])) < len(source["run_id"]):
        cluster = "run_id"
    trunks = None
    if cluster is not None:
        trunks = row_filter.find_column(source, cluster, f"{where}, --cluster")
        missing = trunks == "" if row_filter.is_text(trunks) else np.isnan(trunks)
        if missing.any():
            raise FitError(
                f"{where}, --cluster {cluster}: {int(missing.sum())} of {len(missing)} rows have no entry, and would count as one "
                "trunk. Fill the column, or leave such rows out with --filter."
            )
        origin["cluster"] = cluster
    mask = None
    if hold_out is not None:
        mask = row_filter.rows(hold_out, source)
        if not mask.any():
            raise FitError(
                f"--hold-out {hold_out!r} holds for none of the {len(mask)} rows. Nothing would be held out."
            )
    fit = laws.fit(
        law,
        chosen.table,
        delta=delta,
        bootstrap=bootstrap,
        seed=seed,
        cluster=trunks,
        sigma=bars,
        fixed=fixed,
        hold_out=mask,
        hold_out_label=hold_out,
        columns=origin,
        excluded=excluded,
    )
    fit.warnings += not_judged(chosen)
    if law_named(law).simpler:
        seen = {s: chosen.table[s] if mask is None else chosen.table[s][~mask] for s in ("C", "loss")}
        found = laws.broken.offer(seen)
        if found.broken is None:
            fit.warnings.insert(
                0, Warn("BREAK_NOT_SHOWN", f"{found.reason}. Law {law_named(law).simpler} describes these points.")
            )
    form = law_named(law)
    points = {s: chosen.table[s] for s in (*form.symbols, form.y)}
    return Fitted(fit, points, np.zeros(len(points[form.y]), dtype=bool) if mask is None else mask)


def _before(law: str, source: Mapping[str, NDArray], columns: Mapping[str, str]) -> tuple[str, ...] | None:
    """The symbols that the law's points are made from, where the table has not the points themselves."""
    form = law_named(law)
    return None if not form.made_from or form.y in source or form.y in columns else form.made_from


def _from_before(
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
    """What the table does not say about its rows."""
    unknown = [f"column {c!r} is missing: {why}." for c, why in UNCHECKED.items() if c not in chosen.table]
    return [Warn("ROWS_NOT_JUDGED", " ".join(unknown))] if unknown else []


def refuse_options(law: str, given: Mapping[str, object], how: str = "") -> None:
    """FitError for options that would be ignored."""
    if found := [flag for flag, value in given.items() if value not in (None, {}, [])]:
        raise FitError(f"{', '.join(found)} means nothing to --law {law} {how}".rstrip() + ". Leave it out.")


def error_bars(source: Mapping[str, NDArray], name: str, chosen: tables.Chosen, y: str, where: str) -> NDArray:
    """The column of error bars of `y`; FitError where one is not positive or larger than what it belongs to."""
    bars = tables.number_column(source, name, "sigma", where)
    if (bad := ~(np.isfinite(bars) & (bars > 0))).any():
        i = int(np.flatnonzero(bad)[0])
        raise FitError(
            f"{where}: --sigma {name}: row {i + 1} of {len(bars)} holds {bars[i]:g} ({int(bad.sum())} such rows), which is no error "
            "bar. Floor it at the seed noise, or leave such rows out with --filter."
        )
    if y in chosen.table:
        _possible_bars(bars, chosen.table[y], name, where)
    return bars


def kept(table: tables.TableFile, keep: str | None) -> tuple[dict[str, NDArray], dict[str, int]]:
    """The rows to be fitted or held out, and how many were filtered away."""
    if keep is None:
        return table.columns, {}
    mask = row_filter.rows(keep, table.columns)
    if not mask.any():
        raise FitError(f"--filter {keep!r} keeps none of the {len(table)} rows of {table.name}.")
    return {n: v[mask] for n, v in table.columns.items()}, {f"failing the filter {keep}": int((~mask).sum())}


def _possible_bars(bars: NDArray, y: NDArray, name: str, where: str) -> None:
    """`laws.fit` refuses bars that are not positive; here those that are larger than what they belong to."""
    with np.errstate(invalid="ignore"):
        share = bars / y
    if (large := share > 1).any():
        i = int(np.flatnonzero(large)[0])
        raise FitError(
            f"{where}: --sigma {name}: row {i + 1} has the error bar {bars[i]:g} on a measurement of {y[i]:g}. Give one "
            "standard error in the unit of the measurement (not 1/sigma^2, not per cent)."
        )
