"""The real path: open_meter -> sampler process -> real pynvml -> scripted libnvidia-ml.so.1, in
real time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from doubles.nvml import AVERAGE, ENERGY, INSTANT, Card, Fault, Script, square

from harness import records
from harness.config import schema
from harness.errors import ConfigError
from harness.power import segment_file
from harness.power.meter import Meter, open_meter

Play = Callable[[Script, Path], None]
WAIT_S = 10.0  # a busy machine, not a slow meter


@pytest.fixture
def metered(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`metered(script)`: a started meter of that script; closed at the end of the test."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    opened: list[Meter] = []

    def make(script: Script, attempt: int = 1, visible: str | None = None, **config: Any) -> Meter:
        play(script, tmp_path)
        meter = open_meter(schema.NvmlConfig(**config), tmp_path / "power", attempt=attempt, cuda_visible=visible)
        opened.append(meter)
        meter.start()
        return meter

    yield make
    for meter in opened:
        meter.close()


def window(seconds: float) -> tuple[int, int]:
    a = time.monotonic_ns()
    time.sleep(seconds)
    return a, time.monotonic_ns()


def assert_within(measured: records.Measured, truth_j: float, wide: float = 0.2) -> None:
    assert measured.energy_j is not None, measured.reason
    assert measured.energy_se_j is not None
    assert measured.reason is None
    assert abs(measured.energy_j - truth_j) <= 3 * measured.energy_se_j
    assert measured.energy_se_j < wide * truth_j  # an interval that says something


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"gave up waiting for: {what}"
        time.sleep(0.01)


def sampler_pid(meter: Meter) -> int:
    process = meter._segments[-1].process
    assert process is not None
    return process.pid


# --- joules ---------------------------------------------------------------------------------------
def test_known_joules_within_the_stated_interval_and_files_left(metered: Callable[..., Meter], tmp_path: Path) -> None:
    script = Script([Card(square(250, 650, 0.237, 0.71, 60, -5))])
    meter = metered(script)
    assert meter.reason is None
    a, b = window(1.2)
    measured = meter.energy(a, b, WAIT_S)
    assert_within(measured, script.truth_j(a, b))
    assert measured.source == "nvml-counter"
    assert "UNCALIBRATED" in measured.codes
    assert measured.energy_j is not None
    assert measured.power_w == pytest.approx(measured.energy_j / ((b - a) * 1e-9))
    assert meter.limit_w() == 700.0  # what bounds a window without joules
    total = meter.total_j()
    assert total is not None
    assert total > 0.8 * script.truth_j(a, b)
    assert meter.power_w() in (pytest.approx(650), pytest.approx(250)) or 250 < (meter.power_w() or 0) < 650
    meter.close()
    again = meter.energy(a, b)
    assert_within(again, script.truth_j(a, b))
    assert again.energy_j == pytest.approx(measured.energy_j, rel=0.05)

    description = json.loads(json.dumps(meter.describe(), allow_nan=False))
    assert description["cards"][0]["uuid"] == script.cards[0].uuid
    assert description["cards"][0]["driver"] == "580.65.06"
    assert description["samples"] > description["rows"] > 5
    assert description["sampler_cpu_s"] > 0
    assert description["gap_p99_s"] > 0
    assert description["exclusive_lock"] is True
    assert description["problems"] == []
    (raw,) = segment_file.find(tmp_path / "power")
    table = pq.read_table(tmp_path / "power" / "power.parquet")
    assert table.num_rows == description["rows"] == len(segment_file.SegmentReader(raw).poll())
    assert set(table["uuid"].to_pylist()) == {script.cards[0].uuid}
    assert json.loads(table.schema.metadata[b"segments"])[0]["boot_id"] == segment_file.boot_id()


def test_visible_cards_are_summed_and_others_left_out(metered: Callable[..., Meter]) -> None:
    script = Script([Card([(0, 100)]), Card([(0, 300)], phase_s=0.03), Card([(0, 500)])])
    meter = metered(script, visible=f"{script.cards[1].uuid},0")
    a, b = window(0.6)
    measured = meter.energy(a, b, WAIT_S)
    assert_within(measured, script.truth_j(a, b, cards=[0, 1]))
    assert [c["uuid"] for c in meter.describe()["cards"]] == [script.cards[1].uuid, script.cards[0].uuid]
    assert meter.power_w() == pytest.approx(400)


def test_a_counter_that_is_not_supported_falls_to_the_average(metered: Callable[..., Meter]) -> None:
    script = Script([Card([(-10, 400)])], [Fault(ENERGY, 3)])
    meter = metered(script)
    a, b = window(0.8)
    measured = meter.energy(a, b, WAIT_S)
    assert_within(measured, script.truth_j(a, b))
    assert (measured.source, "NO_COUNTER" in measured.codes) == ("nvml-average", True)
    assert meter.total_j() is not None


# --- faults ---------------------------------------------------------------------------------------
def test_a_counter_reset_is_no_energy_and_the_next_window_is_measured(
    metered: Callable[..., Meter], tmp_path: Path
) -> None:
    gate = tmp_path / "reset"
    script = Script([Card([(0, 500)], reset_when=gate)])
    meter = metered(script)
    a, _ = window(0.4)
    gate.touch()
    _, b = window(0.5)
    broken = meter.energy(a, b, WAIT_S)
    assert (broken.energy_j, broken.energy_se_j, broken.verdict) == (None, None, "invalid")
    assert "COUNTER_RESET" in broken.codes
    assert "at least" in (broken.reason or "")
    assert meter.total_j() is None  # what was used around the reset is not known
    a, b = window(0.5)
    assert_within(meter.energy(a, b, WAIT_S), script.truth_j(a, b))


def test_a_lost_gpu_is_no_energy_and_the_run_goes_on(metered: Callable[..., Meter], tmp_path: Path) -> None:
    gate = tmp_path / "lost"
    script = Script([Card([(0, 500)])], [Fault("*", 15, when=gate)])
    meter = metered(script)
    before = window(0.5)
    assert_within(meter.energy(*before, WAIT_S), script.truth_j(*before))
    gate.touch()
    a, b = window(0.3)
    lost = meter.energy(a, b, WAIT_S)
    assert lost.energy_j is None
    assert "GPU_LOST" in lost.codes
    assert meter.total_j() is None
    # data up to the loss are kept
    assert_within(meter.energy(*before, WAIT_S), script.truth_j(*before))


@pytest.mark.parametrize("symbol", ["nvmlDeviceGetFieldValues", ENERGY, INSTANT, AVERAGE])
def test_any_read_that_fails_later_gives_a_reason_or_the_truth(
    metered: Callable[..., Meter], tmp_path: Path, symbol: str
) -> None:
    gate = tmp_path / "broken"
    script = Script([Card([(0, 500)])], [Fault(symbol, 999, when=gate)])
    meter = metered(script)
    a, _ = window(0.3)
    gate.touch()
    _, b = window(0.3)
    measured = meter.energy(a, b, wait_s=WAIT_S if symbol in (INSTANT, AVERAGE) else 0.5)
    if symbol in (INSTANT, AVERAGE):
        assert_within(measured, script.truth_j(a, b))
    else:
        assert measured.energy_j is None
        assert measured.reason
        assert measured.codes


def test_a_sampler_that_is_killed_is_replaced_once(metered: Callable[..., Meter]) -> None:
    script = Script([Card([(0, 500)])])
    meter = metered(script)
    first = sampler_pid(meter)
    before = window(0.5)
    assert_within(meter.energy(*before, WAIT_S), script.truth_j(*before))
    a = time.monotonic_ns()
    os.kill(first, signal.SIGKILL)
    until(lambda: meter.energy(a, time.monotonic_ns(), 0).codes and len(meter._segments) == 2, "the second sampler")
    until(lambda: meter.power_w() and meter._segments[-1].begin_ns, "its first tick")
    b = time.monotonic_ns()
    died = meter.energy(a, b, 0.2)
    assert died.energy_j is None
    assert "SAMPLER_DIED" in died.codes
    assert meter.total_j() is None
    a, b = window(0.5)
    assert_within(meter.energy(a, b, WAIT_S), script.truth_j(a, b))
    assert_within(meter.energy(*before, 0), script.truth_j(*before))
    assert "started again" in meter.describe()["problems"][0]
    os.kill(sampler_pid(meter), signal.SIGKILL)
    until(lambda: meter._segments[-1].ended or meter.total_j(), "its end")
    a, b = window(0.05)
    assert meter.energy(a, b, 0.1).energy_j is None
    assert len(meter._segments) == 2


def test_a_sampler_that_was_stopped_leaves_a_gap(metered: Callable[..., Meter]) -> None:
    script = Script([Card([(0, 500)])])
    meter = metered(script)
    a, _ = window(0.4)
    os.kill(sampler_pid(meter), signal.SIGSTOP)
    try:
        time.sleep(0.9)
    finally:
        os.kill(sampler_pid(meter), signal.SIGCONT)
    _, b = window(0.4)
    gap = meter.energy(a, b, WAIT_S)
    assert gap.energy_j is None
    assert "SAMPLER_GAP" in gap.codes


# --- no measurement -------------------------------------------------------------------------------
def assert_unmeasured(meter: Meter, code: str, *words: str) -> None:
    assert meter.reason is not None
    for word in words:
        assert word in meter.reason
    a, b = window(0.0)
    measured = meter.energy(a, b)
    assert (measured.energy_j, measured.reason, measured.verdict) == (None, meter.reason, "unmeasured")
    assert code in measured.codes
    assert meter.total_j() is meter.power_w() is None
    meter.close()
    assert meter.describe()["reason"] == meter.reason


def test_no_driver(tmp_path: Path) -> None:
    meter = open_meter(schema.NvmlConfig(), tmp_path / "power", attempt=1, cuda_visible=None)
    meter.start()
    if meter.reason is None:  # a GPU host
        meter.close()
        pytest.skip("this host has an NVIDIA driver")
    assert_unmeasured(meter, "NO_DRIVER", "libnvidia-ml.so.1 was not found", "power=unmetered")


@pytest.mark.parametrize(
    ("script", "visible", "code", "words"),
    [
        (Script([Card([(0, 1)])], init_error=9), None, "NO_DRIVER", ["not loaded"]),
        (Script([Card([(0, 1)])], init_error=4), None, "NO_PERMISSION", ["/dev/nvidiactl"]),
        (Script([]), None, "NO_SOURCE", ["lists no card"]),
        (Script([Card([(0, 300)])]), "", "NO_SOURCE", ["hides every GPU"]),
        (Script([Card([(0, 300)])]), "7", "NO_SOURCE", ["none of the 1 cards"]),
        (Script([Card([(0, 300)], mig="MIG-0")]), None, "NO_SOURCE", ["MIG is on", "power.mig_whole_card=true"]),
        (
            Script([Card([(0, 300)])], [Fault(f, 4) for f in (ENERGY, INSTANT, AVERAGE)]),
            None,
            "NO_PERMISSION",
            ["neither energy nor power", "Insufficient Permissions"],
        ),
    ],
)
def test_refusals(
    metered: Callable[..., Meter], script: Script, visible: str | None, code: str, words: list[str]
) -> None:
    assert_unmeasured(metered(script, visible=visible), code, *words)


def test_a_mig_card_can_be_labelled_whole(metered: Callable[..., Meter]) -> None:
    script = Script([Card([(0, 300)], mig="MIG-abcd")])
    meter = metered(script, visible="MIG-abcd", mig_whole_card=True)
    a, b = window(0.5)
    measured = meter.energy(a, b, WAIT_S)
    assert_within(measured, script.truth_j(a, b))
    assert ("MIG_WHOLE_CARD" in measured.codes, measured.verdict) == (True, "invalid")


def test_a_second_meter_of_one_card_is_refused(
    metered: Callable[..., Meter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script([Card([(0, 300)])])
    first = metered(script)
    assert first.reason is None
    second = open_meter(schema.NvmlConfig(), tmp_path / "other", attempt=1, cuda_visible=None)
    assert second._spec is not None
    second._spec.lock_wait_s = 0.1
    second.start()
    assert_unmeasured(second, "NO_SOURCE", "another meter is measuring", script.cards[0].uuid)


def test_unmetered(tmp_path: Path) -> None:
    meter = open_meter(schema.UnmeteredConfig(), tmp_path / "power", attempt=1, cuda_visible=None)
    meter.start()
    measured = meter.energy(*window(0.0))
    assert (measured.energy_j, measured.reason, measured.codes) == (None, "no meter: power=unmetered", [])
    assert meter.recover(1, 0).reason == "no meter: power=unmetered"
    meter.close()
    assert meter.describe() == {"source": "unmetered", "reason": "no meter: power=unmetered"}
    assert not (tmp_path / "power").exists()


def test_a_folder_that_cannot_be_made_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "power").write_text("a file")
    meter = open_meter(schema.NvmlConfig(), tmp_path / "power", attempt=1, cuda_visible=None)
    meter.start()
    assert_unmeasured(meter, "NO_SOURCE", "could not be started", "power=unmetered")


def test_a_bug_of_the_meter_does_not_end_the_run(
    metered: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    meter = metered(Script([Card([(0, 300)])]))
    monkeypatch.setattr("harness.power.estimate.card_window", lambda *_: 1 / 0)
    measured = meter.energy(*window(0.1))
    assert (measured.energy_j, measured.codes) == (None, ["METER_FAILED"])
    with monkeypatch.context() as patch:
        patch.setattr("harness.power.segment_process.Segment.poll", lambda _: 1 / 0)
        meter.power_w()  # what the loop shows between windows
        meter.total_j()
        assert meter.energy(*window(0.1), 0.1).energy_j is None
    assert sum("METER_FAILED" in p for p in meter.describe()["problems"]) == 1
    assert "ZeroDivisionError" in (measured.reason or "")
    assert "Traceback" in caplog.text


# --- kill and resume ------------------------------------------------------------------------------
TRAINER = """
import os, sys, time, pathlib
from harness.config import schema
from harness.power.meter import open_meter
meter = open_meter(schema.NvmlConfig(), pathlib.Path(sys.argv[1]), attempt=1, cuda_visible=None)
meter.start()
worker = os.fork()  # a data loader, say: it inherits the control pipe and survives
if worker == 0:
    sys.stdout.close()
    time.sleep(60)
    os._exit(0)
