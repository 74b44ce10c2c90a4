"""What other energy meters get wrong, row by row of the guide's table, and which of our tests holds
us to better.

`ROWS` names at least one test per row; a row or a test that goes missing fails here. Tests that
exist for no other reason stand below.
"""

from __future__ import annotations

import ast
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles.nvml import ENERGY, Card, Fault, Script, integral_j, square

from harness.config import schema
from harness.power import estimate, reason_codes, segment_file
from harness.power.meter import open_meter
from harness.power.replay import ReplaySource
from harness.power.sampler import Sampler, Spec
from harness.power.series import Series

Sampled = Callable[..., list[Series]]

ROWS: dict[int, list[str]] = {
    1: ["test_a_window_of_two_ticks_is_refused_with_the_length_it_needs"],
    2: ["test_a_driver_reload_is_no_energy_and_keeps_a_lower_bound"],
    3: [
        "test_a_counter_that_is_not_supported_falls_to_the_average",
        "test_without_a_counter_the_average_is_integrated",
    ],
    4: ["test_a_lost_gpu_is_no_energy_and_the_run_goes_on"],
    5: ["test_power_times_time_is_no_better_where_the_counter_fails"],
    6: ["test_empty_is_a_cpu_run", "test_mapping", "test_repeats_and_ambiguous_prefixes_are_refused"],
    7: ["test_a_plateau_of_unchanged_readings_is_data", "test_the_sampler_imports_neither_numpy_nor_torch"],
    8: ["test_wraps_resets_and_long_gaps", "test_package_and_dram_are_counted_once_and_a_wrap_is_followed"],
    9: ["test_a_step_of_the_wall_clock_moves_no_window"],
    10: ["test_sources_that_disagree_are_suspect_and_agreeing_ones_are_not"],
    11: ["test_visible_cards_are_summed_and_others_left_out", "test_a_second_meter_of_one_card_is_refused"],
    12: ["test_a_trainer_that_holds_the_gil_does_not_starve_the_sampler"],
    13: ["test_mapping"],
    14: ["test_any_read_that_fails_later_gives_a_reason_or_the_truth", "test_edges_of_the_window_definition"],
    15: ["test_a_cold_run_of_five_seconds"],
    16: ["test_refusals", "test_a_mig_card_is_labelled"],
    17: ["test_garbage_power_is_dropped"],
    18: ["test_intervals_hold_the_truth_for_other_loads", "test_a_cold_run_of_five_seconds"],
    19: ["test_a_counter_that_stands_still_is_not_an_idle_card"],
    20: ["test_random_faults_never_give_wrong_joules_without_a_code", "test_one_missing_part_makes_the_sum_missing"],
}


