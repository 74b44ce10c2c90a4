"""Scores against brute force over all subsets, costs against the engine's own counts, the model of
a pass against windows of known cost.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from harness.models.flops import sample_flop
from harness.records import Measured
from harness.records.ttc import TtcRow, Window
from harness.tasks.task import NONE, Control
from harness.ttc import score
from harness.ttc.decode import Request, Sampling, draw
from harness.ttc.metering import CostModel, Load, cost_model
from tests.ttc.stub import SHAPE, CopyTask
from tests.ttc.test_decode import decoders, model_of

UNMETERED = CostModel([], exact=False, energy_reason="no meter")


def sampled(correct: np.ndarray, answer: np.ndarray, verified: np.ndarray) -> score.Sampled:
    """A table of P problems and M samples; greedy is the first sample."""
    problems = CopyTask().problems(len(correct))
    rng = np.random.default_rng(0)
    table = {
        "answer": answer,
        "correct": correct,
        "verified": verified,
        "trace_ok": correct & (verified > 2),
        "truncated": np.zeros_like(correct),
        "length": rng.integers(2, 8, correct.shape),
        "forced": np.ones(correct.shape, dtype=np.int64),
        "logprob": rng.normal(size=correct.shape),
    }
    greedy = {k: v[:, :1] for k, v in table.items()}
    return score.Sampled(problems, np.full(len(correct), 7), greedy, table, None)


def rows(s: score.Sampled, chance: float = 0.0, batch_rows: int = 4096) -> dict[tuple[str, int, str], TtcRow]:
    scoring = score.Scoring(SHAPE, chance, 0.95, 0.05, beam_width=0, batch_rows=batch_rows, seed=0)
    found = score.rows(s, scoring, UNMETERED)
    return {(r.strategy, r.n, r.order): r for r in found}


def test_every_strategy_is_the_mean_over_all_subsets() -> None:
    rng = np.random.default_rng(1)
    answer = rng.integers(0, 4, (6, 6))
    correct = answer == 2
    answer[rng.random(answer.shape) < 0.1] = NONE
    correct &= answer == 2
    verified = rng.integers(0, 5, answer.shape)
    s = sampled(correct, answer, verified)
    table = rows(s)
    assert score.counts(6) == [1, 2, 4, 6]
    for n in (1, 2, 4, 6):
        subsets = [list(c) for c in itertools.combinations(range(6), n)]
        passed = np.mean([correct[:, c].any(1) for c in subsets])
        assert table["pass", n, "batched"].accuracy == pytest.approx(passed)
        assert table["best_verified", n, "batched"].accuracy == pytest.approx(passed)
        assert table["first_verified", n, "sequential"].accuracy == pytest.approx(passed)
        for strategy, values in (("best_steps", verified), ("best_logprob", s.samples["logprob"])):
            best = []
            for c in subsets:
                top = values[:, c] == values[:, c].max(1, keepdims=True)
                best.append(((correct[:, c] & top).sum(1) / top.sum(1)).mean())
            assert table[strategy, n, "batched"].accuracy == pytest.approx(np.mean(best)), strategy
        votes = [credit(answer[i, c], correct[i, c]) for c in subsets for i in range(6)]
        found = table["majority", n, "batched"].accuracy
        assert found == pytest.approx(
            np.mean(votes), abs=0.05 if n in (2, 4) else 1e-12
        )  # drawn subsets between one and all


def credit(answers: np.ndarray, right: np.ndarray) -> float:
    names, counts = np.unique(answers[answers != NONE], return_counts=True)
    if not len(names):
        return 0.0
    tied = names[counts == counts.max()]
    return float(np.isin(2, tied)) / len(tied) if right.any() else 0.0


def test_on_few_answers_coverage_counts_verified_traces() -> None:
    answer = np.full((4, 16), 2)
    correct = np.ones((4, 16), dtype=bool)
    verified = np.zeros((4, 16), dtype=np.int64)
    s = sampled(correct, answer, verified)
    assert score.accuracy_of(1 / 60, 16) == "trace"
    assert score.accuracy_of(1e-6, 16) == "answer"
    assert rows(s, 1 / 60)["pass", 16, "batched"].accuracy == 0.0
    assert rows(s, 1e-6)["pass", 16, "batched"].accuracy == 1.0


@pytest.mark.parametrize("readable", [True, False])
def test_all_wrong_and_nothing_readable_are_zero_with_an_interval(readable: bool) -> None:
    answer = np.full((30, 4), 1 if readable else NONE)
    s = sampled(np.zeros((30, 4), dtype=bool), answer, np.zeros((30, 4), dtype=np.int64))
    for row in rows(s).values():
        assert row.accuracy == 0.0
        assert (row.accuracy_low, row.accuracy_high) == (0.0, pytest.approx(0.1)), "rule of three"
        assert row.reason is None
    stats = score.statistics(s)
    assert stats.unread == [0 if readable else 4] * 30
    assert stats.wrong == [[4] if readable else []] * 30


@pytest.mark.parametrize(("n", "batch_rows"), [(1, 10_000), (4, 10_000), (1, 3), (4, 12), (4, 3)])
def test_costs_of_n_are_those_of_drawing_n(n: int, batch_rows: int) -> None:
    """The lockstep replayed on the lengths gives the engine's own passes and FLOP, waiting rows
    included.
    """
    task = CopyTask(sizes=(5, 3, 4), room=9)
    problems, control = task.problems(20), Control(max_states=6)
    request = Request(decoders(model_of())["own"], task, problems, control)
    drawn = draw(request, n, Sampling(temperature=3.0, seed=5, batch_rows=batch_rows))
    lengths = drawn.lengths.reshape(20, n)
    assert len(np.unique(lengths)) > 2
    prompt = np.array([len(p) for p in task.prompts(problems, control)[0]])
    load, passes = score.load_of(prompt, lengths, n, batch_rows)
    assert passes * len(score.batches_of(prompt, n, batch_rows)) == pytest.approx(drawn.passes)
    assert load.row_passes * 20 == pytest.approx(drawn.row_passes)
    assert load.context * 20 == pytest.approx(drawn.context_sum)
    correct = np.zeros((20, n), dtype=bool)
    s = sampled(correct, correct.astype(int), correct.astype(int))
    s = score.Sampled(problems, prompt, s.greedy, {**s.samples, "length": lengths, "forced": lengths * 0}, None)
    row = rows(s, batch_rows=batch_rows)["majority", n, "batched"]
    assert row.executed_flop * 20 == pytest.approx(drawn.executed_flop)
    assert row.decode_flop * 20 == pytest.approx(drawn.decode_flop)
    assert row.prefill_flop * 20 == pytest.approx(drawn.prefill_flop)
    assert row.tokens * 20 == pytest.approx(drawn.lengths.sum())


def test_the_cost_of_a_pass_is_recovered_and_predicts_the_window_held_out() -> None:
    true = np.array([1e-3, 2e-5, 3e-7])

    def window(n: int, queries: int) -> tuple[Window, Load]:
        load = Load(10, 10 * n * queries, 10 * n * queries * (20 + 3 * n))
        wall = float(true @ load.numbers())
        energy = Measured(energy_j=50 * wall, energy_se_j=0.01, source="replay", verdict="valid")
        return Window("decode", n, n * queries, queries, 10, 20.0 + 3 * n, wall, energy), load

    first = Window("prefill", 1, 64, 64, 1, 20.0, 0.064, Measured(energy_j=3.2))
    parts = [window(1, 64), window(4, 64), window(16, 64), window(1, 1), window(1, 8)]
    windows, loads = [first, *(w for w, _ in parts)], [Load(), *(x for _, x in parts)]
    model = cost_model(windows, loads, exact=True)
    assert model.pass_s == pytest.approx(true, rel=1e-6)
    assert model.pass_j == pytest.approx(50 * true, rel=1e-6)
    (held,) = [w for w in windows if w.held_out]
    assert held.n == 4
    assert held.predicted_wall_s == pytest.approx(held.wall_s)
    load = Load(1.0, 8.0, 200.0)
    assert model.seconds(load, 8) == (pytest.approx(0.001 + true @ load.numbers()), "modelled")
    assert model.seconds(load, 16) == (pytest.approx(0.001 + windows[3].wall_s / 64), "metered")
    assert model.joules(load, 8)[2] == "modelled"

    refused = Measured(reason="WINDOW_TOO_SHORT: under 3 ticks", verdict="invalid", codes=["WINDOW_TOO_SHORT"])
    windows[1].energy = refused
    model = cost_model(windows, loads, exact=True)
    assert model.joules(load, 8) == (None, None, None)
    assert model.energy_reason == refused.reason
    assert model.seconds(load, 8)[1] == "modelled"


def test_smooth_numbers_by_hand() -> None:
    p = np.array([[0.5, np.nan, 0.25], [1.0, 0.5, np.nan]])
    found = score.smooth(np.log(p), p, np.arange(2))
    assert found.p_token == pytest.approx(2.25 / 4)
    assert found.p_trace == pytest.approx((0.125 + 0.5) / 2)
    assert found.ce_nat == pytest.approx(-np.log([0.5, 0.25, 1.0, 0.5]).mean())
    assert found.p_by_index == pytest.approx([0.75, 0.375])
    assert found.trace_tokens == 2


def test_tokens_until_the_first_verified_are_those_of_all_orders() -> None:
    """Right answers that are short and wrong ones that run on: draws times the mean length would be
    wrong.
    """
    correct = np.array([[True, False, False, True], [False, False, True, False], [False] * 4, [True] * 4])
    s = sampled(correct, correct.astype(int), correct.astype(int))
    length = np.where(correct, 2, 9) + np.arange(4)
    s = score.Sampled(s.problems, s.prompt, s.greedy, {**s.samples, "length": length, "forced": length // 2}, None)
    for n in (1, 2, 4):
        tokens, forced, flop = [], [], []
        for ok, long in zip(correct, length, strict=True):
            for order in itertools.permutations(range(4), n):
                stop = next((i for i, j in enumerate(order) if ok[j]), n - 1)
                kept = [int(long[j]) for j in order[: stop + 1]]
                tokens.append(sum(kept))
                forced.append(sum(k // 2 for k in kept))
                flop.append(sum(sample_flop(SHAPE, 7, k) for k in kept))
        row = rows(s)["first_verified", n, "sequential"]
        assert row.tokens == pytest.approx(np.mean(tokens))
        assert row.forced_tokens == pytest.approx(np.mean(forced))
        assert row.decode_flop == pytest.approx(np.mean(flop))


def test_the_interval_of_token_probability_is_of_the_mean_over_tokens() -> None:
    """Long traces weigh by their tokens in the estimate, so in its interval: short sure ones beside
    long poor ones.
    """
    p = np.full((200, 10), np.nan)
    p[:100, 0] = 0.99
    p[100:] = 0.1
    found = score.smooth(np.log(p), p, np.arange(200))
    assert found.p_token == pytest.approx((100 * 0.99 + 1_000 * 0.1) / 1_100)
    assert found.p_token_low < found.p_token < found.p_token_high
    # Brute force: the ratio of sums over resampled problems
    rng, sums, sizes = np.random.default_rng(7), np.nansum(p, 1), np.isfinite(p).sum(1)
    drawn = rng.integers(200, size=(4_000, 200))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    assert found.p_token_low == pytest.approx(low, abs=0.004)
    assert found.p_token_high == pytest.approx(high, abs=0.004)
