"""Launch a sweep that is composed and checked, and say how each run ended.

Hydra sweeps and launches; success is read from the runs' own state files, never from Hydra's return
values, because its launchers swallow failures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness import records
from harness.config import identity
from harness.config.ladder import Rung
from harness.config.schema import TtcPoints
from harness.console import show
from harness.errors import ConfigError
from harness.records.ttc import FOLDER, answered, question
from harness.runtime import energy_budget, signals
from harness.sweep.compose_sweep import CONF, Planned, split_flags, user_conf_dir
from harness.sweep.status import SweepProgress, describe, table
from harness.sweep.worker import train_and_evaluate_job, train_job
from harness.ttc.strategies import scorer
from harness.units import duration

if TYPE_CHECKING:
    from omegaconf import DictConfig


def launch_tests(arguments: list[str], planned: list[Planned], rungs: list[Rung]) -> int:
    """Train and evaluate a sweep, unless all of it is done, and print its table.

    Exit code as `launch`.

    `rungs` is empty for pretrained models, which are only evaluated.
    """
    trained = bool(rungs)
    tests = [(f"{p.name} ttc", p.run_dir / FOLDER) for p in planned]
    runs = [r for p, t in zip(planned, tests, strict=True) for r in ([(p.name, p.run_dir), t] if trained else [t])]
    _make_folders(planned)
    began_s = time.monotonic()
    if not all(_tested(p, rungs[i] if trained else None) for i, p in enumerate(planned)):
        with SweepProgress(runs, [1.0] * len(runs), sys.stdout):
            _launch_hydra(arguments, len(planned), train_and_evaluate_job)
    show(table(runs))
    return _tell(runs, planned, began_s)


def _tested(planned: Planned, rung: Rung | None) -> bool:
    """Whether nothing is left to train or to evaluate."""
    if rung is not None and not _finished(planned, rung):
        return False
    branches = ["pretrained"]
    if rung is not None:
        points = records.load_record(planned.run_dir).points
        branches = [p.branch for p in (points if planned.config.ttc.points is TtcPoints.all else points[-1:])]
    done = describe(planned.run_dir / FOLDER)[0] == "done"
    return done and answered(planned.run_dir, question(identity.resolved(planned.config), branches, scorer()))


def _make_folders(planned: list[Planned]) -> None:
    for p in planned:
        try:
            p.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ConfigError(
                f"paths.runs={p.config.paths.runs}: cannot create {p.run_dir}: {e.strerror}. Choose a folder that can be written."
            ) from e
        if not p.config.attempt.force:  # which discards whatever is there
            records.load_state(p.run_dir)  # refuses a damaged one


def launch(arguments: list[str], planned: list[Planned], rungs: list[Rung]) -> int:
    """Run a sweep, unless all of it is done, and print its table.

    Exit code 0 when every run is done, else 1.
    """
    _make_folders(planned)
    runs = [(p.name, p.run_dir) for p in planned]
    began_s = time.monotonic()
    if not all(_finished(p, rung) for p, rung in zip(planned, rungs, strict=True)):
        with SweepProgress(runs, [r.spent_flop for r in rungs], sys.stdout):
            _launch_hydra(arguments, len(planned), train_job)
    show(table(runs))
    return _tell(runs, planned, began_s)


def _tell(runs: list[tuple[str, Path]], planned: list[Planned], began_s: float) -> int:
    """How many are done, and what to do about the others; the exit code."""
    states = [describe(folder)[0] for _, folder in runs]
    done = states.count("done")
    what = "runs and evaluations" if any(folder.name == FOLDER for _, folder in runs) else "runs"
    print(
        f"{done} of {len(runs)} {what} done in {duration(time.monotonic() - began_s)}; files in {planned[0].run_dir.parent}"
    )
    if done == len(runs):
        return 0
    if why := energy_budget.exhausted(planned[0].config.budget.kwh, planned[0].run_dir.parent):
        print(f"stopped: {why}. Raise budget.kwh and launch again to go on.")
    advice = {
        "failed": "attempt.retry=failed takes failed runs up again",
        "diverged": "a diverged run needs a lower optim.lr_scale (attempt.force=true starts it afresh)",
        "interrupted": "launch again to go on with interrupted runs",
        "died": "launch again to resume runs whose process died",
        "not started": "launch again to start the rest",
        "running": "another process trains the runs that are still running",
    }
    print("; ".join(text for state, text in advice.items() if state in states))
    return 1


def _finished(planned: Planned, rung: Rung) -> bool:
    """Whether nothing is left to do for a run, so that no worker need be started for it."""
    if planned.config.attempt.force or describe(planned.run_dir)[0] != "done":
        return False
    if not (planned.run_dir / "record.json").exists():
        return False  # it is written again from what the run's other files hold
    have = {p.branch for p in records.load_record(planned.run_dir).points}
    return all(p.branch in have for p in rung.points)


def _launch_hydra(arguments: list[str], runs: int, task: Callable[[DictConfig], str]) -> None:
    """Hand the command line to Hydra, whose launcher calls `task` once per run, in whatever process
    it chooses.
    """
    import hydra

    flags, overrides = split_flags(arguments)
    sys.argv = ["harness", *overrides]
    if extra := user_conf_dir(flags):
        sys.argv += ["--config-dir", str(extra)]
    if runs > 1:
        # a ladder sets the mode itself, a list of values on the command line does not
        sys.argv.append("--multirun")
    try:
        with signals.forwarding():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(task)()
    except SystemExit as e:
        if e.code not in (0, None):
            print("a worker died; the table below says which runs it left behind", file=sys.stderr)
