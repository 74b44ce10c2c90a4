"""Is a jump in exact match an ability or a metric? Nulls from the token probabilities of the same problems, and a verdict.

Null EM0 = c + (1 - c) p_token^T; bracket p_trace <= EM <= c + (1 - c) p_trace. The nulls are those of reading a single reference trace;
they take no account of several right answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.laws.forms import Array
from harness.testtime import cluster_weights
from harness.ttc_records import TtcRecord

SLACK = 0.01  # by which exact match may leave the bracket before it counts, beside its own interval
ARTEFACT, BREAK, UNDECIDED = "metric artefact", "break in p_tok", "undecided"


@dataclass
class AuditPoint:
    cell: str
    train_flop: float | None
    exact_match: float  # sampled at the record's temperature
    low: float
    high: float
    p_token: float
    ce_nat: float
    p_trace: float
    null: float
    null_low: float
    null_high: float
    inside: bool  # the intervals of exact match and of the null, or of the bracket, overlap


@dataclass
class Audit:
    verdict: str
    reason: str
    points: list[AuditPoint] = field(default_factory=list)
    broken_gain: float | None = None  # 1 - held-out squared error of two lines over that of one; None: too few points


def point(r: TtcRecord, *, draws: int = 1000, seed: int = 0) -> AuditPoint | None:
    """None without likelihoods."""
    s = r.smooth
    if s is None:
        return None
    p = np.array(r.stats.correct) / r.samples
    low, high = np.percentile(cluster_weights(r.stats.cluster, draws, seed) @ p, [2.5, 97.5]).tolist()

    def null(token: float) -> float:
        return r.chance + (1 - r.chance) * token**s.trace_tokens

    ends = null(s.p_token_low), null(s.p_token_high)
    bracket = s.p_trace_low - SLACK, r.chance + (1 - r.chance) * s.p_trace_high + SLACK
    inside = (low <= ends[1] and high >= ends[0]) or (low <= bracket[1] and high >= bracket[0])
    return AuditPoint(
        f"{r.name} {r.branch}, {r.label}", r.train_flop, float(p.mean()), low, high, s.p_token, s.ce_nat, s.p_trace,
        null(s.p_token), *ends, inside,
    )  # fmt: skip


def broken_gain(x: Array, y: Array) -> float | None:
    """Leave-one-out squared error of a line with one bend, its place chosen without the point left out, against a straight line's.

    Positive: the bend predicts better. None under 6 points. The ends are not left out, or a line would be extrapolated.
    """
    if len(x) < 6:
        return None
    order = np.argsort(x)
    x, y = x[order], y[order]
    one = two = 0.0
    for i in range(1, len(x) - 1):
        keep = np.arange(len(x)) != i
        one += (_line(x[keep], y[keep], None, x[i]) - y[i]) ** 2
        inner = x[keep][1:-1]
        misses = [_miss(x[keep], y[keep], k) for k in inner]
        two += (_line(x[keep], y[keep], float(inner[int(np.argmin(misses))]), x[i]) - y[i]) ** 2
    rounding = 1e-20 * float((y**2).sum())  # below it a straight line is exact and nothing can be better
    return float(1 - two / one) if one > rounding else 0.0


def _design(x: Array, knot: float | None) -> Array:
    columns = [np.ones_like(x), x]
    return np.stack(columns if knot is None else [*columns, np.maximum(x - knot, 0)], -1)


def _line(x: Array, y: Array, knot: float | None, at: float) -> float:
    solution = np.linalg.lstsq(_design(x, knot), y, rcond=None)[0]
    return float(_design(np.array([at]), knot)[0] @ solution)


def _miss(x: Array, y: Array, knot: float) -> float:
    design = _design(x, knot)
    return float(((design @ np.linalg.lstsq(design, y, rcond=None)[0] - y) ** 2).sum())


def audit(records: Sequence[TtcRecord]) -> Audit:
    """Verdict over the end points of ONE control and temperature. A bend counts when it halves the held-out error."""
    points = [p for r in records if (p := point(r)) is not None]
    if not points:
        return Audit(UNDECIDED, "no evaluation holds likelihoods of a reference trace")
    usable = [p for p in points if p.train_flop and 0 < p.p_token < 1]
    x = np.array([math.log(p.train_flop or 1.0) for p in usable])
    y = np.array([math.log(p.p_token / (1 - p.p_token)) for p in usable])
    gain = broken_gain(x, y)
    outside = [p.cell for p in points if not p.inside]
    if gain is None:
        return Audit(UNDECIDED, f"{len(usable)} end points with known training compute; 6 are needed", points)
    if gain > 0.5:
        return Audit(BREAK, f"two lines cut the held-out error of logit p_token by {gain:.0%}", points, gain)
    if outside:
        return Audit(UNDECIDED, f"exact match leaves the null's band at {', '.join(outside)}", points, gain)
    return Audit(ARTEFACT, "exact match stays in the null's band and logit p_token has no bend", points, gain)
