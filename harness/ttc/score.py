"""From samples to TtcRow and ProblemStats. Costs of every n follow from the lengths of the rows: the engine's lockstep is replayed on them.

P problems, M samples each. A query is one problem; queries are decoded in blocks of `blocks.PROBLEMS` side by side, as when drawn.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from harness.laws import estimators
from harness.models.flops import Shape, passes_flop, prefill_flop
from harness.records.ttc import ProblemStats, Smooth, TtcRow
from harness.tasks.task import NONE, Problems
from harness.ttc.metering import CostModel, Load
from harness.ttc.work_units import PROBLEMS, Arrays, side_by_side

GUESSES = 0.1  # above so many right answers expected of a guesser in n_max samples, coverage counts verified traces


@dataclass(frozen=True)
class Sampled:
    """What was drawn in one cell. (P, M) arrays, (P, 1) for greedy and search: answer, correct, verified, trace_ok, truncated, length, forced, logprob."""

    problems: Problems
    prompt: np.ndarray  # (P,) tokens
    greedy: Arrays
    samples: Arrays
    search: Arrays | None  # its rows carry flop, executed, passes, row_passes, context of the block, per query


def counts(m: int) -> list[int]:
    """1, 2, 4, … up to `m`, and `m` itself."""
    out = [2**i for i in range(m.bit_length()) if 2**i <= m]
    return out if out[-1] == m else [*out, m]


def lockstep(prompt: np.ndarray, lengths: np.ndarray) -> Load:
    """Passes that a batch of rows with `prompt` (R,) and `lengths` (R,) takes: the engine's rule, replayed."""
    width, rows = int(prompt.max()), len(lengths)
    load = Load()
    for t in range(int(lengths.max()) - 1):
        alive = int((lengths > t + 1).sum())
        if 2 * alive < rows:
            rows = alive
        load += Load(1, rows, rows * (width + t + 1))
    return load


def batches_of(prompt: np.ndarray, n: int, batch_rows: int) -> list[np.ndarray]:
    """Problems that are decoded together at n samples each, as the engine puts them together: by length within a block."""
    out, size = [], side_by_side(n, batch_rows)
    for start in range(0, len(prompt), PROBLEMS):
        order = start + np.argsort(prompt[start : start + PROBLEMS], kind="stable")
        out += [order[i : i + size] for i in range(0, len(order), size)]
    return out


