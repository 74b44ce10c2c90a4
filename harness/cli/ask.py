"""`harness ask`: questions to fits, answered in words and, with --out, as JSON."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import records
from harness.analysis import next_runs, optimal
from harness.analysis import points as study_points
from harness.analysis.costs import Costs, of_study, without_records
from harness.analysis.study import Study
from harness.cli import sources
from harness.errors import FitError
from harness.laws.catalogue import LAWS, law_of
from harness.laws.law import Question
from harness.laws.result import Fit
from harness.records import fits as fit_files
from harness.units import duration, si

PREFERRED = ("loss_nd", "loss_compute")  # of a study's fits
# of laws, best first: what they are laws of
QUESTIONS: dict[Question, str] = {"run": "N and D", "loss": "C"}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="harness ask",
        description="Ask fits: the best run for a budget, the cheapest run for a loss, the runs to do next.",
    )
    p.add_argument(
        "sources", nargs="+", metavar="FITS.json|STUDY", help="a study with fits.json, or files written by harness fit"
    )
    goal = p.add_mutually_exclusive_group()
    goal.add_argument(
        "--flop", type=_positive, help="training FLOP to spend; with --next: the target of the prediction"
    )
    goal.add_argument("--loss", type=_positive, help="loss to reach, nat per token")
    p.add_argument(
        "--next", type=int, metavar="COUNT", help="the runs that would narrow a prediction most per joule or FLOP"
    )
    p.add_argument("--fit", metavar="NAME", help="which fit is asked, where there are several")
    p.add_argument("--extrapolate", action="store_true", help="go more than two decades beyond the data, and say so")
    p.add_argument("--out", type=Path, metavar="ANSWER.json", help="also write the answer as JSON")
    return p


def ask(arguments: Sequence[str]) -> int:
    """Answer from fits: the best run for a budget, the cheapest run for a loss, the runs to do
    next.
    """
    p = parser()
    args = p.parse_args(arguments)
    if args.flop is None and args.loss is None and args.next is None:
        p.error("ask something: --flop C, --loss L or --next COUNT")
    if args.next is not None and (args.next < 1 or args.loss is not None):
        p.error("--next takes a count of 1 or more, and --flop for its target, not --loss")
    if args.out is not None:
        sources.refuse_place("--out", args.out)
    fits, study = gather(args.sources)
    name = pick(fits, args.fit)
    fit = fits[name]
    costs = _costs(fit, study)
    outcome: records.Json = {
        "schema_version": records.SCHEMA_VERSION,
        "fit": name,
        "law": fit.law,
        "compute": costs.flop_text,
        "extrapolate": args.extrapolate,
    }
    if args.next is not None:
        target = next_runs.target_at(fit, costs, args.flop, extrapolate=args.extrapolate)
        plan = next_runs.plan_next(fit, costs, target, args.next)
        outcome |= records.to_json(plan)
        lines = _next_lines(plan, costs)
    else:
        choices = _choices(args, fits, fit, costs)
        outcome["answers"] = choices
        lines = [line for choice in choices for line in _choice_lines(choice)]
    size = fit.columns.get("N", "not stated")
    print(f"{name}: {fit.formula} on {fit.n_points} points; N = {size}; {costs.flop_text}")
    print("\n".join([*lines, *_unpinned(fit)]))
    if args.out is not None:
        records.write_json(args.out, outcome)
        print(f"written: {args.out}")
    return 0


def _choices(args: argparse.Namespace, fits: dict[str, Fit], fit: Fit, costs: Costs) -> list[optimal.Choice]:
    """The answers to --flop and --loss, with those of the study's energy laws."""
    choices: list[optimal.Choice] = []
    if args.flop is not None:
        choices.append(optimal.best_for_flop(fit, costs, args.flop, extrapolate=args.extrapolate))
    if args.loss is not None:
        choices += optimal.cheapest_for_loss(fit, costs, args.loss, extrapolate=args.extrapolate)
    return choices + optimal.from_energy_laws(fits, choices, args.loss, extrapolate=args.extrapolate)


def _unpinned(fit: Fit) -> list[str]:
    names = [n for n in fit.params if fit.identified.get(n) is False and n not in ("A", "B")]
    text = f"warning: {', '.join(names)} not pinned by the data; intervals do not hold the error of the law's form."
    return [text] if names else []


def gather(paths: Sequence[str]) -> tuple[dict[str, Fit], Study | None]:
    """All fits of the sources by name, and the study among the sources, whose records give
    costs.
    """
    fits: dict[str, Fit] = {}
    study: Study | None = None
    for source in paths:
        path, source_study = Path(source), None
        if path.suffix == ".json":
            loaded = fit_files.load_file(path)
            if path.name == fit_files.STUDY_FILE:
                source_study = Study.load(path.parent)
            elif len(loaded) == 1:
                loaded = {path.stem: next(iter(loaded.values()))}
        else:
            source_study = Study.load(sources.find_study(source))
            loaded = source_study.fits
            if not loaded:
                raise FitError(f"study {source} has no fits.json. Run first: harness fit {source}.")
        if repeated := sorted(loaded.keys() & fits.keys()):
            raise FitError(
                f"{source}: a fit named {repeated[0]} is in an earlier source, too. Rename one of the files."
            )
        if source_study is not None and study is not None:
            raise FitError("give one study, or one study and files of single fits: ask two studies one by one.")
        study = source_study or study
        fits |= loaded
    return fits, study


