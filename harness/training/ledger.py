"""The two append-only tables of a run: steps.jsonl (what each update did) and spend.jsonl (what
everything cost).

A spend row is one window of one phase; it is on disk before the checkpoint that depends on it is
committed. Work that a kill threw away is booked as phase `lost` when the run resumes: from its
rows, and from the sampler's segment, which outlives the trainer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from harness import records
from harness.power.estimate import total
from harness.power.meter import Meter
from harness.records import Json, Measured, SpendRow, StepRow, append_row
from harness.training.checkpoint import Progress
from harness.units import S_PER_NS


class Ledger:
    def __init__(self, run_dir: Path, progress: Progress, meter: Meter, fpt: float) -> None:
        self.run_dir, self.progress, self.meter, self.fpt = run_dir, progress, meter, fpt
        self._steps_path, self._spend_path = run_dir / "steps.jsonl", run_dir / "spend.jsonl"

    # --- writing
    def step(self, row: StepRow) -> None:
        append_row(self._steps_path, row)

    def steps_bytes(self) -> int:
        return self._steps_path.stat().st_size if self._steps_path.exists() else 0

    def window(
        self, phase: str, branch: str, step_from: int, step_to: int, tokens: int, start_ns: int, end_ns: int
    ) -> SpendRow:
        """Book one window.

        `tokens` are those trained, or fed forward in phase eval; FLOP follow from them.
        """
        flop = {"train": self.fpt, "lost": self.fpt, "eval": self.fpt / 3}.get(phase, 0.0) * tokens
        energy = self.meter.energy(start_ns, end_ns, steps=step_to - step_from)
        row = SpendRow(
            self.progress.attempt,
            phase,
            branch,
            step_from,
            step_to,
            tokens,
            flop,
            (end_ns - start_ns) * S_PER_NS,
            start_ns,
            end_ns,
            energy,
            self.meter.limit_w(),
        )
        append_row(self._spend_path, row)
        return row

    # --- resuming
    def recover(self) -> None:
        """Cut steps.jsonl back to the last checkpoint and book the work of the earlier attempt that
        this throws away, once.

        Rows that a booked window covers are in spend.jsonl already (killed between a window and its
        checkpoint); the others are `lost`. The caller commits the new attempt number afterwards:
        killed in here, the next attempt finds the same state and does the same.
        """
        before = self.progress.attempt - 1
        rows = list(records.read_rows(self._spend_path, SpendRow))
        self._mend_spend(rows)
        mine = [r for r in rows if r.attempt == before]
        if not any(r.phase == "lost" for r in mine):
            thrown_away = records.read_rows(self._steps_path, StepRow, offset=self.progress.steps_bytes)
            lost = [s for s in thrown_away if not any(_covers(r, s) for r in mine)]
            position = self.progress.position
            tokens = sum(_tokens(s) for s in lost)
            booked_ns = max((r.t_b_ns for r in mine), default=0)
            append_row(
                self._spend_path,
                SpendRow(
                    before,
                    "lost",
                    lost[0].branch if lost else position.branch,
                    lost[0].step - 1 if lost else position.step,
                    lost[-1].step if lost else position.step,
                    tokens,
                    self.fpt * tokens,
                    sum(_tokens(s) / s.tokens_per_s for s in lost),
                    booked_ns,
                    booked_ns,
                    self.meter.recover(before, booked_ns),
                    self.meter.limit_w(),
                ),
            )
        if self.steps_bytes() > self.progress.steps_bytes:
            os.truncate(self._steps_path, self.progress.steps_bytes)

    def _mend_spend(self, rows: list[SpendRow]) -> None:
        """Drop a torn last line (killed while writing), so that the next row starts on a line of
        its own.
        """
        if self._spend_path.exists() and not self._spend_path.read_bytes().endswith(b"\n"):
            text = "".join(json.dumps(records.to_json(r)) + "\n" for r in rows)
            records.write_text_atomic(self._spend_path, text)

    # --- reading
    def spent(self) -> Json:
        """Everything this run ever used, by phase and in all: {phase: {tokens, flop, wall_s,
        energy_j, energy_reason}}.
        """
        rows = list(records.read_rows(self._spend_path, SpendRow))
        table = {phase: _sum([r for r in rows if r.phase == phase]) for phase in sorted({r.phase for r in rows})}
        return {**table, "total": _sum(rows)}


def _sum(rows: list[SpendRow]) -> Json:
    energy: Measured = total([r.energy for r in rows])
    return {
        "windows": len(rows),
        "tokens": sum(r.tokens for r in rows),
        "flop": sum(r.flop for r in rows),
        "wall_s": sum(r.wall_s for r in rows),
        "energy_j": energy.energy_j,
        "energy_se_j": energy.energy_se_j,
        "energy_reason": energy.reason,
    }


def _covers(window: SpendRow, step: StepRow) -> bool:
    return window.phase == "train" and window.branch == step.branch and window.step_from < step.step <= window.step_to


def _tokens(row: StepRow) -> int:
    """Tokens of this one update: all updates of a path have the same batch."""
    return row.tokens // row.step
