"""Joules of a plan: intervals from what was measured, nothing from what was not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness.analysis import forecast
from harness.analysis.forecast import Forecast, Rate
from harness.config import ladder
from harness.config.schema import BudgetConfig, LlamaConfig, RunConfig
from harness.sweep import plan

RUNG = ladder.resolve(RunConfig(model=LlamaConfig(width=64), budget=BudgetConfig(tokens=4_000_000)), 256, 63)
N = RUNG.counts.n_total
MEASURED = Rate(N, 1e10, 2e-9, 1e-11)


def test_a_measured_size_has_the_meter_s_error() -> None:
    out = forecast.estimate_cost(RUNG, [MEASURED])
    assert out.energy_j == pytest.approx(2e-9 * RUNG.spent_flop)
    assert out.low_j == pytest.approx((2e-9 - 1.96e-11) * RUNG.spent_flop)
    assert out.high_j == pytest.approx((2e-9 + 1.96e-11) * RUNG.spent_flop)


def test_the_interval_of_repeated_runs_holds_the_next_one() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        draws = 2e-9 * (1 + 0.05 * rng.standard_normal(5))
        out = forecast.estimate_cost(RUNG, [replace(MEASURED, j_per_flop=j, j_per_flop_se=0.0) for j in draws[:4]])
        assert out.low_j is not None
        assert out.high_j is not None
        covered += out.low_j <= draws[4] * RUNG.spent_flop <= out.high_j
    assert 0.92 <= covered / 400 <= 0.98


def test_another_size_lies_between_its_neighbours_or_is_without_interval() -> None:
    below, above = (
        replace(MEASURED, n_total=N // 2, j_per_flop=4e-9),
        replace(MEASURED, n_total=2 * N + 9, j_per_flop=1e-9),
    )
    out = forecast.estimate_cost(RUNG, [below, above])
    assert out.low_j == pytest.approx(1e-9 * RUNG.spent_flop)
    assert out.high_j is not None
    assert out.high_j >= 4e-9 * RUNG.spent_flop
    alone = forecast.estimate_cost(RUNG, [below])
    assert alone.energy_j is not None
    assert alone.low_j is None


@pytest.mark.parametrize(("near", "far", "truth"), [(N * 2 // 3, N // 3, 1.5e-9), (N * 3 // 2, N * 3, 6e-9)])
def test_beyond_all_measured_sizes_the_trend_may_go_on(near: int, far: int, truth: float) -> None:
    """Joules per FLOP fall with size: 4 and 2 nJ below the rung, or above it, make the next one
    lower, or higher.
    """
    small, large = 4e-9, 2e-9
    rates = [
        replace(MEASURED, n_total=near, j_per_flop=large if near < N else small),
        replace(MEASURED, n_total=far, j_per_flop=small if near < N else large),
    ]
    out = forecast.estimate_cost(RUNG, rates)
    assert out.low_j is not None
    assert out.high_j is not None
    assert out.low_j <= truth * RUNG.spent_flop <= out.high_j


@pytest.mark.parametrize("rates", [[], [replace(MEASURED, n_total=5 * N)], [replace(MEASURED, j_per_flop=None)]])
def test_what_was_not_measured_is_unknown(rates: list[Rate]) -> None:
    assert forecast.estimate_cost(RUNG, rates).energy_j is None


@pytest.mark.parametrize(("runs", "quantile"), [(2, 12.706), (5, 2.776), (8, 2.365), (31, 2.042)])
def test_repeated_runs_have_the_quantiles_of_student_s_t(runs: int, quantile: float) -> None:
    joules = [2e-9 * (1 + 0.01 * i) for i in range(runs)]
    out = forecast.estimate_cost(RUNG, [replace(MEASURED, j_per_flop=j, j_per_flop_se=0.0) for j in joules])
    assert out.high_j is not None
    assert out.energy_j is not None
    sd = float(np.std(joules, ddof=1))
    assert (out.high_j - out.energy_j) / RUNG.spent_flop == pytest.approx(quantile * sd, rel=3e-4)


@pytest.mark.parametrize(
    ("total", "words"),
    [
        (Forecast(1.0, 100.0, 90.0, 110.0), "this sweep fits"),
        (Forecast(1.0, 200.0, 110.0, 300.0), "may be stopped"),
        (Forecast(1.0, 300.0, 250.0, 350.0), "will be stopped"),
        (Forecast(1.0), "unknown"),
    ],
)
def test_a_budget_of_energy_is_compared_with_the_forecast(total: Forecast, words: str) -> None:
    assert words in plan._against_budget(120.0 if words != "will be stopped" else 240.0, total)
