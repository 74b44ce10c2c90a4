"""budget.kwh: what a study has spent, when that is enough, and a sweep that stops for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from harness import records
from harness.cli import main as cli
from harness.config import checks, compose
from harness.records import Measured, SpendRow
from harness.runtime import energy_budget
from harness.sweep.compose_sweep import enumerate_runs

TINY = [
    *("study=budgeted", "model.width=8,16", "model.depth=1", "corpus.vocab=32", "corpus.keys=200", "corpus.context=21"),
    *(
        "corpus.val_tokens=630",
        "optim.batch_tokens=84",
        "optim.lr=0.01",
        "schedule.warmup_tokens=840",
        "device.kind=cpu",
    ),
    *("budget.tokens=50_400", "device.threads=1", "power=replay", "attempt.checkpoint_every_s=1"),
]


def _spend(study: Path, run: str, *energies: Measured, limit_w: float | None = None) -> None:
    (study / run).mkdir(parents=True)
    rows = [SpendRow(1, "train", "trunk", 0, 1, 84, 1.0, 10.0, energy=e, limit_w=limit_w) for e in energies]
    text = "".join(json.dumps(records.to_json(r)) + "\n" for r in rows)
    (study / run / "spend.jsonl").write_text(text)


def test_unmeasured_time_is_bounded_by_the_highest_power_that_was_measured(tmp_path: Path) -> None:
    dark = Measured(reason="COUNTER_RESET: …", verdict="invalid")
    _spend(tmp_path, "a", Measured(1000.0, 1.0, power_w=100.0), dark)
    _spend(tmp_path, "b", Measured(3000.0, 1.0, power_w=300.0))
    s = energy_budget.spent(tmp_path)
    assert (s.measured_j, s.unmeasured_s, s.unmeasured_bound_j, s.upper_j) == (4000.0, 10.0, 3000.0, 7000.0)
    assert energy_budget.exhausted(7001 / 3.6e6, tmp_path) is None
    why = energy_budget.exhausted(7000 / 3.6e6, tmp_path)
    assert why is not None
    assert "used up" in why
    assert "10 s unmeasured" in why
    assert energy_budget.exhausted(None, tmp_path) is None


def test_a_known_power_limit_is_the_bound(tmp_path: Path) -> None:
    dark = Measured(reason="COUNTER_RESET: …", verdict="invalid")
    _spend(tmp_path, "a", Measured(1000.0, 1.0, power_w=100.0), dark, limit_w=700.0)
    assert energy_budget.spent(tmp_path).unmeasured_bound_j == 7000.0
    _spend(tmp_path, "b", dark, limit_w=700.0)  # nothing measured here, yet bounded
    assert energy_budget.spent(tmp_path).unmeasured_bound_j == 14000.0


def test_a_study_without_any_reading_cannot_keep_a_budget(tmp_path: Path) -> None:
    assert energy_budget.exhausted(1.0, tmp_path) is None  # nothing ran yet
    _spend(tmp_path, "a", Measured(reason="NO_DRIVER: …"))
    assert "without a meter" in (energy_budget.exhausted(1.0, tmp_path) or "")


def test_the_budget_is_no_part_of_a_run_and_needs_a_meter(tmp_path: Path) -> None:
    trace = _trace(tmp_path)
    for schedule in ("wsd", "cosine"):
        given = [*TINY, f"power.path={trace}", f"schedule={schedule}"]
        plain, _ = enumerate_runs(given)
        capped, _ = enumerate_runs([*given, "budget.kwh=0.5"])
        assert [p.run_id for p in plain] == [p.run_id for p in capped]
    config = dataclasses.replace(plain[0].config, power=compose.schema.UnmeteredConfig())
    config.budget.kwh = 1.0
    assert any("budget.kwh=1.0 cannot be kept" in p for p in checks.check_run(config))
    config.budget.kwh = -1.0
    assert any("budget.kwh=-1.0 must be above 0" in p for p in checks.check_run(config))


def test_a_sweep_stops_when_its_joules_reach_the_budget_and_goes_on_with_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["run", *TINY, f"power.path={_trace(tmp_path)}", f"paths.runs={tmp_path / 'runs'}"]
    assert cli.main([*given, "budget.kwh=1e-9"]) == 1  # 3.6 mJ: the first window is more than that
    said = capsys.readouterr().out
    # A run this short may end between two looks at the account; the one behind it must not start
    # either way
    assert "2 of 2 runs done" not in said
    assert "not started" in said
    assert "budget.kwh=1e-09 is used up" in said
    assert cli.main([*given, "budget.kwh=10"]) == 0
    assert "2 of 2 runs done" in capsys.readouterr().out


def test_a_run_in_progress_is_interrupted_at_the_budget_and_resumes_when_it_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the account read at every update, the first booked window ends the run; its checkpoint
    is where the next attempt starts.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(energy_budget, "CHECK_PERIOD_S", 0.0)
    given = [*TINY, f"power.path={_trace(tmp_path)}", f"paths.runs={tmp_path / 'runs'}"]
    planned, _ = enumerate_runs(given)
    first, second = (p.run_dir for p in planned)
    assert cli.main(["run", *given, "attempt.checkpoint_every_s=0.02", "budget.kwh=1e-9"]) == 1
    state = records.load_state(first)
    assert state is not None
    assert (state.state, state.attempt) == ("interrupted", 1)
    assert 0 < state.step < state.steps
    assert "budget.kwh=1e-09 is used up" in (state.reason or "")
    assert not (first / "record.json").exists()
    assert records.load_state(second) is None
    capsys.readouterr()
    assert cli.main(["run", *given, "budget.kwh=10"]) == 0
    state = records.load_state(first)
    assert state is not None
    assert (state.state, state.attempt) == ("done", 2)
    rows = list(records.read_rows(first / "steps.jsonl", records.StepRow))
    assert len({(r.branch, r.step) for r in rows}) == len(rows) >= state.steps


def _trace(folder: Path) -> Path:
    path = folder / "trace.csv"
    path.write_text("t_s,power_w\n0,300\n1000,300\n")
    return path
