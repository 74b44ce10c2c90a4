"""From samples to TtcRow and ProblemStats.

Costs of every n follow from the lengths of the rows: the engine's lockstep is replayed on them.

P problems, M samples each. A query is one problem; queries are decoded in blocks of
`work_units.PROBLEMS` side by side, as when drawn.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.laws import estimators
from harness.models.flops import Shape, passes_flop, prefill_flop
from harness.records.ttc import ProblemStats, Smooth, TtcRow
from harness.tasks.task import NONE, Problems
from harness.ttc.metering import CostModel, Load
from harness.ttc.strategies import STRATEGIES, Scored, Strategy
from harness.ttc.work_units import PROBLEMS, Arrays, side_by_side

# where a guesser is expected to get more of n_max samples right, coverage counts verified traces

MAX_LUCKY_GUESSES = 0.1


@dataclass(frozen=True)
class Sampled:
    """What was drawn in one cell.

    (P, M) arrays, (P, 1) for greedy and search: answer, correct, verified, trace_ok, truncated,
    length, forced, logprob.
    """

    problems: Problems
    prompt: np.ndarray  # (P,) tokens
    greedy: Arrays
    samples: Arrays
    # its rows carry flop, executed, passes, row_passes, context of the block, per query
    search: Arrays | None


def counts(m: int) -> list[int]:
    """1, 2, 4, … up to `m`, and `m` itself."""
    out = [2**i for i in range(m.bit_length()) if 2**i <= m]
    return out if out[-1] == m else [*out, m]


def lockstep(prompt: np.ndarray, lengths: np.ndarray) -> Load:
    """Passes that a batch of rows with `prompt` (R,) and `lengths` (R,) takes: the engine's rule,
    replayed.
    """
    width, rows = int(prompt.max()), len(lengths)
    load = Load()
    for t in range(int(lengths.max()) - 1):
        alive = int((lengths > t + 1).sum())
        if 2 * alive < rows:
            rows = alive
        load += Load(1, rows, rows * (width + t + 1))
    return load


def batches_of(prompt: np.ndarray, n: int, batch_rows: int) -> list[np.ndarray]:
    """Problems that are decoded together at n samples each, as the engine puts them together: by
    length within a block.
    """
    out, size = [], side_by_side(n, batch_rows)
    for start in range(0, len(prompt), PROBLEMS):
        order = start + np.argsort(prompt[start : start + PROBLEMS], kind="stable")
        out += [order[i : i + size] for i in range(0, len(order), size)]
    return out


def load_of(prompt: np.ndarray, lengths: np.ndarray, n: int, batch_rows: int) -> tuple[Load, float]:
    """Mean load per query of n samples side by side, over the disjoint groups of n among the
    samples drawn (P, M); mean passes of a batch.

    Where `batch_rows` is below n, the samples of a query are decoded in turns.
    """
    total, queries, batches = Load(), 0, 0
    for part in batches_of(prompt, n, batch_rows):
        for first in range(0, lengths.shape[1] - n + 1, n):
            for turn in range(first, first + n, batch_rows):
                chosen = lengths[part, turn : min(turn + batch_rows, first + n)]
                total += lockstep(np.repeat(prompt[part], chosen.shape[1]), chosen.ravel())
            queries += len(part)
            batches += 1
    return total.per(queries), total.passes / batches


def accuracy_of(chance: float, samples: int) -> str:
    """What counts as right in coverage: "answer", or "trace" where few answers are possible and
    guesses are often right.
    """
    return "trace" if chance * samples > MAX_LUCKY_GUESSES else "answer"


def statistics(s: Sampled) -> ProblemStats:
    answer, correct = s.samples["answer"], s.samples["correct"]
    wrong = [
        sorted(Counter(a[(a != NONE) & ~c].tolist()).values(), reverse=True)
        for a, c in zip(answer, correct, strict=True)
    ]
    unread = (answer == NONE) & ~correct
    return ProblemStats(
        cluster=s.problems.cluster.tolist(),
        size=s.problems.size.tolist(),
        greedy=s.greedy["correct"][:, 0].tolist(),
        correct=correct.sum(1).tolist(),
        trace_ok=s.samples["trace_ok"].sum(1).tolist(),
        unread=unread.sum(1).tolist(),
        wrong=wrong,
    )


@dataclass(frozen=True)
class Scoring:
    """What scoring needs to know besides the samples."""

    shape: Shape
    chance: float  # of a guess being right
    verifier_tpr: float  # of the noisy verifier: the share of right answers that it accepts
    verifier_fpr: float  # and of wrong ones
    beam_width: int  # of the step search
    batch_rows: int  # sequences decoded side by side
    seed: int  # of the noisy verifier and of the subsets of a majority


def rows(s: Sampled, scoring: Scoring, cost: CostModel) -> list[TtcRow]:
    """Every strategy at every n, the step search last.

    Deterministic: what is drawn at random is seeded.
    """
    samples = s.samples["correct"].shape[1]
    scored = _scored(s, scoring, samples)
    costs = _Costs(s, scoring, cost)
    out: list[TtcRow] = []
    for n in counts(samples):
        for name, strategy in STRATEGIES.items():
            max_n = 1 if strategy.uses == "greedy" else strategy.max_n or samples
            if strategy.uses != "search" and n <= max_n:
                out += costs.rows(name, strategy, n, scored)
    if s.search is not None:
        for name, strategy in STRATEGIES.items():
            if strategy.uses == "search":
                out += costs.rows(name, strategy, scoring.beam_width, scored)
    return out


def _scored(s: Sampled, scoring: Scoring, samples: int) -> Scored:
    stats, correct = statistics(s), s.samples["correct"]
    # (P, M); row-major, so it depends on M
    noise = np.random.default_rng([scoring.seed, 1]).random(correct.shape)
    by_trace = accuracy_of(scoring.chance, samples) == "trace"
    return Scored(
        greedy_correct=s.greedy["correct"][:, 0],
        search_correct=None if s.search is None else s.search["correct"][:, 0],
        correct=correct,
        steps=s.samples["verified"],
        logprob=s.samples["logprob"],
        length=s.samples["length"],
        accepted=noise < np.where(correct, scoring.verifier_tpr, scoring.verifier_fpr),
        covered=np.array(stats.trace_ok if by_trace else stats.correct),
        stats=stats,
        seed=scoring.seed,
    )


@dataclass(frozen=True)
class _Decoded:
    """What the decoding of a query costs, means over the queries of a cell."""

    tokens: float
    forced: float
    flop: float
    load: Load
    passes: float  # of a batch
    # samples side by side, where a window of that shape may have been metered
    metered_n: int | None


class _Costs:
    """Costs per query of the strategies of one cell."""

    def __init__(self, s: Sampled, scoring: Scoring, cost: CostModel) -> None:
        self._s, self._cost = s, cost
        self._shape, self._batch_rows = scoring.shape, scoring.batch_rows
        self._loads: dict[tuple[str, int], tuple[Load, float]] = {}
        # `flops.sample_flop` of thousands of rows at once: it is linear in the rows fed and the
        # positions they attend to
        self._per_row, self._per_position = passes_flop(self._shape, 1, 0), passes_flop(self._shape, 0, 1)
        self.prefill = float(np.mean([prefill_flop(self._shape, n, last_head=True) for n in s.prompt.tolist()]))

    def rows(self, name: str, strategy: Strategy, n: int, scored: Scored) -> list[TtcRow]:
        """A row per order of drawing; with one sample there is nothing to draw side by side or in
        turn.
        """
        value = strategy.accuracy(scored, n)
        interval = estimators.interval(value, self._s.problems.cluster)
        orders = strategy.orders[:1] if n == 1 else strategy.orders
        if strategy.uses == "search":
            return [self._row(name, n, order, value, interval, self._searched()) for order in orders]
        draws = None if strategy.draws is None else strategy.draws(scored, n)
        uses: Literal["samples", "greedy"] = strategy.uses
        return [self._row(name, n, order, value, interval, self._sampled(uses, n, order, draws)) for order in orders]

    def _sampled(self, uses: Literal["samples", "greedy"], n: int, order: str, draws: np.ndarray | None) -> _Decoded:
        """`draws` (P, M): how often each row is expected to be drawn; None: n / M."""
        table = self._s.greedy if uses == "greedy" else self._s.samples
        length = table["length"]
        fed = np.maximum(length - 1, 0)
        attended = fed * self._s.prompt[:, None] + fed * (fed + 1) // 2
        flop = fed * self._per_row + attended * self._per_position
        draws = np.full(length.shape, n / length.shape[1]) if draws is None else draws
        turns = 1.0 if order == "batched" else float(draws.sum(1).mean())
        key = (uses, n if order == "batched" else 1)
        if key not in self._loads:
            self._loads[key] = load_of(self._s.prompt, length, key[1], self._batch_rows)
        load, passes = self._loads[key]
        return _Decoded(
            tokens=float((draws * length).sum(1).mean()),
            forced=float((draws * table["forced"]).sum(1).mean()),
            flop=float((draws * flop).sum(1).mean()),
            load=load.times(turns),
            passes=passes * turns,
            metered_n=n if order == "batched" and uses == "samples" else None,
        )

    def _searched(self) -> _Decoded:
        table = self._s.search
        assert table is not None
        passes = [table["passes"][i : i + PROBLEMS].sum() for i in range(0, len(table["passes"]), PROBLEMS)]
        return _Decoded(
            tokens=float(table["length"].mean()),
            forced=float(table["forced"].mean()),
            flop=float(table["flop"].mean()),
            load=Load(*(float(table[k].mean()) for k in ("passes", "row_passes", "context"))),
            passes=float(np.mean(passes)),
            metered_n=None,
        )

    def _dense(self, n: int) -> float:
        """Executed FLOP of a query's prefill, padded to the longest prompt beside it."""
        parts = batches_of(self._s.prompt, n, self._batch_rows)
        longest = [int(self._s.prompt[p].max()) for p in parts]
        each = [prefill_flop(self._shape, n, causal=False, last_head=True) for n in longest]
        return float(np.average(each, weights=[len(p) for p in parts]))

    def _row(
        self, name: str, n: int, order: str, value: np.ndarray, interval: tuple[float, float], decoded: _Decoded
    ) -> TtcRow:
        load, undefined = decoded.load, not np.isfinite(value).all()
        wall_s, wall_basis = self._cost.seconds(load, decoded.metered_n)
        energy_j, energy_se_j, energy_basis = self._cost.joules(load, decoded.metered_n)
        return TtcRow(
            strategy=name,
            n=n,
            accuracy=None if undefined else float(value.mean()),
            accuracy_low=None if undefined else interval[0],
            accuracy_high=None if undefined else interval[1],
            reason="fewer samples than n were drawn" if undefined else None,
            tokens=decoded.tokens,
            forced_tokens=decoded.forced,
            prefill_flop=self.prefill,
            decode_flop=decoded.flop,
            verify_flop=0.0,
            executed_flop=self._dense(n if order == "batched" else 1)
            + self._per_row * load.row_passes
            + self._per_position * load.context,
            passes=decoded.passes,
            wall_s=wall_s,
            wall_basis=wall_basis,
            energy_j=energy_j,
            energy_se_j=energy_se_j,
            energy_basis=energy_basis,
            energy_reason=self._cost.energy_reason if energy_j is None else None,
            order=order,
        )


def smooth(logprob: np.ndarray, brier: np.ndarray, cluster: np.ndarray) -> Smooth:
    """Likelihoods of the reference trace; ln p and Brier scores (P, T), NaN where not scored."""
    p = np.exp(logprob)
    scored = np.isfinite(logprob)
    trace = np.exp(np.where(scored, logprob, 0.0).sum(1))
    order = np.argsort(~scored, axis=1, kind="stable")
    first = np.take_along_axis(p, order, 1)[:, : int(scored.sum(1).max())]
    # Of the mean over tokens, like `p_token` itself: traces differ in length, and a cluster brings
    # all of its tokens
    token_interval = estimators.interval(p[scored], np.repeat(cluster, scored.sum(1)))
    trace_interval = estimators.interval(trace, cluster)
    return Smooth(
        ce_nat=float(-np.nanmean(logprob)),
        p_token=float(np.nanmean(p)),
        p_trace=float(trace.mean()),
        brier=float(np.nanmean(brier)),
        trace_tokens=float(scored.sum(1).mean()),
        p_by_index=np.nanmean(first, axis=0).tolist(),
        p_token_low=token_interval[0],
        p_token_high=token_interval[1],
        p_trace_low=trace_interval[0],
        p_trace_high=trace_interval[1],
    )
