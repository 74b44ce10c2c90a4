"""What every strategy keeps to: a probability per problem, draws that n samples allow, and a price
per query that follows from them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from harness.tasks.task import NONE
from harness.ttc import score
from harness.ttc.strategies import STRATEGIES, Scored, Strategy
from tests.ttc.stub import SHAPE
from tests.ttc.test_score import UNMETERED, sampled

PROBLEMS, SAMPLES, WIDTH = 70, 8, 3
SCORING = score.Scoring(SHAPE, 0.0, 0.95, 0.05, beam_width=WIDTH, batch_rows=4096, seed=1)
# Answers that no strategy may be better or worse than: all right, and all wrong
EXACT = [name for name in STRATEGIES if name != "best_noisy"]


def cell(right: float) -> score.Sampled:
    """A cell whose answers are right in this share, with a step search beside them."""
    rng = np.random.default_rng(0)
    answer = np.where(rng.random((PROBLEMS, SAMPLES)) < right, 2, rng.integers(3, 6, (PROBLEMS, SAMPLES)))
    answer = np.where((rng.random(answer.shape) < 0.1) & (answer != 2), NONE, answer)
    s = sampled(answer == 2, answer, rng.integers(0, 5, answer.shape))
    costs = {k: rng.random(PROBLEMS) + 1 for k in ("flop", "passes", "row_passes", "context")}
    return dataclasses.replace(s, search={**s.greedy, **costs})


def sizes(strategy: Strategy) -> list[int]:
    if strategy.uses == "search":
        return [WIDTH]
    return [1] if strategy.uses == "greedy" else score.counts(strategy.max_n or SAMPLES)


def scored(right: float) -> Scored:
    return score._scored(cell(right), SCORING, SAMPLES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_accuracy_is_a_probability_per_problem(name: str) -> None:
    strategy = STRATEGIES[name]
    for n in sizes(strategy):
        accuracy = strategy.accuracy(scored(0.4), n)
        assert (accuracy.shape, accuracy.dtype) == ((PROBLEMS,), np.float64)
        assert 0 <= accuracy.min() <= accuracy.max() <= 1
        assert np.array_equal(accuracy, strategy.accuracy(scored(0.4), n)), "the same samples give the same score"


@pytest.mark.parametrize("name", EXACT)
def test_samples_that_are_all_right_or_all_wrong_leave_no_choice(name: str) -> None:
    strategy = STRATEGIES[name]
    for n in sizes(strategy):
        assert strategy.accuracy(scored(1.0), n) == pytest.approx(1.0)
        assert strategy.accuracy(scored(0.0), n) == pytest.approx(0.0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_more_is_drawn_than_n_samples(name: str) -> None:
    strategy = STRATEGIES[name]
    if strategy.draws is None:
        return
    for right in (0.0, 0.4, 1.0):
        for n in sizes(strategy):
            draws = strategy.draws(scored(right), n)
            assert draws.shape == (PROBLEMS, SAMPLES)
            assert draws.min() >= 0
            assert draws.sum(1).max() <= n + 1e-9
            assert draws.sum(1).min() >= 1 - 1e-9


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_of_a_record(name: str) -> None:
    strategy = STRATEGIES[name]
    rows = [r for r in score.rows(cell(0.4), SCORING, UNMETERED) if r.strategy == name]
    assert {(r.n, r.order) for r in rows} == {
        (n, order) for n in sizes(strategy) for order in (strategy.orders[:1] if n == 1 else strategy.orders)
    }
    for row in rows:
        assert row.accuracy is not None
        assert row.accuracy_low is not None
        assert row.accuracy_high is not None
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
        assert min(row.tokens, row.prefill_flop, row.decode_flop, row.passes) > 0
        assert row.wall_s is row.energy_j is None
        assert row.energy_reason == "no meter"
