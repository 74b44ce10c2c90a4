"""A training run metered by `power=nvml`: real pynvml, own-process sampler, scripted library; truth
from the trace alone.
"""

from __future__ import annotations

import base64
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles import nvml as double

from harness import records
from harness.analysis import study_laws
from harness.config import identity
from harness.config.schema import (
    AdamwConfig,
    BudgetConfig,
    DeviceConfig,
    DeviceKind,
    FactsConfig,
    LlamaConfig,
    NvmlConfig,
    PathsConfig,
    RunConfig,
    WsdConfig,
)
from harness.records import RunRecord, SpendRow
from harness.training.run import train

WATTS = 300.0


def _config(folder: Path) -> RunConfig:
    return RunConfig(
        model=LlamaConfig(width=16),
        corpus=FactsConfig(vocab=32, keys=1024, val_tokens=630),
        budget=BudgetConfig(tokens=150_000, cooldowns=[0.5]),
        schedule=WsdConfig(warmup_tokens=1008),
        optim=AdamwConfig(batch_tokens=1008),
        device=DeviceConfig(kind=DeviceKind.cpu, threads=1),
        power=NvmlConfig(tolerance=0.5),
        paths=PathsConfig(runs=str(folder)),
        study="metered",
    )


def _train(folder: Path) -> tuple[RunRecord, list[SpendRow]]:
    config = _config(folder)
    state = train(config)
    assert state.state == "done", state.reason
    run_dir = folder / "metered" / identity.run_id(config)
    return records.load_record(run_dir), list(records.read_rows(run_dir / "spend.jsonl", SpendRow))


def test_a_run_carries_the_joules_of_its_own_windows(
    play: Callable[[double.Script, Path], None], tmp_path: Path
) -> None:
    play(double.Script([double.Card(trace=[(0, WATTS), (1000, WATTS)])]), tmp_path)
    record, spend = _train(tmp_path / "runs")
    for point in record.points:
        assert point.energy.energy_j is not None, point.energy.reason
        assert point.energy.energy_se_j is not None
        assert point.energy.source == "nvml-counter"
        # Constant power: the truth is watts times the seconds of exactly these windows
        assert abs(point.energy.energy_j - WATTS * point.wall_s) <= max(4 * point.energy.energy_se_j, 0.5)
    booked = sum(r.wall_s for r in spend)
    assert record.spent["total"]["energy_j"] == pytest.approx(WATTS * booked, rel=0.05)
    assert {"train", "eval", "checkpoint"} <= {r.phase for r in spend}
    assert record.meter["cards"][0]["uuid"].startswith("GPU-")
    assert record.meter["samples"] > 0
    # a GPU's joules beside training on the CPU
    assert any("not its joules" in e for e in record.events)


STOPPED = """
import base64, pickle, sys, time
from harness.training import step
from harness.training.run import train
config = pickle.loads(base64.b64decode(sys.argv[1]))
make, update = step.Trainer.__init__, step.Trainer._update
def with_a_block(self, *args, **settings):
    make(self, *args, **settings)
    self.block = 32  # as on a GPU: a stop is noticed after a block, long after the signal
def slow(self, batch):
    time.sleep(0.03)
    return update(self, batch)
step.Trainer.__init__, step.Trainer._update = with_a_block, slow
state = train(config)
print(state.state, flush=True)
"""


def test_a_stop_of_the_whole_process_group_keeps_the_joules_of_the_block_under_way(
    play: Callable[[double.Script, Path], None], tmp_path: Path
) -> None:
    play(double.Script([double.Card(trace=[(0, WATTS), (1000, WATTS)])]), tmp_path)
    config = _config(tmp_path / "runs")
    run_dir = tmp_path / "runs" / "metered" / identity.run_id(config)

    def launched() -> subprocess.Popen[str]:
        argument = base64.b64encode(pickle.dumps(config)).decode()
        command = [sys.executable, "-c", STOPPED, argument]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    process = launched()
    rows, end = run_dir / "steps.jsonl", time.monotonic() + 60
    while not (rows.exists() and rows.stat().st_size > 0):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.25)  # early in the next block, which takes a second
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert said.split() == ["interrupted"]
    *_, cut = (r for r in records.read_rows(run_dir / "spend.jsonl", SpendRow) if r.phase == "train")
    assert cut.energy.energy_j == pytest.approx(WATTS * cut.wall_s, rel=0.05), cut.energy.reason
    said, _ = launched().communicate(timeout=120)
    assert said.split() == ["done"]
    for point in records.load_record(run_dir).points:
        assert point.energy.energy_j is not None, point.energy.reason
        assert "SAMPLER_DIED" not in point.energy.codes


def test_a_counter_reset_leaves_no_joules_but_a_reason(
    play: Callable[[double.Script, Path], None], tmp_path: Path
) -> None:
    config = _config(tmp_path / "runs")
    first_row = tmp_path / "runs" / "metered" / identity.run_id(config) / "steps.jsonl"
    play(double.Script([double.Card(trace=[(0, WATTS), (1000, WATTS)], reset_when=first_row)]), tmp_path)
    record, spend = _train(tmp_path / "runs")
    hit = [r for r in spend if "COUNTER_RESET" in r.energy.codes]
    assert hit
    assert {r.branch for r in hit if r.phase == "train"} == {"trunk"}
    for point in record.points:
        # every point of the trunk rests on the window that the reset fell into
        assert point.energy.energy_j is None
        assert "COUNTER_RESET" in point.energy.codes
        assert point.energy.reason


def test_points_without_a_driver_say_so_and_stay_out_of_the_energy_law(tmp_path: Path) -> None:
    record, _ = _train(tmp_path / "runs")
    assert all(p.energy.energy_j is None for p in record.points)
    assert "driver" in str(record.points[0].energy.reason)
    assert "energy_compute" not in study_laws.fit_study([record], bootstrap=0)
