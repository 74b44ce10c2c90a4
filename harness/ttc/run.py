"""START HERE: the path of one evaluation, from a finished run (or a pretrained model) to its
TtcRecords.

An evaluation covers one run: every end point x control x temperature is a cell (`cells.py`), drawn
in units (`work_units.py`), scored (`score.py`), metered (`metering.py`). It lives in
`<run_dir>/ttc/` with a state, a lock, a spend file and a mirror of its own, so the ledger of the
training stays what training used. Killed at any moment, it resumes with the units that are missing.
"""

from __future__ import annotations

from harness import records
from harness.config import identity
from harness.config.checks import evaluation_problems, require
from harness.config.schema import RunConfig
from harness.errors import ConfigError
from harness.records import RunState
from harness.records.ttc import FOLDER, QUESTION_FILE, TtcRecord, question
from harness.runtime import attempt, signals
from harness.runtime.attempt import Attempt
from harness.track.wandb import Mirror
from harness.ttc import wandb_rows
from harness.ttc.cells import cell_of, evaluate_cell
from harness.ttc.context import (
    EvaluationContext,
    EvaluationPlan,
    metered_and_mirrored,
    open_context,
    plan_evaluation,
)
from harness.ttc.strategies import scorer


def evaluate(config: RunConfig, *, workers: int = 1) -> RunState:
    """Evaluate what is missing of this run's end points and return the state that the evaluation
    ended in, as `attempt.make` says.

    `workers` is how many runs share this machine's cores. ConfigError for a config that cannot be
    evaluated, BusyError when another process evaluates the same run.
    """
    require(config)
    if problems := evaluation_problems(config):
        raise ConfigError(problems)

    def work(this: Attempt) -> None:
        with signals.listening():
            context = open_context(config, this, workers)
            plan = plan_evaluation(context)
            with metered_and_mirrored(context) as mirror:
                cells = evaluate_cells(context, plan, mirror)
            publish(context, plan, cells, mirror.status)

    return attempt.make(identity.run_dir(config) / FOLDER, f"{identity.run_name(config)} ttc", config.attempt, work)


def evaluate_cells(context: EvaluationContext, plan: EvaluationPlan, mirror: Mirror) -> list[TtcRecord]:
    """Every cell in turn, each mirrored as soon as it is done."""
    temperatures = context.config.ttc.temperatures
    grid = [(s, c, t) for s in plan.subjects for c in plan.controls for t in temperatures]
    state = context.attempt.state
    state.steps = len(grid)
    cells = []
    for subject, control, temperature in grid:
        record = evaluate_cell(context, plan, cell_of(context, plan, subject, control, temperature))
        cells.append(record)
        wandb_rows.cell(mirror, record)
        state.step += 1
        context.attempt.beat(context.meter.power_w, force=True)
    wandb_rows.tables(mirror, cells, identity.run_id(context.config), context.folder)
    return cells


def publish(context: EvaluationContext, plan: EvaluationPlan, cells: list[TtcRecord], mirror_status: str) -> None:
    """Write the mirror's status into the records, and the question, by which a later launch knows
    what is new.
    """
    if mirror_status != "disabled":
        for record in cells:
            record.mirror = mirror_status.split(":", 1)[0]
            records.write_json(context.folder / record.cell / "record.json", record)
    branches = [s.branch for s in plan.subjects]
    records.write_json(context.folder / QUESTION_FILE, question(identity.resolved(context.config), branches, scorer()))
