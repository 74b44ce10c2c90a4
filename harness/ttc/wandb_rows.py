"""An evaluation in W&B: its rows, its charts, and how each problem fared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.records.ttc import TtcRecord
from harness.track.wandb import Mirror


def cell(mirror: Mirror, record: TtcRecord) -> None:
    """The rows of one cell, each with its end point and control."""
    for row in record.rows:
        flat = {k: v for k, v in dataclasses.asdict(row).items() if v is None or isinstance(v, (int, float, str))}
        mirror.log(
            {
                "train_flop": record.train_flop,
                "test_flop": row.test_flop,
                "tokens": row.tokens,
                "energy_j": row.energy_j,
                "branch": record.branch,
                "ttc/cell": record.cell,
                "ttc/control": record.label,
                "ttc/temperature": record.temperature,
                **{f"ttc/{k}": flat[k] for k in ("strategy", "n", "order", "accuracy", "wall_s", "passes")},
            }
        )


def tables(mirror: Mirror, cells: list[TtcRecord], run_id: str, folder: Path) -> None:
    """Accuracy against FLOP, joules and tokens as charts, and the sample table: counts per
    problem.
    """
    points = [
        [r.branch, r.label, row.strategy, row.n, row.order, row.test_flop, row.energy_j, row.tokens, row.accuracy]
        for r in cells
        for row in r.rows
    ]
    columns = ["branch", "control", "strategy", "n", "order", "test_flop", "energy_j", "tokens", "accuracy"]
    for x in ("test_flop", "energy_j", "tokens"):
        complete = [p for p in points if p[columns.index(x)] is not None and p[-1] is not None]
        if complete:
            mirror.chart(f"ttc/accuracy_{x}", "scatter", columns, complete, x, "accuracy", f"accuracy against {x}")
    samples = [
        [r.branch, r.label, r.temperature, i, size, r.samples, greedy, right, traced, unread]
        for r in cells
        for i, (size, greedy, right, traced, unread) in enumerate(
            zip(r.stats.size, r.stats.greedy, r.stats.correct, r.stats.trace_ok, r.stats.unread, strict=True)
        )
    ]
    names = [
        "branch",
        "control",
        "temperature",
        "problem",
        "size",
        "samples",
        "greedy",
        "correct",
        "trace_ok",
        "unread",
    ]
    mirror.table("ttc/samples", names, samples)
    mirror.artifact(f"ttc-{run_id}", "ttc", [folder / r.cell / "record.json" for r in cells])