def load_of(prompt: np.ndarray, lengths: np.ndarray, n: int, batch_rows: int) -> tuple[Load, float]:
    """Mean load per query of n samples side by side, over the disjoint groups of n among the samples drawn (P, M); mean passes of a batch.

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
    return "trace" if chance * samples > GUESSES else "answer"


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


def rows(
    s: Sampled,
    shape: Shape,
    chance: float,
    tpr: float,
    fpr: float,
    width: int,
    seed: int,
    cost: CostModel,
    batch_rows: int,
) -> list[TtcRow]:
    """Every strategy at every n. Deterministic: the noisy verifier and the subsets of majority are seeded."""
    stats = statistics(s)
    m = s.samples["correct"].shape[1]
    correct = s.samples["correct"]
    drawn = np.full(len(correct), m)
    right, traced = np.array(stats.correct), np.array(stats.trace_ok)
    noise = np.random.default_rng([seed, 1]).random(correct.shape)  # (P, M); row-major, so it depends on M
    accepted = noise < np.where(correct, tpr, fpr)
    covered = traced if accuracy_of(chance, m) == "trace" else right
    price = _Price(s, shape, cost, batch_rows)

    out = [price.row("greedy", 1, s.greedy["correct"][:, 0].astype(float), s.greedy, batch=1)]
    for n in counts(m):
        values = {
            "majority": estimators.majority(stats.correct, stats.wrong, stats.unread, n, seed=seed),
            "best_verified": estimators.best_of(correct, correct.astype(float), n),
            "best_steps": estimators.best_of(correct, s.samples["verified"].astype(float), n),
            "best_logprob": estimators.best_of(correct, s.samples["logprob"], n),
            "best_noisy": estimators.best_of(correct, accepted.astype(float), n),
            "pass": estimators.pass_at_k(covered, drawn, n),
        }
        if n == 1:
            values = {"sample": right / m, **values}
        for strategy, value in values.items():
            for arm in ("batched", "sequential") if n > 1 else ("batched",):
                out.append(price.row(strategy, n, value, s.samples, batch=n, arm=arm))
        draws = estimators.first_verified_draws(right, drawn, n)
        found = estimators.pass_at_k(right, drawn, n)
        # At most one right sample is drawn, the last; right and wrong ones may differ in length
        wrong = np.maximum(m - right, 1)[:, None]
        drawn_of = np.where(correct, (found / np.maximum(right, 1))[:, None], (draws - found)[:, None] / wrong)
        out.append(price.row("first_verified", n, found, s.samples, batch=n, arm="sequential", drawn=drawn_of))
    if s.search is not None:
        value = s.search["correct"][:, 0].astype(float)
        out.append(price.searched(width, value, s.search, lengths=s.search["length"]))
    return out


class _Price:
    """Costs per query of rows of one cell."""

    def __init__(self, s: Sampled, shape: Shape, cost: CostModel, batch_rows: int) -> None:
        self._s, self._shape, self._cost, self._batch_rows = s, shape, cost, batch_rows
        self._loads: dict[tuple[int, int], tuple[Load, float]] = {}
        # `flops.sample_flop` of thousands of rows at once: it is linear in the rows fed and the positions they attend to
        self._per_row, self._per_position = passes_flop(shape, 1, 0), passes_flop(shape, 0, 1)
        self._last: tuple[np.ndarray, tuple[float, float]] | None = None
        self.prefill = float(np.mean([prefill_flop(shape, n, last_head=True) for n in s.prompt.tolist()]))

    def _dense(self, n: int) -> float:
        """Executed FLOP of a query's prefill, padded to the longest prompt beside it."""
        parts = batches_of(self._s.prompt, n, self._batch_rows)
        longest = [int(self._s.prompt[p].max()) for p in parts]
        each = [prefill_flop(self._shape, n, causal=False, last_head=True) for n in longest]
        return float(np.average(each, weights=[len(p) for p in parts]))

    def _load(self, table: Arrays, n: int) -> tuple[Load, float]:
        key = (id(table["length"]), n)
        if key not in self._loads:
            self._loads[key] = load_of(self._s.prompt, table["length"], n, self._batch_rows)
        return self._loads[key]

    def row(
        self,
        strategy: str,
        n: int,
        value: np.ndarray,
        table: Arrays,
        *,
        batch: int,
        arm: str = "batched",
        drawn: np.ndarray | None = None,
    ) -> TtcRow:
        """`drawn` (P, M): how often each sample is expected to be drawn, where that is not n / M."""
        length, forced = table["length"], table["forced"]
        fed = np.maximum(length - 1, 0)
        attended = fed * self._s.prompt[:, None] + fed * (fed + 1) // 2
        flop = fed * self._per_row + attended * self._per_position
        drawn = np.full(length.shape, n / length.shape[1]) if drawn is None else drawn
        turns = 1.0 if arm == "batched" else float(drawn.sum(1).mean())
        load, passes = self._load(table, batch if arm == "batched" else 1)
        return self._finish(
            strategy,
            n,
            value,
            arm,
            tokens=float((drawn * length).sum(1).mean()),
            forced=float((drawn * forced).sum(1).mean()),
            decode=float((drawn * flop).sum(1).mean()),
            load=load.times(turns),
            passes=passes * turns,
            metered=n if arm == "batched" and strategy != "greedy" else None,
        )

    def _interval(self, value: np.ndarray) -> tuple[float, float]:
        """The two arms of a strategy share their answers, so their interval too."""
        if self._last is None or self._last[0] is not value:
            self._last = value, estimators.interval(value, self._s.problems.cluster)
        return self._last[1]

    def searched(self, width: int, value: np.ndarray, table: Arrays, lengths: np.ndarray) -> TtcRow:
        load = Load(*(float(table[k].mean()) for k in ("passes", "row_passes", "context")))
        forced = float(table["forced"].mean())
        passes = np.mean([table["passes"][i : i + PROBLEMS].sum() for i in range(0, len(value), PROBLEMS)])
        decode = float(table["flop"].mean())
        return self._finish(
            "step_search",
            width,
            value,
            "batched",
            float(lengths.mean()),
            forced,
            decode,
            load,
            float(passes),
            metered=None,
        )

    def _finish(
        self,
        strategy: str,
        n: int,
        value: np.ndarray,
        arm: str,
        tokens: float,
        forced: float,
        decode: float,
        load: Load,
        passes: float,
        metered: int | None,
    ) -> TtcRow:
        low, high = self._interval(value)
        undefined = not np.isfinite(value).all()
        seconds = self._cost.seconds(load, metered)
        energy, energy_se, basis = self._cost.joules(load, metered)
        return TtcRow(
            strategy=strategy,
            n=n,
            accuracy=None if undefined else float(value.mean()),
            accuracy_low=None if undefined else low,
            accuracy_high=None if undefined else high,
            reason="fewer samples than n were drawn" if undefined else None,
            tokens=tokens,
            forced_tokens=forced,
            prefill_flop=self.prefill,
            decode_flop=decode,
            verify_flop=0.0,
            executed_flop=self._dense(n if arm == "batched" else 1)
            + self._per_row * load.row_passes
            + self._per_position * load.context,
            passes=passes,
            wall_s=seconds[0],
            wall_basis=seconds[1],
            energy_j=energy,
            energy_se_j=energy_se,
            energy_basis=basis,
            energy_reason=self._cost.energy_reason if energy is None else None,
            arm=arm,
        )


def smooth(logprob: np.ndarray, brier: np.ndarray, cluster: np.ndarray) -> Smooth:
    """Likelihoods of the reference trace; ln p and Brier scores (P, T), NaN where not scored."""
    p = np.exp(logprob)
    scored = np.isfinite(logprob)
    trace = np.exp(np.where(scored, logprob, 0.0).sum(1))
    order = np.argsort(~scored, axis=1, kind="stable")
    first = np.take_along_axis(p, order, 1)[:, : int(scored.sum(1).max())]
    # Of the mean over tokens, like `p_token` itself: traces differ in length, and a cluster brings all of its tokens
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