def pick(fits: dict[str, Fit], name: str | None) -> str:
    """The fit that is asked: by name, or the study's L(N, D), or the only one of its law."""
    if name is not None:
        if name not in fits:
            raise FitError(f"--fit {name}: there is no such fit. Choose one of: {', '.join(fits)}.")
        if law_of(fits[name]).questions is None:
            raise FitError(
                f"--fit {name} is {fits[name].law}; questions go to the laws {_answering()}. Fit one of them."
            )
        return name
    for preferred in PREFERRED:
        if preferred in fits and _question(fits[preferred]):
            return preferred
    for question, of in QUESTIONS.items():
        names = [n for n, f in fits.items() if _question(f) == question]
        if len(names) == 1:
            return names[0]
        if names:
            raise FitError(f"{len(names)} fits of a law of {of}: {', '.join(names)}. Choose one with --fit.")
    available = ", ".join(f"{n} ({f.law})" for n, f in fits.items())
    raise FitError(
        f"no fit can be asked: there is {available}, and {_answering()} answer questions. Fit one of these: "
        "harness fit TABLE --law chinchilla."
    )


def _question(fit: Fit) -> Question | None:
    return LAWS[fit.law].questions if fit.law in LAWS else None


def _answering() -> str:
    return ", ".join(name for name, law in LAWS.items() if law.questions)


def _costs(fit: Fit, study: Study | None) -> Costs:
    n_column = fit.columns.get("N")
    if study is None:
        return without_records(
            "a file of fits knows no runs; joules and hours need a study, or a fit of law energy_power"
        )
    if law_of(fit).questions != "run" or n_column not in study_points.CONVENTIONS or "table" in fit.columns:
        return without_records("this fit is not of the study's own N and D")
    return of_study(study.records, n_column)


# --- words ----------------------------------------------------------------------------------------
def _choice_lines(c: optimal.Choice) -> list[str]:
    lines = [c.question]
    if c.n is not None:
        lines.append(_line("N", si(c.n), c.interval.get("n"), si, f"parameters; D/N {c.d / c.n:.3g}" if c.d else ""))
    if c.d is not None:
        lines.append(_line("D", si(c.d), c.interval.get("d"), si, "tokens"))
    if c.flop is not None:
        lines.append(_line("C", f"{c.flop:.3g}", c.interval.get("flop"), lambda v: f"{v:.3g}", "FLOP"))
    lines.append(_line("loss", f"{c.loss_nat:.4f}", c.interval.get("loss_nat"), lambda v: f"{v:.4f}", "nat"))
    if c.joules is not None:
        lines.append(_line("energy", si(c.joules, "J"), c.interval.get("joules"), lambda v: si(v, "J")))
    elif c.joules_reason:
        lines.append(f"  energy   unknown: {c.joules_reason}")
    if c.seconds is not None:
        lines.append(_line("time", duration(c.seconds), c.interval.get("seconds"), duration))
    elif c.seconds_reason:
        lines.append(f"  time     unknown: {c.seconds_reason}")
    lines += [f"  note: {note}" for note in c.notes]
    lines += _outside(c.decades_outside)
    return lines


def _next_lines(plan: next_runs.Plan, costs: Costs) -> list[str]:
    t = plan.target
    unit = "joule" if costs.j_per_flop is not None else "FLOP"
    lines = [
        f"target: L at N {si(t.n)}, D {si(t.d)} ({t.flop:.3g} FLOP) = {t.loss_nat:.4f} nat, 95 % ± {t.width:.2%} now",
        *_outside(t.decades_outside),
        f"runs that would narrow it most per {unit}, each at least {next_runs.MIN_SHRINK:.0%}, in this order:",
    ]
    if unit == "FLOP":
        lines.append(f"  (joules unknown: {costs.joules_reason})")
    lines += [f"  {i}. {_run_line(r)}" for i, r in enumerate(plan.runs, start=1)]
    return [*lines, f"the run that would narrow it most at any price: {_run_line(plan.strongest)}"]


def _run_line(r: next_runs.NextRun) -> str:
    cost = f"{r.flop:.3g} FLOP"
    cost += f", {si(r.joules, 'J')}" if r.joules is not None else ""
    cost += f", {duration(r.seconds)}" if r.seconds is not None else ""
    note = f" ({r.note})" if r.note else ""
    return f"N {si(r.n)}, D {si(r.d)}: {cost}; interval then ± {r.width:.2%}, {r.shrink:.0%} narrower{note}"


def _line(
    label: str, value: str, interval: optimal.Interval | None, show: Callable[[float], str], unit: str = ""
) -> str:
    band = ""
    if interval is not None:
        low, high = ("unbounded" if e is None else show(e) for e in interval)
        band = f"  95 % {low} to {high}"
    return f"  {label:<8} {value}{band}  {unit}".rstrip()


def _outside(decades: float) -> list[str]:
    return [f"  extrapolated: {decades:.1f} decades of compute beyond the data of this fit"] if decades > 0.05 else []


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} must be a positive number")
    return value
