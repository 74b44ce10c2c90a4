"""The exchange rate of training for test compute, along lines of equal accuracy.

log F_test = -g log F_train + h logit(accuracy) + const(family). A family is one model size trained
in one arm and format. Between families both costs move together, because a wider model costs more
to train and more to ask; that is not an exchange, so each family has a constant of its own.

There is one curve per (family, control, temperature): pass@1 against training cost over the end
points of that size, as seed means. The monotone envelope of the curve, interpolated in log training
cost, gives the training cost of each accuracy. The test cost there is that of one sample,
interpolated in the same way. Nothing is extrapolated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.laws.estimators import cluster_weights
from harness.laws.gram import Array
from harness.records.ttc import TtcRecord

TARGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BASES = ("decode", "prefill+decode", "joules")
MIN_SEEDS = 3  # for which the bootstrap draws seeds too
# Train cost, test cost and accuracy of the end points of one line, by rising train cost
Curve = tuple[Array, Array, Array]


@dataclass
class Iso:
    accuracy: float
    line: str
    family: str
    train: float  # FLOP, or joules on the basis "joules"
    test: float


@dataclass
class Exchange:
    basis: str  # decode | prefill+decode | joules
    g: float | None
    low: float | None
    high: float | None
    seeds: int
    failed: int  # draws whose curves no longer share an accuracy
    points: list[Iso] = field(default_factory=list)
    reason: str | None = None
    note: str = ""
    of: str = ""  # task and format whose cells these are


def costs(record: TtcRecord, basis: str) -> tuple[float, float] | None:
    """Costs of training and of one sample in the unit of `basis`; None where either is unknown."""
    row = next((x for x in record.rows if x.strategy == "sample" and x.n == 1), None)
    if row is None:
        return None
    if basis == "joules":
        train, test = record.train_energy.energy_j, row.energy_j
    else:
        train, test = record.train_flop, row.decode_flop + (row.prefill_flop if basis != "decode" else 0)
    return (train, test) if train and test else None


def crossing(curve: Curve, target: float) -> tuple[float, float] | None:
    """(train, test) cost at which the monotone envelope of the curve reaches `target`.

    Interpolated in log cost; None where the curve does not pass through the accuracy.
    """
    train, test, accuracy = curve
    envelope = np.maximum.accumulate(accuracy)
    if not envelope[0] < target <= envelope[-1]:
        return None
    j = int(np.argmax(envelope >= target))
    share = (target - envelope[j - 1]) / (envelope[j] - envelope[j - 1])
    costs = [float(np.exp((1 - share) * np.log(c[j - 1]) + share * np.log(c[j]))) for c in (train, test)]
    return costs[0], costs[1]


def isolines(curves: dict[str, Curve], family: str = "", targets: Sequence[float] = TARGETS) -> list[Iso]:
    """Points of equal accuracy of one family, for accuracies reached at several test costs.

    `curves`: line -> curve.
    """
    out = []
    for target in targets:
        pairs = {line: crossing(curve, target) for line, curve in curves.items()}
        points = [Iso(target, line, family, *pair) for line, pair in pairs.items() if pair]
        if len({round(float(np.log(i.test)), 6) for i in points}) > 1:
            out += points
    return out


def slope(points: Sequence[Iso]) -> float | None:
    """g by least squares with a constant per family; None where the design has no rank for it."""
    if len(points) < 2:
        return None
    accuracy = np.array([p.accuracy for p in points])
    logit = np.log(accuracy / (1 - accuracy))
    family = np.array([p.family for p in points])
    member = (family[:, None] == np.unique(family)).astype(float)
    columns = [-np.log([p.train for p in points]), *member.T]
    if any(len(set(logit[m > 0])) > 1 for m in member.T):
        columns.append(logit)
    design = np.stack(columns, 1)
    design[:, 0] -= design[:, 0].mean()
    if np.linalg.matrix_rank(design) < design.shape[1] or len(points) < design.shape[1]:
        return None
    return float(np.linalg.lstsq(design, np.log([p.test for p in points]), rcond=None)[0][0])


def resampled(
    records: Sequence[TtcRecord],
    cost_pair: Callable[[TtcRecord], tuple[float, float] | None],
    right: Callable[[TtcRecord], Array],
    line: Callable[[TtcRecord], str],
    *,
    draws: int,
    seed: int,
) -> Iterator[dict[str, dict[str, Curve]]]:
    """Curves by family and line, as seed means, for all problems and then for `draws` resamplings.

    Problems are resampled by cluster, and seeds too where there are `MIN_SEEDS`. `cost_pair`:
    (training, query) cost of a cell, None where either is unknown; `right`: share of right answers
    per problem (P,); `line`: the name of a cell's curve within its family.
    """
    groups: dict[tuple[str, str], dict[float, dict[int, tuple[TtcRecord, float, float]]]] = {}
    for record in records:
        if (pair := cost_pair(record)) is not None:
            group = family(record), line(record)
            groups.setdefault(group, {}).setdefault(record.tokens or 0, {})[record.seed] = (record, *pair)
    shares: dict[str, Array] = {}  # cell -> accuracy (draws + 1,), the first of all problems
    for record in records:
        p = right(record)
        shares[_key(record)] = np.r_[p.mean(), cluster_weights(record.stats.cluster, draws, seed) @ p]
    seeds = sorted({record.seed for record in records})
    rng = np.random.default_rng([seed, 1])
    for d in range(draws + 1):
        chosen = seeds if d == 0 or len(seeds) < MIN_SEEDS else rng.choice(seeds, len(seeds)).tolist()
        curves: dict[str, dict[str, Curve]] = {}
        for (group, name), by_tokens in groups.items():
            rows = []
            for _, by_seed in sorted(by_tokens.items()):
                if cells := [by_seed[s] for s in chosen if s in by_seed]:
                    accuracy = float(np.mean([shares[_key(r)][d] for r, _, _ in cells]))
                    rows.append((np.mean([t for _, t, _ in cells]), np.mean([q for _, _, q in cells]), accuracy))
            if rows:
                train, test, accuracy = (np.array(c) for c in zip(*sorted(rows), strict=True))
                curves.setdefault(group, {})[name] = train, test, accuracy
        yield curves


def seed_note(seeds: int) -> str:
    """The limit of an interval with too few seeds to resample; empty otherwise."""
    return "" if seeds >= MIN_SEEDS else f"{seeds} seed{'s' * (seeds > 1)}: the interval covers problems only"


def exchange(records: Sequence[TtcRecord], basis: str, *, draws: int = 400, seed: int = 0) -> Exchange:
    """g with its 95 % interval, over clusters of problems and, from `MIN_SEEDS` on, over seeds."""
    seeds = len({record.seed for record in records})
    if not any(costs(record, basis) for record in records):
        unmetered = (
            {x.energy_reason for record in records for x in record.rows if x.energy_reason}
            if basis == "joules"
            else set()
        )
        reason = "; ".join(sorted(unmetered)) or "no cell has both costs on this basis"
        return Exchange(basis, None, None, None, seeds, 0, reason=reason)
    slopes: list[float] = []
    points: list[Iso] = []
    first: float | None = None
    resamplings = resampled(records, lambda r: costs(r, basis), single, _control, draws=draws, seed=seed)
    for d, curves in enumerate(resamplings):
        iso = [i for of, lines in curves.items() for i in isolines(lines, of)]
        value = slope(iso)
        if d == 0:
            points, first = iso, value
        elif value is not None:
            slopes.append(value)
    note, failed = seed_note(seeds), draws - len(slopes)
    if first is None:
        reason = "no accuracy is reached by two lines of different test cost"
        return Exchange(basis, None, None, None, seeds, failed, points, reason, note)
    interval = np.percentile(slopes, [2.5, 97.5]).tolist() if len(slopes) >= 0.9 * draws > 0 else [None, None]
    return Exchange(basis, first, interval[0], interval[1], seeds, failed, points, note=note)


def single(record: TtcRecord) -> Array:
    """Probability (P,) that one sample is right."""
    return np.array(record.stats.correct) / record.samples


def family(record: TtcRecord) -> str:
    """Size, arm and format: a family's cells differ in training, control and temperature."""
    parts = [f"N {record.n_total:,}", *(str(record.task[k]) for k in ("name", "arm", "format") if record.task.get(k))]
    return ", ".join(parts)


def _control(record: TtcRecord) -> str:
    return f"{record.label}, T={record.temperature:g}"


def _key(record: TtcRecord) -> str:
    return f"{record.run_id}/{record.cell}"
