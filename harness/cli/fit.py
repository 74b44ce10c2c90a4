"""`harness fit`: every law of a study, or with `--law` one law of a table or of a study's
points.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from harness import laws
from harness.analysis import row_filter, tables
from harness.analysis.study import Study
from harness.analysis.table_compare import COMPARE, compare_table
from harness.analysis.table_fit import energy_symbol, fit_points, refuse_options
from harness.cli import sources
from harness.console import show
from harness.errors import FitError
from harness.laws.catalogue import NAMES, law_named
from harness.laws.fitting import check_resampling
from harness.records import fits as fit_files
from harness.records import write_text_atomic

# option -> symbol of the laws
SYMBOLS = {"n": "N", "d": "D", "flop": "C", "loss": "loss", "time": "t"}
FIGURE_SUFFIXES = (".png", ".svg")
EPILOG = (
    "Columns that are not named are looked up by this project's names (n_total, tokens, train_flop, loss_nat, energy_j, "
    "wall_s), then by the law's symbols (N, D, C, loss, J, t). isoflop takes runs (C, N, loss) or optima (C, n_star), "
    "pass_at_k counts (correct, samples) or a curve (k, coverage). Laws: "
)


def parser() -> tuple[argparse.ArgumentParser, list[argparse.Action], list[argparse.Action]]:
    """The parser, the options of a single law, and the options of a study; the last two are None
    where not given.
    """
    p = argparse.ArgumentParser(
        prog="harness fit",
        description="Fit L(N, D), the frontier L(C), the energy laws where energy was measured, and the laws of evaluations "
        "to the records of a study, and write fits.json. With --law: fit one law to a table or to a study's points, and "
        "write one Fit.",
        epilog=EPILOG + "; ".join(f"{name}: {law_named(name).formula}" for name in NAMES),
    )
    p.add_argument(
        "source",
        metavar="STUDY|TABLE",
        help="a study folder such as runs/cpu, wandb:ENTITY/PROJECT, or with --law a .csv or .parquet file",
    )
    p.add_argument(
        "--law", metavar="LAW", help=f"one of: {', '.join(NAMES)}; or {COMPARE}: approaches 1, 2 and 3 side by side"
    )
    p.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="folder of fits.json (default: the study's own, or runs/NAME for a committed reference, which is never "
        "written to); with --law the file of the Fit, such as f.json (required)",
    )
    p.add_argument(
        "--bootstrap", type=int, default=1000, metavar="DRAWS", help="draws behind the intervals (default 1000)"
    )
    p.add_argument("--delta", type=float, help="Huber delta on log residuals (default: the law's own, 1e-3 for losses)")
    p.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")
    of_study = p.add_argument_group("without --law")
    modes = ["as-recorded", "online", "offline", "disabled"]
    study_options = [
        of_study.add_argument(
            "--wandb",
            choices=modes,
            help="mirror of the fit's summary run (default: as-recorded; none for a fetched project)",
        )
    ]
    return p, _law_options(p), study_options


def _law_options(p: argparse.ArgumentParser) -> list[argparse.Action]:
    group = p.add_argument_group("with --law")
    columns = {
        "--n": "parameters",
        "--d": "tokens (default: C/(6N) where --flop is there)",
        "--flop": "training FLOP",
        "--loss": "loss, nat per token",
        "--time": "seconds",
        "--energy": "joules",
        "--sigma": "the error bar of the measurement, in its own unit",
        "--cluster": "trunks: rows of one trunk are resampled together",
    }
    files = {
        "--figure": ("F.png|svg", "also a figure: data, law with 95 %% band, residuals"),
        "--markdown": ("F.md", "also the table and reporting checklist for a paper"),
        "--latex": ("F.tex", "the same in LaTeX (booktabs)"),
    }
    return [
        *(group.add_argument(flag, metavar="COLUMN", help=f"column of {what}") for flag, what in columns.items()),
        group.add_argument(
            "--column", metavar="SYMBOL=COLUMN", action="append", help="column of any other symbol of the law"
        ),
        group.add_argument("--fix", metavar="PARAMETER=VALUE", action="append", help="a parameter that is not fitted"),
        group.add_argument("--filter", metavar="CONDITION", help=f"rows to keep, such as {row_filter.EXAMPLE}"),
        group.add_argument("--hold-out", metavar="CONDITION", help="rows that are predicted, never fitted"),
        *(group.add_argument(flag, type=Path, metavar=name, help=text) for flag, (name, text) in files.items()),
    ]


def fit(arguments: Sequence[str]) -> int:
    """Fit and print; exit code 0 also for a fit that did not converge, which its first line
    says.
    """
    p, law_options, study_options = parser()
    args = p.parse_args(arguments)
    is_table = args.source.endswith(tables.SUFFIXES)
    for action in study_options if args.law else law_options:
        if getattr(args, action.dest) is not None:
            where = "only without --law" if args.law else "only with --law"
            p.error(f"argument {action.option_strings[0]}: it applies {where}. Leave it out.")
    if is_table and not args.law:
        p.error(f"{args.source} is a table: choose the law with --law LAW")
    if args.law and not args.out:
        p.error("--law LAW needs --out FILE, such as --out f.json")
    if args.delta is not None and not 0 < args.delta < math.inf:
        raise FitError(f"--delta {args.delta:g} must be a number above 0.")
    if not args.law:
        return _fit_study(args)
    _refuse_places(args)
    path = Path(args.source) if is_table else sources.find_or_fetch_study(args.source)
    return _compare(args, path) if args.law == COMPARE else _fit_law(args, path)


# --- every law of a study -------------------------------------------------------------------------
def _fit_study(args: argparse.Namespace) -> int:
    # each law would refuse them, and a refused law is only left out
    check_resampling(args.bootstrap, args.seed)
    study = Study.load(sources.find_or_fetch_study(args.source), args.out)
    study.fit(bootstrap=args.bootstrap, delta=args.delta, seed=args.seed)
    path = study.save()
    print_study(study, path)
    if sources.is_wandb(args.source) and args.wandb is None:
        # a project that was read is written to only when asked
        return 0
    from harness.analysis.wandb_study import mirror_study

    if note := mirror_study(study, args.wandb or "as-recorded"):
        print(f"W&B: {note}")
    return 0


def print_study(study: Study, path: Path) -> None:
    """Print the laws of a study, and the reasons of those that are missing. `path`: its
    fits.json.
    """
    from harness.analysis import energy as study_energy
    from harness.analysis import points as study_points
    from harness.analysis.ttc import answers as ttc_answers

    for name, law_fit in study.fits.items():
        if law_fit.scope != "cell":
            print(f"{name}\n{laws.summary(law_fit)}\n")
    if cells := sum(f.scope == "cell" for f in study.fits.values()):
        # three laws per cell would bury the rest
        print(f"{cells} laws of single cells (voting, coverage, pass@k): in {path}")
    if study.answers is not None:
        print("\n".join(ttc_answers.lines(study.answers)))
    for name, reason in study.unfitted().items():
        print(f"{name}: not fitted: {reason}")
    if parts := study_energy.printed(study_points.points(study.records, study.excluded), study.fits):
        show("", *parts, "")
    if study.excluded:
        print("left out: " + ", ".join(f"{count} {state}" for state, count in study.excluded.items()))
    print(f"written: {path}")


# --- one law --------------------------------------------------------------------------------------
def _fit_law(args: argparse.Namespace, path: Path) -> int:
    columns = _named_columns(args)
    if args.energy:
        columns[energy_symbol(args.law)] = args.energy
    columns |= _pairs("--column", args.column)
    fitted = fit_points(
        tables.read_table(path),
        args.law,
        columns,
        sigma=args.sigma,
        cluster=args.cluster,
        fixed={name: _number("--fix", name, value) for name, value in _pairs("--fix", args.fix).items()},
        keep=args.filter,
        hold_out=args.hold_out,
        delta=args.delta,
        bootstrap=args.bootstrap,
        seed=args.seed,
    )
    fit_files.write_fit(args.out, fitted.fit)
    print(laws.summary(fitted.fit))
    print(f"written: {args.out}")
    if args.figure:
        from harness.report import fit_figure, page

        page.write_figure(fit_figure.draw(fitted.fit, fitted.points, fitted.held_out), args.figure)
        print(f"written: {args.figure}")
    if args.markdown or args.latex:
        from harness.report import paper

        for file, text in ((args.markdown, paper.markdown), (args.latex, paper.latex)):
            if file is not None:
                write_text_atomic(file, text({args.out.stem: fitted.fit}))
                print(f"written: {file}")
    return 0


def _compare(args: argparse.Namespace, path: Path) -> int:
    """Write every Fit of the approaches into one file, print the comparison and each Fit."""
    options = ("--energy", "--time", "--column", "--cluster", "--fix", "--hold-out", "--delta", "--latex", "--figure")
    refuse_options(COMPARE, {flag: getattr(args, flag[2:].replace("-", "_")) for flag in options})
    compared = compare_table(
        tables.read_table(path),
        _named_columns(args),
        sigma=args.sigma,
        keep=args.filter,
        bootstrap=args.bootstrap,
        seed=args.seed,
    )
    fit_files.write_all(args.out, compared.fits)
    print(compared.text())
    for name, law_fit in compared.fits.items():
        print(f"\n{name}\n{laws.summary(law_fit)}")
    print(f"written: {args.out}")
    if args.markdown:
        from harness.report import paper

        write_text_atomic(args.markdown, compared.text() + "\n\n" + paper.markdown(compared.fits))
        print(f"written: {args.markdown}")
    return 0


def _refuse_places(args: argparse.Namespace) -> None:
    """Raise FitError for a file that cannot be written, before anything is fitted."""
    for flag, path in (("--out", args.out), ("--markdown", args.markdown), ("--latex", args.latex)):
        if path is not None:
            sources.refuse_place(flag, path)
    if args.figure and (args.figure.suffix not in FIGURE_SUFFIXES or not args.figure.absolute().parent.is_dir()):
        raise FitError(
            f"--figure {args.figure}: give a file that ends in {' or '.join(FIGURE_SUFFIXES)}, in a folder that exists."
        )


def _named_columns(args: argparse.Namespace) -> dict[str, str]:
    return {symbol: value for option, symbol in SYMBOLS.items() if (value := getattr(args, option))}


def _pairs(flag: str, pairs: Sequence[str] | None) -> dict[str, str]:
    out: dict[str, str] = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not (name and sign and value):
            raise FitError(f"{flag} {pair}: give NAME=VALUE.")
        if name in out:
            raise FitError(f"{flag} {name}: given twice, as {out[name]} and {value}. Keep one of them.")
        out[name] = value
    return out


def _number(flag: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise FitError(f"{flag} {name}={text}: {text!r} is not a number.") from None
