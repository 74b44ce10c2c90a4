"""What each verb does, one function per verb: arguments in, exit code out. Heavy imports happen inside, so that help is instant."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.sources import WANDB, fetch_study, find_study
from harness.errors import FitError, RecordError

if TYPE_CHECKING:
    from harness.analysis.study import Study


def _help(name: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"harness {name}", description=text)


def _print_help(verb: str, description: str) -> int:
    from harness.cli.settings_help import print_help

    print_help(verb, description)
    return 0


def plan(arguments: list[str]) -> int:
    """Print what a sweep would train and cost, and spend nothing."""
    if {"-h", "--help"} & set(arguments):
        return _print_help(
            "plan", "Print N, tokens, steps, FLOP, predicted seconds and joules, disk, and totals; train nothing."
        )
    from harness.sweep.compose_sweep import enumerate_runs
    from harness.sweep.plan import plan_table

    planned, _ = enumerate_runs(arguments)
    print(plan_table(planned))
    return 0


def run(arguments: list[str]) -> int:
    """Train a sweep; exit code 0 when every run is done."""
    if {"-h", "--help"} & set(arguments):
        return _print_help(
            "run",
            "Train every run of the sweep that is not done yet. Killed or stopped, it resumes where it stood.",
        )
    from harness.sweep.compose_sweep import enumerate_runs
    from harness.sweep.launch import launch
    from harness.sweep.plan import check_rungs

    planned, _ = enumerate_runs(arguments)
    rungs = check_rungs(planned)
    return launch(arguments, planned, rungs)


def ttc(arguments: list[str]) -> int:
    """Train a sweep of tasks where needed, evaluate every end point, fit and report; exit code 0 when all of it is done."""
    if {"-h", "--help"} & set(arguments):
        return _print_help(
            "ttc",
            "Train the runs that are not done, test every end point at every control and number of samples (ttc.*), fit, and write "
            "the report. Killed or stopped, it draws only what is missing; asked for more samples, it draws only those. "
            "A pretrained model (model=pretrained model.path=PATH corpus=qa) is only tested.",
        )
    from harness.sweep.compose_sweep import enumerate_runs
    from harness.sweep.launch import launch_tests
    from harness.sweep.plan import check_tests

    planned, _ = enumerate_runs(arguments)
    code = launch_tests(arguments, planned, check_tests(planned))
    folder = str(planned[0].run_dir.parent)
    if code == 0:
        fit([folder])
        report([folder])
    return code


def status(arguments: list[str]) -> int:
    """The runs of a study folder and how each stands; exit code 1 when any is not done."""
    parser = _help("status", "The runs of a study folder and their states.")
    parser.add_argument("study", help="a study folder, such as runs/cpu")
    folder = find_study(parser.parse_args(arguments).study)
    from harness.sweep.status import folder_table

    text, all_done = folder_table(folder)
    print(text)
    return 0 if all_done else 1


def fit(arguments: list[str]) -> int:
    """Fit every law that a study's records allow, write fits.json beside them, print the laws; or one law to a table."""
    from harness.cli import fit_table

    if fit_table.is_table_form(arguments):
        return fit_table.run(arguments, lambda name: fetch_study(name) if name.startswith(WANDB) else find_study(name))
    parser = _help(
        "fit", "Fit L(N, D), the frontier L(C), and the energy laws where energy was measured; writes fits.json."
    )
    parser.epilog = (
        "One law, of anybody's table or of a study's points: harness fit TABLE.csv|parquet|STUDY --law LAW --out F.json; "
        "more with harness fit TABLE.csv --help."
    )
    parser.add_argument("study", help="a study folder, such as runs/cpu, or wandb:ENTITY/PROJECT")
    parser.add_argument("--bootstrap", type=int, default=1000, help="draws behind the intervals (default 1000)")
    parser.add_argument("--delta", type=float, default=1e-3, help="Huber delta on log residuals (default 1e-3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument(
        "--wandb",
        choices=["as-recorded", "online", "offline", "disabled"],
        default="as-recorded",
        help="mirror of the fit's summary run",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of fits.json (default: the study's own, or runs/NAME for a committed reference, which is never written to)",
    )
    given = parser.parse_args(arguments)
    if not 0 < given.delta < math.inf:
        raise FitError(f"--delta {given.delta:g} must be a number above 0.")
    from harness.analysis.study import Study
    from harness.laws.fitting import check_resampling

    check_resampling(given.bootstrap, given.seed)  # each law would refuse them, and a refused law is only left out
    fetched = given.study.startswith(WANDB)
    study = Study.load(fetch_study(given.study) if fetched else find_study(given.study), given.out)
    study.fit(bootstrap=given.bootstrap, delta=given.delta, seed=given.seed)
    path = study.save()
    _print_fits(study, path)
    if fetched and given.wandb == "as-recorded":  # a project that was read is written to only when asked
        return 0
    from harness.analysis.wandb_study import mirror_study

    if note := mirror_study(study, given.wandb):
        print(f"W&B: {note}")
    return 0


def _print_fits(study: Study, path: Path) -> None:
    from harness import laws
    from harness.analysis import energy as study_energy
    from harness.analysis import points as study_points
    from harness.analysis.ttc import curves as ttc_curves
    from harness.analysis.ttc import study as ttc_study

    for name, one in study.fits.items():
        if not ttc_curves.of_cell(name):
            print(f"{name}\n{laws.summary(one)}\n")
    if cells := sum(map(ttc_curves.of_cell, study.fits)):  # three laws per cell would bury the rest
        print(f"{cells} laws of single cells (voting, coverage, pass@k): in {path}")
    if study.answers is not None:
        print("\n".join(ttc_study.lines(study.answers)))
    for name, reason in study.unfitted().items():
        print(f"{name}: not fitted: {reason}")
    if text := study_energy.text(study_points.points(study.records, study.excluded), study.fits):
        print(f"\n{text}\n")
    if study.excluded:
        print("left out: " + ", ".join(f"{n} {state}" for state, n in study.excluded.items()))
    print(f"written: {path}")


def ask(arguments: list[str]) -> int:
    """The best run for a budget, the cheapest run for a loss, the runs to do next; from fits."""
    from harness.cli import ask as asking

    return asking.run(arguments, find_study)


def report(arguments: list[str]) -> int:
    """One self-contained page for one study, or several side by side."""
    parser = _help("report", "Write report.html and its figures. Several studies are laid side by side.")
    parser.add_argument(
        "studies", nargs="+", metavar="STUDY", help="study folders, such as runs/cpu results/reference/cpu_full"
    )
    parser.add_argument("--out", type=Path, help="folder for the page (default: the study's folder, or runs/compare)")
    given = parser.parse_args(arguments)
    from harness.analysis.study import Study
    from harness.report.page import build_report

    studies = [Study.load(find_study(s)) for s in given.studies]
    if len({s.name for s in studies}) < len(studies):
        for study in studies:
            study.name = str(study.folder)
    out = given.out or (studies[0].results if len(studies) == 1 else Path("runs/compare"))
    print(f"report: {build_report(studies, out)}")
    if len(studies) > 1 and (tested := [s.name for s in studies if s.evaluations]):
        print(f"left out: evaluations of {', '.join(tested)}; each study's own report shows them")
    return 0


def reproduce(arguments: list[str]) -> int:
    """Run a ladder into a fresh folder and compare it with the committed reference; exit code 1 where they differ."""
    parser = _help(
        "reproduce",
        "Run a ladder into a fresh folder and compare its losses and accuracies with its committed reference.",
    )
    parser.add_argument(
        "ladder", help="a ladder that has a reference, or the name of the reference, such as cpu or cpu_cot"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="what the ladder needs besides, such as corpus.train=TRAIN.txt"
    )
    parser.add_argument("--runs", type=Path, help="where to run it (default: runs/reproduce-<ladder>-<time>)")
    given = parser.parse_args(arguments)
    import time

    from harness.analysis.reproduce import compare, load_reference
    from harness.analysis.study import Study
    from harness.sweep.compose_sweep import enumerate_runs, quoted

    reference = load_reference(given.ladder)
    runs = given.runs or Path("runs") / f"reproduce-{given.ladder}-{time.strftime('%Y%m%d-%H%M%S')}"
    settings = [f"+ladder={reference.ladder}", f"paths.runs={quoted(str(runs))}", f"seed={reference.seed}"]
    settings += given.settings
    if code := (ttc if reference.verb == "ttc" else run)(settings):
        return code
    study = Study.load(enumerate_runs(settings)[0][0].run_dir.parent)
    study.fit(bootstrap=reference.bootstrap)
    study.save()
    text, same = compare(reference, study.records, study.fits, study.evaluations)
    print(text)
    print(
        f"reference: seed {reference.seed} of {reference.ladder} on {reference.device}; a bound is three standard deviations, over "
        f"seeds {reference.seeds} or, where so marked, the law's bootstrap draws or the finite number of problems"
    )
    print("reproduced" if same else "NOT reproduced")
    return 0 if same else 1


def export(arguments: list[str]) -> int:
    """A run's end point as a Hugging Face checkpoint, or a study as a parquet table."""
    parser = _help(
        "export", "hf: a standard checkpoint with tokenizer from a run's folder. parquet: one row per point of a study."
    )
    parser.add_argument("source", metavar="RUN|STUDY", help="a run's folder (hf) or a study's folder (parquet)")
    parser.add_argument("--format", choices=["hf", "parquet"], required=True)
    parser.add_argument("--tokens", type=int, help="hf: which point, by its tokens (default: the longest)")
    parser.add_argument(
        "--out", type=Path, help="where to write (default: hf/ in the run's folder, points.parquet in the study's)"
    )
    given = parser.parse_args(arguments)
    from harness.analysis import export as exporting

    source = find_study(given.source)
    if given.format == "parquet":
        out = given.out or source / "points.parquet"
        print(f"{exporting.to_parquet(source, out)} points: {out}")
    else:
        if not (source / "record.json").exists():
            raise RecordError(
                f"{source} is not a finished run: it has no record.json. Give a run's folder, such as runs/cpu/0123456789ab."
            )
        out = given.out or source / "hf"
        point = exporting.to_hf(source, out, given.tokens)
        print(f"{out}: point of {point.tokens:,} tokens, validation loss {point.loss_nat:.4f} nat")
    return 0


def doctor(arguments: list[str]) -> int:
    """Versions, GPUs, sensors, disk, W&B login, and what to do about each problem."""
    parser = _help("doctor", "What this machine has, what is missing, and what to do about it.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs will be written (default: runs)")
    parser.add_argument(
        "--sensor",
        action="store_true",
        help="measure the power sensor of each idle GPU for about two minutes and keep the result: runs then state net joules",
    )
    given = parser.parse_args(arguments)
    from harness.cli import doctor as examination

    if given.sensor:
        lines, good = examination.sensor_cards()
        print(lines)
        return 0 if good else 1
    print(examination.text(examination.examine(given.runs)))
    return 0
