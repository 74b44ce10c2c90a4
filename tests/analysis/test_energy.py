"""Laws of energy and joules by rung, on records with known idle power and joules per FLOP."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness import laws
from harness.analysis import energy as study_energy
from harness.analysis import points as study_points
from harness.analysis import study_laws
from harness.console import TextTable
from harness.laws.result import Fit
from harness.laws.sentences import proportional
from harness.records import RunRecord
from tests import synthetic
from tests.synthetic import Truth

# Idle 30 W equals work where the rung does 3e10 FLOP/s, which is width 96
BALANCED = Truth(j_per_flop=1e-9, noise_energy=0.0)


@pytest.fixture(scope="module")
def noisy() -> tuple[list[RunRecord], dict[str, Fit]]:
    records = synthetic.ladder(truth=replace(BALANCED, noise_energy=0.01), energy=True, idle=True)
    return records, study_laws.fit_study(records, bootstrap=100)


def test_idle_power_and_work_are_recovered_without_noise() -> None:
    records = synthetic.ladder(truth=BALANCED, energy=True, idle=True)
    fits = study_laws.fit_study(records, bootstrap=0)
    for name in ("energy_idle", "energy_idle_fixed"):
        assert fits[name].params["P_idle"] == pytest.approx(30.0, rel=1e-6)
        assert fits[name].params["e"] == pytest.approx(1e-9, rel=1e-6)
        assert fits[name].derived["flop_per_s_balance"] == pytest.approx(3e10, rel=1e-6)
    assert fits["energy_idle_fixed"].fixed == {"P_idle": 30.0}
    assert fits["energy_compute_net"].params["b"] == pytest.approx(1.0, abs=1e-6)
    assert fits["energy_compute"].params["b"] < 0.99


def test_b_is_tested_against_one(noisy: tuple[list[RunRecord], dict[str, Fit]]) -> None:
    _, fits = noisy
    gross, net = proportional(fits["energy_compute"]), proportional(fits["energy_compute_net"])
    assert gross is not None
    assert net is not None
    assert " is rejected" in gross
    assert " not rejected" in net
    assert gross in laws.summary(fits["energy_compute"])
    assert proportional(fits["energy_idle"]) is None


def test_an_offset_moves_the_slope_and_is_reported(noisy: tuple[list[RunRecord], dict[str, Fit]]) -> None:
    fit = noisy[1]["energy_compute"]
    assert fit.derived["b_at_plus_5w"] < fit.params["b"] < fit.derived["b_at_minus_5w"]
    assert {"e_at_minus_5w", "e_at_plus_5w"} <= noisy[1]["energy_idle_fixed"].derived.keys()


def test_the_rung_where_idle_stops_dominating(noisy: tuple[list[RunRecord], dict[str, Fit]]) -> None:
    records, fits = noisy
    rows = study_energy.by_rung(study_points.points(records))
    assert [r.rung for r in rows] == [
        "width 16",
        "width 24",
        "width 32",
        "width 48",
        "width 64",
        "width 96",
        "width 128",
    ]
    for row in rows:
        assert row.idle_share == pytest.approx(30 / (30 + 1e-9 * row.flop_per_s), rel=0.03)
        assert row.of_floor is None
    low, high = fits["energy_idle_fixed"].derived_interval["flop_per_s_balance"]
    assert low < 3e10 < high
    sentence = study_energy.crossover(rows, fits)
    assert "idle power (30 W, measured)" in sentence
    assert "about N = " in sentence
    title, table, *lines = study_energy.printed(study_points.points(records), fits)
    assert title == "joules by rung, gross"
    assert isinstance(table, TextTable)
    assert len(table.rows) == len(rows)
    assert len(lines) == 2


def test_constant_throughput_cannot_tell_idle_from_work() -> None:
    """With time proportional to FLOP, both cannot be free; a measured idle power can be fixed."""
    records = synthetic.ladder(truth=BALANCED, energy=True, idle=True)
    for p in (p for r in records for p in r.points):
        p.wall_s = p.train_flop / 3e10
        p.energy = replace(p.energy, energy_j=30 * p.wall_s + 1e-9 * p.train_flop)
    fits = study_laws.fit_study(records, bootstrap=0)
    assert "collinear" in study_laws.unfitted(records, fits)["energy_idle"]
    assert fits["energy_idle_fixed"].params["e"] == pytest.approx(1e-9, rel=1e-6)


def test_without_a_measured_idle_power_there_is_no_net_law() -> None:
    records = synthetic.ladder(truth=BALANCED, energy=True)
    reasons = study_laws.unfitted(records, study_laws.fit_study(records, bootstrap=0))
    for name in ("energy_compute_net", "energy_idle_fixed"):
        assert "harness doctor --sensor" in reasons[name]
    assert all(
        r.idle_share is None and r.net_j_per_flop is None for r in study_energy.by_rung(study_points.points(records))
    )


@pytest.mark.parametrize(("factor", "flagged"), [(0.5, True), (3.0, False)])
def test_joules_below_the_floor_of_the_card_are_flagged(factor: float, flagged: bool) -> None:
    records = synthetic.ladder(energy=True)
    for r in records:
        r.provenance = r.provenance | {"device": "NVIDIA H200"}
        for p in r.points:
            p.energy = replace(p.energy, energy_j=factor * 700 / 989e12 * p.train_flop)
    rows = study_energy.by_rung(study_points.points(records))
    assert all(r.of_floor == pytest.approx(factor) for r in rows)
    assert all(("precision" in r.flag and "power limit" in r.flag) == flagged for r in rows)


def test_the_split_of_idle_needs_the_sensor_card() -> None:
    records = synthetic.ladder(truth=BALANCED, energy=True, idle=True)
    for r in records:
        r.meter = {"source": "nvml", "sensor_cards": [{"idle_bare_w": 20.0, "idle_context_sd_w": 0.5}]}
    t = study_points.points(records)
    row = study_energy.by_rung(t)[0]
    assert row.bare_share is not None
    assert row.context_share is not None
    assert row.idle_share is not None
    assert row.bare_share / row.idle_share == pytest.approx(20 / 30)
    assert row.bare_share + row.context_share == pytest.approx(row.idle_share)
    assert (t.energy_net_se_j > t.energy_se_j).all()
