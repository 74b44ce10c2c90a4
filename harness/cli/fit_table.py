"""`harness fit TABLE --law LAW`: the command line of one law on a table, and of the approaches side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from harness import laws
from harness.analysis import row_filter, tables
from harness.analysis.table_compare import COMPARE, compare_table
from harness.analysis.table_fit import energy_symbol, fit_points, refuse_options
from harness.errors import FitError
from harness.laws.catalogue import NAMES, law_named
from harness.records import fits as fit_files
from harness.records import write_text_atomic

FLAGS = {"n": "N", "d": "D", "flop": "C", "loss": "loss", "time": "t"}
HELP = {
    "n": "parameters",
    "d": "tokens (default: C/(6N) where --flop is there)",
    "flop": "training FLOP",
    "loss": "loss, nat per token",
    "time": "seconds",
}
FIGURES = (".png", ".svg")


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
    p.add_argument("--filter", metavar="CONDITION", help=f"rows to keep, such as {row_filter.EXAMPLE}")
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
        return _compare(given, named)
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
    fit_files.write_fit(given.out, fit)
    print(laws.summary(fit))
    print(f"written: {given.out}")
    if given.figure:
        from harness.report import fit_figure, page

        page.write_figure(fit_figure.draw(fit, done.points, done.held_out), given.figure)
        print(f"written: {given.figure}")
    if given.markdown or given.latex:
        from harness.report import paper

        for path, text in ((given.markdown, paper.markdown), (given.latex, paper.latex)):
            if path is not None:
                write_text_atomic(path, text({given.out.stem: fit}))
                print(f"written: {path}")
    return 0


def _compare(given: argparse.Namespace, named: dict[str, str]) -> int:
    """The command line's form: writes every Fit into one file, prints the comparison and each Fit."""
    refuse_options(
        COMPARE,
        {
            "--energy": given.energy,
            "--time": given.time,
            "--column": given.column,
            "--cluster": given.cluster,
            "--fix": given.fix,
            "--hold-out": given.hold_out,
            "--delta": given.delta,
            "--latex": given.latex,
            "--figure": given.figure,
        },
    )
    found = compare_table(
        tables.read_table(given.table),
        named,
        sigma=given.sigma,
        keep=given.filter,
        bootstrap=given.bootstrap,
        seed=given.seed,
    )
    fit_files.write_all(given.out, found.fits)
    print(found.text())
    for name, fit in found.fits.items():
        print(f"\n{name}\n{laws.summary(fit)}")
    print(f"written: {given.out}")
    if given.markdown:
        from harness.report import paper

        write_text_atomic(given.markdown, found.text() + "\n\n" + paper.markdown(found.fits))
        print(f"written: {given.markdown}")
    return 0


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
