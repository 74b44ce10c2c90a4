"""What can be done with the samples of a problem: the table of strategies, from a name to how it is
scored.

P problems, M samples each. Add a strategy by adding a row to STRATEGIES; after correcting one,
raise SCORER_VERSION. Either way studies that were evaluated before are scored again from their
stored samples at the next `harness ttc`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.laws import estimators
from harness.records import Json
from harness.records.ttc import ProblemStats

SCORER_VERSION = 1  # of what a strategy of the same name computes


@dataclass(frozen=True)
class Scored:
    """The answers of one cell, as strategies see them."""

    greedy_correct: np.ndarray  # (P,) bool
    search_correct: np.ndarray | None  # (P,) bool; None without a step search
    correct: np.ndarray  # (P, M) bool
    steps: np.ndarray  # (P, M) steps that the task's verifier accepts, from the first on
    logprob: np.ndarray  # (P, M) of the generated tokens, nat
    length: np.ndarray  # (P, M) generated tokens
    accepted: np.ndarray  # (P, M) bool, by the noisy verifier
    # (P,) samples that count for coverage: right answers, or verified traces where answers are few
    covered: np.ndarray
    stats: ProblemStats
    seed: int

    @property
    def right(self) -> np.ndarray:
        """Right samples of each problem, (P,)."""
        return np.array(self.stats.correct)

    @property
    def drawn(self) -> np.ndarray:
        """Samples of each problem, (P,)."""
        return np.full(len(self.correct), self.correct.shape[1])


@dataclass(frozen=True)
class Strategy:
    """How one strategy turns samples into an answer.

    `accuracy` gives for each problem the probability of a right answer with n samples, (P,), NaN
    where it is undefined. `draws` gives how often each sample is expected to be drawn, (P, M);
    without it all n are drawn, so n / M. `uses` names the rows that are paid for: the samples, the
    greedy row (n is 1), or the step search (n is its width). `orders` says in which order samples
    can be drawn.
    """

    accuracy: Callable[[Scored, int], np.ndarray]
    uses: Literal["samples", "greedy", "search"] = "samples"
    orders: tuple[Literal["batched", "sequential"], ...] = ("batched", "sequential")
    draws: Callable[[Scored, int], np.ndarray] | None = None
    max_n: int | None = None  # None: the number of samples


def _greedy(s: Scored, n: int) -> np.ndarray:
    return s.greedy_correct.astype(float)


def _sample(s: Scored, n: int) -> np.ndarray:
    return s.right / s.drawn


def _majority(s: Scored, n: int) -> np.ndarray:
    return estimators.majority(s.stats.correct, s.stats.wrong, s.stats.unread, n, seed=s.seed)


def _best_verified(s: Scored, n: int) -> np.ndarray:
    return estimators.best_of(s.correct, s.correct.astype(float), n)


def _best_steps(s: Scored, n: int) -> np.ndarray:
    return estimators.best_of(s.correct, s.steps.astype(float), n)


def _best_logprob(s: Scored, n: int) -> np.ndarray:
    return estimators.best_of(s.correct, s.logprob, n)


def _best_noisy(s: Scored, n: int) -> np.ndarray:
    return estimators.best_of(s.correct, s.accepted.astype(float), n)


def _pass(s: Scored, n: int) -> np.ndarray:
    return estimators.pass_at_k(s.covered, s.drawn, n)


def _first_verified(s: Scored, n: int) -> np.ndarray:
    return estimators.pass_at_k(s.right, s.drawn, n)


def _first_verified_draws(s: Scored, n: int) -> np.ndarray:
    """At most one right sample is drawn, the last; right and wrong ones may differ in length."""
    draws = estimators.first_verified_draws(s.right, s.drawn, n)
    solved = _first_verified(s, n)
    wrong = np.maximum(s.drawn - s.right, 1)[:, None]
    return np.where(s.correct, (solved / np.maximum(s.right, 1))[:, None], (draws - solved)[:, None] / wrong)


def _step_search(s: Scored, n: int) -> np.ndarray:
    assert s.search_correct is not None
    return s.search_correct.astype(float)


STRATEGIES: dict[str, Strategy] = {
    "greedy": Strategy(_greedy, uses="greedy", orders=("batched",)),
    "sample": Strategy(_sample, max_n=1),
    "majority": Strategy(_majority),
    "best_verified": Strategy(_best_verified),
    "best_steps": Strategy(_best_steps),
    "best_logprob": Strategy(_best_logprob),
    "best_noisy": Strategy(_best_noisy),
    "pass": Strategy(_pass),
    "first_verified": Strategy(_first_verified, orders=("sequential",), draws=_first_verified_draws),
    "step_search": Strategy(_step_search, uses="search", orders=("batched",)),
}
"""Name -> strategy, in the order of a record's rows."""


def scorer() -> Json:
    """What an evaluation was scored by: stored with it, and compared at the next launch."""
    return {"version": SCORER_VERSION, "strategies": list(STRATEGIES)}
