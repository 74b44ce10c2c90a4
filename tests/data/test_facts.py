"""The facts corpus: its entropy is what enumeration and sampling say, and every batch is a pure
function of (seed, step).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.schema import FactsConfig
from harness.data.corpora import open_corpus
from harness.data.facts import FactsCorpus
from harness.errors import CorpusError

SMALL = FactsConfig(context=9, vocab=5, keys=11, zipf_a=0.7, val_tokens=9 * 40)


def corpus(**changes) -> FactsCorpus:
    return FactsCorpus(FactsConfig(**{**vars(SMALL), **changes}))


def triplets(c: FactsCorpus) -> dict[tuple[int, int, int], float]:
    """(k1, k2, v) -> probability, from the table itself."""
    p = np.arange(1, c.config.keys + 1, dtype=float) ** -(1 + c.config.zipf_a)
    p /= p.sum()
    return {
        (int(key) // c.vocab, int(key) % c.vocab, int(value)): float(q)
        for key, value, q in zip(c._key_of_rank, c._value_of_rank, p, strict=True)
    }


def conditional_entropy_nat(joint: dict[tuple[int, ...], float], known: int) -> float:
    """H(token number `known` | the ones before it), by summing over everything."""
    total = 0.0
    for prefix in {t[:known] for t in joint}:
        inside = {t: q for t, q in joint.items() if t[:known] == prefix}
        mass = sum(inside.values())
        for token in {t[known] for t in inside}:
            q = sum(x for t, x in inside.items() if t[known] == token)
            total -= q * math.log(q / mass)
    return total


@pytest.mark.parametrize("changes", [{}, {"zipf_a": 2.0}, {"keys": 25}, {"vocab": 2, "keys": 2}, {"table_seed": 9}])
def test_floor_against_brute_force(changes: dict) -> None:
    c = corpus(**changes)
    joint = triplets(c)
    assert sum(joint.values()) == pytest.approx(1)
    per_token = [conditional_entropy_nat(joint, known) for known in range(3)]
    assert per_token[2] == pytest.approx(0, abs=1e-12), "a key has one value"
    assert c.floor_nat == pytest.approx(sum(per_token) / 3, rel=1e-12)
    assert c.entropy_key_nat == pytest.approx(sum(per_token[:2]), rel=1e-12)
    assert c.info["floor_nat"] == c.floor_nat


def true_loss_nat(c: FactsCorpus, tokens: np.ndarray) -> np.ndarray:
    """-ln p of each scored token of windows (n, context + 1) under the true distribution; shape (n,
    context).
    """
    joint = triplets(c)
    first = {a: sum(q for t, q in joint.items() if t[0] == a) for a in range(c.vocab)}
    pair = {t[:2]: q for t, q in joint.items()}
    rows = []
    for window in tokens.tolist():
        nat = []
        for i in range(1, len(window)):
            match i % 3:
                case 0:
                    nat.append(-math.log(first[window[i]]))
                case 1:
                    nat.append(-math.log(pair[window[i - 1], window[i]] / first[window[i - 1]]))
                case _:
                    assert (window[i - 2], window[i - 1], window[i]) in joint, "the value is the key's"
                    nat.append(0.0)
        rows.append(nat)
    return np.array(rows)


def test_fresh_samples_lose_the_floor_under_the_truth() -> None:
    c = corpus()
    tokens = np.concatenate([c.train_batch(0, step, 100).tokens for step in range(40)])
    per_window = true_loss_nat(c, tokens).mean(1)
    se = per_window.std(ddof=1) / math.sqrt(len(per_window))
    assert abs(per_window.mean() - c.floor_nat) < 4 * se
    assert se < 0.01 * c.floor_nat, "the test could not see an error of 4 %"


def test_each_window_scores_a_third_of_each_kind() -> None:
    """Windows start at a triplet and end with the first token of the next, so the floor is exact at
    any context.
    """
    c = corpus()
    batch = c.train_batch(0, 0, 3)
    assert batch.tokens.shape == (3, 10)
    assert batch.mask.shape == (3, 9)
    assert batch.mask.all()
    assert batch.positions is None
    keys = set(triplets(c))
    for row in batch.tokens.tolist():
        assert all(tuple(row[i : i + 3]) in keys for i in (0, 3, 6))


def test_oracle_is_the_true_loss_of_the_validation_tokens() -> None:
    c = corpus()
    tokens = np.concatenate([b.tokens for b in c.val_batches(7)])
    assert tokens.shape == (40, 10)
    assert c.val_oracle_nat() == pytest.approx(true_loss_nat(c, tokens).mean(), rel=1e-12)
    large = corpus(val_tokens=9 * 20_000)
    assert large.val_oracle_nat() == pytest.approx(large.floor_nat, rel=0.01)


# --- purity --------------------------------------------------------------------------------------
@given(st.integers(0, 2**40), st.integers(0, 500), st.integers(1, 9))
@settings(max_examples=40)
def test_batches_are_pure_and_random_access(seed: int, step: int, sequences: int) -> None:
    a, b = corpus(), corpus()
    b.train_batch(1, 3, 2)  # whatever was read before
    found = a.train_batch(seed, step, sequences)
    assert np.array_equal(found.tokens, b.train_batch(seed, step, sequences).tokens)
    one_by_one = [a.train_batch(seed, i, 1).tokens for i in range(step * sequences, (step + 1) * sequences)]
    assert np.array_equal(found.tokens, np.concatenate(one_by_one)), "the stream does not depend on the batch size"
    assert found.tokens.dtype == np.int64
    assert found.tokens.min() >= 0
    assert found.tokens.max() < a.vocab


def test_validation_does_not_depend_on_its_batches() -> None:
    c = corpus()
    whole = np.concatenate([b.tokens for b in c.val_batches(40)])
    for sequences in (1, 7, 1000):
        assert np.array_equal(np.concatenate([b.tokens for b in c.val_batches(sequences)]), whole)
    assert c.info["val_tokens"] == 360


def test_streams_are_distinct() -> None:
    """Training streams of different seeds, and validation, share no window beyond chance, even
    where the seed is the table's.
    """
    c = corpus(vocab=64, keys=4000, zipf_a=0.3, context=63, val_tokens=63 * 200)
    seeds = [0, 1, 2, c.config.table_seed]
    sets = [{w.tobytes() for w in c.train_batch(seed, 0, 200).tokens} for seed in seeds]
    sets.append({w.tobytes() for b in c.val_batches(50) for w in b.tokens})
    assert all(len(s) == 200 for s in sets)
    assert all(not (a & b) for a, b in itertools.combinations(sets, 2))


def test_the_table_is_not_the_runs_seed() -> None:
    a, b = corpus(), corpus(table_seed=1)
    assert triplets(a) == triplets(corpus())
    assert triplets(a) != triplets(b)


# --- repetition ----------------------------------------------------------------------------------
def test_a_cap_repeats_the_same_sequences_in_a_new_order() -> None:
    c = corpus(vocab=64, keys=4000, unique_tokens=9 * 10 + 5)  # ten whole sequences
    epochs = [c.train_batch(3, epoch, 10).tokens for epoch in range(4)]
    sets = [sorted(w.tobytes() for w in e) for e in epochs]
    assert all(s == sets[0] for s in sets)
    assert len(set(sets[0])) == 10
    assert len({e.tobytes() for e in epochs}) == 4, "each epoch has its own order"
    fresh = corpus(vocab=64, keys=4000).train_batch(3, 0, 10).tokens
    assert sorted(w.tobytes() for w in fresh) == sets[0], "nested: the first sequences of the uncapped stream"


def test_batches_across_an_epochs_end() -> None:
    c = corpus(vocab=64, keys=4000, unique_tokens=9 * 10)
    by_sevens = np.concatenate([c.train_batch(3, step, 7).tokens for step in range(10)])
    by_tens = np.concatenate([c.train_batch(3, step, 10).tokens for step in range(7)])
    assert np.array_equal(by_sevens, by_tens)


@pytest.mark.parametrize(("tokens", "unique"), [(9, 9), (90, 90), (91, 90), (10_000, 90)])
def test_unique_tokens_of_a_cap(tokens: int, unique: int) -> None:
    assert corpus(unique_tokens=94).unique_tokens(tokens) == unique
    assert corpus().unique_tokens(tokens) == tokens


# --- refused -------------------------------------------------------------------------------------
def test_all_problems_at_once() -> None:
    with pytest.raises(CorpusError) as e:
        corpus(context=10, keys=26, zipf_a=0)
    for words in ("corpus.context=10", "Use corpus.context=9", "corpus.keys=26", "25 pairs", "corpus.zipf_a=0"):
        assert words in str(e.value)


def test_open_corpus_dispatches() -> None:
    assert open_corpus(SMALL, tokens_needed=10**9).info["kind"] == "facts"
    assert open_corpus(SMALL, 0).info["files"] == []
