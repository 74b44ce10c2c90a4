"""Predictions, intervals, the frontier and the resampling behind them."""

from __future__ import annotations

import numpy as np
import pytest

from harness.errors import FitError
from harness.laws import Fit, fit, frontier, predict, predict_interval
from harness.laws.catalogue import LAWS
from harness.laws.gram import nnls_gram
from harness.laws.solver.bootstrap import draw_residuals, resample
from harness.laws.solver.bound import BoundLaw
from harness.laws.solver.golden import golden_section
from harness.laws.solver.solve import multistart

TRUTH = {"E": 1.03, "A": 8e3**0.45, "alpha": 0.45, "B": 2.6e5**0.40, "beta": 0.40}
LAW = LAWS["chinchilla"]


def ladder(point: float = 0.004, trunk: float = 0.0, seeds: int = 1, rungs: int = 6, budgets: int = 6, seed: int = 0):
    """A noisy ladder and the trunk of each row."""
    sizes, tokens = np.geomspace(8e3, 1e6, rungs), np.geomspace(2.6e5, 8.4e6, budgets)
    r, b, s = (m.ravel() for m in np.meshgrid(np.arange(rungs), np.arange(budgets), np.arange(seeds), indexing="ij"))
    names = r * seeds + s
    rng = np.random.default_rng(seed)
    noise = point * rng.normal(size=len(r)) + trunk * rng.normal(size=names.max() + 1)[names]
    table = {"N": sizes[r], "D": tokens[b]}
    return {**table, "loss": LAW.value(TRUTH, table) * np.exp(noise)}, names


def bound_to(table: dict[str, np.ndarray]) -> BoundLaw:
    return LAW.bind(table, table["loss"], np.ones(len(table["loss"])), {})


@pytest.fixture(scope="module")
def fitted() -> Fit:
    table, trunk = ladder()
    return fit("chinchilla", table, cluster=trunk, bootstrap=300)


def exact() -> Fit:
    table, _ = ladder(point=0.0)
    return fit("chinchilla", table, bootstrap=0)


# --- prediction -----------------------------------------------------------------------------------
def test_prediction_interval_holds_the_prediction_and_widens_away_from_the_data(fitted: Fit) -> None:
    inside = {"N": np.array([9e4]), "D": np.array([1.5e6])}
    outside = {"N": np.array([1e7]), "D": np.array([5e7])}
    widths = []
    for table in (inside, outside):
        low, high = predict_interval(fitted, table)
        assert low[0] < predict(fitted, table)[0] < high[0]
        widths.append(high[0] / low[0] - 1)
    assert widths[1] > 2 * widths[0]
    narrow = predict_interval(fitted, inside, level=0.5)
    run = predict_interval(fitted, inside, new_run=True)
    assert narrow[1][0] / narrow[0][0] - 1 < 0.7 * widths[0]
    assert run[1][0] / run[0][0] - 1 > 2 * 1.96 * 0.9 * fitted.residual_rms


def test_two_decades_is_as_far_as_a_law_goes_unasked(fitted: Fit) -> None:
    far = {"N": np.array([1e7]), "D": np.array([1e9])}
    assert 100 * fitted.span["C"][1] < 6 * 1e7 * 1e9
    with pytest.raises(FitError, match=r"C lies 3.1 decades outside the fitted span .*--extrapolate"):
        predict(fitted, far)
    with pytest.raises(FitError, match=r"decades outside"):
        predict_interval(fitted, far)
    assert predict(fitted, far, extrapolate=True)[0] == pytest.approx(1.03, rel=0.2)


def test_a_size_far_outside_is_refused_at_any_compute(fitted: Fit) -> None:
    """A huge model on few tokens has the compute of the data, and nothing else of them."""
    n, d = 1e4 * fitted.span["N"][1], fitted.span["C"][1] / 6 / (1e4 * fitted.span["N"][1])
    with pytest.raises(FitError, match=r"N lies 4.0 decades outside"):
        predict(fitted, {"N": np.array([n]), "D": np.array([d])})


