"""Evaluations as a whole: killed and resumed, extended, failed, mirrored, and launched from the
command line.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from doubles.wandb_server import WandbServer

from harness import records
from harness.cli import main as cli
from harness.config.schema import BudgetConfig, PretrainedConfig, ReplayConfig, Retry, TrackerConfig, WandbMode
from harness.errors import ConfigError, DeviceError
from harness.records import SpendRow
from harness.records import ttc as ttc_records
from harness.sweep.compose_sweep import enumerate_runs
from harness.sweep.plan import check_tests
from harness.ttc import sampling, strategies, work_units
from tests.ttc import small

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.train(tmp_path_factory.mktemp("trained"))


def spend(run) -> list[SpendRow]:
    return list(records.read_rows(small.folder(run) / "ttc" / "spend.jsonl", SpendRow))


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from harness.ttc import work_units
from tests.ttc import small
run, left = pickle.loads(Path(sys.argv[1]).read_bytes()), int(sys.argv[2])
write = work_units.write
def counted(*arguments):
    global left
    write(*arguments)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
work_units.write = counted
small.evaluated(run)
"""


def test_killed_after_a_block_and_resumed_is_one_pass(trained: Path, tmp_path: Path) -> None:
    calm = small.beside(trained, tmp_path / "calm")
    assert small.evaluated(calm).state == "done"
    run = small.beside(trained, tmp_path / "killed")
    (tmp_path / "run").write_bytes(pickle.dumps(run))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), "3"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    before = small.block_files(run)
    assert len(before) == 3
    assert not small.found(run)
    assert small.evaluated(run).state == "done"
    assert small.outcome(run) == small.outcome(calm)
    after = small.block_files(run)
    assert {k: after[k] for k in before} == before, "what was drawn stays"

    lost = [r for r in spend(run) if r.phase == "lost"]
    with_costs = [np.load(small.folder(run) / name) for name in before]
    assert [r.flop for r in lost] == [sum(float(b["spent_flop"]) for b in with_costs)]
    drawn = spend(calm)[0].flop
    assert lost[0].flop + next(r for r in spend(run) if r.phase == "ttc").flop == pytest.approx(drawn, rel=1e-12)


def test_extending_draws_only_what_is_missing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small.beside(trained, tmp_path / "grown")
    assert small.evaluated(run).state == "done"
    before = small.block_files(run)
    names: list[str] = []
    write = work_units.write
    monkeypatch.setattr(
        work_units, "write", lambda f, unit, arrays: (names.append(unit.kind), write(f, unit, arrays))[1]
    )
    larger = small.changed(run, problems=128, samples=32)
    assert small.evaluated(larger).state == "done"
    # At each of two end points: 2 x 2 sample units less one, and one more unit of every other kind
    assert sorted(names) == sorted(2 * (["sample"] * 3 + ["greedy", "seen", "search", "smooth"]))
    after = small.block_files(run)
    assert {k: after[k] for k in before} == before
    whole = small.beside(trained, tmp_path / "whole", problems=128, samples=32)
    assert small.evaluated(whole).state == "done"
    assert small.outcome(larger) == small.outcome(whole)
    assert [r.samples for r in small.found(larger)] == [32, 32]

    names.clear()
    assert small.evaluated(larger).state == "done"
    assert not names, "launched again nothing is drawn"


def test_extended_to_more_samples_the_new_n_is_metered_too(trained: Path, tmp_path: Path) -> None:
    """What `ttc.meter_samples` asks for is marked metered, whether it was reached at once or by an
    extension.
    """
    run = small.beside(trained, tmp_path / "grown", problems=32, samples=4)
    for more in ({}, {"samples": 16}, {"samples": 16, "problems": 64}):
        larger = small.changed(run, **more)
        assert small.evaluated(larger).state == "done"
        longest = next(r for r in small.found(larger) if r.provenance["metered_at"] == "this end point")
        metered = {
            r.n for r in longest.rows if r.strategy == "majority" and r.order == "batched" and r.wall_basis == "metered"
        }
        assert metered == {n for n in (1, 4, 16) if n <= larger.ttc.samples}
        side = max(w.queries for w in longest.windows)
        assert side == longest.provenance["queries_side_by_side"] == larger.ttc.problems


