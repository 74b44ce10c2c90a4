"""What an evaluation needs around its cells: device, meter, books and mirror, and the plan of its
cells.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.config import identity
from harness.config.schema import RunConfig
from harness.errors import ConfigError
from harness.power.meter import Meter, open_meter
from harness.runtime import device as devices
from harness.runtime import energy_budget, signals
from harness.runtime.attempt import Attempt, Interrupted
from harness.tasks.task import Control, Problems, Task
from harness.track.wandb import Mirror
from harness.ttc.spend import Books
from harness.ttc.subjects import Subject, open_subjects

SEEN_PROBLEMS = 256  # of the training side, for `seen_greedy`


@dataclass(frozen=True)
class EvaluationContext:
    """What the parts of one evaluation share."""

    config: RunConfig
    attempt: Attempt
    device: devices.Device
    meter: Meter
    books: Books
    reason_to_stop: Callable[[], str | None]

    @property
    def folder(self) -> Path:
        return self.attempt.folder

    def stop_if_asked(self) -> None:
        if (reason := self.reason_to_stop()) is not None:
            raise Interrupted(f"stopped by {reason}; launch again to draw what is missing")


@dataclass(frozen=True)
class EvaluationPlan:
    """The cells: every subject under every control at every temperature, on the same problems of a
    task.
    """

    task: Task
    problems: Problems
    seen: Problems  # of the training side; none for a task that is never trained on
    subjects: list[Subject]  # the shortest first
    controls: list[Control]

    @property
    def metered(self) -> Subject:
        """The subject that is metered: the longest, because all end points of a run have one
        shape.
        """
        return self.subjects[-1]


def open_context(config: RunConfig, attempt: Attempt, workers: int) -> EvaluationContext:
    """Choose the device and book what a killed attempt has left; the meter is not started yet."""
    # Sampling sums probabilities with a kernel that the deterministic mode refuses on CUDA; the
    # setting is of training
    device = devices.choose(dataclasses.replace(config.device, deterministic=False), workers)
    guard = energy_budget.guard(config.budget.kwh, attempt.folder.parent.parent, signals.reason)
    # NVML counts cards by PCI bus; CUDA does so only when this is set. A run uses the first visible
    # card
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    number = attempt.state.attempt
    meter = open_meter(config.power, attempt.folder / "power", attempt=number, cuda_visible=card)
    context = EvaluationContext(
        config, attempt, device, meter, Books(attempt.folder, number, meter, device.sync), guard
    )
    # Before anything can stop this attempt: the next one no longer knows of the kill
    if attempt.killed:
        context.books.book_lost()
    attempt.state.step = 0
    attempt.begin()
    return context


def plan_evaluation(context: EvaluationContext) -> EvaluationPlan:
    """Load the task and the subjects.

    ConfigError for a task without problems or without one of the controls.
    """
    ttc = context.config.ttc
    task, subjects = open_subjects(context.config, context.folder.parent, context.device)
    problems = task.problems(ttc.problems, ttc.seed)
    if not len(problems):
        raise ConfigError(
            f"corpus={task.name} has no test problem left. Give the task more problems, "
            "or show fewer of them as exemplars (corpus.shots)."
        )
    seen = task.problems(min(SEEN_PROBLEMS, ttc.problems), ttc.seed, held_out=False)
    return EvaluationPlan(task, problems, seen, subjects, task.controls(ttc))


@contextlib.contextmanager
def metered_and_mirrored(context: EvaluationContext) -> Iterator[Mirror]:
    """Run the meter and the mirror; both are closed when the block ends, however it ends.

    One evaluation is one W&B run, as it is launched, locked and resumed as one; its rows carry end
    point and control.
    """
    config = context.config
    mirror = Mirror(
        config.tracker,
        run_id=f"ttc-{identity.run_id(config)}",
        study=config.study,
        job_type="ttc",
        name=f"{identity.run_name(config)} ttc",
        run_config=identity.resolved(config),
        tags=[config.role.value],
        folder=context.folder,
    )
    context.meter.start()
    try:
        mirror.start()
        yield mirror
        mirror.finish()
    except BaseException:
        mirror.finish(exit_code=1)
        raise
    finally:
        context.meter.close()
