"""Segment files: which polls become rows, torn and damaged lines, and the fold into ticks, gaps and
resets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.power import estimate
from harness.power.segment_file import Recorder, Row, SegmentReader, Writer, find, path_of
from harness.power.series import Series
from harness.power.source import Reading

MS = 1_000_000
CARD = {
    "uuid": "GPU-x",
    "name": "x",
    "limit_w": 700.0,
    "support": {"energy": 0, "instant": 0, "average": 0},
    "mig": False,
}
HEAD: dict[str, Any] = {
    "source": "nvml",
    "counter": "ticks",
    "period_s": 0.01,
    "origin_ns": 0,
    "energy_unit_j": 1e-3,
    "power_unit_w": 1e-3,
    "cards": [CARD],
}


def reading(energy: float | None, power: float | None = 100_000, rc: int = 0) -> Reading:
    return Reading(energy, power, power, rc, rc, rc, None)


def fold(polls: list[tuple[float, Reading]], head: dict[str, Any] = HEAD) -> Series:
    """Polls (seconds, reading) through the recorder into a series."""
    recorder, series = Recorder(20 * MS), Series(head, 0)
    for t, r in polls:
        row = recorder.offer(0, round(t * 1e9), round(t * 1e9), r)
        if row is not None:
            series.add(row)
    return series


def counter(t: float, watts: float = 100.0, tick: float = 0.1, start_mj: int = 5_000_000) -> int:
    return start_mj + round(1000 * watts * tick * int(t / tick + 1e-9))


def polls(until: float, watts: float = 100.0, start: float = 0.0) -> list[tuple[float, Reading]]:
    times = [round(start + 0.01 * k, 6) for k in range(round((until - start) / 0.01))]
    return [(t, reading(counter(t, watts), watts * 1000)) for t in times]


# --- recorder and files ---------------------------------------------------------------------------
def test_only_changes_heartbeats_and_late_polls_are_written() -> None:
    recorder = Recorder(late_ns=20 * MS, heartbeat_ns=100 * MS)

    def offer(t_ms: int, energy: float, rc: int = 0) -> bool:
        return recorder.offer(0, t_ms * MS, t_ms * MS, reading(energy, rc=rc)) is not None

    assert offer(0, 1)  # first
    assert not offer(10, 1)
    assert offer(20, 2)  # value
    assert offer(30, 2, rc=15)  # status
    assert not offer(40, 2, rc=15)
    assert offer(61, 2, rc=15)  # 21 ms after the poll before
    assert not any(offer(t, 2, rc=15) for t in range(70, 160, 10))
    assert offer(162, 2, rc=15)  # heartbeat


def test_a_moving_time_stamp_is_no_change() -> None:
    recorder = Recorder(20 * MS)
    assert recorder.offer(0, 0, 0, Reading(1, 1, 1, 0, 0, 0, 5)) is not None
    assert recorder.offer(0, MS, MS, Reading(1, 1, 1, 0, 0, 0, 6)) is None


def test_a_torn_last_line_is_left_and_a_damaged_one_counted(tmp_path: Path) -> None:
    path = path_of(tmp_path, 1, 0)
    writer = Writer(path)
    row = Row(1, 0, 10, 12, 11, 5.0, None, None, 0, 3, 3, None)
    writer.put({"kind": "header", "x": 1}, row)
    writer.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b"{nonsense}\n[1,2]\n" + json.dumps(list(row)).encode()[:9])
    reader = SegmentReader(path)
    assert reader.poll() == [row]
    assert reader.header == {"kind": "header", "x": 1}
    assert reader.torn
    assert reader.damaged == 2
    with path.open("ab") as f:  # the rest of the line arrives
        f.write(json.dumps(list(row)).encode()[9:] + b"\n")
    assert reader.poll() == [row]
    assert not reader.torn


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_file_cut_anywhere_gives_the_rows_before_the_cut(tmp_path: Path, cut: int) -> None:
    path = path_of(tmp_path, 1, 0)
    writer = Writer(path)
    rows = [Row(k, 0, k, k, k, k, k, k, 0, 0, 0, k) for k in range(1, 20)]
    writer.put(*rows)
    writer.close()
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    got = SegmentReader(path).poll()
    assert got == rows[: len(got)]
    assert len(got) == data[:-cut].count(b"\n")


def test_a_full_disk_is_counted_and_the_next_line_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path = path_of(tmp_path, 1, 0)
    writer = Writer(path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:4]))
    writer.put({"kind": "stats", "a": 1})
    monkeypatch.setattr(os, "write", real)
    writer.put({"kind": "stats", "a": 2})
    writer.close()
    reader = SegmentReader(path)
    reader.poll()
    assert writer.lost_lines == 1
    assert (reader.damaged, reader.stats) == (1, {"kind": "stats", "a": 2})


def test_segments_are_found_in_order(tmp_path: Path) -> None:
    for attempt, index in [(2, 0), (1, 10), (1, 2)]:
        path_of(tmp_path, attempt, index).touch()
    assert [p.name for p in find(tmp_path)] == ["a001.s2.jsonl", "a001.s10.jsonl", "a002.s0.jsonl"]
    assert [p.name for p in find(tmp_path, 2)] == ["a002.s0.jsonl"]


# --- fold -----------------------------------------------------------------------------------------
def test_ticks_and_their_period() -> None:
    s = fold(polls(3.0))
    assert len(s.hi_s) == 29
    assert s.tick_period_s() == pytest.approx(0.1)
    w = estimate.card_window(s, 0.5, 2.5)
    assert w.energy_j == pytest.approx(200.0, abs=1.5)
    assert w.energy_j is not None
    assert w.se_j is not None
    assert 0 < w.se_j < 3
    assert abs(w.energy_j - 200) < 2 * w.se_j


def test_one_low_or_high_read_is_a_missed_read() -> None:
    clean = estimate.card_window(fold(polls(3.0)), 0.5, 2.5)
    for garbage in (0, 4_000_000, 2**60):
        p = polls(3.0)
        p[155] = (p[155][0], reading(garbage))
        s = fold(p)
        assert not s.breaks
        assert s.bad_reads == 1
        assert estimate.card_window(s, 0.5, 2.5).energy_j == pytest.approx(clean.energy_j, abs=0.6)


def test_two_low_reads_are_a_reset() -> None:
    p = [(t, r if t < 1.5 else reading(counter(t, start_mj=-150_000))) for t, r in polls(3.0)]
    s = fold(p)
    w = estimate.card_window(s, 0.5, 2.5)
    assert w.energy_j is None
    assert "COUNTER_RESET" in w.codes
    assert w.reason is not None
    # the pieces on both sides, a lower bound of 200 J less what the reset hides
    assert "at least 1" in w.reason
    assert 150 <= estimate.rising_j(s, 0.5, 2.5) <= 200
    for a, b in ((0.3, 1.3), (1.8, 2.8)):  # on either side nothing happened
        assert estimate.card_window(s, a, b).energy_j == pytest.approx(100, abs=2)


def test_a_jump_that_stays_is_implausible() -> None:
    p = [(t, r if t < 1.5 else reading(counter(t) + 3_000_000)) for t, r in polls(3.0)]
    w = estimate.card_window(fold(p), 0.5, 2.5)
    assert (w.energy_j, w.codes[-1]) == (None, "IMPLAUSIBLE")
    assert w.reason is not None
    assert "faster than the card can draw" in w.reason


def test_garbage_power_is_dropped() -> None:
    p = polls(3.0)
    p[100] = (p[100][0], reading(counter(p[100][0]), 3.7e6 * 1000))
    s = fold(p)
    assert max(s.instant.w) == 100
    assert s.bad_reads == 2  # instant and average


@pytest.mark.parametrize(
    ("hole", "code"),
    [
        ((0.45, 1.1), "SAMPLER_GAP"),  # at the first edge
        ((1.0, 1.7), "SAMPLER_GAP"),  # a third of the window
        ((1.0, 1.3), None),  # under five ticks, inside: the counter went on
        ((2.4, 2.6), None),  # short, at an edge: the error bar covers it
    ],
)
def test_gaps(hole: tuple[float, float], code: str | None) -> None:
    s = fold([(t, r) for t, r in polls(4.0) if not hole[0] < t < hole[1]])
    w = estimate.card_window(s, 0.5, 2.5)
    if code:
        assert w.energy_j is None
        assert code in w.codes
    else:
        assert w.energy_j is not None
        assert w.se_j is not None
        assert abs(w.energy_j - 200) < 3 * w.se_j


def test_a_failing_counter_is_a_gap_and_a_lost_card_is_said() -> None:
    for rc, code in ((999, "SAMPLER_GAP"), (15, "GPU_LOST"), (16, "GPU_LOST")):
        p = [(t, reading(None, None, rc) if 1.0 <= t < 1.8 else r) for t, r in polls(3.0)]
        s = fold(p)
        w = estimate.card_window(s, 0.5, 2.5)
        assert w.energy_j is None
        assert code in w.codes, rc
        # a while after it came back
        assert estimate.card_window(s, 2.05, 2.85).energy_j == pytest.approx(80, abs=2)


def test_a_window_outside_the_readings_has_no_energy() -> None:
    s = fold(polls(2.0))
    early, late, died = (
        estimate.card_window(s, -0.5, 1.0),
        estimate.card_window(s, 1.0, 2.4),
        estimate.card_window(s, 1.0, 2.4, ended=True),
    )
    assert early.energy_j is late.energy_j is died.energy_j is None
    assert "SAMPLER_GAP" in early.codes
    assert "SAMPLER_GAP" in late.codes
    assert "SAMPLER_DIED" in died.codes


def test_a_counter_that_stands_still_is_not_an_idle_card() -> None:
    p = [(t, reading(counter(min(t, 1.0)), 400_000)) for t, _ in polls(4.0)]
    w = estimate.card_window(fold(p), 0.5, 2.0)
    assert w.energy_j is None
    assert "SOURCES_DISAGREE" in w.codes
    assert w.reason is not None
    assert "400 W" in w.reason


def test_a_lost_row_does_not_move_a_tick() -> None:
    recorder, whole, holed = Recorder(20 * MS), Series(HEAD, 0), Series(HEAD, 0)
    for t, r in polls(3.0):
        row = recorder.offer(0, round(t * 1e9), round(t * 1e9), r)
        if row is not None:
            whole.add(row)
            if row.seq % 7:
                holed.add(row)
    a, b = estimate.card_window(whole, 0.55, 2.45), estimate.card_window(holed, 0.55, 2.45)
    assert a.energy_j is not None
    assert b.energy_j is not None
    assert b.se_j is not None
    assert abs(a.energy_j - b.energy_j) < 2 * b.se_j


# --- one field fails while the others are read ----------------------------------------------------
def field_fails(t: float, average_w: float, since: float, until: float, energy: float | None = None) -> Reading:
    dead = since <= t < until
    average = None if dead else 1000 * average_w
    return Reading(energy, 1000 * average_w, average, 0 if energy else 3, 0, 999 if dead else 0, None)


def test_an_average_that_fails_alone_is_a_gap_and_not_its_last_value() -> None:
    """Without a counter.

    Instant power is read all the while; the load doubles unseen by the average.
    """
    head = {**HEAD, "cards": [{**CARD, "support": {"energy": 3, "instant": 0, "average": 0}}]}
    times = [0.01 * k for k in range(500)]
    s = fold([(t, field_fails(t, 200 if t < 1.5 else 400, 1.0, 3.0)) for t in times], head)
    w = estimate.card_window(s, 0.5, 2.5)
    assert (w.energy_j, w.codes[-1]) == (None, "SAMPLER_GAP")
    assert estimate.card_window(s, 3.1, 4.5).energy_j == pytest.approx(560, rel=0.01)
    assert s.so_far_j() is None
    ended = fold([(t, field_fails(t, 200, 1.0, 9.0)) for t in times], head)
    assert estimate.card_window(ended, 0.5, 2.5).energy_j is None


def test_a_cross_check_that_was_not_read_is_none() -> None:
    times = [0.01 * k for k in range(900)]
    p = [
        (
            t,
            field_fails(
                t, 100 if t < 1.5 else 200, 1.0, 20.0, counter(t) if t < 1.5 else counter(2 * t - 1.5, tick=0.2)
            ),
        )
        for t in times
    ]
    w = estimate.card_window(fold(p), 0.5, 8.5)
    assert w.energy_j == pytest.approx(1500, rel=0.02)
    assert w.e3_j is w.r3 is None
    assert w.e2_j == pytest.approx(1500, rel=0.02)
    assert "SOURCES_DISAGREE" not in w.codes


def test_a_counter_that_stood_still_and_went_on_is_suspect() -> None:
    """A second's joules are missing from the counter, in a window too short for the cross-check."""
    p = [(t, reading(counter(t if t < 1.0 else max(1.0, t - 1.0)), 100_000)) for t, _ in polls(4.0)]
    w = estimate.card_window(fold(p), 0.5, 3.5)
    assert w.energy_j == pytest.approx(200, abs=5)  # for a true 300
    assert "SOURCES_DISAGREE" in w.codes
    assert "stood still for" in w.notes[-1]


def test_lost_rows_are_a_gap() -> None:
    """A disk that was full for a while: power doubled and fell again in rows that are not there."""
    for support, source in ((3, "nvml-average"), (0, "nvml-counter")):
        head = {**HEAD, "cards": [{**CARD, "support": {"energy": support, "instant": 0, "average": 0}}]}
        recorder, s = Recorder(20 * MS), Series(head, 0)
        for t, r in polls(4.0):
            power = 200_000 if 1.05 < t < 1.95 else 100_000
            energy, rc = (r.energy, 0) if support == 0 else (None, 3)
            row = recorder.offer(0, round(t * 1e9), round(t * 1e9), Reading(energy, power, power, rc, 0, 0, None))
            if row is not None and not 1.0 <= t <= 2.0:
                s.add(row)
        w = estimate.card_window(s, 0.5, 2.5)
        assert (w.source, w.energy_j, w.codes[-1]) == (source, None, "SAMPLER_GAP")