def test_prediction_needs_the_columns_of_its_law_and_draws_for_an_interval(fitted: Fit) -> None:
    with pytest.raises(FitError, match=r"needs the column 'D'"):
        predict(fitted, {"N": np.array([1e5])})
    with pytest.raises(FitError, match=r"different lengths"):
        predict(fitted, {"N": np.array([1e5, 2e5]), "D": np.array([1e6])})
    with pytest.raises(FitError, match=r"no bootstrap draws"):
        predict_interval(exact(), {"N": np.array([1e5]), "D": np.array([1e6])})


# --- frontier -------------------------------------------------------------------------------------
def test_frontier_is_the_minimum_along_its_budget_and_has_the_derived_exponents() -> None:
    f = exact()
    budgets = np.geomspace(1e11, 1e14, 7)
    best = frontier(f, budgets)
    assert pytest.approx(budgets, rel=1e-12) == 6 * best.N * best.D
    for shift in (0.97, 1.03):
        assert (predict(f, {"N": best.N * shift, "D": best.D / shift}) > best.L).all()
    assert np.diff(np.log(best.N)) / np.diff(np.log(budgets)) == pytest.approx(f.derived["a"], rel=1e-9)
    assert pytest.approx(f.derived["G"] * (budgets / 6) ** f.derived["a"], rel=1e-9) == best.N
    excess = np.log(best.L - f.params["E"])
    assert -np.diff(excess) / np.diff(np.log(budgets)) == pytest.approx(f.derived["g"], rel=1e-6)


def test_frontier_along_a_users_flop_count() -> None:
    f = exact()
    budgets = np.geomspace(1e11, 1e14, 5)
    plain, numeric = frontier(f, budgets), frontier(f, budgets, lambda n: 6 * n)
    assert pytest.approx(plain.N, rel=1e-6) == numeric.N
    assert pytest.approx(plain.L, rel=1e-12) == numeric.L

    def with_attention(n: np.ndarray) -> np.ndarray:
        return 6 * n + 300 * np.sqrt(n)

    best = frontier(f, budgets, with_attention)
    assert with_attention(best.N) * best.D == pytest.approx(budgets, rel=1e-12)
    for shift in (0.97, 1.03):
        n = best.N * shift
        assert (predict(f, {"N": n, "D": budgets / with_attention(n)}) > best.L).all()
    assert (best.L > plain.L).all()


def test_frontier_interval_and_refusals(fitted: Fit) -> None:
    best = frontier(fitted, [1e12, 1e13], level=0.95)
    assert best.N_interval is not None
    assert best.L_interval is not None
    assert (best.N_interval[0] < best.N).all()
    assert (best.N_interval[1] > best.N).all()
    assert (best.L_interval[0] < best.L).all()
    assert (best.L_interval[1] > best.L).all()
    c = np.geomspace(1e12, 1e16, 8)
    other = fit("loss_compute", {"C": c, "loss": 1 + (1e12 / c) ** 0.2}, bootstrap=0)
    with pytest.raises(FitError, match="needs law chinchilla"):
        frontier(other, [1e14])
    with pytest.raises(FitError, match="decades outside"):
        frontier(fitted, [1e20])


# --- resampling -----------------------------------------------------------------------------------
def test_same_seed_same_draws_and_another_seed_others() -> None:
    table, trunk = ladder()
    one, same, other = (fit("chinchilla", table, cluster=trunk, bootstrap=60, seed=s) for s in (3, 3, 4))
    assert one == same
    assert one.params == other.params
    assert one.interval != other.interval
    assert one.bootstrap == {"draws": 60, "failed": 0, "seed": 3, "cold_starts": 60, "cold_better": 0}


def test_residual_draws_keep_the_trunks_shared_noise() -> None:
    """Noise that is almost all shared by trunks comes back as noise shared by trunks, of the right
    size.
    """
    table, trunk = ladder(point=0.0005, trunk=0.005, rungs=12, seed=2)
    bound = bound_to(table)
    theta, _, _ = multistart(bound, 1e-3)
    lny, dof = draw_residuals(bound, theta, trunk, 400, np.random.default_rng(0))
    noise = lny - bound.model(theta[None])
    means = np.stack([noise[:, trunk == t].mean(1) for t in range(12)], axis=1)
    within = noise - means[:, trunk]
    assert dof is not None
    # 12 trunks less the about three directions (E, A, alpha) that the fit absorbs
    assert 8 < dof < 10
    assert np.median(means.std(1)) == pytest.approx(0.005, rel=0.5)
    assert np.median(within.std(1)) == pytest.approx(0.0005, rel=0.3)