time.sleep(0.3)
print(worker, meter.reason, meter._segments[-1].process.pid, time.monotonic_ns(), flush=True)
time.sleep(60)
"""


def test_the_sampler_ends_with_a_killed_trainer_and_its_joules_are_recovered(
    metered: Callable[..., Meter], play: Play, tmp_path: Path
) -> None:
    script = Script([Card(square(200, 600, 0.3, 0.5, 60, -5))])
    play(script, tmp_path)
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(tmp_path / "power")], stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    worker, reason, pid, after = trainer.stdout.readline().split()
    trainer.stdout.close()
    assert reason == "None"
    time.sleep(0.6)
    trainer.kill()  # SIGKILL
    trainer.wait()
    killed = time.monotonic_ns()
    until(
        lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2],
        "the sampler's end",
    )

    os.kill(int(worker), signal.SIGKILL)
    (path,) = segment_file.find(tmp_path / "power", 1)
    reader = segment_file.SegmentReader(path)
    last = reader.poll()[-1].mid_ns
    assert reader.end is not None  # it left by itself, after a last tick
    assert last >= killed - 100_000_000
    with path.open("ab") as f:
        f.write(b"[99,0,12")  # and had it been torn: the line is dropped
    meter = metered(script, attempt=2)  # waits for the lock if it has to
    assert meter.reason is None
    lost = meter.recover(1, int(after))
    assert lost.energy_j is not None, lost.reason
    # To its last tick, which is at most a tick period before the last row
    assert lost.energy_j <= script.truth_j(int(after), last) + 3 * (lost.energy_se_j or 0)
    assert lost.energy_j >= script.truth_j(int(after), last - 200_000_000) - 3 * (lost.energy_se_j or 0)
    assert meter.recover(1, last + 10**9).energy_j is None
    missing = meter.recover(7, 0)
    assert (missing.energy_j, missing.reason) == (None, "attempt 7 left no power readings")
    a, b = window(0.4)
    assert_within(meter.energy(a, b, WAIT_S), script.truth_j(a, b))
    meter.close()
    attempts = pq.read_table(tmp_path / "power" / "power.parquet")["attempt"].to_pylist()
    assert set(attempts) == {1, 2}


def test_requests_to_stop_are_not_for_the_sampler_while_its_trainer_lives(metered: Callable[..., Meter]) -> None:
    """Terminals and batch systems signal every process of a job; the trainer still has a block of
    updates to end.
    """
    script = Script([Card([(0, 500)])])
    meter = metered(script)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
        os.kill(sampler_pid(meter), number)
    a, b = window(0.8)
    assert_within(meter.energy(a, b, WAIT_S), script.truth_j(a, b))
    assert len(meter._segments) == 1, "the same sampler"
    process = meter._segments[0].process
    assert process is not None
    meter.close()
    assert process.returncode == 0, "it left when asked by the meter"


def test_the_sampler_imports_neither_numpy_nor_torch() -> None:
    code = "import sys, harness.power.sampler; print([m for m in ('numpy', 'torch', 'pyarrow', 'hydra') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_a_missing_replay_file_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"power.path=.*nowhere.csv.*no such file"):
        open_meter(schema.ReplayConfig(path=str(tmp_path / "nowhere.csv")), tmp_path, attempt=1, cuda_visible=None)