def test_metering_never_decodes_more_rows_than_the_drawing_may(trained: Path, tmp_path: Path) -> None:
    """`ttc.batch_rows` is what fits the memory, so it holds for the windows too, and costs are
    those of such batches.
    """
    run = small.beside(trained, tmp_path / "runs", batch_rows=6, meter_samples=[1, 2, 4, 16])
    assert small.evaluated(run).state == "done"
    for record in small.found(run):
        assert {w.n for w in record.windows} == {1, 2, 4}, "16 samples do not fit side by side"
        assert max(w.rows for w in record.windows) == 6
        assert sum(w.held_out for w in record.windows) == 1
        assert record.provenance["queries_side_by_side"] == 6


def test_what_a_killed_attempt_spent_is_booked_though_the_next_one_fails_at_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small.beside(trained, tmp_path / "runs")
    (tmp_path / "run").write_bytes(pickle.dumps(run))
    subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), "2"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        check=False,
    )
    drawn = sum(float(np.load(small.folder(run) / name)["spent_flop"]) for name in small.block_files(run))
    assert drawn > 0
    with monkeypatch.context() as patch:

        def refuse(*arguments: object) -> None:
            raise ConfigError("the weights are gone")

        patch.setattr("harness.ttc.context.open_subjects", refuse)
        assert small.evaluated(run).state == "failed"
    run.attempt.retry = Retry.failed
    assert small.evaluated(run).state == "done"
    assert [r.flop for r in spend(run) if r.phase == "lost"] == [drawn]


@pytest.mark.parametrize("budget", [False, True])
def test_a_larger_number_of_problems_begins_with_the_smaller(budget: bool) -> None:
    from harness.config.schema import GroupConfig, GroupFormat
    from harness.tasks import open_task

    task = open_task(GroupConfig(format=GroupFormat.budget if budget else GroupFormat.stride))
    few, many = task.problems(256), task.problems(512)
    assert few.ids.tolist() == many.ids[:256].tolist()
    assert len(set(many.ids.tolist())) == 512


