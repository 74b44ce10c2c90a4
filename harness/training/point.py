"""The point that a path ends in: what it trained on, what it cost, what it reached."""

from __future__ import annotations

from pathlib import Path

from harness.config.ladder import PlannedPoint
from harness.power.estimate import refuse, total
from harness.records import Point, SpendRow, StepRow, read_rows
from harness.training.context import RunContext
from harness.training.validate import Evaluation
from harness.units import NAT_PER_BIT

RECENT_SHARE = 20  # the training loss of a point is the mean over the last 1/20 of its updates


def make_point(
    run: RunContext, planned: PlannedPoint, windows: list[SpendRow], evaluation: Evaluation, checkpoint: str
) -> Point:
    """The point at the end of a path; `windows` are those of the whole path, `checkpoint` has its
    weights.
    """
    counts, corpus, device, tolerance = run.rung.counts, run.corpus, run.device, run.meter.tolerance
    tokens = planned.steps * run.rung.hyper.batch_tokens
    assert sum(w.tokens for w in windows) == tokens, "a point's windows must cover its tokens exactly once"
    wall_s = sum(w.wall_s for w in windows)
    flop = float(counts.fpt_causal) * tokens
    bytes_per_token = corpus.info["bytes_per_token"]
    unique = corpus.unique_tokens(tokens)
    peak = device.peak_flop_per_s
    return Point(
        branch=planned.branch,
        tokens=tokens,
        unique_tokens=unique,
        epochs=tokens / unique,
        steps=planned.steps,
        train_flop=flop,
        train_flop_full=float(counts.fpt_full) * tokens,
        train_flop_6nd=6.0 * counts.n_total * tokens,
        loss_nat=evaluation.loss_nat,
        loss_se_nat=evaluation.loss_se_nat,
        bits_per_byte=None if bytes_per_token is None else evaluation.loss_nat / NAT_PER_BIT / bytes_per_token,
        val_tokens=evaluation.tokens,
        oracle_nat=corpus.val_oracle_nat(),
        annealed=planned.annealed,
        wall_s=wall_s,
        tokens_per_s=tokens / wall_s,
        flop_per_s=flop / wall_s,
        mfu=None if peak is None else flop / wall_s / peak,
        mfu_reason=None if peak is not None else device.peak_source,
        energy=refuse(total([w.energy for w in windows], tolerance), tolerance),
        train_loss_nat=_recent_train_loss(run.attempt.folder, planned),
        hf_checkpoint=checkpoint,
    )


def _recent_train_loss(folder: Path, planned: PlannedPoint) -> float | None:
    first = planned.steps - max(1, planned.steps // RECENT_SHARE)
    losses = {  # by step: a path that was left and taken up again has rows twice
        r.step: r.loss_nat
        for r in read_rows(folder / "steps.jsonl", StepRow)
        if r.branch == planned.branch and r.step > first
    }
    return sum(losses.values()) / len(losses) if losses else None
