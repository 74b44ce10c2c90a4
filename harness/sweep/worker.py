"""One run of a sweep, in whatever process the launcher puts it: Hydra's task functions."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config import compose, identity
from harness.config.schema import PretrainedConfig
from harness.errors import BusyError
from harness.runtime import energy_budget, signals

if TYPE_CHECKING:
    from omegaconf import DictConfig


def job(config: DictConfig) -> str:
    """Hydra's task function: train one run; returns its state. Failures are written to the run's state, not raised."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    signals.install()
    if signals.reason() is not None:
        return "not started"  # queued behind a run that was stopped
    run_config = compose.load_run(config)
    study = Path(run_config.paths.runs) / run_config.study
    if energy_budget.exhausted(run_config.budget.kwh, study) is not None:
        return "not started"  # the launching process says why
    hydra_config = HydraConfig.get()
    workers = getattr(hydra_config.launcher, "n_jobs", 1) if hydra_config.mode is RunMode.MULTIRUN else 1
    from harness.train.run import run

    try:
        state = run(
            run_config,
            identity.run_id(run_config),
            identity.run_name(run_config),
            identity.resolved(run_config),
            identity.public_overrides([str(o) for o in hydra_config.overrides.task]),
            parallel_runs=workers if workers > 0 else len(os.sched_getaffinity(0)),
        )
    except BusyError as e:
        print(e, file=sys.stderr)
        return "busy"
    return state.state


def job_and_test(config: DictConfig) -> str:
    """Hydra's task function of `harness ttc`: train the run, unless it is done or pretrained, then evaluate it in the same worker."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    run_config = compose.load_run(config)
    if not isinstance(run_config.model, PretrainedConfig) and (trained := job(config)) != "done":
        return trained
    signals.install()
    if signals.reason() is not None:
        return "not started"
    hydra_config = HydraConfig.get()
    workers = getattr(hydra_config.launcher, "n_jobs", 1) if hydra_config.mode is RunMode.MULTIRUN else 1
    from harness.ttc.run import evaluate

    try:
        state = evaluate(
            run_config,
            identity.run_id(run_config),
            identity.run_name(run_config),
            identity.resolved(run_config),
            parallel_runs=workers if workers > 0 else len(os.sched_getaffinity(0)),
        )
    except BusyError as e:
        print(e, file=sys.stderr)
        return "busy"
    return state.state
