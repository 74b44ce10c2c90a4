"""What one look a second says about a window: each code raised at its threshold, and not raised
below it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles.nvml import Card, Fault, Script, integral_j, square

from harness.power import estimate, interference, segment_file
from harness.power.series import Series

Sampled = Callable[..., list[Series]]
A, B = 6.0, 14.0  # the window, s
INIT = 1  # a process that is there and not ours
FLAT = [(0.0, 400.0)]


def card(**settings: object) -> Card:
    return Card(FLAT, **settings)  # type: ignore[arg-type]


def judged(sampled: Sampled, one: Card, faults: list[Fault] | None = None) -> estimate.CardWindow:
    (s,) = sampled(Script([one], faults or []), 16.0)
    out = estimate.card_window(s, A, B)
    assert out.energy_j is not None, out.reason
    assert out.energy_j == pytest.approx(integral_j(one.trace, A, B), rel=0.02)
    return out


@pytest.mark.parametrize(
    ("code", "events"),
    [
        ("FOREIGN_PROCESS", [(8.0, "pid", INIT), (9.5, "pid", -INIT)]),
        ("FOREIGN_UNKNOWN", [(8.0, "pid", 2**22 - 3)]),  # no such process here: another namespace
        ("HW_THROTTLE", [(8.0, "mask", 0x8), (10.5, "mask", 0)]),
        # between two looks: only the accumulated time tells
        ("HW_THROTTLE", [(8.2, "mask", 0x40), (8.3, "mask", 0)]),
        ("HW_THROTTLE", [(8.2, "mask", 0x80), (8.3, "mask", 0)]),
        # 2.5 % of the window, between two looks
        ("SW_THERMAL", [(8.1, "mask", 0x20), (8.3, "mask", 0)]),
        ("POWER_CAPPED", [(0.0, "mask", 0x4)]),
        ("POWER_LIMIT_CHANGED", [(8.0, "limit_w", 500.0)]),
        ("CLOCKS_CHANGED", [(8.0, "clock", 1400)]),
    ],
)
def test_raised_inside_the_window_with_its_evidence(
    sampled: Sampled, code: str, events: list[tuple[float, str, float]]
) -> None:
    out = judged(sampled, card(events=events))
    assert code in out.codes
    (note,) = [n for n in out.notes if n.startswith(code)]
    assert "looks" in note
    assert " s" in note


@pytest.mark.parametrize(
    "events",
    [
        [],
        [(8.0, "pid", os.getpid())],  # the run itself
        [(1.0, "pid", INIT), (3.5, "pid", -INIT)],  # gone before the window
        [(14.5, "pid", INIT)],  # came after it
        [(1.0, "mask", 0x8), (3.5, "mask", 0)],
        [(8.12, "mask", 0x20), (8.17, "mask", 0)],  # 0.6 % of the window
        [(8.0, "mask", 0x1)],  # idle is no throttle
        [(14.5, "limit_w", 500.0)],
        [(14.5, "clock", 1400)],
    ],
)
def test_not_raised(sampled: Sampled, events: list[tuple[float, str, float]]) -> None:
    out = judged(sampled, card(events=events))
    assert set(out.codes) <= {"UNCALIBRATED"}
    assert out.notes == []


def test_a_card_without_a_process_list_says_so_and_nothing_else(sampled: Sampled) -> None:
    symbols = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetApplicationsClock", "nvmlDeviceGetTemperature")
    out = judged(sampled, card(), [Fault(s, 3) for s in symbols])
    assert set(out.codes) == {"UNCALIBRATED", "FOREIGN_UNKNOWN"}
    assert "no process list" in out.notes[0]


def test_verdicts_follow_the_table(sampled: Sampled) -> None:
    for events, verdict in (
        ([(8.0, "pid", INIT)], "invalid"),
        ([(8.0, "mask", 0x20)], "suspect"),
        ([(8.0, "mask", 0x4)], "valid"),
    ):
        series = sampled(Script([card(events=events)]), 16.0)
        out, _ = estimate.window(series, round(A * 1e9), round(B * 1e9), 0.03)
        assert out.verdict == verdict
        assert out.notes
        refused = estimate.refuse(out)
        assert (refused.energy_j is None) == (verdict == "invalid")


def test_owners_are_told_by_their_ancestors(tmp_path: Path) -> None:
    for pid, parent in ((10, 1), (20, 10), (30, 20), (40, 1), (1, 0)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a name) with) (brackets) S {parent} 0")
    assert interference.owners([10, 20, 30, 40, 99], 10, tmp_path) == ([40], 1)
    assert interference.owners([], 10, tmp_path) == ([], 0)


# --- phase lock and drift -------------------------------------------------------------------------
@pytest.mark.parametrize("k", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("phase", [0.0, 0.031, 0.077])
def test_a_load_locked_to_the_sensor_is_measured_within_two_per_cent_and_said(
    sampled: Sampled, k: int, phase: float
) -> None:
    """Step = sensor period x k: every instant reading sees the same part of the step, the counter
    sees all of it.
    """
    load = square(120, 680, 0.1 * k, 0.3, 34, -3)
    (s,) = sampled(Script([Card(load, phase_s=phase)]), 32.0)
    chance = random.Random(k)
    for _ in range(20):
        a = chance.uniform(1.5, 5.0)
        b = a + 0.1 * k * round(20 / (0.1 * k))
        out = estimate.card_window(s, a, b, step_s=0.1 * k)
        assert out.energy_j is not None, out.reason
        assert out.energy_j == pytest.approx(integral_j(load, a, b), rel=0.02)
        assert "PHASE_LOCK" in out.codes
        assert "SOURCES_DISAGREE" not in out.codes
        assert out.e2_j is None


@pytest.mark.parametrize("step_s", [0.237, 0.0731, 0.02, 0.61803])
def test_steps_that_drift_through_the_sensor_are_not_locked(sampled: Sampled, step_s: float) -> None:
    (s,) = sampled(Script([Card(square(250, 650, step_s, 0.5, 34, -3))]), 32.0)
    out = estimate.card_window(s, 3.0, 3.0 + step_s * round(24 / step_s), step_s=step_s)
    assert "PHASE_LOCK" not in out.codes, out.notes


def test_a_sensor_that_sees_all_of_an_update_cannot_be_locked_to(sampled: Sampled) -> None:
    (s,) = sampled(Script([Card(square(250, 650, 0.2, 0.5, 34, -3), window_s=0.1)]), 32.0)
    s.look_s = 0.1
    assert "PHASE_LOCK" not in estimate.card_window(s, 3.0, 23.0, step_s=0.2).codes


def test_phase_coverage_is_the_union_of_the_looks() -> None:
    assert interference.phase_coverage(100, 0.1, 0.025, 0.1) == pytest.approx(0.25)
    assert interference.phase_coverage(100, 0.1, 0.025, 0.25) == pytest.approx(5 * 0.025 / 0.25)
    assert interference.phase_coverage(100, 0.1, 0.03, 0.02) == 1.0
    assert interference.phase_coverage(1000, 0.1, 0.025, 0.237) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("end_w", "raised"), [(410.0, False), (450.0, True), (350.0, True)])
def test_power_that_drifts_is_not_stationary(sampled: Sampled, end_w: float, raised: bool) -> None:
    """A ramp from 400 W: thirds of the window differ by 2/3 of its rise."""
    load = [(-3.0, 400.0), (3.0, 400.0), (15.0, end_w), (20.0, end_w)]
    (s,) = sampled(Script([Card(load)]), 17.0)
    out = estimate.card_window(s, 3.0, 15.0)
    assert ("NOT_STATIONARY" in out.codes) == raised
    assert bool(out.notes) == raised


# --- looks that are missing -----------------------------------------------------------------------
def look(t: float, limit_w: float | None = 700.0) -> interference.Look:
    return interference.Look(t, limit_w, None, None, 0, [None] * 5, None, None, [], 0)


def test_looks_that_ended_before_the_window_did_say_so() -> None:
    seen = [look(float(t)) for t in range(10)]
    assert interference.judge(seen, 6.0, 13.5) == []
    ((code, note),) = interference.judge(seen, 20.0, 30.0)
    assert code == "FOREIGN_UNKNOWN"
    assert "no look in the 21 s" in note


def test_a_setting_counts_from_the_first_look_that_told_it() -> None:
    seen = [look(0.0, None), look(1.0), look(2.0, None), look(3.0, 500.0), look(4.0, 500.0)]
    assert [c for c, _ in interference.judge(seen, 0.5, 2.5)] == []
    assert [c for c, _ in interference.judge(seen, 0.5, 4.5)] == ["POWER_LIMIT_CHANGED"]


def test_a_process_that_ends_while_it_is_looked_up_is_hidden(tmp_path: Path) -> None:
    for pid, text in ((10, ""), (20, "20 (cut")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(text)
    assert interference.owners([10, 20], 99, tmp_path) == ([], 2)


def test_looks_are_handed_on_and_not_kept(tmp_path: Path) -> None:
    path = segment_file.path_of(tmp_path, 1, 0)
    writer = segment_file.Writer(path)
    writer.put({"kind": "watch", "card": 0, "mono_ns": 1}, {"kind": "watch", "card": 0, "mono_ns": 2})
    writer.close()
    reader = segment_file.SegmentReader(path)
    reader.poll()
    assert [x["mono_ns"] for x in reader.take_looks()] == [1, 2]
    assert reader.take_looks() == []
