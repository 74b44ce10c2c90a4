"""Serial against parallel: does a vote over n samples beat one longer thought that costs no more?

At one end point, every control (stride, forced length) has one greedy answer, which is serial
thought, and votes over n samples, which are parallel. A vote is compared with the most accurate
greedy answer of any control that costs as much or less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.analysis.ttc.curves import COSTS, Estimate, cell_name, cost, voting_curve
from harness.laws.estimators import cluster_weights
from harness.records.ttc import TtcRecord, TtcRow


@dataclass
class EqualCost:
    """One vote and the best single answer that costs no more; costs are per problem."""

    cost: str  # test_flop | tokens | wall_s | energy_j
    parallel: str  # cell whose samples vote
    n: int
    spent: float
    accuracy: float
    serial: str  # cell answered greedily
    serial_spent: float
    serial_accuracy: float
    gain: Estimate  # vote minus greedy, paired by problem


def longest(records: Sequence[TtcRecord]) -> list[list[TtcRecord]]:
    """By setup and temperature: the last cells of the largest size, by tokens used."""
    groups: dict[tuple, list[TtcRecord]] = {}
    for record in records:
        groups.setdefault((setup(record), record.temperature), []).append(record)
    out = []
    for cells in groups.values():
        top = max(cells, key=lambda r: (r.n_total, r.tokens or 0, -r.seed))
        same = [record for record in cells if (record.run_id, record.branch) == (top.run_id, top.branch)]
        out.append(sorted(same, key=lambda r: r.mean_tokens))
    return out


def setup(record: TtcRecord) -> str:
    """Task, arm and format of a cell; cells that differ in one of them are never pooled."""
    return " ".join(str(record.task[k]) for k in ("name", "arm", "format") if record.task.get(k))


def greedy(record: TtcRecord) -> TtcRow | None:
    return next((x for x in record.rows if x.strategy == "greedy" and x.accuracy is not None), None)


def votes(record: TtcRecord) -> list[TtcRow]:
    """Majorities of samples that were drawn in one batch, by n.

    A single sample is a vote of one.
    """
    strategies = ("sample", "majority")
    rows = [x for x in record.rows if x.strategy in strategies and x.order == "batched" and x.accuracy is not None]
    return sorted(rows, key=lambda x: x.n)


def compare(cells: Sequence[TtcRecord], name: str, *, draws: int = 1000, seed: int = 0) -> list[EqualCost]:
    """Every vote of one end point with the best single answer that costs no more.

    Empty where the cost is unknown. The interval resamples clusters of problems for the chosen
    pair. Only controls with the same problems are compared.
    """
    serial = [(c, record, x) for record in cells if (x := greedy(record)) and (c := cost(x, name)) is not None]
    out = []
    for record in cells:
        curve = None
        for row in votes(record):
            spent = cost(row, name)
            cheaper = [
                s for s in serial if spent is not None and s[0] <= spent and s[1].stats.cluster == record.stats.cluster
            ]
            if row.n < 2 or spent is None or not cheaper:
                continue
            serial_cost, rival, best = max(cheaper, key=lambda s: (s[2].accuracy or 0.0, -s[0]))
            curve = curve or dict(zip(*(v.T.tolist() for v in voting_curve(record)), strict=True))
            if row.n not in curve:
                continue
            paired = np.array(curve[row.n]) - np.array(rival.stats.greedy, dtype=float)
            interval = np.percentile(cluster_weights(record.stats.cluster, draws, seed) @ paired, [2.5, 97.5]).tolist()
            gain = Estimate(float(paired.mean()), *interval)
            out.append(
                EqualCost(name, cell_name(record), row.n, spent, row.accuracy or 0.0, cell_name(rival), serial_cost, best.accuracy or 0.0, gain)
            )  # fmt: skip
    return out


def equal_costs(records: Sequence[TtcRecord]) -> list[EqualCost]:
    """All comparisons of a study, in each measured cost."""
    return [e for cells in longest(records) if len(cells) > 1 for name in COSTS for e in compare(cells, name)]
