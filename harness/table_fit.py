"""`harness fit TABLE`: one law fitted to anybody's table of points, from the command line or as `fit_table`.

Two laws also take what precedes their points, where the table has no column of these: `isoflop` the runs whose optima it
fits, `pass_at_k` the counts of correct samples per problem. `--law compare` is in `table_compare`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import conditions, fitfiles, laws, tables
from harness.errors import FitError
from harness.laws.catalogue import NAMES, law_named
from harness.laws.refuse import refuse_rows
from harness.laws.result import Fit, Warn
from harness.laws.samples import pass_at_k
from harness.records import write_text_atomic

FLAGS = {"n": "N", "d": "D", "flop": "C", "loss": "loss", "time": "t"}
HELP = {
    "n": "parameters",
    "d": "tokens (default: C/(6N) where --flop is there)",
    "flop": "training FLOP",
    "loss": "loss, nat per token",
    "time": "seconds",
}
COMPARE = "compare"
FIGURES = (".png", ".svg")
BEFORE = {"isoflop": ("C", "N", "loss"), "pass_at_k": ("correct", "samples")}  # what a law's points are made from
UNCHECKED = {
    "state": "whether every row is a finished run is not known",
    "annealed": "whether every row had its learning rate decayed is not known; an un-annealed row lies 0.04-0.09 nat too high",
}


def is_table_form(arguments: list[str]) -> bool:
    """Whether `harness fit ARGUMENTS` speaks of a table, not of a study: it names a law, or a file of a table's kind."""
    return any(a == "--law" or a.startswith("--law=") or a.endswith(tables.SUFFIXES) for a in arguments)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="harness fit",
        description="Fit one law to a table of points, or to those of a study; writes one Fit, prints it.",
        epilog="Columns that are not named are looked up by this project's names (n_total, tokens, train_flop, loss_nat, "
        "energy_j, wall_s), then by the law's symbols (N, D, C, loss, J, t). isoflop takes runs (C, N, loss) or optima "
        "(C, n_star), pass_at_k counts (correct, samples) or a curve (k, coverage). Laws: "
        + "; ".join(f"{name}: {law_named(name).formula}" for name in NAMES),
    )
    p.add_argument("table", metavar="TABLE", help="a .csv or .parquet file, a study, or wandb:ENTITY/PROJECT")
    p.add_argument(
        "--law", required=True, help=f"one of: {', '.join(NAMES)}; or {COMPARE}: approaches 1, 2 and 3 side by side"
    )
    for flag, what in HELP.items():
        p.add_argument(f"--{flag}", metavar="COLUMN", help=f"column of {what}")
    p.add_argument("--energy", metavar="COLUMN", help="column of joules")
    p.add_argument(
        "--column", metavar="SYMBOL=COLUMN", action="append", default=[], help="column of any other symbol of the law"
    )
    p.add_argument("--sigma", metavar="COLUMN", help="column of the error bar of the measurement, in its own unit")
    p.add_argument("--cluster", metavar="COLUMN", help="column of trunks: rows of one trunk are resampled together")
    p.add_argument("--fix", metavar="PARAMETER=VALUE", action="append", default=[], help="a parameter that is given")
    p.add_argument("--filter", metavar="CONDITION", help=f"rows to keep, such as {conditions.EXAMPLE}")
    p.add_argument("--hold-out", metavar="CONDITION", help="rows that are predicted, never fitted")
    p.add_argument("--delta", type=float, help="Huber delta on log residuals (default: the law's own, 1e-3 for losses)")
    p.add_argument("--bootstrap", type=int, default=4000, help="draws behind the intervals (default 4000)")
    p.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    p.add_argument("--out", type=Path, required=True, metavar="F.json", help="where to write the Fit")
    p.add_argument(
        "--figure", type=Path, metavar="F.png|svg", help="also a figure: data, law with 95 %% band, residuals"
    )
    p.add_argument("--markdown", type=Path, metavar="F.md", help="also the table and reporting checklist for a paper")
    p.add_argument("--latex", type=Path, metavar="F.tex", help="the same in LaTeX (booktabs)")
    return p


