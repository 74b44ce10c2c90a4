"""`harness reproduce`: run a ladder again and compare it with its committed reference."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path


def reproduce(arguments: Sequence[str]) -> int:
    """Run a ladder into a fresh folder and compare it with the committed reference; exit code 1 if
    they differ.
    """
    parser = argparse.ArgumentParser(
        prog="harness reproduce",
        description="Run a ladder into a fresh folder and compare its losses and accuracies with its committed reference.",
    )
    parser.add_argument(
        "ladder", help="a ladder that has a reference, or the name of the reference, such as cpu or cpu_cot"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="what the ladder needs besides, such as corpus.train=TRAIN.txt"
    )
    parser.add_argument("--runs", type=Path, help="where to run it (default: runs/reproduce-<ladder>-<time>)")
    args = parser.parse_args(arguments)
    from harness.analysis.reproduce import compare, load_reference
    from harness.analysis.study import Study
    from harness.cli.run import run, ttc
    from harness.console import show
    from harness.sweep.compose_sweep import enumerate_runs, quoted

    reference = load_reference(args.ladder)
    runs = args.runs or Path("runs") / f"reproduce-{args.ladder}-{time.strftime('%Y%m%d-%H%M%S')}"
    settings = [f"+ladder={reference.ladder}", f"paths.runs={quoted(str(runs))}", f"seed={reference.seed}"]
    settings += args.settings
    if code := (ttc if reference.verb == "ttc" else run)(settings):
        return code
    study = Study.load(enumerate_runs(settings)[0][0].run_dir.parent)
    study.fit(bootstrap=reference.bootstrap)
    study.save()
    table, same = compare(reference, study.records, study.fits, study.evaluations)
    show(
        table,
        f"reference: seed {reference.seed} of {reference.ladder} on {reference.device}; a bound is three standard deviations, over "
        f"seeds {reference.seeds} or, where so marked, the law's bootstrap draws or the finite number of problems",
        "reproduced" if same else "NOT reproduced",
    )
    return 0 if same else 1
