"""One run of a sweep, in whatever process the launcher puts it: Hydra's task functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.config import compose, identity
from harness.config.schema import PretrainedConfig, RunConfig
from harness.errors import BusyError
from harness.records import RunState
from harness.runtime import energy_budget, signals

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train_job(config: DictConfig) -> str:
    """Train one run and return its state. Failures are written to the run's state, not raised."""
    return _train(compose.load_run(config))


def train_and_evaluate_job(config: DictConfig) -> str:
    """Train the run, unless it is done or pretrained, then evaluate it in the same worker; returns
    the state of the last of both.
    """
    run = compose.load_run(config)
    if not isinstance(run.model, PretrainedConfig) and (trained := _train(run)) != "done":
        return trained
    from harness.ttc.run import evaluate

    return _state(run, lambda: evaluate(run, workers=_workers()))


def _train(run: RunConfig) -> str:
    from hydra.core.hydra_config import HydraConfig

    from harness.training.run import train

    overrides = identity.public_overrides([str(o) for o in HydraConfig.get().overrides.task])
    return _state(run, lambda: train(run, overrides=overrides, workers=_workers()))


def _state(run: RunConfig, work: Callable[[], RunState]) -> str:
    """The state that `work` ends in; it is not begun behind a run that was stopped, nor once the
    study's energy is spent.
    """
    signals.install()
    if signals.reason() is not None:
        return "not started"
    if energy_budget.exhausted(run.budget.kwh, identity.run_dir(run).parent) is not None:
        return "not started"  # the launching process says why
    try:
        return work().state
    except BusyError as e:
        print(e, file=sys.stderr)
        return "busy"


def _workers() -> int:
    """How many runs the launcher has under way at once."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    config = HydraConfig.get()
    workers = getattr(config.launcher, "n_jobs", 1) if config.mode is RunMode.MULTIRUN else 1
    return workers if workers > 0 else len(os.sched_getaffinity(0))
