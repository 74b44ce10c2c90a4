"""START HERE: the meter that a run holds. It starts the sampler, reads what it wrote, and answers
in joules or with a reason.

A meter never stops a run: what it cannot measure comes back as `Measured(energy_j=None, reason=…)`.
Times are `time.monotonic_ns()`. Start it before CUDA is initialised and from the main thread.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from harness import records
from harness.config import schema, setting
from harness.power import estimate, segment_file, sensor
from harness.power.sampler import LEAVE, POLL_NOW, Spec, make_source
from harness.power.segment_process import Segment, last_words, spawn
from harness.power.visible_devices import UNMETERED
from harness.units import S_PER_NS

log = logging.getLogger(__name__)

START_WAIT_S = 10.0
CLOSE_WAIT_S = 3.0
STALE_S = 2.0  # age above which a live reading is ignored
MAX_RESTARTS = 1


def open_meter(config: schema.PowerConfig, folder: Path, *, attempt: int, cuda_visible: str | None) -> Meter:
    """The meter of one attempt of a run; its files go to `folder`. Nothing runs before `start`.

    `cuda_visible` is the value of CUDA_VISIBLE_DEVICES (None: not set): all cards it shows are
    metered and added up. Raises ConfigError for settings that the source refuses, such as a trace
    that is missing; everything else becomes `Meter.reason`.
    """
    tolerance = getattr(config, "tolerance", schema.NvmlConfig.tolerance)
    if isinstance(config, schema.UnmeteredConfig):
        return Meter(None, folder.absolute(), tolerance=tolerance, reason=config.reason)
    local = {name: str(Path(path).absolute()) for name, path in setting.local_paths(config).items()}
    spec = Spec(schema.choice("power", config), "", 0.0, os.getpid(), attempt, index=0, follow_thread=True)
    spec.settings, spec.cuda_visible = {**records.to_json(config), **local}, cuda_visible
    source = make_source(spec)
    spec.period_s = source.period_s
    return Meter(spec, folder.absolute(), tolerance=tolerance, boundary=source.boundary, private=tuple(local.values()))


class Meter:
    """Energy of one attempt. See the module's text; one class for all sources. To be used from one
    thread."""

    def __init__(
        self,
        spec: Spec | None,
        folder: Path,
        *,
        tolerance: float,
        reason: str | None = None,
        boundary: str = "",
        private: tuple[str, ...] = (),
    ) -> None:
        self.reason = reason
        self.boundary = boundary  # what its joules are of
        self._private = private  # local paths; reasons show their base names alone
        self.folder = folder
        self._spec = spec
        self.tolerance = tolerance  # of the 95 % interval; `estimate.total` and `refuse` take it
        self._code: str | None = None  # reason code that goes with `reason`
        self._segments: list[Segment] = []
        self._restarts = 0
        self._closed = False
        self._problems: list[str] = []
        self._worst_r2 = self._worst_r3 = 0.0
        self._seen_codes: dict[str, int] = {}
        self._sensor_cards: list[sensor.SensorCard | None] = []

    # --- life
    def start(self) -> None:
        """Start the sampler and wait until it reads, at most 10 s; else the run goes on unmeasured,
        with `reason` set."""
        if self._spec is None or self._segments:
            return
        self._spec.trace_origin_ns = time.monotonic_ns()
        try:
            current = spawn(self._spec, self.folder)
            self._segments.append(current)
        except OSError as e:
            self._unmeasured("NO_SOURCE", f"the sampler could not be started: {e}. {UNMETERED}")
            return
        end = time.monotonic() + START_WAIT_S
        while time.monotonic() < end:
            current.poll()
            if current.reader.refused is not None:
                self._unmeasured(current.reader.refused["code"], current.reader.refused["reason"])
                return
            if current.reader.ready:
                self._sensor_cards = [sensor.stored(s.card.uuid, s.card.driver) for s in current.series]
                return
            if current.ended:
                self._unmeasured(
                    "NO_SOURCE", f"the sampler process ended at once: {last_words(self.folder)}. {UNMETERED}"
                )
                return
            time.sleep(0.005)
        current.kill()
        message = last_words(self.folder)
        self._unmeasured(
            "NO_SOURCE", f"the sampler did not read anything within {START_WAIT_S:g} s: {message}. {UNMETERED}"
        )

    def close(self) -> None:
        """Stop the sampler after one more tick and gather all segments of the run into
        power.parquet, beside the raw files."""
        if self._closed:
            return
        self._closed = True
        for s in self._segments:
            if s.process is None:
                continue
            # the end of the pipe alone would not do: a forked data loader may hold it open
            s.ask(LEAVE)
            if s.process.stdin is not None:
                s.process.stdin.close()
            try:
                s.process.wait(CLOSE_WAIT_S)
            except subprocess.TimeoutExpired:
                self._problems.append("the sampler did not leave when asked and was killed")
                s.kill()
            s.poll()
        log_file = self.folder / "sampler.log"
        if log_file.is_file() and log_file.stat().st_size == 0:
            log_file.unlink()
        if self._segments:
            self._compact()

    def _compact(self) -> None:
        # pyarrow is slow to import, and a run that was never closed does not need it
        from harness.power import table

        try:
            table.write(self.folder)
        except OSError as e:
            self._problems.append(f"power.parquet was not written ({e}); the raw segments are complete")

    def _unmeasured(self, code: str, reason: str) -> None:
        log.warning("energy is not measured: %s", reason)
        self._code, self.reason = code, self._public(reason)

    def _public(self, text: str) -> str:
        """A text for records, in which local paths of the config are cut to base names."""
        for path in self._private:
            text = text.replace(path, Path(path).name)
        return text

    # --- answers
    def energy(self, start_ns: int, end_ns: int, wait_s: float = 0.5, *, steps: int = 0) -> records.Measured:
        """Energy from `start_ns` to `end_ns` of this attempt; waits up to `wait_s` for the first
        reading after the end.

        `steps`: training steps in between, to check whether they are in time with the sensor.
        """
        if self.reason is not None or not self._segments:
            return self._nothing()
        try:
            return self._energy(start_ns, end_ns, wait_s, steps)
        # a bug here must not end a run of days; it is logged whole and named in the record
        except Exception as e:
            log.exception("the meter failed on a window")
            return records.Measured(
                verdict="invalid", codes=["METER_FAILED"], reason=f"METER_FAILED: {type(e).__name__}: {e}"
            )

    def _energy(self, start_ns: int, end_ns: int, wait_s: float, steps: int) -> records.Measured:
        self._refresh()
        if any(s.card.counter != "ticks" for s in self._segments[-1].series):
            # so that the window's end does not wait for the next period
            self._segments[-1].ask(POLL_NOW)
        end = time.monotonic() + wait_s
        while True:
            s = self._segment_at(start_ns)
            covered = bool(s.series) and all(c.covers(c.time_s(end_ns)) for c in s.series)
            if covered or s.ended or time.monotonic() >= end:
                break
            time.sleep(0.005)
            self._refresh()
        if not s.series:
            return records.Measured(
                verdict="invalid",
                codes=["SAMPLER_DIED"],
                reason="SAMPLER_DIED: the sampler wrote nothing for this window",
            )
        for series, card in zip(s.series, self._sensor_cards, strict=False):
            series.look_s = card.instant_window_s if card is not None else None
        step_s = (end_ns - start_ns) * S_PER_NS / steps if steps else None
        measured, parts = estimate.window(s.series, start_ns, end_ns, self.tolerance, s.ended, step_s)
        measured = estimate.net(measured, self._idle_w(), (end_ns - start_ns) * S_PER_NS)
        for event in s.reader.events:
            if start_ns <= event["mono_ns"] <= end_ns and event["code"] not in measured.codes:
                measured.codes.append(event["code"])
        for part in parts:
            self._worst_r2 = max(self._worst_r2, part.r2 or 0.0, -(part.r2 or 0.0))
            self._worst_r3 = max(self._worst_r3, part.r3 or 0.0, -(part.r3 or 0.0))
        for code in measured.codes:
            self._seen_codes[code] = self._seen_codes.get(code, 0) + 1
        return measured

    def _idle_w(self) -> float | None:
        """Power of all cards with a context and no kernels, W, from their stored sensor cards; None
        where one is missing."""
        known = [c.idle_context_w for c in self._sensor_cards if c is not None and c.idle_context_w is not None]
        return math.fsum(known) if known and len(known) == len(self._sensor_cards) else None

    def total_j(self) -> float | None:
        """Joules from the first to the latest tick, provisional; None where something in between
        was not measured."""
        if self.reason is not None or not self._segments:
            return None
        self._refresh()
        known = [w for w in (s.so_far_j() for s in self._segments[0].series) if w is not None]
        if len(self._segments) > 1 or not known or len(known) < len(self._segments[0].series):
            return None
        return math.fsum(known)

    def power_w(self) -> float | None:
        """The latest reading, all cards added, W; None where there is none of the last 2 s."""
        if self.reason is not None or not self._segments:
            return None
        self._refresh()
        current = self._segments[-1]
        now = time.monotonic_ns()
        powers = [s.latest_w(s.time_s(now), STALE_S) for s in current.series]
        known = [w for w in powers if w is not None]
        return math.fsum(known) if known and len(known) == len(powers) else None

    def limit_w(self) -> float | None:
        """Enforced power limits of the metered cards, added, W; None where one is not known."""
        known = [s.card.limit_w for s in self._segments[-1].series] if self._segments else []
        return math.fsum(w for w in known if w) if known and all(known) else None

    def recover(self, attempt: int, after_ns: int) -> records.Measured:
        """Energy of an earlier attempt from `after_ns` (its clock; 0: its first reading) to its
        sampler's last reading.

        For work that a kill lost and that is done again. It is read from the files, so a reboot in
        between does not matter.
        """
        try:
            return self._recover(attempt, after_ns)
        except Exception as e:  # as in `energy`
            log.exception("the meter failed to recover attempt %d", attempt)
            return records.Measured(
                verdict="invalid", codes=["METER_FAILED"], reason=f"METER_FAILED: {type(e).__name__}: {e}"
            )

    def _recover(self, attempt: int, after_ns: int) -> records.Measured:
        if self._spec is None:
            return self._nothing()
        segments = [Segment(p) for p in segment_file.find(self.folder, attempt)]
        for s in segments:
            s.poll()
        segments = [s for s in segments if s.begin_ns is not None]
        if not segments:
            return records.Measured(reason=f"attempt {attempt} left no power readings")
        parts = []
        for i, s in enumerate(segments):
            begin, last = s.begin_ns, s.last_ns
            assert begin is not None
            if last is None or last <= after_ns:
                continue
            if after_ns < begin and i > 0:
                gap = "SAMPLER_DIED: the sampler of attempt {} ended and was started again in between"
                parts.append(records.Measured(verdict="invalid", codes=["SAMPLER_DIED"], reason=gap.format(attempt)))
            start = max(after_ns, begin) if i > 0 or after_ns == 0 else after_ns
            measured, _ = estimate.window(s.series, start, last, self.tolerance, True)
            parts.append(measured)
        if not parts:
            return records.Measured(
                verdict="invalid",
                codes=["SAMPLER_DIED"],
                reason=f"the readings of attempt {attempt} end before the lost work",
            )
        return parts[0] if len(parts) == 1 else estimate.total(parts, self.tolerance)

    def describe(self) -> dict[str, Any]:
        """What the record keeps of the meter, JSON-able: source, cards, sampler statistics, codes
        met. `reason` if unmetered."""
        out: dict[str, Any] = {"source": self._spec.source if self._spec else "unmetered", "reason": self.reason}
        if self.reason is not None or not self._segments:
            return out
        self._refresh()
        readers = [s.reader for s in self._segments]
        stats = [r.stats for r in readers if r.stats]
        histogram: dict[int, int] = {}
        for st in stats:
            for key, count in st["gap_hist"].items():
                histogram[int(key)] = histogram.get(int(key), 0) + count
        head = next((r.header for r in readers if r.header), None)
        cards = [{k: v for k, v in c.items() if k != "trace"} for c in head["cards"]] if head else []
        current = [s for s in self._segments if s.series]
        return {
            **out,
            "boundary": self.boundary,
            "cards": cards,
            "sensor_cards": [None if c is None else dataclasses.asdict(c) for c in self._sensor_cards],
            "period_s": self._spec.period_s if self._spec else None,
            "tolerance": self.tolerance,
            "segments": len(self._segments),
            "samples": sum(st["polls"] for st in stats),
            "rows": sum(st["rows"] for st in stats),
            "missed_deadlines": sum(st["missed"] for st in stats),
            "gap_p99_s": _p99_s(histogram),
            "sampler_cpu_s": math.fsum(st["cpu_s"] for st in stats),
            "bad_reads": sum(s.bad_reads for seg in current for s in seg.series),
            "damaged_lines": sum(r.damaged for r in readers),
            "lost_lines": sum(st["lost_lines"] for st in stats),
            "tick_period_s": [s.tick_period_s() for s in current[-1].series] if current else [],
            "exclusive_lock": head["locked"] if head else None,
            "worst_r2": self._worst_r2,
            "worst_r3": self._worst_r3,
            "codes": dict(self._seen_codes),
            "problems": [self._public(p) for p in self._problems],
        }

    # --- parts
    def _nothing(self) -> records.Measured:
        reason = self.reason or "the meter was not started"
        return records.Measured(reason=reason, codes=[self._code] if self._code else [])

    def _refresh(self) -> None:
        """Read on; put a sampler that ended into its successor, once."""
        current = self._segments[-1]
        try:
            current.poll()
        # as in `energy`: asked by the training loop for a number to show, too
        except Exception as e:
            text = f"METER_FAILED: readings are not followed any more ({type(e).__name__}: {e})"
            if text not in self._problems:
                log.exception("the meter failed to read on")
                self._problems.append(text)
            return
        if not current.ended or self._closed or self._restarts >= MAX_RESTARTS or self._spec is None:
            return
        self._restarts += 1
        self._problems.append(f"the sampler ended and was started again: {last_words(self.folder)}")
        log.warning("the power sampler ended unasked; starting another one")
        try:
            self._segments.append(spawn(self._spec, self.folder))
        except OSError as e:
            self._problems.append(f"the sampler could not be started again: {e}")

    def _segment_at(self, start_ns: int) -> Segment:
        """The latest segment that was reading at `a_ns`; else the first."""
        begun = [s for s in self._segments if s.begin_ns is not None and s.begin_ns <= start_ns]
        return begun[-1] if begun else self._segments[0]


def _p99_s(histogram: dict[int, int]) -> float | None:
    """99th percentile of the gaps between polls of a card, s, from bins of a tenth of their
    size."""
    count = sum(histogram.values())
    seen = 0
    for key in sorted(histogram):
        seen += histogram[key]
        if seen >= 0.99 * count:
            return 1.1**key / 1000
    return None
