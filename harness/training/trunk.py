"""Which updates a run makes, in which order: the trunk to each branch point, then each cooldown to
its end point.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from harness import models
from harness.config.ladder import PlannedPoint, Rung
from harness.config.schema import LlamaConfig, RunConfig, choice
from harness.errors import HarnessError
from harness.power.estimate import total
from harness.records import SpendRow, StepRow
from harness.runtime.attempt import Diverged, Interrupted
from harness.runtime.device import out_of_memory
from harness.training import checkpoint, schedule
from harness.training.checkpoint import Position
from harness.training.context import RunContext
from harness.training.point import make_point
from harness.training.step import StepResult, Trainer
from harness.training.validate import Evaluation, batch_losses, batch_sequences, evaluate
from harness.units import S_PER_NS

MIRROR_EVERY_S = 1.0
T = TypeVar("T")


def build_model(config: RunConfig, rung: Rung) -> PreTrainedModel:
    """The model of a rung with its initial weights, a pure function of (shape, seed)."""
    assert isinstance(config.model, LlamaConfig)
    kind = choice("model", config.model)
    return models.build(kind, rung.shape, config.seed, rope_theta=config.model.rope_theta)


class TrunkRunner:
    """Walks the paths of one run.

    State that must survive a kill lives in `progress`; everything else can be rebuilt.
    """

    def __init__(self, run: RunContext, trainer: Trainer) -> None:
        self.run, self.trainer = run, trainer
        self.config, self.rung, self.corpus, self.device = run.config, run.rung, run.corpus, run.device
        self.progress, self.ledger, self.folder = run.progress, run.ledger, run.attempt.folder
        self.position = Position("trunk", 0)
        self._checkpoint_due_s = time.monotonic() + run.config.attempt.checkpoint_every_s
        self._mirror_due_s = 0.0
        self._bound_nat = run.config.attempt.diverged_above * math.log(run.corpus.vocab)
        self._remaining_steps = 0
        self._total_steps = 0
        self._eval_sequences = batch_sequences(
            run.config.evaluation.batch_tokens, run.rung.shape.context, run.corpus.vocab, run.device
        )

    # --- the plan of a run
    def train(self, missing: list[PlannedPoint]) -> None:
        """Train every missing point.

        Raises Diverged or Interrupted; returns when all points are in `progress`.
        """
        self._book("warmup", self._warm_up)
        self._total_steps = self._remaining_steps = self._steps_left(missing)
        trunk_points = [p for p in missing if p.branch == "trunk"]
        if self.progress.latest is not None:
            self._restore(self.progress.latest, self.progress.position)
            if self.position.branch not in ("trunk", *(p.branch for p in missing)):
                self._start_afresh()
        # A cooldown that was under way comes first: leaving it for the trunk would train its first
        # part again
        missing = sorted(missing, key=lambda p: p.branch != self.position.branch)
        if missing and missing[0].branch == self.position.branch != "trunk":
            self._finish(missing.pop(0))
        for point in missing:
            if point not in trunk_points:
                self._reach_branch_point(point)
        for point in missing:
            self._finish(point)
        checkpoint.prune(self.folder, self._kept())

    def _warm_up(self) -> None:
        """Everything that is slow the first time, whole updates and an evaluation batch, before the
        first window.
        """
        self.trainer.warm_up()
        self._fitting(lambda n: batch_losses(self.trainer.model, next(iter(self.corpus.val_batches(n))), self.device))
        self.device.sync()

    def _steps_left(self, missing: list[PlannedPoint]) -> int:
        """Updates still to make, counting the trunk from the furthest checkpoint on it."""
        if not missing:
            return 0
        at = self.progress.position
        trunk_at = max(
            [p.step for p in self.progress.milestones.values()] + ([at.step] if at.branch == "trunk" else [0])
        )
        trunk_to = max(p.branch_step if p.branch != "trunk" else p.steps for p in missing)
        cooldowns = sum(
            p.steps - max(p.branch_step, at.step if at.branch == p.branch else 0)
            for p in missing
            if p.branch != "trunk"
        )
        return max(0, trunk_to - trunk_at) + cooldowns

    def _reach_branch_point(self, point: PlannedPoint) -> None:
        """Have a milestone at the branch point: train the trunk there from the nearest checkpoint
        before it.
        """
        name = _milestone(point.branch_step)
        if name in self.progress.milestones:
            return
        before = [(p.step, n) for n, p in self.progress.milestones.items() if p.step <= point.branch_step]
        step, nearest = max(before, default=(0, None))
        if self.position.branch != "trunk" or not step <= self.position.step <= point.branch_step:
            if nearest is not None:
                self._restore(nearest, self.progress.milestones[nearest])
            else:
                self._start_afresh()
        self._advance("trunk", point.branch_step, None)
        if self.progress.latest != name:
            # else stopped exactly here: never rewrite what a resume relies on
            self._save(name)
        self.progress.milestones[name] = self.position
        self._commit(name)

    def _finish(self, point: PlannedPoint) -> None:
        """Train one cooldown (or the trunk itself, for schedules without branches) to its end and
        record the point.
        """
        if point.branch == "trunk":
            evaluation = self._advance("trunk", point.steps, None, evaluate_end=True)
        else:
            if self.position.branch != point.branch:
                name = _milestone(point.branch_step)
                self._restore(name, self.progress.milestones[name])
                self.position = Position(point.branch, self.position.step, list(self.position.windows))
            evaluation = self._advance(point.branch, point.steps, point, evaluate_end=True)
        name = f"point-{point.branch}-{point.steps:08d}"
        self._book("checkpoint", lambda: checkpoint.save(self.folder, name, self.trainer.model, None))
        assert evaluation is not None
        self.progress.points.append(make_point(self.run, point, self.position.windows, evaluation, name))
        # The end of a cooldown is nothing to resume from: go back to a branch point, or nowhere
        milestones = self.progress.milestones
        self.progress.latest = max(milestones, default=None)
        self.progress.position = (
            milestones[self.progress.latest] if self.progress.latest is not None else Position("trunk", 0)
        )
        self.progress.steps_bytes = self.ledger.steps_bytes()
        checkpoint.save_progress(self.folder, self.progress)

    # --- walking a path
    def _advance(
        self, branch: str, stop: int, cooldown: PlannedPoint | None, evaluate_end: bool = False
    ) -> Evaluation | None:
        """Updates from the present position to `stop`, in windows that end at checkpoints and
        evaluations; returns the last evaluation, which is that of `stop` where `evaluate_end` asks
        for it.
        """
        evaluation: Evaluation | None = None
        while self.position.step < stop:
            until, evaluated = self._next_stop(stop, evaluate_end)
            last_row = self._window(branch, until, stop, cooldown)
            reached = self.position.step == until
            if reached and evaluated:
                evaluation = self._evaluate(branch)
                assert last_row is not None
                last_row.val_loss_nat = evaluation.loss_nat
            if last_row is not None:
                self._write(last_row, force=reached and evaluated)
            if self.run.reason_to_stop() is not None or (
                time.monotonic() >= self._checkpoint_due_s and self.position.step < stop
            ):
                self._rolling_checkpoint()
            if (reason := self.run.reason_to_stop()) is not None:
                raise Interrupted(f"stopped by {reason} at {branch} step {self.position.step}; launch again to go on")
        if evaluate_end and evaluation is None:  # resumed from a checkpoint at the very end
            evaluation = self._evaluate(branch)
        return evaluation

    def _next_stop(self, stop: int, evaluate_end: bool) -> tuple[int, bool]:
        every = self.config.evaluation.every_tokens
        if every is not None:
            stride = max(1, round(every / self.rung.hyper.batch_tokens))
            following = (self.position.step // stride + 1) * stride
            if following < stop:
                return following, True
        return stop, evaluate_end

    def _window(self, branch: str, until: int, stop: int, cooldown: PlannedPoint | None) -> StepRow | None:
        """One metered window of updates; its last row is handed back so that an evaluation can be
        written into it.
        """
        batch_tokens = self.rung.hyper.batch_tokens
        start = self.position.step
        base = self.position.windows
        base_tokens, base_s = sum(w.tokens for w in base), sum(w.wall_s for w in base)
        base_j = total([w.energy for w in base]).energy_j if base else 0.0
        start_j = self.ledger.meter.total_j()

        def lr(step: int) -> float:
            branch_step = cooldown.branch_step if cooldown else None
            return schedule.factor(
                self.config.schedule,
                step,
                self.rung.warmup_steps,
                branch_step,
                stop if cooldown else self.rung.points[-1].steps,
            )

        def pause() -> bool:
            return self.run.reason_to_stop() is not None or time.monotonic() >= self._checkpoint_due_s

        row: StepRow | None = None
        self.device.sync()
        start_ns = last_ns = time.monotonic_ns()
        try:
            for result in self.trainer.run_steps(start, until, lr, pause):
                if row is not None:
                    self._write(row)
                done = result.step + 1 - start
                row = StepRow(
                    step=result.step + 1,
                    branch=branch,
                    tokens=base_tokens + done * batch_tokens,
                    train_flop=float(self.rung.counts.fpt_causal) * (base_tokens + done * batch_tokens),
                    loss_nat=result.loss_nat,
                    grad_norm=result.grad_norm,
                    lr=result.lr,
                    wall_s=base_s + (result.time_ns - start_ns) * S_PER_NS,
                    tokens_per_s=batch_tokens / max(1e-9, (result.time_ns - last_ns) * S_PER_NS),
                    energy_j=self._provisional_j(base_j, start_j),
                )
                last_ns = result.time_ns
                self._judge(result, row)
        except Diverged:
            self._book_training("train", branch, start, start_ns)  # a diverged run has spent it too
            raise
        except Exception:
            # updates that are thrown away here are booked too, in case the run is never resumed
            # A full disk, or a device that does not answer any more, must not hide the error
            with contextlib.suppress(RuntimeError, HarnessError):
                self._book_training("lost", branch, start, start_ns)
            raise
        window = self._book_training("train", branch, start, start_ns)
        self.position = Position(branch, self.trainer.issued, [*base, window])
        self._remaining_steps -= self.trainer.issued - start
        return row

    def _book_training(self, phase: str, branch: str, start: int, start_ns: int) -> SpendRow:
        """Book the updates from `start` to the last one issued, which began at `start_ns`."""
        self.device.sync()
        issued = self.trainer.issued
        tokens = (issued - start) * self.rung.hyper.batch_tokens
        return self.ledger.window(phase, branch, start, issued, tokens, start_ns, time.monotonic_ns())

    def _provisional_j(self, base_j: float | None, start_j: float | None) -> float | None:
        now_j = self.ledger.meter.total_j() if start_j is not None else None
        return None if base_j is None or start_j is None or now_j is None else base_j + now_j - start_j

    def _judge(self, result: StepResult, row: StepRow) -> None:
        """Raise Diverged. A row that is not a number cannot be written, so the message states
        it.
        """
        if not math.isfinite(result.loss_nat) or not math.isfinite(result.grad_norm):
            raise Diverged(
                f"loss {result.loss_nat}, gradient norm {result.grad_norm} at {row.branch} step {row.step}. Try a lower optim.lr_scale."
            )
        if result.loss_nat > self._bound_nat:
            raise Diverged(
                f"loss {result.loss_nat:.3f} nat at {row.branch} step {row.step} is above the bound {self._bound_nat:.3f} "
                f"(attempt.diverged_above={self.config.attempt.diverged_above:g} x ln {self.corpus.vocab}). Try a lower optim.lr_scale."
            )

    def _write(self, row: StepRow, force: bool = False) -> None:
        self.ledger.step(row)
        now = time.monotonic()
        if force or now >= self._mirror_due_s:
            self._mirror_due_s = now + MIRROR_EVERY_S
            columns = {
                "train_flop": row.train_flop,
                "tokens": row.tokens,
                "energy_j": row.energy_j,
                "branch": row.branch,
                "train/step": row.step,
            }
            columns |= {
                f"train/{k}": getattr(row, k) for k in ("loss_nat", "grad_norm", "lr", "tokens_per_s", "wall_s")
            }
            self.run.mirror.log({**columns, "val/loss_nat": row.val_loss_nat})
        left = self._remaining_steps - max(0, row.step - self.position.step)
        self.run.attempt.beat(
            self.run.meter.power_w,
            step=self._total_steps - left,
            steps=self._total_steps,
            loss_nat=row.loss_nat,
            tokens_per_s=row.tokens_per_s,
            remaining_s=left * self.rung.hyper.batch_tokens / row.tokens_per_s,
        )

    def _evaluate(self, branch: str) -> Evaluation:
        step = self.position.step
        start_ns = time.monotonic_ns()
        self.trainer.model.eval()
        evaluation = self._fitting(lambda n: evaluate(self.trainer.model, self.corpus, self.device, n))
        self.trainer.model.train()
        self.device.sync()
        self.ledger.window("eval", branch, step, step, evaluation.fed_tokens, start_ns, time.monotonic_ns())
        if not math.isfinite(evaluation.loss_nat):
            raise Diverged(
                f"validation loss {evaluation.loss_nat} at {branch} step {step}. Try a lower optim.lr_scale."
            )
        return evaluation

    def _fitting(self, work: Callable[[int], T]) -> T:
        """`work(sequences per evaluation batch)`; out of memory halves the batches, from now on,
        and begins again.
        """
        while True:
            try:
                return work(self._eval_sequences)
            except RuntimeError as e:
                if self._eval_sequences == 1 or not out_of_memory(e):
                    raise
            self._eval_sequences = -(-self._eval_sequences // 2)
            torch.cuda.empty_cache()
            self.progress.events.append(
                f"out of memory: evaluation batches were halved to {self._eval_sequences} sequences"
            )

    # --- checkpoints
    def _save(self, name: str) -> None:
        self._book(
            "checkpoint", lambda: checkpoint.save(self.folder, name, self.trainer.model, self.trainer.optimizers)
        )

    def _rolling_checkpoint(self) -> None:
        name = f"{self.position.branch}-{self.position.step:08d}"
        self._save(name)
        self._commit(name)
        self._checkpoint_due_s = time.monotonic() + self.config.attempt.checkpoint_every_s

    def _commit(self, name: str) -> None:
        """From here on a resumed run starts at `name`; the one before it is kept until the next
        commit.
        """
        before = self.progress.latest
        self.progress.latest, self.progress.position = name, self.position
        self.progress.steps_bytes = self.ledger.steps_bytes()
        self.progress.micro_sequences = self.trainer.micro_sequences
        checkpoint.save_progress(self.folder, self.progress)
        checkpoint.prune(self.folder, self._kept() | ({before} if before else set()))

    def _kept(self) -> set[str]:
        points = {p.hf_checkpoint for p in self.progress.points if p.hf_checkpoint}
        return points | set(self.progress.milestones) | ({self.progress.latest} if self.progress.latest else set())

    def _restore(self, name: str, position: Position) -> None:
        self._book(
            "checkpoint", lambda: checkpoint.restore(self.folder, name, self.trainer.model, self.trainer.optimizers)
        )
        self.position = Position(position.branch, position.step, list(position.windows))

    def _start_afresh(self) -> None:
        """Initial weights again, a pure function of (shape, seed); moments forgotten."""
        fresh = dict(build_model(self.config, self.rung).named_parameters())
        with torch.no_grad():
            for name, p in self.trainer.model.named_parameters():
                p.copy_(fresh[name])
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        self.position = Position("trunk", 0)

    def _book(self, phase: str, work: Callable[[], None]) -> None:
        start_ns = time.monotonic_ns()
        work()
        self.ledger.window(
            phase, self.position.branch, self.position.step, self.position.step, 0, start_ns, time.monotonic_ns()
        )


def _milestone(step: int) -> str:
    return f"trunk-{step:08d}"