def test_shared_noise_widens_the_intervals_only_where_trunks_are_named() -> None:
    """Twelve rows of one trunk are not twelve independent observations of its size."""
    table, trunk = ladder(point=0.001, trunk=0.005, budgets=12, seed=5)
    bound = bound_to(table)
    theta, _, _ = multistart(bound, 1e-3)
    spread = []
    for cluster in (trunk, None):
        found = resample(bound, theta, 1e-3, 200, 0, cluster, None, "residual")
        low, high = np.quantile(found.theta[:, 1], [0.025, 0.975])
        spread.append(high - low)
    assert spread[0] > 1.5 * spread[1]


def test_seeds_of_a_rung_are_one_block_unless_seed_noise_alone_is_asked_for() -> None:
    table, trunk = ladder(trunk=0.002, seeds=3)
    honest = fit("chinchilla", table, cluster=trunk, bootstrap=60)
    assert honest.n_clusters == 6
    narrow = fit("chinchilla", table, cluster=trunk, strata=table["N"], bootstrap=60, method="seeds")
    assert narrow.n_clusters == 18
    one, name = ladder()
    with pytest.raises(FitError, match="at least two trunks"):
        fit("chinchilla", one, cluster=name, strata=one["N"], bootstrap=60, method="seeds")


def test_many_blocks_are_drawn_whole() -> None:
    table, trunk = ladder(rungs=24, budgets=4)
    assert fit("chinchilla", table, cluster=trunk, bootstrap=40).n_clusters == 24
    bound = bound_to(table)
    theta, _, _ = multistart(bound, 1e-3)
    found = resample(bound, theta, 1e-3, 40, 0, trunk)
    assert (found.method, found.blocks, found.counts["failed"]) == ("cases", 24, 0)


def test_three_rungs_cannot_judge_their_shared_noise() -> None:
    table, trunk = ladder(rungs=3, budgets=8)
    f = fit("chinchilla", table, cluster=trunk, bootstrap=60)
    message = next(w.message for w in f.warnings if w.code == "FEW_BLOCKS")
    assert "3 trunks or rungs leave 0.0 degrees of freedom" in message
    assert "noise of single rows only" in message


def test_closed_form_non_negative_least_squares_equals_scipys() -> None:
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    for _ in range(50):
        phi, t = rng.normal(size=(9, 3)), rng.normal(size=9)
        x, _ = nnls_gram(phi.T @ phi, phi.T @ t, {})
        assert x == pytest.approx(nnls(phi, t)[0], abs=1e-9)
    phi, t = rng.normal(size=(9, 3)), rng.normal(size=9)
    x, _ = nnls_gram(phi.T @ phi, phi.T @ t, {1: 0.7})
    assert x[1] == 0.7
    rest = nnls(phi[:, [0, 2]], t - 0.7 * phi[:, 1])[0]
    assert x[[0, 2]] == pytest.approx(rest, abs=1e-9)


def test_golden_section_finds_the_minimum_of_each_row() -> None:
    lowest = np.array([[0.2], [1.7], [3.0]])
    x = golden_section(lambda u: np.abs(u - lowest), np.array(0.0), np.full((3, 1), 3.0), steps=70)
    assert x == pytest.approx(lowest, abs=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("trunk_noise", [0.0, 0.003])
def test_intervals_hold_the_truth_as_often_as_they_claim(trunk_noise: float) -> None:
    """40 simulated six-rung ladders: 95 % intervals hold the truth in at least 34 (three standard
    errors below 38).
    """
    held = np.zeros(3)
    for s in range(40):
        table, trunk = ladder(point=0.005, trunk=trunk_noise, seed=100 + s)
        bound = bound_to(table)
        theta, _, _ = multistart(bound, 1e-3)
        params = bound.external(resample(bound, theta, 1e-3, 100, s, trunk).theta)
        for i, name in enumerate(("E", "alpha", "beta")):
            low, high = np.quantile(params[name], [0.025, 0.975])
            held[i] += low <= TRUTH[name] <= high
    assert (held >= 34).all(), held
