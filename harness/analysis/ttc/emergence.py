"""Whether a jump in exact match is an ability or an effect of the metric: nulls and a verdict.

The nulls follow from the token probabilities of the same problems: EM0 = c + (1 - c) p_token^T,
with the bracket p_trace <= EM <= c + (1 - c) p_trace. They assume a single reference trace, and
thus one right answer per problem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.laws.estimators import cluster_weights
from harness.laws.gram import Array
from harness.records.ttc import TtcRecord

BRACKET_TOLERANCE = 0.01  # of exact match, in addition to its interval
MIN_GAIN, MAX_CHANCE = 0.5, 0.05  # of a bend that counts
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
    broken_gain: float | None = None  # 1 - held-out squared error of two lines over that of one
    broken_chance: float | None = None  # of this gain by a straight line with the same scatter


def point(record: TtcRecord, *, draws: int = 1000, seed: int = 0) -> AuditPoint | None:
    """The audit of one cell; None without likelihoods."""
    s = record.smooth
    if s is None:
        return None
    p = np.array(record.stats.correct) / record.samples
    low, high = np.percentile(cluster_weights(record.stats.cluster, draws, seed) @ p, [2.5, 97.5]).tolist()

    def null(token: float) -> float:
        return record.chance + (1 - record.chance) * token**s.trace_tokens

    band = null(s.p_token_low), null(s.p_token_high)
    bracket = (
        s.p_trace_low - BRACKET_TOLERANCE,
        record.chance + (1 - record.chance) * s.p_trace_high + BRACKET_TOLERANCE,
    )
    inside = (low <= band[1] and high >= band[0]) or (low <= bracket[1] and high >= bracket[0])
    return AuditPoint(
        f"{record.name} {record.branch}, {record.label}", record.train_flop, float(p.mean()), low, high, s.p_token, s.ce_nat, s.p_trace,
        null(s.p_token), *band, inside,
    )  # fmt: skip


def broken_gain(x: Array, y: Array) -> Array | None:
    """1 - the leave-one-out squared error of a line with one bend over that of a straight line.

    x (n,) and y (R, n) give one gain for each of R data sets (R,); None under 6 points. The place
    of the bend is chosen without the point that is left out. The first and the last point are never
    left out, because the lines would be extrapolated.
    """
    if len(x) < 6:
        return None
    order = np.argsort(x)
    x, y = x[order], y[:, order]
    straight_error, bent_error = np.zeros(len(y)), np.zeros(len(y))
    for i in range(1, len(x) - 1):
        rest = np.delete(np.arange(len(x)), i)
        straight, _ = _held_out(x[rest], y[:, rest], None, x[i])
        bent = [_held_out(x[rest], y[:, rest], knot, x[i]) for knot in x[rest][1:-1]]
        chosen = np.argmin([error for _, error in bent], axis=0)
        straight_error += (straight - y[:, i]) ** 2
        bent_error += (np.array([value for value, _ in bent])[chosen, np.arange(len(y))] - y[:, i]) ** 2
    rounding = 1e-20 * (y**2).sum(-1)  # a straight line with a smaller error is exact
    return np.where(straight_error > rounding, 1 - bent_error / np.maximum(straight_error, 1e-300), 0.0)


def _held_out(x: Array, y: Array, knot: float | None, x_out: float) -> tuple[Array, Array]:
    """A line through the points of each data set: its value at `x_out` and squared error, (R,)."""
    design = _design(x, knot)
    inverse = np.linalg.pinv(design)
    solution = y @ inverse.T
    return solution @ _design(np.array([x_out]), knot)[0], ((solution @ design.T - y) ** 2).sum(-1)


def _design(x: Array, knot: float | None) -> Array:
    columns = [np.ones_like(x), x]
    return np.stack(columns if knot is None else [*columns, np.maximum(x - knot, 0)], -1)


def chance_of_gain(x: Array, y: Array, gain: float, *, draws: int = 1000, seed: int = 0) -> float:
    """How often a straight line with the scatter of y (n,) shows this gain, by simulation."""
    design = _design(x, None)
    line = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    scatter = math.sqrt(float(((y - line) ** 2).sum()) / (len(x) - 2))
    simulated = line + np.random.default_rng(seed).normal(0, scatter, (draws, len(x)))
    gains = broken_gain(x, simulated)
    assert gains is not None
    return float((1 + (gains >= gain).sum()) / (1 + draws))


def audit(records: Sequence[TtcRecord]) -> Audit:
    """Verdict over the end points of ONE control and temperature.

    A bend counts when it halves the held-out error, and a straight line with the same scatter does
    so in under 5 % of cases.
    """
    points = [p for record in records if (p := point(record)) is not None]
    if not points:
        return Audit(UNDECIDED, "no evaluation holds likelihoods of a reference trace")
    usable = [p for p in points if p.train_flop and 0 < p.p_token < 1]
    x = np.array([math.log(p.train_flop or 1.0) for p in usable])
    y = np.array([math.log(p.p_token / (1 - p.p_token)) for p in usable])
    gains = broken_gain(x, y[None])
    outside = [p.cell for p in points if not p.inside]
    if gains is None:
        return Audit(UNDECIDED, f"{len(usable)} end points with known training compute; 6 are needed", points)
    gain = float(gains[0])
    rare = chance_of_gain(x, y, gain)
    if gain > MIN_GAIN and rare < MAX_CHANCE:
        reason = (
            f"two lines cut the held-out error of logit p_token by {gain:.0%}; "
            f"a straight line does so in {rare:.1%} of cases"
        )
        return Audit(BREAK, reason, points, gain, rare)
    if outside:
        return Audit(UNDECIDED, f"exact match leaves the null's band at {', '.join(outside)}", points, gain, rare)
    return Audit(ARTEFACT, "exact match stays in the null's band and logit p_token shows no bend", points, gain, rare)
