"""`fit` on tables of known truth: exact recovery, invariances, refusals, warnings, weights,
held-out rows, storage.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import FitError
from harness.laws import Fit, fit, predict, predict_interval, summary
from harness.laws.catalogue import LAWS
from harness.records import from_json, to_json

TRUTH = {"E": 1.03, "A": 8e3**0.45, "alpha": 0.45, "B": 2.6e5**0.40, "beta": 0.40}


def surface(params: dict[str, float] = TRUTH, sizes: int = 5, budgets: int = 5, noise: float = 0.0, seed: int = 0):
    """A grid of N and D with exact losses, times exp(noise x normal)."""
    n, d = (m.ravel() for m in np.meshgrid(np.geomspace(8e3, 1e6, sizes), np.geomspace(2.6e5, 8.4e6, budgets)))
    table = {"N": n, "D": d}
    scatter = np.exp(noise * np.random.default_rng(seed).normal(size=len(n)))
    return {**table, "loss": LAWS["chinchilla"].value(params, table) * scatter}


def codes(f: Fit) -> list[str]:
    return [w.code for w in f.warnings]


# --- recovery and invariance ----------------------------------------------------------------------
def test_noise_free_surface_is_recovered_to_1e_8() -> None:
    f = fit("chinchilla", surface(), bootstrap=0)
    assert f.certificate.passed
    assert f.certificate.starts_agreeing >= 3
    for name, want in TRUTH.items():
        assert f.params[name] == pytest.approx(want, rel=1e-8)
    assert f.derived["a"] == pytest.approx(0.40 / 0.85, rel=1e-9)
    assert f.derived["g"] == pytest.approx(0.18 / 0.85, rel=1e-9)
    assert f.identified == dict.fromkeys(TRUTH, True)
    assert f.warnings == []


@settings(max_examples=15)
@given(
    alpha=st.floats(0.15, 0.9),
    beta=st.floats(0.15, 0.9),
    floor=st.floats(0.0, 3.0),
    size_n=st.floats(0.3, 3.0),
    size_d=st.floats(0.3, 3.0),
)
def test_any_noise_free_surface_is_recovered(
    alpha: float, beta: float, floor: float, size_n: float, size_d: float
) -> None:
    truth = {"E": floor, "A": size_n * 8e3**alpha, "alpha": alpha, "B": size_d * 2.6e5**beta, "beta": beta}
    table = surface(truth)
    f = fit("chinchilla", table, bootstrap=0)
    assert f.params["alpha"] == pytest.approx(alpha, rel=1e-5)
    assert f.params["beta"] == pytest.approx(beta, rel=1e-5)
    assert predict(f, table) == pytest.approx(table["loss"], rel=1e-8)


def test_other_laws_recover_their_truth() -> None:
    c = np.geomspace(1e12, 1e16, 8)
    t = c / 1e12 * np.random.default_rng(0).uniform(0.2, 2, 8)
    for law, params, table in (
        ("loss_compute", {"E": 1.1, "A": 250.0, "g": 0.2}, {"C": c}),
        ("loss_energy", {"E": 0.0, "A": 30.0, "g": 0.07}, {"J": c / 1e9}),
        ("energy_power", {"k": 1e-11, "b": 0.93}, {"C": c}),
        ("energy_idle", {"P_idle": 70.0, "e": 2e-11}, {"C": c, "t": t}),
    ):
        f = fit(law, {**table, LAWS[law].y: LAWS[law].value(params, table)}, bootstrap=0)
        assert f.certificate.passed, law
        for name, want in params.items():
            assert f.params[name] == pytest.approx(want, rel=1e-6, abs=1e-7), (law, name)


def test_rescaling_n_or_d_changes_only_the_coefficient() -> None:
    table = surface(noise=0.004)
    base = fit("chinchilla", table, bootstrap=0)
    for symbol, coef, exponent in (("N", "A", "alpha"), ("D", "B", "beta")):
        moved = fit("chinchilla", {**table, symbol: 1e6 * table[symbol]}, bootstrap=0)
        for name in ("alpha", "beta", "E"):
            assert moved.params[name] == pytest.approx(base.params[name], rel=1e-9)
        assert moved.params[coef] == pytest.approx(base.params[coef] * 1e6 ** base.params[exponent], rel=1e-7)
        assert moved.derived["a"] == pytest.approx(base.derived["a"], rel=1e-9)
        assert moved.objective == pytest.approx(base.objective, rel=1e-10)


def test_order_of_rows_changes_nothing() -> None:
    table = surface(noise=0.004)
    order = np.random.default_rng(1).permutation(25)
    base = fit("chinchilla", table, bootstrap=0)
    moved = fit("chinchilla", {k: v[order] for k, v in table.items()}, bootstrap=0)
    for name, want in base.params.items():
        assert moved.params[name] == pytest.approx(want, rel=1e-9)
    assert np.array(moved.residuals) == pytest.approx(np.array(base.residuals)[order], abs=1e-10)


def test_fixed_parameters_stay_exactly_as_given() -> None:
    table = surface(noise=0.004)
    f = fit("chinchilla", table, fixed={"E": 1.03, "alpha": 0.45}, bootstrap=50)
    assert (f.params["E"], f.params["alpha"]) == (1.03, 0.45)
    assert f.interval["E"] == [1.03, 1.03]
    assert set(f.draws) == {"A", "B", "beta"}
    assert "E" not in f.identified
    whole = fit("chinchilla", surface(), fixed={"A": TRUTH["A"], "B": TRUTH["B"]}, bootstrap=0)
    assert whole.params["alpha"] == pytest.approx(0.45, rel=1e-8)


# --- weights --------------------------------------------------------------------------------------
def test_doubling_an_error_bar_reduces_the_rows_influence() -> None:
    """M12: sigma is an error bar, not a weight."""
    table = surface()
    table["loss"] = table["loss"].copy()
    table["loss"][24] *= 1.03
    sigma = 0.005 * table["loss"]
    narrow = fit("chinchilla", table, sigma=sigma, bootstrap=0, delta=0.05)
    sigma[24] *= 2
    wide = fit("chinchilla", table, sigma=sigma, bootstrap=0, delta=0.05)
    assert abs(wide.params["E"] - 1.03) < abs(narrow.params["E"] - 1.03)
    assert abs(wide.residuals[24]) > abs(narrow.residuals[24])


def test_a_common_factor_on_all_error_bars_changes_nothing() -> None:
    table = surface(noise=0.004)
    sigma = 0.01 * table["loss"]
    one, other = (fit("chinchilla", table, sigma=s, bootstrap=0) for s in (sigma, 7 * sigma))
    plain = fit("chinchilla", table, bootstrap=0)
    assert other.params["E"] == pytest.approx(one.params["E"], rel=1e-9)
    assert plain.objective == pytest.approx(one.objective, rel=1e-9)


# --- refusals -------------------------------------------------------------------------------------
def grid_with(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {**surface(), **changes}


LADDER = np.geomspace(1e4, 1e6, 8)
COMPUTE = np.geomspace(1e12, 1e15, 6)


@pytest.mark.parametrize(
    ("law", "table", "options", "said"),
    [
        ("kaplan", surface(), {}, r"law='kaplan' is unknown. Choose one of: chinchilla"),
        ("chinchilla", {"N": LADDER, "loss": LADDER}, {}, r"needs the column 'D'; the table has N, loss"),
        ("chinchilla", {k: v[:5] for k, v in surface().items()}, {}, r"5 free parameters .* and the table 5 rows"),
        ("chinchilla", surface(sizes=2, budgets=6), {}, r"'N' has 2 distinct values; alpha .* needs 3"),
        ("chinchilla", surface(sizes=6, budgets=2), {}, r"'D' has 2 distinct values; beta .* needs 3"),
        (
            "chinchilla",
            {"N": LADDER, "D": 20 * LADDER, "loss": 1 + LADDER**-0.2},
            {},
            r"correlate at 1.000 .*fixed-ratio ladder.*loss_compute",
        ),
        ("chinchilla", grid_with(loss=np.r_[np.nan, surface()["loss"][1:]]), {}, r"'loss', row 0: nan"),
        ("chinchilla", grid_with(N=np.r_[0.0, surface()["N"][1:]]), {}, r"'N', row 0: .* not a positive number"),
        ("chinchilla", grid_with(D=surface()["D"][:9]), {}, r"D has 9 entries, loss has 25"),
        ("chinchilla", surface(), {"fixed": {"gamma": 1.0}}, r"'gamma' is no parameter"),
        ("chinchilla", surface(), {"fixed": {"alpha": 0.0}}, r"alpha=0.0 must be a positive number"),
        ("chinchilla", surface(), {"fixed": TRUTH}, r"nothing is left to fit"),
        ("chinchilla", surface(), {"delta": 0.0}, r"delta=0.0 must be a positive"),
        ("chinchilla", surface(), {"bootstrap": 5}, r"bootstrap=5: give 0"),
        ("chinchilla", surface(), {"sigma": np.zeros(25)}, r"sigma, row 0: .* not a positive error bar"),
        ("chinchilla", surface(), {"method": "jackknife"}, r"method='jackknife' is unknown"),
        ("chinchilla", grid_with(state=np.array(["done"] * 24 + ["failed"])), {}, r"'state' holds failed in 1 rows"),
        ("chinchilla", grid_with(annealed=np.arange(25) > 0), {}, r"'annealed' is false in 1 rows"),
        ("chinchilla", grid_with(tokenizer=np.array(["a"] * 20 + ["b"] * 5)), {}, r"'tokenizer' mixes a, b"),
        ("chinchilla", grid_with(corpus=np.array(["a"] * 20 + ["b"] * 5)), {}, r"'corpus' mixes a, b"),
        ("chinchilla", grid_with(role=np.array(["fit"] * 20 + ["probe"] * 5)), {}, r"'role' holds probe in 5 rows"),
        ("chinchilla", grid_with(annealed=np.array(["yes"] * 25)), {}, r"'annealed' holds 'yes': write true or false"),
        ("chinchilla", grid_with(loss=np.full(25, 2.5)), {}, r"loss is 2.5 in all 25 rows"),
        ("chinchilla", surface(), {"fixed": {"E": 5.0}}, r"E=5 is no floor: half of the rows have a loss of"),
        ("chinchilla", surface(), {"delta": 1e-300}, r"delta=1e-300 is below the rounding"),
        (
            "chinchilla",
            surface(),
            {"sigma": np.r_[1e-9, np.full(24, 0.01)]},
            r"error bars of two rows differ by a factor of .* Floor sigma",
        ),
        ("chinchilla", surface(), {"seed": -1}, r"seed=-1: give 0 or a positive"),
        ("chinchilla", surface(), {"bootstrap": -1}, r"bootstrap=-1: give 0"),
        (
            "chinchilla",
            {k: np.tile(v[[0, 7, 13, 19]], 3) for k, v in surface().items()},
            {},
            r"5 free parameters .* the 12 rows stand at 4 different places of N, D",
        ),
        (
            "loss_energy",
            {"J": COMPUTE * 1e-10, "loss": 2 + COMPUTE**-0.1, "device": np.array(["a100"] * 3 + ["h200"] * 3)},
            {},
            r"'device' mixes a100, h200",
        ),
        (
            "energy_power",
            {"C": COMPUTE, "energy": COMPUTE * 1e-10, "energy_verdict": np.array(["valid"] * 5 + ["invalid"])},
            {},
            r"'energy_verdict' holds invalid in 1 rows",
        ),
        ("loss_compute", {"C": np.repeat(COMPUTE[:3], 4), "loss": np.linspace(3, 2, 12)}, {}, r"3 distinct .* needs 4"),
        (
            "energy_idle",
            {"C": COMPUTE, "t": COMPUTE / 1e12, "energy": COMPUTE * 1e-10},
            {},
            r"t and C are collinear .*Fix P_idle at a measured baseline",
        ),
        (
            "energy_power",
            {"C": COMPUTE, "energy": COMPUTE * 1e-10, "device": np.array(["a100"] * 3 + ["h200"] * 3)},
            {},
            r"'device' mixes a100, h200",
        ),
    ],
)
def test_refusals_name_the_thing_and_the_cure(law: str, table: dict, options: dict, said: str) -> None:
    with pytest.raises(FitError, match=said):
        fit(law, table, **options)


def test_collinear_energy_is_fitted_once_the_baseline_is_given() -> None:
    table = {"C": COMPUTE, "t": COMPUTE / 1e12, "energy": 40 * COMPUTE / 1e12 + 2e-11 * COMPUTE}
    f = fit("energy_idle", table, fixed={"P_idle": 40.0}, bootstrap=0)
    assert f.params["e"] == pytest.approx(2e-11, rel=1e-8)


# --- warnings -------------------------------------------------------------------------------------
FACTS = {
    8272: [2.7649, 2.2506, 1.8560],
    28832: [2.4249, 2.0180, 1.7259],
    106816: [2.3163, 1.9115, 1.6337],
    410240: [2.0938, 1.8128],
}


def facts() -> dict[str, np.ndarray]:
    """11 measured points of a corpus whose entropy is known: 1.414 nat."""
    rows = [(n, d, y) for n, ys in FACTS.items() for d, y in zip((131072, 524288, 2097152), ys, strict=False)]
    n, d, loss = (np.array(c, dtype=float) for c in zip(*rows, strict=True))
    return {"N": n, "D": d, "loss": loss}


def test_a_plausible_exponent_with_a_wrong_floor_is_called_out() -> None:
    """The fixture for a floor at its bound, a flat profile and sensitivity to delta."""
    table = facts()
    f = fit("chinchilla", table, bootstrap=0)
    assert f.certificate.passed
    assert f.params["alpha"] == pytest.approx(0.305, abs=0.001)
    assert f.params["beta"] == pytest.approx(0.160, abs=0.001)
    assert f.params["E"] == 0.0
    assert f.certificate.at_bound == ["E"]
    assert {"AT_BOUND", "E_NOT_PINNED", "ALPHA_NOT_PINNED", "DELTA_SENSITIVE"} <= set(codes(f))
    assert not f.identified["E"]
    assert not f.identified["alpha"]
    held = fit("chinchilla", table, fixed={"E": 1.414}, bootstrap=0)
    assert held.params["alpha"] == pytest.approx(0.88, abs=0.01)
    assert held.params["beta"] == pytest.approx(0.58, abs=0.01)
    assert held.objective / f.objective == pytest.approx(1.41, abs=0.01)
    squares = fit("chinchilla", table, delta=1.0, bootstrap=0)
    assert squares.params["alpha"] == pytest.approx(0.198, abs=0.002)


def test_delta_above_all_residuals_is_called_least_squares() -> None:
    """M14."""
    assert "DELTA_LARGE" in codes(fit("chinchilla", surface(noise=0.004), delta=1.0, bootstrap=0))
    assert "DELTA_LARGE" not in codes(fit("chinchilla", surface(noise=0.004), bootstrap=0))


def test_few_degrees_of_freedom_are_called_out() -> None:
    assert "FEW_DEGREES" in codes(fit("chinchilla", surface(sizes=3, budgets=3, noise=0.001), bootstrap=0))
    assert "FEW_DEGREES" not in codes(fit("chinchilla", surface(sizes=4, budgets=4, noise=0.001), bootstrap=0))


def test_copies_of_rows_are_called_out_because_they_narrow_intervals() -> None:
    once = surface(noise=0.004)
    four = {k: np.tile(v, 4) for k, v in once.items()}
    narrow, right = (fit("chinchilla", t, bootstrap=200) for t in (four, once))
    message = next(w.message for w in narrow.warnings if w.code == "DUPLICATE_ROWS")
    assert message.startswith("75 of 100 rows repeat another")
    assert np.ptp(narrow.interval["E"]) < 0.7 * np.ptp(right.interval["E"])
    assert "DUPLICATE_ROWS" not in codes(right)


def test_a_few_rows_that_outweigh_the_others_are_called_out() -> None:
    sigma = np.full(25, 0.01)
    assert "FEW_WEIGH" not in codes(fit("chinchilla", surface(noise=0.004), sigma=sigma, bootstrap=0))
    sigma[:3] = 1e-5
    found = fit("chinchilla", surface(noise=0.004), sigma=sigma, bootstrap=0)
    assert "the weight of 2.9, for 5 free parameters" in next(
        w.message for w in found.warnings if w.code == "FEW_WEIGH"
    )


# --- held out, storage, text ----------------------------------------------------------------------
def test_held_out_rung_is_predicted_beside_the_naive_line() -> None:
    table = surface(sizes=6, noise=0.002)
    largest = table["N"] > 9e5
    f = fit("chinchilla", table, hold_out=largest, cluster=table["N"], bootstrap=200, hold_out_label="the largest")
    assert f.n_points == 25
    assert len(f.residuals) == 25
    h = f.held_out
    assert h is not None
    assert h.label == "the largest"
    assert h.measured == table["loss"][largest].tolist()
    assert max(abs(e) for e in h.relative_error) < 0.01
    # A straight line in log-log ignores the floor and always predicts too low
    assert all(e is not None and e < -0.01 for e in h.naive_relative_error)
    inside = [low <= m <= high for (low, high), m in zip(h.interval, h.measured, strict=True)]
    assert sum(inside) >= 4
    assert h.inside == sum(inside)
    assert f"held out, the largest: {sum(inside)} of 5 in their 95 % interval" in summary(f)
    assert "WORSE_THAN_LINE" not in codes(f)


def test_a_law_that_loses_to_the_line_is_reported_as_such() -> None:
    c = np.geomspace(1e12, 1e16, 9)
    loss = np.where(c < 1e14, 2.0 + (1e12 / c) ** 0.5, 0) + np.where(c >= 1e14, 2.1 * (c / 1e14) ** -0.05, 0)
    f = fit("loss_compute", {"C": c, "loss": loss}, hold_out=c > 9e15, bootstrap=0)
    assert "WORSE_THAN_LINE" in codes(f)


def test_a_fit_survives_json_with_every_digit() -> None:
    table = surface(noise=0.004)
    f = fit(
        "chinchilla", table, bootstrap=60, hold_out=table["N"] > 9e5, columns={"N": "n_head"}, excluded={"failed": 2}
    )
    back = from_json(Fit, json.loads(json.dumps(to_json(f), allow_nan=False)), "fits.json")
    assert back == f
    assert (predict(back, table) == predict(f, table)).all()
    assert predict_interval(back, table)[0].tolist() == predict_interval(f, table)[0].tolist()
    assert f.columns == {"N": "n_head"}
    assert f.excluded == {"failed": 2}


def test_data_hash_tells_tables_apart() -> None:
    table = surface(noise=0.004)
    other = {**table, "loss": table["loss"] * (1 + 1e-15 * np.arange(25))}
    assert fit("chinchilla", table, bootstrap=0).data_hash == fit("chinchilla", dict(table), bootstrap=0).data_hash
    assert fit("chinchilla", table, bootstrap=0).data_hash != fit("chinchilla", other, bootstrap=0).data_hash


def test_an_unconverged_fit_says_so_first_and_refuses_to_predict() -> None:
    table = surface(noise=0.004)
    f = fit("chinchilla", table, bootstrap=60)
    assert summary(f).startswith("chinchilla: L = E + A/N^alpha + B/D^beta on 25 points; ")
    f.certificate.passed, f.certificate.reason = False, "only 2 of 80 starts reach the best objective"
    assert summary(f).splitlines()[0].startswith("NOT CONVERGED, do not use: chinchilla on 25 points: only 2 of 80")
    for call in (predict, predict_interval):
        with pytest.raises(FitError, match="has no certificate: only 2 of 80 starts"):
            call(f, table)
    assert predict(f, table, force=True) == pytest.approx(table["loss"], rel=0.03)


def test_summary_prints_warnings_before_numbers_and_the_held_out_rows() -> None:
    table = facts()
    text = summary(fit("chinchilla", table, bootstrap=0, hold_out=(table["N"] > 4e5)))
    assert text.index("warning E_NOT_PINNED") < text.index("alpha   =")
    assert re.search(r"\n  E +=.* not pinned by the data", text)
    assert "held out, N 4.1e+05" in text
    assert "(line " in text


# --- rows that decide -----------------------------------------------------------------------------
def decided(f: Fit) -> list[str]:
    return [w.message for w in f.warnings if w.code == "INFLUENTIAL"]


def narrow(extra: list[tuple[float, float, float]], n_to: float, d_from: float) -> dict[str, np.ndarray]:
    """A 10 x 10 grid up to `n_to` and from `d_from`, 0.1 % noise, and rows (N, D, factor on the
    true loss) far outside it.
    """
    n, d = (m.ravel() for m in np.meshgrid(np.geomspace(8e3, n_to, 10), np.geomspace(d_from, 8.4e6, 10)))
    n, d = np.r_[n, [row[0] for row in extra]], np.r_[d, [row[1] for row in extra]]
    factor = np.r_[np.exp(0.001 * np.random.default_rng(0).normal(size=100)), [row[2] for row in extra]]
    return {"N": n, "D": d, "loss": LAWS["chinchilla"].value(TRUTH, {"N": n, "D": d}) * factor}


@pytest.mark.parametrize(("factor", "named"), [(1.0, False), (1.1, True)])
def test_one_run_that_moves_a_parameter_out_of_its_interval_is_named(factor: float, named: bool) -> None:
    """The only large model: as the others have it, or 10 % worse."""
    found = decided(fit("chinchilla", narrow([(3e6, 8.4e6, factor)], 4e4, 2.6e5), bootstrap=80, method="residual"))
    assert any("the row N=3e+06" in m for m in found) == named, found


def test_the_highest_losses_are_named_where_they_decide() -> None:
    """The only two runs on little data, half as bad again; in a grid that reaches as far everywhere
    they do not decide.
    """
    lone = narrow([(8e3, 2e4, 1.5), (9e3, 2e4, 1.5)], 1e6, 2e6)
    assert any("top 2 %" in m for m in decided(fit("chinchilla", lone, bootstrap=80, method="residual")))
    grid = surface(sizes=10, budgets=10, noise=0.001)
    assert not any("top 2 %" in m for m in decided(fit("chinchilla", grid, bootstrap=80, method="residual")))


def test_an_interval_that_runs_to_the_bound_of_the_search_is_named() -> None:
    n = np.geomspace(1e4, 3e4, 6)
    rng = np.random.default_rng(0)
    loss = (2 + 0.01 * (n / 1e4) ** -0.3) * np.exp(0.003 * rng.normal(size=(6, 6)))
    table = {"C": np.tile(n, 6), "loss": loss.ravel()}
    assert "INTERVAL_UNBOUNDED" in codes(fit("loss_compute", table, bootstrap=80))
