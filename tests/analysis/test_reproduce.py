"""References and their comparison, on records that obey a known law; and the study's summary run in W&B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import records
from harness.analysis import reproduce, study_laws, wandb_study
from harness.analysis.reproduce import Quantity, Reference
from harness.analysis.study import Study
from harness.errors import RecordError
from harness.records import RunRecord
from tests import synthetic


@pytest.fixture(scope="module")
def found() -> list[RunRecord]:
    return synthetic.ladder(seeds=3)


@pytest.fixture(scope="module")
def reference(found: list[RunRecord]) -> Reference:
    return reproduce.make_reference("cpu", found, seed=0, bootstrap=0)


def test_bounds_are_three_standard_deviations_over_seeds(reference: Reference) -> None:
    assert set(reference.quantities) >= {"L(N,D) alpha", "L(N,D) beta", "L(N,D) E"}
    assert sum(name.startswith("frontier loss at") for name in reference.quantities) == 3
    for q in reference.quantities.values():
        assert q.seed_sd > 0
        assert q.bound == pytest.approx(3 * q.seed_sd)
    assert reference.quantities["L(N,D) E"].value == pytest.approx(synthetic.TRUTH.E, rel=0.05)


def test_the_same_records_reproduce_and_others_do_not(found: list[RunRecord], reference: Reference) -> None:
    mine = [r for r in found if r.seed == 0]
    text, same = reproduce.compare(reference, reproduce.quantities(mine, study_laws.fit_study(mine, bootstrap=0)))
    assert same
    assert "OUTSIDE" not in text
    worse = synthetic.ladder()
    for record in worse:
        for point in record.points:
            point.loss_nat *= 1.05
    text, same = reproduce.compare(reference, reproduce.quantities(worse, study_laws.fit_study(worse, bootstrap=0)))
    assert not same
    assert "OUTSIDE" in text


def test_a_missing_quantity_is_a_difference() -> None:
    text, same = reproduce.compare(Reference("cpu", 0, [0, 1], "x", 0, {"L(N,D) E": Quantity(1.0, 0.1, 0.3)}), {})
    assert not same
    assert "MISSING" in text


def test_a_reference_needs_seeds_and_a_ladder_needs_a_reference(found: list[RunRecord]) -> None:
    with pytest.raises(RecordError, match="two seeds or more"):
        reproduce.make_reference("cpu", [r for r in found if r.seed == 0], seed=0)
    with pytest.raises(RecordError, match="'nonesuch' has no committed reference"):
        reproduce.load_reference("nonesuch")


def test_the_committed_reference_is_what_its_records_say() -> None:
    """The shipped `cpu` reference: its values follow from the records beside it, and nothing in it was edited by hand."""
    folder = reproduce.ROOT / "results" / "reference" / "cpu_full"
    shipped = reproduce.load_reference("cpu")
    stored, excluded = records.load(folder)
    assert not excluded
    mine = [r for r in stored if r.role == "fit" and r.seed == shipped.seed]
    values = reproduce.quantities(mine, study_laws.fit_study(mine, bootstrap=0))
    assert values == pytest.approx({k: q.value for k, q in shipped.quantities.items()}, rel=1e-6)


def test_the_summary_run_carries_points_curves_and_fits(
    found: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}
    monkeypatch.setattr(
        wandb_study, "mirror_fit", lambda config, **given: sent.update(given, config=config) or "offline"
    )
    fits = study_laws.fit_study(found, bootstrap=0)
    study = Study("tiny", found, fits=fits, results=tmp_path)
    assert wandb_study.mirror_study(study, "as-recorded") is None, "runs without a mirror have no summary run"
    assert wandb_study.mirror_study(study, "offline") == "offline"
    columns, rows = sent["points"]
    assert len(rows) == sum(len(r.points) for r in found)
    assert {"train_flop", "loss_nat", "energy_j"} <= set(columns)
    assert {c["name"] for c in sent["curves"]} >= {"law/loss_compute", "points/loss_compute"}
    assert set(sent["fits"]) == set(fits)
    assert sent["config"].mode.value == "offline"
