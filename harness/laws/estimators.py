"""Estimates from n_max samples per problem: pass@k, majority, best-of-n, and intervals that
resample problems. numpy only.

Everything is an average over random n-subsets of the samples drawn, never over the first n and
never over one permutation: in closed form where there is one, else by seeded draws. P problems, M
samples each. Undefined values are NaN here and None in records.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from harness.laws.gram import Array, Column

Z95 = NormalDist().inv_cdf(0.975)  # standard deviations of a normal law in half its 95 % interval


def pass_at_k(correct: Column, samples: Column, k: int) -> Array:
    """Unbiased pass@k per problem (P,): 1 - C(n - c, k)/C(n, k); NaN where n < k (Chen et al. 2021,
    arXiv:2107.03374)."""
    c, n = np.asarray(correct, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    steps = np.arange(k)
    with np.errstate(invalid="ignore", divide="ignore"):
        factors = np.clip((n - c)[:, None] - steps, 0, None) / (n[:, None] - steps)
        value = 1 - factors.prod(axis=1)
    return np.where(n < k, np.nan, value)


def majority(
    correct: Sequence[int],
    wrong: Sequence[Sequence[int]],
    unread: Sequence[int],
    n: int,
    *,
    draws: int = 200,
    seed: int = 0,
) -> Array:
    """Chance (P,) that the most frequent answer of a random n-subset is right; ties share the
    credit, unread samples never win.

    `wrong[i]` holds the counts of each distinct wrong answer. No closed form: `draws` multivariate
    hypergeometric subsets; exact where n is 1 or all samples. NaN where fewer than n samples were
    drawn.
    """
    out = np.full(len(correct), np.nan)
    for i, (c, others, lost) in enumerate(zip(correct, wrong, unread, strict=True)):
        counts = np.array([c, *others, lost], dtype=np.int64)
        total = int(counts.sum())
        if total < n:
            continue
        if n == 1:
            out[i] = c / total
            continue
        if n == total:
            votes = counts[None, :-1]
        else:
            rng = np.random.default_rng([seed, i, n])
            votes = rng.multivariate_hypergeometric(counts, n, size=draws)[:, :-1]
        top = votes.max(axis=1)
        tied = (votes == top[:, None]).sum(axis=1)
        out[i] = float(((votes[:, 0] == top) & (top > 0)).astype(float).dot(1 / tied) / len(votes))
    return out


def best_of(ok: Column, score: Column, n: int) -> Array:
    """Chance (P,) that the sample of highest `score` (P, M) among a random n-subset is `ok` (P, M);
    ties share the credit.

    Closed form: sorted by score, the j-th best of M wins with probability C(M - j, n - 1)/C(M, n).
    NaN where n > M.
    """
    problems, m = (int(size) for size in ok.shape)
    if n > m:
        return np.full(problems, np.nan)
    # weight[j] = C(m - 1 - j, n - 1) / C(m, n), by its recurrence
    weight = np.zeros(m)
    weight[0] = n / m
    for j in range(1, m - n + 1):
        weight[j] = weight[j - 1] * (m - n - j + 1) / (m - j)
    out = np.empty(problems)
    for i in range(problems):
        order = np.argsort(-score[i], kind="stable")
        ranked, right = score[i][order], ok[i][order].astype(float)
        start = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        size = np.diff(np.r_[start, m])
        shared = np.add.reduceat(right, start) / size
        out[i] = float(np.add.reduceat(weight, start).dot(shared))
    return out


def first_verified_draws(correct: Column, samples: Column, n: int) -> Array:
    """Expected draws (P,) until an exact verifier accepts one, at most n: sum over j < n of
    C(M - c, j)/C(M, j). NaN where n > M."""
    c, m = np.asarray(correct, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    total, still = np.zeros(len(c)), np.ones(len(c))
    for j in range(n):
        total += still
        with np.errstate(invalid="ignore", divide="ignore"):
            still = still * np.clip(m - c - j, 0, None) / (m - j)
    return np.where(m < n, np.nan, total)


def interval(values: Column, cluster: Column, *, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` (P,), shares of 1, resampling whole
    clusters.

    All right or all wrong has no spread to resample: then the rule of three, 3 / clusters, at that
    end. NaN values are left out.
    """
    values, cluster = np.asarray(values, dtype=np.float64), np.asarray(cluster)
    known = np.isfinite(values)
    if not known.any():
        return float("nan"), float("nan")
    low_end, high_end = (values[known] == 0).all(), (values[known] == 1).all()
    if low_end or high_end:
        edge = min(1.0, 3 / len(np.unique(cluster[known])))
        return (0.0, edge) if low_end else (1 - edge, 1.0)
    member, weight = resample_clusters(cluster[known], draws, seed)
    sums, sizes = np.bincount(member, weights=values[known]), np.bincount(member)
    means = (weight @ sums) / (weight @ sizes)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def resample_clusters(cluster: Column, draws: int, seed: int) -> tuple[Column, Column]:
    """Clusters drawn whole, with replacement: the index of each row's cluster (P,), and how often
    each is drawn (draws, clusters)."""
    _, member = np.unique(cluster, return_inverse=True)
    groups = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    return member, rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)


def cluster_weights(cluster: Sequence[int], draws: int, seed: int) -> Array:
    """The weight of each row (draws, P) in means over resampled clusters; the rows of the result
    sum to 1. Read-only."""
    return _cluster_weights(tuple(cluster), draws, seed)


@functools.lru_cache(maxsize=16)  # the cells of a study hold the same problems
def _cluster_weights(cluster: tuple[int, ...], draws: int, seed: int) -> Array:
    member, counts = resample_clusters(np.asarray(cluster), draws, seed)
    weight = counts[:, member].astype(float)
    weight /= weight.sum(1, keepdims=True)
    weight.flags.writeable = False
    return weight