def run(arguments: list[str], study: Callable[[str], Path]) -> int:
    """The verb's table form: exit code 0 also for a fit that did not converge, which its first line says. `study` finds the folder
    of one by its name."""
    given = parser().parse_args(arguments)
    given.table = Path(given.table) if given.table.endswith(tables.SUFFIXES) else study(given.table)
    for flag, path in (("--out", given.out), ("--markdown", given.markdown), ("--latex", given.latex)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise FitError(
                f"{flag} {path}: there is no folder {path.parent}, or it is one itself. Choose another place."
            )
    if given.figure and (given.figure.suffix not in FIGURES or not given.figure.absolute().parent.is_dir()):
        raise FitError(
            f"--figure {given.figure}: give a file that ends in {' or '.join(FIGURES)}, in a folder that exists."
        )
    named = {symbol: value for flag, symbol in FLAGS.items() if (value := getattr(given, flag))}
    if given.law == COMPARE:
        from harness import table_compare

        return table_compare.run(given, named)
    if given.energy:
        named |= {energy_symbol(given.law): given.energy}
    named |= _pairs("--column", given.column)
    done = fit_points(
        tables.read_table(given.table),
        given.law,
        named,
        sigma=given.sigma,
        cluster=given.cluster,
        fixed={k: _number("--fix", k, v) for k, v in _pairs("--fix", given.fix).items()},
        keep=given.filter,
        hold_out=given.hold_out,
        delta=given.delta,
        bootstrap=given.bootstrap,
        seed=given.seed,
    )
    fit = done.fit
    fitfiles.write_fit(given.out, fit)
    print(laws.summary(fit))
    print(f"written: {given.out}")
    if given.figure:
        from harness.report import fitfigure, page

        page.write_figure(fitfigure.draw(fit, done.points, done.held_out), given.figure)
        print(f"written: {given.figure}")
    if given.markdown or given.latex:
        from harness.report import paper

        for path, text in ((given.markdown, paper.markdown), (given.latex, paper.latex)):
            if path is not None:
                write_text_atomic(path, text({given.out.stem: fit}))
                print(f"written: {path}")
    return 0


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
        refuse_options(law, given | ({"--sigma": sigma} if law == "pass_at_k" else {}), f"from {', '.join(before)}")
        return _from_before(law, chosen, origin, excluded, bars, bootstrap, seed)
    if cluster is None and "run_id" in source and len(set(source["run_id"])) < len(source["run_id"]):
        cluster = "run_id"
    trunks = None
    if cluster is not None:
        trunks = conditions.find_column(source, cluster, f"{where}, --cluster")
        missing = trunks == "" if conditions.is_text(trunks) else np.isnan(trunks)
        if missing.any():
            raise FitError(
                f"{where}, --cluster {cluster}: {int(missing.sum())} of {len(missing)} rows have no entry, and would count as one "
                "trunk. Fill the column, or leave such rows out with --filter."
            )
        origin["cluster"] = cluster
    mask = None
    if hold_out is not None:
        mask = conditions.rows(hold_out, source)
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
    if law == "broken":
        seen = {s: chosen.table[s] if mask is None else chosen.table[s][~mask] for s in ("C", "loss")}
        found = laws.broken.offer(seen)
        if found.broken is None:
            fit.warnings.insert(0, Warn("BREAK_NOT_SHOWN", f"{found.reason}. Law loss_compute describes these points."))
    form = law_named(law)
    points = {s: chosen.table[s] for s in (*form.symbols, form.y)}
    return Fitted(fit, points, np.zeros(len(points[form.y]), dtype=bool) if mask is None else mask)


def _before(law: str, source: Mapping[str, NDArray], columns: Mapping[str, str]) -> tuple[str, ...] | None:
    """The symbols that the law's points are made from, where the table has not the points themselves."""
    if law not in BEFORE or law_named(law).y in source or law_named(law).y in columns:
        return None
    return BEFORE[law]


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
    if law == "pass_at_k":
        fit = laws.passk.fit(table["correct"], table["samples"], bootstrap=bootstrap, seed=seed)
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
    mask = conditions.rows(keep, table.columns)
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


def _pairs(flag: str, given: list[str]) -> dict[str, str]:
    out = {}
    for pair in given:
        name, sign, value = pair.partition("=")
        if not (name and sign and value):
            raise FitError(f"{flag} {pair}: give NAME=VALUE.")
        if name in out:
            raise FitError(f"{flag} {name}: given twice, as {out[name]} and {value}. Keep one.")
        out[name] = value
    return out


def _number(flag: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise FitError(f"{flag} {name}={text}: {text!r} is not a number.") from None
