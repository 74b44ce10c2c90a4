"""References and their comparison on records with a known law; the summary run of a study in
W&B.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from harness import records
from harness.analysis import reproduce, study_laws, wandb_study
from harness.analysis.reproduce import Quantity, Reference
from harness.analysis.study import Study
from harness.errors import RecordError
from harness.records import RunRecord
from harness.records import ttc as ttc_records
from tests import synthetic

REFERENCES = reproduce.ROOT / "results" / "reference"


@pytest.fixture(scope="module")
def runs() -> list[RunRecord]:
    return synthetic.ladder(seeds=3)


@pytest.fixture(scope="module")
def reference(runs: list[RunRecord]) -> Reference:
    return reproduce.make_reference("cpu", runs, [], seed=0, bootstrap=60)


def test_bounds_are_three_standard_deviations_over_seeds(reference: Reference) -> None:
    assert set(reference.quantities) >= {"L(N,D) alpha", "L(N,D) beta", "L(N,D) E"}
    assert sum(name.startswith("L(C) at") for name in reference.quantities) == 3
    for q in reference.quantities.values():
        assert (q.sd > 0, q.sd_over) == (True, "seeds")
        assert q.bound == pytest.approx(3 * q.sd)
    assert reference.quantities["L(N,D) E"].value == pytest.approx(synthetic.TRUTH.E, rel=0.05)


def test_the_same_records_reproduce_and_others_do_not(runs: list[RunRecord], reference: Reference) -> None:
    of_seed = [r for r in runs if r.seed == 0]
    table, same = reproduce.compare(reference, of_seed, study_laws.fit_study(of_seed, bootstrap=0))
    assert same
    assert "OUTSIDE" not in table.text()
    worse = synthetic.ladder()
    for record in worse:
        for point in record.points:
            point.loss_nat *= 1.05
    table, same = reproduce.compare(reference, worse, study_laws.fit_study(worse, bootstrap=0))
    assert not same
    assert "OUTSIDE" in table.text()


def test_one_seed_is_compared_within_the_spread_of_its_own_fit(runs: list[RunRecord]) -> None:
    of_seed = [r for r in runs if r.seed == 0]
    one_seed = reproduce.make_reference("cpu", of_seed, [], seed=0, bootstrap=200)
    assert {q.sd_over for q in one_seed.quantities.values()} == {"bootstrap"}
    fits = study_laws.fit_study(of_seed, bootstrap=200)
    for name, q in one_seed.quantities.items():
        if (parameter := name.removeprefix("L(N,D) ")) in fits["loss_nd"].params:
            low, high = fits["loss_nd"].interval[parameter]
            assert fits["loss_nd"].identified[parameter], "a parameter that the seed does not pin has no bound"
            assert q.sd == pytest.approx((high - low) / 3.92, rel=1e-3)
    assert reproduce.compare(one_seed, of_seed, fits)[1]
    for record in (worse := synthetic.ladder()):
        for point in record.points:
            point.loss_nat *= 1.2
    assert not reproduce.compare(one_seed, worse, study_laws.fit_study(worse, bootstrap=0))[1]


def test_records_without_a_law_of_n_and_d_are_compared_by_loss_against_compute(runs: list[RunRecord]) -> None:
    of_seed = [r for r in runs if r.seed == 0]
    fits = study_laws.fit_study(of_seed, bootstrap=60)
    assert {name.split()[0] for name in reproduce.quantities(of_seed, {"loss_compute": fits["loss_compute"]})} == {
        "L(C)"
    }
    assert reproduce.quantities(of_seed, {}) == {}


def test_another_text_is_refused(runs: list[RunRecord], reference: Reference) -> None:
    altered = copy.deepcopy([r for r in runs if r.seed == 0])
    for record in altered:
        record.corpus["corpus_id"] = "text-mine-0123"
    with pytest.raises(RecordError, match="corpus text-mine-0123 is not the reference's"):
        reproduce.compare(reference, altered, {})


def test_a_missing_quantity_is_a_difference() -> None:
    lonely = Reference("cpu", "run", 0, [0, 1], "x", 0, [], {"L(N,D) E": Quantity(1.0, 0.1, "seeds", 0.3)})
    table, same = reproduce.compare(lonely, [], {})
    assert not same
    assert "MISSING" in table.text()


def test_a_reference_needs_its_seed_and_a_ladder_needs_a_reference(runs: list[RunRecord]) -> None:
    with pytest.raises(RecordError, match="a reference at seed 7 needs runs at it"):
        reproduce.make_reference("cpu", runs, [], seed=7)
    with pytest.raises(RecordError, match="'nonesuch' has no committed reference"):
        reproduce.load_reference("nonesuch")


@pytest.mark.parametrize("name", sorted(p.parent.name for p in REFERENCES.glob("*/records.jsonl.xz")))
def test_a_committed_reference_is_what_its_records_say(name: str) -> None:
    """Its values follow from the records beside it, and nothing in it was edited by hand."""
    reference = reproduce.load_reference(name)
    runs, excluded = records.load(REFERENCES / name)
    assert not excluded
    of_seed = [r for r in runs if r.role == "fit" and r.seed == reference.seed]
    ids = {r.run_id for r in of_seed}
    evaluations = [e for e in ttc_records.load(REFERENCES / name) if e.run_id in ids]
    values = reproduce.quantities(of_seed, study_laws.fit_study(of_seed, bootstrap=0), evaluations)
    assert reference.quantities
    for quantity, q in reference.quantities.items():
        assert values[quantity][0] == pytest.approx(q.value, rel=1e-6), quantity
        assert q.bound == pytest.approx(3 * q.sd)
        if q.sd_over == "problems":
            assert q.sd == pytest.approx(values[quantity][1])


def test_an_accuracy_of_one_has_a_spread_of_its_problems() -> None:
    """Equal accuracies of all seeds would else allow no difference at all."""
    q = reproduce.load_reference("cpu_cot_full").quantities["greedy accuracy, w64 cot stride, free"]
    assert q.value > 0.99
    assert 1e-4 < q.sd < 0.02


def test_an_installed_package_ships_every_reference(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=reproduce.ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    names = sorted(p.parent.name for p in REFERENCES.glob("*/reference.json"))
    code = (
        "from harness.analysis.reproduce import load_reference, reference_files\n"
        f"assert sorted(reference_files()) == {names}, reference_files()\n"
        f"for name in {names}: assert load_reference(name).quantities\n"
        "from harness.cli.main import main; raise SystemExit(main(['plan', '+ladder=cpu']))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)


def test_the_summary_run_carries_points_curves_and_fits(
    runs: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}
    monkeypatch.setattr(
        wandb_study, "mirror_fit", lambda config, **fields: sent.update(fields, config=config) or "offline"
    )
    fits = study_laws.fit_study(runs, bootstrap=0)
    study = Study("tiny", runs, fits=fits, results=tmp_path)
    assert wandb_study.mirror_study(study, "as-recorded") is None, "runs without a mirror have no summary run"
    assert wandb_study.mirror_study(study, "offline") == "offline"
    columns, rows = sent["points"]
    assert len(rows) == sum(len(r.points) for r in runs)
    assert {"train_flop", "loss_nat", "energy_j"} <= set(columns)
    assert {c["name"] for c in sent["curves"]} >= {"law/loss_compute", "points/loss_compute"}
    assert set(sent["fits"]) == set(fits)
    assert sent["config"].mode.value == "offline"
