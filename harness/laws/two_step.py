"""Loss -> accuracy in two steps (OLMo's ladder, arXiv:2412.04403; Gadre et al., arXiv:2403.08540):
a law predicts the loss, a second one turns loss into accuracy or error. The interval carries both:
each draw of the loss law is sent through one draw of the second, so a loss that is not pinned
widens the accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.errors import FitError
from harness.laws.catalogue import law_of
from harness.laws.gram import Array
from harness.laws.predict import predict
from harness.laws.result import Fit
from harness.laws.table import Table


@dataclass
class TwoStep:
    """Predictions per row; intervals are (2, n). `second_only` keeps the loss at its point value:
    what a report that forgets the first step would print."""

    loss: Array
    score: Array
    interval: Array | None
    second_only: Array | None


def two_step(
    first: Fit, second: Fit, table: Table, level: float = 0.95, *, force: bool = False, extrapolate: bool = False
) -> TwoStep:
    """`first` predicts loss at the rows of `table`; `second` has the symbol `loss` (accuracy_loss,
    error_loss).

    Intervals are None unless both fits hold draws. Raises as `predict` does, and for a second law
    of another symbol.
    """
    two = law_of(second)
    if two.symbols != ("loss",) or law_of(first).y != "loss":
        raise FitError(f"two steps need a law of loss and one of its consequences; got {first.law} and {second.law}.")
    loss = predict(first, table, force=force, extrapolate=extrapolate)
    score = predict(second, {"loss": loss}, force=force, extrapolate=extrapolate)
    if not first.draws or not second.draws:
        return TwoStep(loss, score, None, None)
    losses = law_of(first).value(_drawn(first, len(next(iter(first.draws.values())))), table)
    count = len(next(iter(second.draws.values())))
    params = _drawn(second, count)
    tails = [(1 - level) / 2, (1 + level) / 2]
    alone = np.quantile(two.value(params, {"loss": loss}), tails, axis=0)
    # The fits are independent given their data, so any pairing of draws is one of the joint
    # distribution
    pick = np.random.default_rng(first.bootstrap.get("seed", 0)).integers(0, len(losses), count)
    scores = np.stack([two.value(params, {"loss": losses[pick, i][:, None]})[:, 0] for i in range(losses.shape[1])], 1)
    return TwoStep(loss, score, np.quantile(scores, tails, axis=0), alone)


def _drawn(fit: Fit, count: int) -> dict[str, Array]:
    return {n: np.asarray(fit.draws.get(n, [v] * count))[:, None] for n, v in fit.params.items()}
