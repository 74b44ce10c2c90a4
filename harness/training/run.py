"""START HERE: the path of one run, from a config to a record on disk.

A run trains one trunk (constant rate) and, from its branch points, one cooldown per token budget;
each cooldown ends in a point. Everything happens in `<runs>/<study>/<run_id>/`. Killed at any
moment, the run resumes from its last committed checkpoint and ends with the same weights and the
same ledger, bit for bit, but for the measured columns (times, watts, joules).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch

from harness import records
from harness.config import identity, ladder
from harness.config.checks import require
from harness.config.schema import RunConfig
from harness.data.corpora import open_corpus, sizes
from harness.errors import CorpusError
from harness.records import RunRecord, RunState
from harness.runtime import attempt, provenance, signals
from harness.runtime.attempt import Attempt
from harness.training import optim
from harness.training.checkpoint import Progress, load_progress
from harness.training.context import RunContext, RunPlan, opened
from harness.training.step import Trainer, TrainingData
from harness.training.trunk import TrunkRunner, build_model


def train(config: RunConfig, *, overrides: Sequence[str] = (), workers: int = 1) -> RunState:
    """Train what is missing of a run and return the state that it ended in, as `attempt.make` says.

    `overrides` are kept in the record, `workers` is how many runs share this machine's cores.
    ConfigError for a config that cannot be run, BusyError when another process trains the same run.
    """
    require(config)

    def work(this: Attempt) -> str | None:
        plan = plan_run(config, this)
        if not plan.missing and (this.folder / "record.json").exists():
            return None
        with signals.listening():
            with opened(plan, this, workers) as context:
                TrunkRunner(context, build_trainer(context)).train(plan.missing)
            return publish(context, overrides)

    return attempt.make(identity.run_dir(config), identity.run_name(config), config.attempt, work)


def plan_run(config: RunConfig, this: Attempt) -> RunPlan:
    """The rung, its corpus, how far earlier attempts came, and the points that are missing."""
    progress = load_progress(this.folder)
    rung = ladder.resolve(config, *sizes(config.corpus))
    corpus = open_corpus(config.corpus, tokens_needed=max(p.tokens for p in rung.points))
    finished = {p.branch for p in progress.points} if progress else set()
    missing = [p for p in rung.points if p.branch not in finished]
    resumed = progress is not None
    corpus_id = corpus.info["corpus_id"]
    if progress is None:
        progress = Progress(corpus_id=corpus_id)
    elif missing or not (this.folder / "record.json").exists():
        progress.attempt += 1
        if progress.corpus_id != corpus_id:
            raise CorpusError(
                f"run {this.folder.name} was started on corpus {progress.corpus_id} and this is {corpus_id}: its text or settings changed. "
                "Restore the files, or start afresh with attempt.force=true."
            )
    this.state.attempt = progress.attempt
    return RunPlan(config, rung, corpus, progress, missing, resumed)


def build_trainer(context: RunContext) -> Trainer:
    """The model of the rung on the run's device, with its optimisers."""
    config, rung, progress = context.config, context.rung, context.progress
    model = build_model(config, rung)
    # in place; the subclass's own signature hides the overload
    torch.nn.Module.to(model, context.device.torch_device)

    def halved(micro_sequences: int) -> None:
        progress.micro_sequences = micro_sequences
        progress.events.append(f"out of memory: the micro-batch was halved to {micro_sequences} sequences")

    return Trainer(
        model,
        optim.build(model, config.optim, rung.hyper),
        TrainingData(context.corpus, config.seed, rung.hyper.sequences),
        context.device,
        micro_sequences=progress.micro_sequences or _micro_sequences(config, rung),
        grad_clip=config.optim.grad_clip,
        on_halving=halved,
    )


def _micro_sequences(config: RunConfig, rung: ladder.Rung) -> int:
    tokens = config.device.micro_batch_tokens
    return rung.hyper.sequences if tokens is None else max(1, min(rung.hyper.sequences, tokens // rung.shape.context))


def publish(context: RunContext, overrides: Sequence[str]) -> str | None:
    """Write record.json and send it to the mirror; returns a remark where the mirror is neither
    online nor disabled.
    """
    record, mirror, path = _record(context, overrides), context.mirror, context.attempt.folder / "record.json"
    records.write_json(path, record)
    for point in record.points:
        mirror.summary({f"point/{point.branch}/{k}": v for k, v in flat_point(point).items()})
    mirror.artifact(f"record-{record.run_id}", "record", [path])
    status = mirror.finish()
    # the rest is the command to sync, which holds a path of this machine
    record.mirror = status.split(":", 1)[0]
    record.events = context.progress.events + mirror.events
    records.write_json(path, record)
    return None if record.mirror in ("disabled", "online") else f"W&B {status}"


def _record(context: RunContext, overrides: Sequence[str]) -> RunRecord:
    config, rung, progress, device = context.config, context.rung, context.progress, context.device
    return RunRecord(
        run_id=identity.run_id(config),
        study=config.study,
        name=identity.run_name(config),
        role=config.role.value,
        state="done",
        seed=config.seed,
        config=identity.resolved(config),
        overrides=list(overrides),
        counts=rung.counts,
        shape=dataclasses.asdict(rung.shape),
        hyper={**dataclasses.asdict(rung.hyper), "warmup_steps": rung.warmup_steps},
        corpus={**context.corpus.info, "oracle_nat": context.corpus.val_oracle_nat()},
        points=sorted(progress.points, key=lambda p: p.tokens),
        spent=context.ledger.spent(),
        provenance={
            **provenance.describe(device),
            **provenance.training(device, rung.shape, context.compiled),
            "began_unix_s": round(context.began_unix_s),
            "ended_unix_s": round(time.time()),
            "attempts": progress.attempt,
        },
        meter=context.meter.describe(),
        events=progress.events,
    )


def flat_point(point: records.Point) -> dict[str, Any]:
    """A point's columns by the ledger's names, its energy flattened."""
    row = {k: v for k, v in dataclasses.asdict(point).items() if not isinstance(v, (dict, list))}
    return {
        **row,
        "energy_j": point.energy.energy_j,
        "energy_se_j": point.energy.energy_se_j,
        "power_w": point.energy.power_w,
    }
