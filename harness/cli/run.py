"""`harness plan`, `harness run` and `harness ttc`: the verbs that compose a config with Hydra."""

from __future__ import annotations

from collections.abc import Sequence

DESCRIPTIONS = {
    "plan": "Print N, tokens, steps, FLOP, predicted seconds and joules, disk, and totals; train nothing.",
    "run": "Train every run of the sweep that is not done yet. A sweep that was killed or stopped resumes where it was.",
    "ttc": "Train the runs that are not done, evaluate every end point at every control and number of samples (ttc.*), "
    "fit, and write the report. A stopped evaluation draws only the missing samples when it is launched again, and so "
    "does one that is launched with more samples. A pretrained model (model=pretrained model.path=PATH corpus=qa) is "
    "only evaluated.",
}


def plan(arguments: Sequence[str]) -> int:
    """Print what a sweep would train and cost; train nothing."""
    if _asks_for_help(arguments):
        return _help("plan")
    from harness.console import show
    from harness.sweep.compose_sweep import enumerate_runs
    from harness.sweep.plan import plan_table

    planned, _ = enumerate_runs(list(arguments))
    show(*plan_table(planned))
    return 0


def run(arguments: Sequence[str]) -> int:
    """Train a sweep; exit code 0 when every run is done."""
    if _asks_for_help(arguments):
        return _help("run")
    from harness.sweep.compose_sweep import enumerate_runs
    from harness.sweep.launch import launch
    from harness.sweep.plan import check_rungs

    planned, _ = enumerate_runs(list(arguments))
    return launch(list(arguments), planned, check_rungs(planned))


def ttc(arguments: Sequence[str]) -> int:
    """Train a sweep of tasks where needed, evaluate every end point, fit and report; exit code 0
    when all of it is done.
    """
    if _asks_for_help(arguments):
        return _help("ttc")
    from harness.cli.fit import fit
    from harness.cli.report import report
    from harness.sweep.compose_sweep import enumerate_runs
    from harness.sweep.launch import launch_tests
    from harness.sweep.plan import check_tests

    planned, _ = enumerate_runs(list(arguments))
    code = launch_tests(list(arguments), planned, check_tests(planned))
    folder = str(planned[0].run_dir.parent)
    if code == 0:
        fit([folder])
        report([folder])
    return code


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _help(verb: str) -> int:
    from harness.cli.settings_help import print_help

    print_help(verb, DESCRIPTIONS[verb])
    return 0
