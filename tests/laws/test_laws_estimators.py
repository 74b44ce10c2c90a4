"""Estimates from repeated samples against brute force over every subset, and their undefined
cases.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.laws import estimators


@given(st.integers(0, 6), st.integers(1, 6))
def test_pass_at_k_is_the_mean_over_subsets(c: int, k: int) -> None:
    c = min(c, 6)
    right = np.arange(6) < c
    brute = np.mean([right[list(s)].any() for s in combinations(range(6), k)])
    assert estimators.pass_at_k(np.array([c]), np.array([6]), k)[0] == pytest.approx(brute)


def test_pass_at_more_than_was_drawn_is_undefined() -> None:
    assert np.isnan(estimators.pass_at_k(np.array([3]), np.array([8]), 9)[0])
    assert np.isnan(estimators.best_of(np.ones((1, 4), bool), np.ones((1, 4)), 5)[0])
    assert np.isnan(estimators.majority([3], [[1]], [0], 5)[0])
    assert np.isnan(estimators.first_verified_draws(np.array([1]), np.array([4]), 5)[0])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=5, max_size=5), st.integers(1, 5))
def test_best_of_is_the_mean_over_subsets_with_shared_ties(drawn: list[tuple[bool, int]], n: int) -> None:
    ok, score = np.array([d[0] for d in drawn]), np.array([float(d[1]) for d in drawn])

    def chosen(s: tuple[int, ...]) -> float:
        index = np.array(s)
        best = index[score[index] == score[index].max()]
        return float(ok[best].mean())

    brute = np.mean([chosen(s) for s in combinations(range(5), n)])
    assert estimators.best_of(ok[None], score[None], n)[0] == pytest.approx(brute)


def test_majority_is_the_mean_over_subsets_with_shared_ties_and_never_elects_the_unread() -> None:
    # three right, two and one wrong, two that could not be read
    answers = np.array([0, 0, 0, 1, 1, 2, -1, -1])

    def elected(s: tuple[int, ...]) -> float:
        votes = np.bincount(answers[list(s)][answers[list(s)] >= 0], minlength=3)
        return float(votes[0] == votes.max() and votes.max() > 0) / max(1, (votes == votes.max()).sum())

    for n in (1, 3, 5, 8):
        brute = np.mean([elected(s) for s in combinations(range(8), n)])
        found = estimators.majority([3], [[2, 1]], [2], n, draws=20_000)[0]
        assert found == pytest.approx(brute, abs=0.01 if n not in (1, 8) else 1e-12)
    assert estimators.majority([0], [[]], [4], 2)[0] == 0.0


@given(st.integers(0, 6), st.integers(1, 6))
def test_first_verified_stops_at_the_first_right_one(c: int, n: int) -> None:
    right = np.arange(6) < c
    orders = [np.random.default_rng(i).permutation(right)[:n] for i in range(4000)]
    brute = np.mean([(int(o.argmax()) + 1) if o.any() else n for o in orders])
    assert estimators.first_verified_draws(np.array([c]), np.array([6]), n)[0] == pytest.approx(brute, abs=0.12)


def test_interval_resamples_clusters_and_knows_the_ends() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 8)
    shared = np.repeat(rng.random(40) < 0.5, 8).astype(float)  # all problems of a cluster alike
    wide = np.ptp(estimators.interval(shared, group))
    narrow = np.ptp(estimators.interval(shared, np.arange(320)))
    assert wide > 2 * narrow
    assert estimators.interval(np.ones(30), np.arange(30)) == (pytest.approx(0.9), 1.0)
    assert estimators.interval(np.zeros(30), np.arange(30)) == (0.0, pytest.approx(0.1))


def test_interval_equals_the_percentiles_of_weighted_means() -> None:
    rng = np.random.default_rng(5)
    cluster, value = rng.integers(0, 30, 200), rng.random(200)
    weight = estimators.cluster_weights(cluster.tolist(), 500, 3)
    assert weight.sum(1) == pytest.approx(np.ones(500))
    ends = np.percentile(weight @ value, [2.5, 97.5])
    assert estimators.interval(value, cluster, draws=500, seed=3) == pytest.approx(tuple(ends), rel=1e-12)


def test_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for i in range(300):
        p = rng.beta(1, 2, size=120)
        c = rng.binomial(16, p)
        low, high = estimators.interval(c / 16, np.arange(120), draws=400, seed=i)
        hits += low <= 1 / 3 <= high
    assert 0.90 <= hits / 300 <= 0.99