def test_every_row_has_a_test() -> None:
    found = {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert list(ROWS) == list(range(1, 21))
    missing = {row: name for row, names in ROWS.items() for name in names if name not in found}
    assert not missing
    assert all(ROWS.values())


@pytest.mark.parametrize("phase", range(8))
def test_a_window_of_two_ticks_is_refused_with_the_length_it_needs(sampled: Sampled, phase: int) -> None:
    trace = [(-5.0, 500.0)]
    (s,) = sampled(Script([Card(trace, phase_s=0.0125 * phase)]), 6.0)
    out, (w,) = estimate.window([s], 2 * 10**9, 2_250_000_000, 0.003)
    assert w.energy_j is not None
    assert w.se_j is not None
    assert abs(w.energy_j - 125.0) <= estimate.Z95 * w.se_j
    assert out.verdict == "invalid"
    refused = estimate.refuse(out, 0.003)
    assert refused.energy_j is None
    assert "needs a window of" in (refused.reason or "")


def test_a_driver_reload_is_no_energy_and_keeps_a_lower_bound(sampled: Sampled) -> None:
    (s,) = sampled(Script([Card([(-5.0, 500.0)], reset_at_s=4.0)]), 9.0)
    w = estimate.card_window(s, 2.0, 6.0)
    assert (w.energy_j, "COUNTER_RESET" in w.codes) == (None, True)
    # Half a tick is lost at each edge on average; around the reset, what was gathered since the
    # tick before and until the one after
    assert 2000 - 4 * 50 <= estimate.rising_j(s, 2.0, 6.0) + 1e-6 <= 2000
    assert "at least" in (w.reason or "")


def test_power_times_time_is_no_better_where_the_counter_fails(sampled: Sampled) -> None:
    (s,) = sampled(Script([Card([(-5.0, 500.0)], reset_at_s=4.0)]), 9.0)
    # readings are kept through the reload
    assert s.average.integral(2.0, 6.0) == pytest.approx(2000, rel=0.002)
    assert s.instant.integral(2.0, 6.0) == pytest.approx(2000, rel=0.002)
    (s,) = sampled(Script([Card([(-5.0, 500.0)])], [Fault(ENERGY, 3)]), 9.0)
    assert estimate.card_window(s, 2.0, 7.0).energy_j == pytest.approx(2500, rel=0.002)


def test_a_plateau_of_unchanged_readings_is_data(sampled: Sampled) -> None:
    trace = [(-5.0, 70.0), (3.0, 70.0), (3.0, 700.0), (8.0, 700.0), (8.0, 70.0)]
    for phase in range(10):
        (s,) = sampled(Script([Card(trace, phase_s=0.01 * phase)]), 11.0)
        assert s.instant.integral(3.5, 7.5) == pytest.approx(2800, rel=0.01)
        assert s.instant.integral(2.0, 9.5) == pytest.approx(
            integral_j(trace, 2.0, 9.5), rel=0.02
        )  # an update per edge


def test_a_step_of_the_wall_clock_moves_no_window(tmp_path: Path) -> None:
    """The wall clock jumps by 5 s: an event is written, and rows are on the monotonic clock
    alone.
    """
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,power_w\n0,300\n100,300\n")
    origin = time.monotonic_ns()
    spec = Spec("replay", str(tmp_path / "a001.s0.jsonl"), 0.1, os.getppid(), 1, 0, False)
    source, writer = ReplaySource(str(trace), origin), segment_file.Writer(Path(spec.path))
    sampler = Sampler(spec, source, writer, source.open(), control_fd=-1)
    sampler._slow(time.monotonic_ns())
    sampler._step_ns -= 5 * 10**9  # as if the wall clock had been set forward since
    sampler._poll_cards()
    sampler._slow(time.monotonic_ns())
    writer.close()
    reader = segment_file.SegmentReader(Path(spec.path))
    rows = reader.poll()
    assert [e["code"] for e in reader.events] == ["CLOCK_STEP"]
    assert reader.events[0]["moved_s"] == pytest.approx(5, abs=0.05)
    assert all(origin <= r.t0_ns <= time.monotonic_ns() for r in rows)
    assert reason_codes.EFFECT["CLOCK_STEP"] == reason_codes.INFO


def test_a_trainer_that_holds_the_gil_does_not_starve_the_sampler(
    play: Callable[[Script, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C code that keeps the GIL for 0.3 s at a time would make a sampling thread wait as long."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    play(Script([Card([(0, 300)])]), tmp_path)
    meter = open_meter(schema.NvmlConfig(), tmp_path / "power", attempt=1, cuda_visible=None)
    meter.start()
    held = ctypes.PyDLL(None)  # unlike CDLL, it keeps the GIL during the call
    for _ in range(7):
        held.usleep(300_000)
    meter.close()
    facts = meter.describe()
    assert facts["samples"] > 50
    assert facts["gap_p99_s"] < 0.15


def test_a_cold_run_of_five_seconds(sampled: Sampled) -> None:
    """Idle, then load for 5 s, then idle: the value is the counter's, whatever the 1 s mean makes
    of the rise.
    """
    load = square(250, 650, 0.237, 0.71, 5.0, 0.0)[:-1]
    trace = [(-5.0, 120.0), (3.0, 120.0), *((t + 3.0, w) for t, w in load), (3.0 + load[-1][0], 120.0)]
    for phase in range(10):
        (s,) = sampled(Script([Card(trace, phase_s=0.01 * phase)]), 11.0, seed=phase)
        a, b = 3.0, 3.0 + load[-1][0]
        w = estimate.card_window(s, a, b)
        assert w.energy_j == pytest.approx(integral_j(trace, a, b), rel=0.007)
        assert w.source == "nvml-counter"
        assert s.card.facts["power_call"] == "fields 185, 186"