def test_a_failed_block_is_failed_and_never_zeros(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small.beside(trained, tmp_path / "runs")
    with monkeypatch.context() as patch:

        def refuse(*arguments: object, **more: object) -> None:
            raise DeviceError("the card fell off the bus")

        patch.setattr(sampling, "draw", refuse)
        state = small.evaluated(run)
    assert (state.state, state.reason) == ("failed", "the card fell off the bus")
    assert not small.found(run)
    assert not [k for k in small.block_files(run) if "sample" in k]
    assert small.evaluated(run).state == "failed", "as a failed run, it is taken up again when asked to"
    run.attempt.retry = Retry.failed
    assert small.evaluated(run).state == "done"


def test_a_damaged_block_is_named(trained: Path, tmp_path: Path) -> None:
    run = small.beside(trained, tmp_path / "runs")
    assert small.evaluated(run).state == "done"
    name = min(k for k in small.block_files(run) if "sample" in k)
    (small.folder(run) / name).write_bytes(b"PK torn")
    state = small.evaluated(run)
    assert state.state == "failed"
    assert Path(name).name in (state.reason or "")
    (small.folder(run) / name).unlink()
    run.attempt.retry = Retry.failed
    assert small.evaluated(run).state == "done"


def test_joules_of_a_constant_power_are_power_times_seconds(trained: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,power_w\n0,100\n1000,100\n")
    run = small.beside(trained, tmp_path / "runs", meter_s=0.5, meter_samples=[1, 2, 4], samples=4)
    run.power = ReplayConfig(path=str(trace))
    # power is part of a run's identity
    next((tmp_path / "runs" / "small").iterdir()).rename(small.folder(run))
    assert small.evaluated(run).state == "done"
    shortest, longest = sorted(small.found(run), key=lambda r: r.tokens or 0)
    for w in longest.windows:
        assert w.energy.energy_j is not None, w.energy.reason
        assert w.energy.energy_j == pytest.approx(100 * w.wall_s, rel=0.02)
    assert [w.n for w in longest.windows if w.held_out] == [2]
    held = next(w for w in longest.windows if w.held_out)
    assert held.predicted_energy_j == pytest.approx(100 * (held.predicted_wall_s or 0), rel=0.05)
    for row in longest.rows + shortest.rows:
        assert row.energy_j == pytest.approx(100 * (row.wall_s or 0), rel=0.05)
        assert (row.energy_reason is None) == (row.energy_j is not None)
    bases = {(r.n, r.energy_basis) for r in longest.rows if r.strategy == "majority" and r.order == "batched"}
    assert bases == {(1, "metered"), (2, "metered"), (4, "metered")}
    assert {r.energy_basis for r in shortest.rows} == {"modelled"}, "only the longest end point is metered"
    total = sum(r.energy.energy_j or 0 for r in spend(run))
    assert total >= sum(w.energy.energy_j or 0 for w in longest.windows)


def test_without_a_meter_joules_have_a_reason_and_seconds_a_number(trained: Path, tmp_path: Path) -> None:
    run = small.beside(trained, tmp_path / "runs")
    assert small.evaluated(run).state == "done"
    for record in small.found(run):
        assert record.seen_greedy is not None
        for row in record.rows:
            assert (row.energy_j, row.energy_reason) == (None, "no meter: power=unmetered")
            assert row.wall_s is not None
            assert row.wall_s > 0


def test_an_evaluation_is_a_run_of_its_own_in_wandb(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    run = small.beside(trained, tmp_path / "runs")
    run.tracker = TrackerConfig(mode=WandbMode.online, project="test", init_timeout_s=10, finish_timeout_s=10)
    with WandbServer() as server:
        for key, value in server.env().items():
            monkeypatch.setenv(key, value)
        assert small.evaluated(run).state == "done"
        mirrored = server.runs[f"ttc-{small.folder(run).name}"]
    found = small.found(run)
    assert {r.mirror for r in found} == {"online"}
    assert mirrored.job_type == "ttc"
    history = [r for r in mirrored.rows if "ttc/accuracy" in r]
    assert len(history) == sum(len(r.rows) for r in found)
    assert all({"test_flop", "tokens", "ttc/strategy", "ttc/n"} <= set(r) for r in history)


def test_a_pretrained_model_is_only_tested_and_scores_what_its_own_run_did(trained: Path, tmp_path: Path) -> None:
    from harness.analysis.export import to_hf

    own = small.beside(trained, tmp_path / "runs")
    assert small.evaluated(own).state == "done"
    to_hf(trained, tmp_path / "hf")
    run = small.config(tmp_path / "other")
    run.model, run.budget = PretrainedConfig(path=str(tmp_path / "hf")), BudgetConfig()
    assert small.evaluated(run).state == "done"
    (record,) = small.found(run)
    longest = max(small.found(own), key=lambda r: r.tokens or 0)
    assert record.stats.greedy == longest.stats.greedy
    assert (record.train_flop, record.train_source, record.train_energy.energy_j) == (None, "unknown", None)
    assert record.n_total == longest.n_total
    flop = {(r.strategy, r.n): r.decode_flop for r in record.rows if r.strategy == "greedy"}
    assert flop == {(r.strategy, r.n): r.decode_flop for r in longest.rows if r.strategy == "greedy"}


# --- the verb ------------------------------------------------------------------------------------
TINY = [
    *("corpus=group", "corpus.group=S3", "corpus.operators=[]", "corpus.steps=4", "corpus.strides=[1,4]"),
    *("model.width=8", "model.depth=1", "budget.tokens=16000", "optim.batch_tokens=400", "schedule.warmup_tokens=800"),
    *("device.kind=cpu", "device.threads=1", "study=tiny", "ttc.problems=64", "ttc.samples=4", "ttc.meter_s=0.01"),
]


def launched(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", sys.argv)
    return cli.main(arguments)


def test_the_verb_trains_tests_fits_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launched(["ttc", *TINY], monkeypatch) == 0
    said = capsys.readouterr().out
    assert "2 of 2 runs and evaluations done" in said
    study = tmp_path / "runs" / "tiny"
    assert len(ttc_records.load(study)) == 2
    assert (study / "report.html").exists()
    assert launched(["status", "tiny"], monkeypatch) == 0
    assert "w8 cot stride s0 ttc" in capsys.readouterr().out
    before = {p: p.stat().st_mtime_ns for p in study.glob("*/ttc/**/*") if p.is_file()}
    assert launched(["ttc", *TINY], monkeypatch) == 0
    assert {p: p.stat().st_mtime_ns for p in study.glob("*/ttc/**/*") if p.is_file()} == before, "nothing is done twice"


def test_a_new_strategy_reaches_an_evaluated_study_without_new_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a corrected one, whose SCORER_VERSION is raised; neither draws, meters or trains
    anything.
    """
    monkeypatch.chdir(tmp_path)
    assert launched(["ttc", *TINY], monkeypatch) == 0
    study = tmp_path / "runs" / "tiny"
    kept = {p: p.stat().st_mtime_ns for p in study.glob("*/ttc/**/*") if p.suffix == ".npz" or "meter-" in p.name}
    assert kept
    before = ttc_records.load(study)
    last_half = strategies.Strategy(lambda s, n: s.correct[:, -n:].all(1).astype(float))
    monkeypatch.setitem(strategies.STRATEGIES, "all_right", last_half)
    assert launched(["ttc", *TINY], monkeypatch) == 0
    after = ttc_records.load(study)
    for old, new in zip(before, after, strict=True):
        added = [r for r in new.rows if r.strategy == "all_right"]
        assert {(r.n, r.order) for r in added} >= {(1, "batched"), (2, "batched"), (2, "sequential")}
        assert [r for r in new.rows if r not in added] == old.rows
        (at_1,) = (r for r in added if r.n == 1)
        assert at_1.decode_flop == next(r.decode_flop for r in old.rows if r.strategy == "sample")

    monkeypatch.setitem(strategies.STRATEGIES, "majority", strategies.Strategy(lambda s, n: np.zeros(len(s.correct))))
    assert launched(["ttc", *TINY], monkeypatch) == 0
    assert ttc_records.load(study) == after, "a correction that does not say so is not looked for"
    monkeypatch.setattr(strategies, "SCORER_VERSION", strategies.SCORER_VERSION + 1)
    assert launched(["ttc", *TINY], monkeypatch) == 0
    assert {r.accuracy for e in ttc_records.load(study) for r in e.rows if r.strategy == "majority"} == {0.0}
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study=x", "budget.tokens=1000"], "its corpus is no task"),
        ([*TINY, "ttc.strides=[3]"], r"ttc\.strides=\[3\] was never trained on"),
        ([*TINY, "ttc.samples=0"], r"ttc\.samples=0 must be at least 1"),
        ([*TINY, "ttc.verifier_tpr=1.5"], r"ttc\.verifier_tpr=1\.5 must be a share from 0 to 1"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_tests(enumerate_runs(arguments)[0])


@pytest.mark.parametrize(("ladder", "runs"), [("cpu_cot", 9), ("cpu_cot_full", 27)])
def test_the_ladder_is_planned(ladder: str, runs: int) -> None:
    planned, _ = enumerate_runs([f"+ladder={ladder}"])
    rungs = check_tests(planned)
    assert len(rungs) == len({p.run_id for p in planned}) == runs
    assert all(len(r.points) >= 3 for r in rungs)
    widths = {(p.name.split(" ")[2], r.shape.width) for p, r in zip(planned, rungs, strict=True)}
    assert len({w for kind, w in widths if kind == "stride"}) == 5
    assert len({w for kind, w in widths if kind == "budget"}) == 2


def test_ttc_settings_are_no_part_of_a_run(tmp_path: Path) -> None:
    from harness.config import identity

    run = small.config(tmp_path)
    assert identity.run_id(small.changed(run, samples=64)) == identity.run_id(run)
