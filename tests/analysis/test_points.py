"""Records to arrays and to fits, against synthetic ladders whose law is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from harness.analysis import points as study_points
from harness.analysis import study_laws
from tests import synthetic
from tests.synthetic import TRUTH, Truth

EXACT = Truth(noise_trunk=0.0, noise_point=0.0)


def test_points_hold_one_row_per_annealed_fit_point() -> None:
    records = synthetic.ladder(seeds=2)
    t = study_points.points(records)
    assert len(t) == sum(len(r.points) for r in records) == 70
    assert t.rungs() == ["width 16", "width 24", "width 32", "width 48", "width 64", "width 96", "width 128"]
    first = records[0]
    assert t.n_total[0] == first.counts.n_total
    assert t.train_flop[0] == first.counts.fpt_causal * first.points[0].tokens
    assert np.isnan(t.energy_j).all()
    assert t.energy_excluded == {synthetic.NO_METER: 70}


def test_exclusions_are_counted_by_reason() -> None:
    records = [
        *synthetic.ladder(),
        synthetic.record(16, role="probe", lr_scale=2),
        synthetic.record(24, seed=9, annealed=False),
        replace(synthetic.record(32, seed=9), state="diverged"),
    ]
    t = study_points.points(records, {"failed": 2})
    assert len(t) == 35
    assert t.excluded == {
        "runs failed": 2,
        "role probe": 5,
        "not annealed": 5,
        "points of a run that is diverged": 5,
    }


def test_invalid_energy_leaves_the_loss_but_not_the_joules() -> None:
    record = synthetic.record(16, energy=True)
    record.points[1].energy = replace(record.points[1].energy, verdict="invalid", codes=["COUNTER_RESET"])
    t = study_points.points([record])
    assert np.isnan(t.energy_j).tolist() == [False, True, False, False, False]
    assert np.isfinite(t.loss_nat).all()
    assert t.energy_excluded == {"verdict invalid: COUNTER_RESET": 1}


def test_rungs_of_one_width_are_told_apart() -> None:
    a, b = synthetic.record(64), synthetic.record(64, seed=1)
    b.shape = b.shape | {"depth": 5}
    b.counts = replace(b.counts, n_total=b.counts.n_total + 1000)
    labels = study_points.rung_labels([a, b])
    assert sorted(labels.values()) == ["width 64, depth 2", "width 64, depth 5"]


def test_seed_means_are_geometric() -> None:
    records = [synthetic.record(16, seed=s) for s in range(3)]
    t = study_points.points(records)
    means = study_points.seed_means(t)
    assert len(means) == 5
    expected = np.exp(np.mean([math.log(r.points[0].loss_nat) for r in records]))
    assert means.loss_nat[0] == pytest.approx(expected, rel=1e-12)


def test_frontier_is_the_lower_envelope() -> None:
    t = study_points.points(synthetic.ladder(truth=EXACT))
    front, interior = study_points.frontier_points(t)
    assert len(front) == len(interior) >= 5
    assert (np.diff(front.train_flop) > 0).all()
    assert (np.diff(front.loss_nat) < 0).all()
    for flop, loss in zip(front.train_flop, front.loss_nat, strict=True):
        cheaper = t.train_flop <= flop
        assert loss <= t.loss_nat[cheaper].min() * (1 + 1e-12)
    assert not (front.rung[interior] == "width 16").any()
    assert not (front.rung[interior] == "width 128").any()


def test_a_point_without_a_rival_is_not_on_the_frontier() -> None:
    front, interior = study_points.frontier_points(study_points.points([synthetic.record(64)]))
    assert len(front) == len(interior) == 0


def test_seed_noise_recovers_the_scatter_and_is_unknown_without_seeds() -> None:
    truth = Truth(noise_trunk=0.0, noise_point=0.01)
    noise = study_points.seed_noise(study_points.points(synthetic.ladder(seeds=6, truth=truth)))
    assert noise is not None
    assert noise.dof == 7 * 5 * 5
    assert noise.sd_ln == pytest.approx(0.01, rel=0.2)
    assert study_points.seed_noise(study_points.points(synthetic.ladder())) is None


@pytest.mark.parametrize(("factors", "best", "edge"), [((1.02, 1.03), 1.0, False), ((0.9, 1.2), 0.5, True)])
def test_rate_check_finds_the_best_rate_and_the_edge(factors: tuple[float, float], best: float, edge: bool) -> None:
    records = [synthetic.record(16)]
    for scale, factor in zip((0.5, 2.0), factors, strict=True):
        records.append(synthetic.record(16, role="probe", lr_scale=scale, loss_factor=factor))
    (check,) = study_points.rate_check(records)
    assert (check.best, check.at_edge, check.resolved) == (best, edge, edge)
    assert check.tokens == 4_194_304
    assert check.relative[1.0] == 0
    assert check.relative[0.5] == pytest.approx(factors[0] - 1, abs=0.02)


def test_floor_and_theory() -> None:
    facts, text = synthetic.ladder(), synthetic.ladder(corpus="text")
    known = study_points.floor(facts)
    assert (known.entropy_nat, known.reason) == (TRUTH.E, None)
    assert known.oracle_nat == pytest.approx(TRUTH.E)
    assert study_points.floor(text).entropy_nat is None
    assert study_points.floor(text).reason == "the entropy of this corpus is not known"
    assert study_points.theory(facts) == {"alpha": 0.5, "beta": pytest.approx(1 / 3)}
    assert study_points.theory(text) is None


def test_fits_recover_the_law_without_noise() -> None:
    records = synthetic.ladder(truth=EXACT, energy=True)
    fits = study_laws.fit_study(records, bootstrap=0)
    for name in ("loss_nd", "loss_nd_heldout", "loss_nd_floor_fixed"):
        for symbol in ("A", "B", "E", "alpha", "beta"):
            assert fits[name].params[symbol] == pytest.approx(getattr(EXACT, symbol), rel=1e-5), (name, symbol)
    assert fits["loss_nd_floor_fixed"].fixed == {"E": EXACT.E}
    held = fits["loss_nd_heldout"].held_out
    assert held is not None
    assert held.label == "width 128"
    assert max(abs(e) for e in held.relative_error) < 1e-6
    assert fits["loss_nd"].columns["N"] == "n_total"
    assert fits["loss_nd_nonemb"].columns["N"] == "n_nonemb"
    assert fits["loss_nd_nonemb"].params["alpha"] < 0.9 * fits["loss_nd"].params["alpha"]
    assert set(fits) | set(study_laws.unfitted(records, fits)) == set(study_laws.FIT_NAMES)
    by_count = {c: fits[f"loss_compute{c}"] for c in ("", "_matmul", "_full_emb")}
    low, middle, high = (by_count[c].span["C"][1] for c in ("_matmul", "", "_full_emb"))
    assert low < middle < high  # the same training, counted in three ways


def test_intervals_resample_trunks_and_hold_the_truth() -> None:
    fits = study_laws.fit_study(synthetic.ladder(seeds=2), bootstrap=200)
    fit = fits["loss_nd"]
    assert fit.n_points == 70
    assert fit.n_clusters <= 14
    low, high = fit.interval["E"]
    assert low < TRUTH.E < high


def test_unmeasured_energy_is_not_fitted_and_says_why() -> None:
    records = synthetic.ladder()
    fits = study_laws.fit_study(records, bootstrap=0)
    reasons = study_laws.unfitted(records, fits)
    assert "energy_compute" not in fits
    assert synthetic.NO_METER in reasons["energy_compute"]
    assert synthetic.NO_METER in reasons["loss_energy"]


def test_cards_are_not_pooled() -> None:
    records = synthetic.ladder(energy=True)
    records[0].provenance = records[0].provenance | {"device": "another card"}
    job = study_laws.jobs(records)["energy_compute"]
    assert isinstance(job, str)
    assert "not pooled" in job


def test_losses_on_different_scales_are_not_fitted() -> None:
    records = synthetic.ladder()
    records[0].corpus = records[0].corpus | {"tokenizer": "bpe"}
    fits = study_laws.fit_study(records, bootstrap=0)
    assert fits == {}
    assert "tokenizer is bpe, none" in study_laws.unfitted(records, fits)["loss_nd"]


@pytest.mark.parametrize("records", [[], [synthetic.record(16, budgets=(262_144,))], synthetic.ladder(widths=(16, 32))])
def test_too_little_to_fit_gives_reasons_for_every_law(records: list) -> None:
    fits = study_laws.fit_study(records, {"failed": 1}, bootstrap=0)
    reasons = study_laws.unfitted(records, fits, {"failed": 1})
    assert "loss_nd" not in fits
    assert set(fits) | set(reasons) == set(study_laws.FIT_NAMES)
    assert all(reasons.values())


def test_study_table_has_every_point_and_the_reason_of_missing_energy() -> None:
    records = synthetic.ladder(rates=True)
    rows = study_points.study_table(records)
    assert len(rows) == sum(len(r.points) for r in records)
    assert len({tuple(row) for row in rows}) == 1  # one set of columns
    row = rows[0]
    assert row["energy_j"] is None
    assert row["energy_reason"] == synthetic.NO_METER
    assert {"run_id", "role", "n_nonemb", "n_head", "fpt_causal", "train_flop", "loss_nat", "lr_scale"} <= set(row)
    assert not any(isinstance(v, (list, dict)) for v in row.values())


def test_losses_over_different_contexts_are_not_pooled() -> None:
    runs = synthetic.ladder()
    for i, record in enumerate(runs):
        record.shape = {**record.shape, "context": 63 if i else 66}
    reasons = study_laws.unfitted(runs, {})
    assert all("losses over different contexts cannot be fitted together" in r for r in reasons.values())
