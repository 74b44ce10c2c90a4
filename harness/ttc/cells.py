"""One cell of an evaluation (end point x control x temperature): its missing units drawn, its
control metered, its record.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import partial

import numpy as np

from harness import records
from harness.config import identity
from harness.models.flops import counts
from harness.records import Measured, SpendRow
from harness.records.ttc import TtcRecord, Window
from harness.runtime import provenance
from harness.tasks.task import NONE, Control
from harness.ttc import metering, sampling, score, work_units
from harness.ttc.context import EvaluationContext, EvaluationPlan
from harness.ttc.decode import Request, Sampling
from harness.ttc.subjects import Subject, dtype
from harness.ttc.work_units import Unit

COUNTED = ("answer", "correct", "verified", "trace_ok", "truncated", "length", "forced", "logprob")
SEARCHED = (*COUNTED, "flop", "passes", "row_passes", "context")


@dataclass(frozen=True)
class Cell:
    """One subject under one control at one temperature."""

    subject: Subject
    control: Control
    temperature: float
    key: str  # covers everything that decides what is drawn; its folder has this name


def cell_of(
    context: EvaluationContext, plan: EvaluationPlan, subject: Subject, control: Control, temperature: float
) -> Cell:
    key = work_units.digest(
        {
            "weights": subject.identity,
            "task": plan.task.info,
            "version": plan.task.version,
            "control": dataclasses.asdict(control),
            "temperature": temperature,
            "dtype": str(dtype(context.device)),
            "seed": context.config.ttc.seed,
        }
    )
    return Cell(subject, control, temperature, key)


def evaluate_cell(context: EvaluationContext, plan: EvaluationPlan, cell: Cell) -> TtcRecord:
    """Draw what is missing of a cell, meter its control where that was not done, score it, and
    write its record.
    """
    units = _units(context, plan, cell)
    folder = context.folder / cell.key
    missing = [u for part in units.values() for u in part if not work_units.path(folder, u).exists()]
    if missing:
        with context.books.window(cell.subject.branch) as row:
            for unit in missing:
                _draw(context, plan, cell, unit, row)
    cost = metering.cost_model(*_metered(context, plan, cell), exact=cell.subject is plan.metered)
    merge = partial(work_units.merge, folder)
    prompts, _ = plan.task.prompts(plan.problems, cell.control)
    drawn = score.Sampled(
        plan.problems,
        np.array([len(p) for p in prompts]),
        merge(units["greedy"], COUNTED),
        merge(units["sample"], COUNTED),
        merge(units["search"], SEARCHED) if units["search"] else None,
    )
    record = _record(context, plan, cell, drawn, cost)
    if units["seen"]:  # a text task has no training side
        record.seen_greedy = float(merge(units["seen"], ("correct",))["correct"].mean())
    if "strict" in work_units.read(work_units.path(folder, units["sample"][0])):
        strict = merge(units["sample"], ("strict",))["strict"]
        record.extracted_strict = float(strict.mean())
        record.sample_strict = float((strict & drawn.samples["correct"]).mean())
    if units["smooth"]:
        parts = [work_units.read(work_units.path(folder, u)) for u in units["smooth"]]
        lnp, brier = (np.concatenate([p[k] for p in parts]) for k in ("lnp", "brier"))
        record.smooth = score.smooth(lnp, brier, plan.problems.cluster)
        record.smooth_reason = None
    records.write_json(folder / "record.json", record)
    return record


def _units(context: EvaluationContext, plan: EvaluationPlan, cell: Cell) -> dict[str, list[Unit]]:
    """All units of a cell by kind, in the order in which they are drawn."""
    ttc, problems = context.config.ttc, plan.problems
    beam = f"-w{ttc.beam_width}k{ttc.beam_keep}"
    has_trace = plan.task.trace(problems.take(np.arange(1)), cell.control) is not None
    return {
        "sample": work_units.units("sample", problems, ttc.samples),
        "greedy": work_units.units("greedy", problems),
        "seen": work_units.units("seen", plan.seen),
        "search": work_units.units("search", problems, detail=beam) if ttc.beam_width else [],
        "smooth": work_units.units("smooth", problems) if has_trace else [],
    }


def _draw(context: EvaluationContext, plan: EvaluationPlan, cell: Cell, unit: Unit, row: SpendRow) -> None:
    """Draw one unit and write it; what it cost is added to `row` and stored with it, in case this
    process is killed before booking.
    """
    context.stop_if_asked()
    context.attempt.beat(context.meter.power_w)
    start_ns = time.monotonic_ns()
    problems = (plan.seen if unit.kind == "seen" else plan.problems).take(
        np.arange(unit.problems.start, unit.problems.stop)
    )
    request = Request(cell.subject.decoder, plan.task, problems, cell.control)
    arrays, tokens, flop = sampling.unit(request, unit, context.config.ttc, cell.temperature, unit.seed(cell.key))
    context.device.sync()
    spent = {
        "attempt": context.attempt.state.attempt,
        "tokens": tokens,
        "spent_flop": flop,
        "t_a_ns": start_ns,
        "t_b_ns": time.monotonic_ns(),
    }
    work_units.write(context.folder / cell.key, unit, {**arrays, **{k: np.array(v) for k, v in spent.items()}})
    row.tokens += tokens
    row.flop += flop


# --- metering
@dataclass
class Metered:
    """Windows of one control and their loads per repetition, as kept on disk."""

    windows: list[Window]
    loads: list[list[float]]
    schema_version: int = records.SCHEMA_VERSION


def _metered(context: EvaluationContext, plan: EvaluationPlan, cell: Cell) -> tuple[list[Window], list[metering.Load]]:
    """Windows of the cell's control, from disk where they were metered before under the same
    settings.
    """
    ttc, subject = context.config.ttc, plan.metered
    key = cell_of(context, plan, subject, cell.control, cell.temperature).key
    samples = [n for n in ttc.meter_samples if n <= ttc.samples] or [ttc.samples]
    settings = {  # an evaluation that is extended needs windows of other shapes
        "cell": key,
        "samples": samples,
        "queries": _queries_side_by_side(context, plan),
        "s": ttc.meter_s,
        "rows": ttc.batch_rows,
        "power": identity.resolved(context.config)["power"],
        "device": context.device.label,
    }
    path = context.folder / f"meter-{work_units.digest(settings)}.json"
    if not path.exists():
        request = Request(subject.decoder, plan.task, plan.problems, cell.control)
        with context.books.window(subject.branch) as row:
            timer = metering.Timer(ttc.meter_s, context.meter, context.device.sync, context.stop_if_asked, row)
            windows, loads = metering.meter_windows(
                request, samples, Sampling(cell.temperature, ttc.seed, ttc.batch_rows), timer
            )
        records.write_json(path, Metered(windows, [x.numbers().tolist() for x in loads]))
    stored = records.load_json(path, Metered)
    return stored.windows, [metering.Load(*x) for x in stored.loads]


def _queries_side_by_side(context: EvaluationContext, plan: EvaluationPlan) -> int:
    return min(work_units.side_by_side(1, context.config.ttc.batch_rows), len(plan.problems))


# --- the record
def _record(
    context: EvaluationContext, plan: EvaluationPlan, cell: Cell, drawn: score.Sampled, cost: metering.CostModel
) -> TtcRecord:
    config, ttc, task, subject = context.config, context.config.ttc, plan.task, cell.subject
    shape, point, samples = subject.decoder.shape, subject.point, drawn.samples
    scoring = score.Scoring(
        shape=shape,
        chance=task.chance,
        verifier_tpr=ttc.verifier_tpr,
        verifier_fpr=ttc.verifier_fpr,
        beam_width=ttc.beam_width,
        batch_rows=ttc.batch_rows,
        seed=ttc.seed,
    )
    return TtcRecord(
        cell=cell.key,
        study=config.study,
        run_id=identity.run_id(config),
        name=identity.run_name(config),
        seed=config.seed,
        branch=subject.branch,
        width=shape.width,
        n_total=subject.n_total,
        n_matmul=counts(shape).n_matmul,
        tokens=point.tokens if point else None,
        train_flop=point.train_flop if point else None,
        train_wall_s=point.wall_s if point else None,
        train_energy=point.energy if point else Measured(reason="a pretrained model: its training was not measured"),
        train_source="measured" if point else "unknown",
        task={**task.info, "name": task.name, "version": task.version, "arm": task.arm},
        control=dataclasses.asdict(cell.control),
        label=cell.control.label(),
        temperature=cell.temperature,
        problems=len(plan.problems),
        samples=ttc.samples,
        chance=task.chance,
        accuracy_of=score.accuracy_of(task.chance, ttc.samples),
        rows=score.rows(drawn, scoring, cost),
        stats=score.statistics(drawn),
        smooth=None,
        smooth_reason=f"{task.name} has no single reference trace",
        mean_tokens=float(samples["length"].mean()),
        extracted=float(1 - ((samples["answer"] == NONE) & ~samples["correct"]).mean()),
        truncated=float(samples["truncated"].mean()),
        windows=cost.windows,
        config=identity.resolved(config),
        provenance={
            **provenance.describe(context.device),
            "metered_at": "this end point" if cost.exact else "the longest end point of the run; shapes are equal",
            "queries_side_by_side": _queries_side_by_side(context, plan),
            "attempts": context.attempt.state.attempt,
            "role": subject.record.role if subject.record else config.role.value,
        },
        meter=context.meter.describe(),
    )
