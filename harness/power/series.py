"""Rows of a segment, folded one by one into what the estimator needs: ticks of the counter, power,
gaps, resets. Pure.

Times are float seconds since the segment's `origin_ns`; energy is J, power W: units are converted
here, once. A *tick* is the first poll that shows a new counter value: the sensor moved somewhere in
(lo, hi], between the poll before and this one. A *piece* is a stretch in which the counter only
rises; a reset begins a new one.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from typing import Any

from harness.power.interference import Look
from harness.power.replay import PowerTrace
from harness.power.segment_file import Row, card_of
from harness.power.source import GPU_GONE, NO_PERMISSION, OK
from harness.units import S_PER_NS

UNKNOWN_LIMIT_W = 5000.0  # more than any board draws: the bound of a card without a power limit
IMPLAUSIBLE_FACTOR = 1.5  # of the enforced limit


class StepFunction:
    """A power reading that holds until the next one: a step function with its running integral.

    `reads` records when it was read at all, because a field whose reads fail would keep its last
    value for ever.
    """

    def __init__(self, min_gap_s: float) -> None:
        self.t_s, self.w, self.joule = array("d"), array("d"), array("d")
        self.reads = Coverage(min_gap_s)

    def add(self, t_s: float, w: float) -> None:
        if self.t_s:
            self.joule.append(self.joule[-1] + self.w[-1] * (t_s - self.t_s[-1]))
        else:
            self.joule.append(0.0)
        self.t_s.append(t_s)
        self.w.append(w)

    def at(self, t_s: float) -> float | None:
        """Watts shown at `t_s`; None before the first reading."""
        i = bisect_right(self.t_s, t_s) - 1
        return None if i < 0 else self.w[i]

    def integral(self, start_s: float, end_s: float) -> float | None:
        """Joules from `start_s` to `end_s`; None where `start_s` lies before the first reading."""
        i, j = bisect_right(self.t_s, start_s) - 1, bisect_right(self.t_s, end_s) - 1
        if i < 0:
            return None
        to_a = self.joule[i] + self.w[i] * (start_s - self.t_s[i])
        return self.joule[j] + self.w[j] * (end_s - self.t_s[j]) - to_a

    def span(self, start_s: float, end_s: float) -> array[float]:
        """All watts shown between `start_s` and `end_s`."""
        i, j = max(0, bisect_right(self.t_s, start_s) - 1), bisect_right(self.t_s, end_s)
        return self.w[i:j]


class Coverage:
    """When reads of one quantity succeeded: the latest time, and every stretch without a good read
    longer than `min_gap_s`."""

    def __init__(self, min_gap_s: float) -> None:
        self.min_gap_s = min_gap_s
        self.until_s: float | None = None
        self.gaps: list[tuple[float, float]] = []
        self._good = False

    def add(self, prev_s: float, t_s: float, good: bool) -> None:
        """Add a row. The polls between the previous row and `prev_s` had the result of the previous
        row."""
        if self._good and self.until_s is not None:
            self.until_s = max(self.until_s, prev_s)
        if good:
            if self.until_s is not None and t_s - self.until_s > self.min_gap_s:
                self.gaps.append((self.until_s, t_s))
            self.until_s = t_s
        self._good = good

    def forget(self) -> None:
        """Mark the polls since the last row as unknown."""
        self._good = False

    def inside(self, start_s: float, end_s: float, longer_s: float) -> list[tuple[float, float]]:
        """Gaps longer than `longer_s` that overlap the time from `start_s` to `end_s`."""
        return [(g, h) for g, h in self.gaps if h - g > longer_s and g < end_s and h > start_s]

    def whole(self, start_s: float, end_s: float, longer_s: float) -> bool:
        """Whether no gap longer than `longer_s` overlaps the time from `start_s` to `end_s`, and
        the last read is no older."""
        return (
            self.until_s is not None and end_s - self.until_s <= longer_s and not self.inside(start_s, end_s, longer_s)
        )


class Series:
    """One card of one segment. `add` takes rows in order; everything else reads."""

    def __init__(self, header: dict[str, Any], card: int) -> None:
        self.card = card_of(header, card)
        self.points = self.card.counter == "points"
        self.has_counter = self.card.counter is not None
        self.period_s: float = header["period_s"]
        self.origin_ns: int = header["origin_ns"]
        self._energy_unit_j: float = header["energy_unit_j"]
        self._power_unit_w: float = header["power_unit_w"]
        trace = self.card.trace
        self.trace = PowerTrace.of(list(trace["t_s"]), list(trace["power_w"])) if trace else None
        limit_w = self.card.limit_w
        self.bound_w: float = IMPLAUSIBLE_FACTOR * limit_w if limit_w else UNKNOWN_LIMIT_W
        if self.trace:
            self.bound_w = math.inf
        # ticks
        self.lo_s, self.hi_s, self.joule = array("d"), array("d"), array("d")
        self.piece = array("l")
        self.breaks: list[tuple[float, str]] = []  # time and code of what ended piece i
        # per piece: first and last counter value shown
        self.shown_j: list[tuple[float, float]] = []
        # power
        self.instant, self.average = StepFunction(3 * self.period_s), StepFunction(3 * self.period_s)
        self.energy_reads = Coverage(3 * self.period_s)
        self.lost: list[list[float | None]] = []  # [from, to], `to` None while it lasts
        self.bad_reads = 0  # zeros, spikes and power beyond the bound, dropped
        self.denied = False  # a read was refused for lack of permission
        self.looks: list[Look] = []
        # window of an instant reading, from the card's sensor card
        self.look_s: float | None = None
        # lo, hi, value of a counter read that does not fit
        self._doubt: tuple[float, float, float] | None = None
        self._was_good = False  # the last row's counter read
        self._seq = 0
        self._wrapped_j = 0.0  # whole ranges passed so far

    def time_s(self, ns: int) -> float:
        return (ns - self.origin_ns) * S_PER_NS

    def look(self, line: dict[str, Any]) -> None:
        self.looks.append(Look.of(line, self.origin_ns))

    # --- folding
    def add(self, row: Row) -> None:
        t, prev = self.time_s(row.mid_ns), self.time_s(row.prev_ns)
        if row.seq != self._seq + 1:  # a row was lost: the polls since the last one are unknown
            self._was_good = False
            for reads in (self.energy_reads, self.instant.reads, self.average.reads):
                reads.forget()
        self._seq = row.seq
        self._note_loss(row, t)
        self._add_power(row, prev, t)
        good = row.rc_energy == OK and row.energy is not None
        # The poll before this row still showed the old value, if it was a good one.
        last_good = prev if self._was_good else self.energy_reads.until_s
        self.energy_reads.add(prev, t, good)
        if good and row.energy is not None:
            if self.points:
                self._add_energy(self.time_s(row.t0_ns), self.time_s(row.t1_ns), row.energy * self._energy_unit_j)
            else:
                self._add_energy(t if last_good is None else last_good, t, row.energy * self._energy_unit_j)
        self._was_good = good

    def _note_loss(self, row: Row, t: float) -> None:
        gone = row.rc_energy in GPU_GONE or row.rc_instant in GPU_GONE or row.rc_average in GPU_GONE
        open_loss = bool(self.lost) and self.lost[-1][1] is None
        if gone and not open_loss:
            self.lost.append([t, None])
        elif not gone and open_loss:
            self.lost[-1][1] = t
        self.denied = self.denied or NO_PERMISSION in (row.rc_energy, row.rc_instant, row.rc_average)

    def _add_power(self, row: Row, prev: float, t: float) -> None:
        for reading, value, rc in (
            (self.instant, row.instant, row.rc_instant),
            (self.average, row.average, row.rc_average),
        ):
            watts = None if rc != OK or value is None else value * self._power_unit_w
            # NVML reads 0 for "not supported" and has returned kilowatts of garbage with success.
            if watts is not None and (watts > self.bound_w or (watts <= 0 and not self.trace)):
                self.bad_reads += 1
                watts = None
            reading.reads.add(prev, t, watts is not None)
            if watts is not None and (not reading.w or reading.w[-1] != watts):
                reading.add(t if not reading.w else 0.5 * (max(prev, reading.t_s[-1]) + t), watts)

    def _add_energy(self, lo: float, hi: float, value: float) -> None:
        value += self._wrapped_j
        if self._doubt is not None:
            doubtful, self._doubt = self._doubt, None
            last = self.shown_j[-1][1]
            if doubtful[2] < last and value < last:
                self._break(doubtful, "RESET" if self.points else "COUNTER_RESET")
            elif doubtful[2] > last and value >= doubtful[2]:
                self._break(doubtful, "IMPLAUSIBLE")
            else:
                self.bad_reads += 1
        if not self.shown_j:
            self.shown_j.append((value, value))
            if self.points:
                self._tick(lo, hi, value)
            return
        last = self.shown_j[-1][1]
        if range_j := self.card.range_j:
            elapsed, most_w = lo - self.hi_s[-1], self.card.max_w or self.bound_w
            # a wrap could have gone unseen
            if elapsed > range_j / (self.card.wrap_power_w or most_w):
                self._break((lo, hi, value), "GAP")
                return
            if value < last and value + range_j - last <= most_w * elapsed:
                self._wrapped_j += range_j
                value += range_j
        if value < last or value - last > self.bound_w * self._since_last(hi):
            self._doubt = (lo, hi, value)
        elif value > last or self.points:
            self._tick(lo, hi, value)

    def _since_last(self, hi: float) -> float:
        """Longest time in which the counter can have gathered what it shows at `hi` beyond its last
        value, s."""
        if self.hi_s and self.piece[-1] == len(self.breaks):
            return hi - self.lo_s[-1]
        return hi + 1.0  # no tick yet: since the segment began, and up to one update before it

    def _tick(self, lo: float, hi: float, value: float) -> None:
        self.lo_s.append(lo)
        self.hi_s.append(hi)
        self.joule.append(value)
        self.piece.append(len(self.breaks))
        self.shown_j[-1] = (self.shown_j[-1][0], value)

    def _break(self, doubtful: tuple[float, float, float], code: str) -> None:
        lo, hi, value = doubtful
        self.breaks.append((0.5 * (lo + hi), code))
        self.shown_j.append((value, value))
        if self.points:
            self._tick(lo, hi, value)

    # --- reading
    def tick_period_s(self) -> float | None:
        """The counter's update period: median spacing of the latest ticks; None with fewer than 3
        of them.

        Not the minimum, which a single late poll halves. No shorter than the polling period can
        show.
        """
        n = len(self.hi_s)
        if n < 3:
            return None
        first = max(0, n - 256)
        spacings = sorted(
            self.hi_s[i + 1] - self.hi_s[i] for i in range(first, n - 1) if self.piece[i] == self.piece[i + 1]
        )
        return spacings[len(spacings) // 2] if spacings else None

    @property
    def power(self) -> StepFunction:
        """The substitute for a missing counter: average power if the card has it, else instant
        power."""
        return self.average if self.average.w else self.instant

    def begin_s(self) -> float | None:
        """When energy begins to be known; None before the first reading."""
        if self.card.trace:
            return self.time_s(self.card.trace["origin_ns"])
        if self.has_counter:
            return self.hi_s[0] if self.hi_s else None
        return self.power.t_s[0] if self.power.t_s else None

    def end_s(self) -> float | None:
        """When energy ceases to be known. A tick lies before the poll that showed it, so its early
        end is used."""
        if self.trace:
            return self.energy_reads.until_s
        if self.has_counter:
            return self.lo_s[-1] if self.lo_s else None
        return self.power.reads.until_s

    def so_far_j(self) -> float | None:
        """Provisional joules from the beginning to the latest reading; None where something in
        between was not measured."""
        begin, end = self.begin_s(), self.end_s()
        if begin is None or end is None or end <= begin or self.breaks or self.lost:
            return None
        if self.trace:
            return self.trace.energy_to(self.trace.t_s[0] + end - begin)
        if self.has_counter:
            return self.joule[-1] - self.joule[0]
        return None if self.power.reads.gaps else self.power.integral(begin, end)

    def latest_w(self, now_s: float, stale_s: float) -> float | None:
        """The latest power, W; None if it is older than `stale_s`."""
        for reading in (self.instant, self.average):
            until = reading.reads.until_s
            if until is not None and now_s - until < stale_s:
                return reading.at(until)
        if self.points and len(self.hi_s) > 1 and now_s - self.hi_s[-1] < stale_s and self.piece[-1] == self.piece[-2]:
            return (self.joule[-1] - self.joule[-2]) / (self.hi_s[-1] - self.hi_s[-2])
        return None

    def covers(self, end_s: float) -> bool:
        """Whether the readings reach past `end_s`, so that a window ending there gains nothing from
        waiting longer."""
        if self.trace:
            return True
        if self.lost and self.lost[-1][1] is None:
            return True
        if self.has_counter:
            return bool(self.lo_s) and self.lo_s[-1] >= end_s
        return (self.power.reads.until_s or -1.0) >= end_s
