"""The sensor card of a GPU: what its power telemetry is like, measured once and kept by UUID and
driver.

Update periods, the window that an instant reading sees, idle power bare and with a CUDA context,
the energy counter against the integral of average power, and the cost of one read. What could not
be measured is None with a reason. Loads are handed in as `Actions`, because this package never
imports torch. `Meter` reads the cards that are stored here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import records
from harness.errors import RecordError
from harness.power import segment_file
from harness.power.series import Series, StepFunction
from harness.power.source import Card, Source
from harness.units import S_PER_NS

CARD_SCHEMA = 1
POLL_S = 0.002
SETTLED_W, SETTLE_OVER_S = 1.0, 5.0  # power that drifts less than this has settled
SETTLE_GIVE_UP_S = 120.0
BLOCK_S = 1.0  # of idle: the scatter of such means is the error of the idle power


@dataclass
class SensorCard:
    """Times in s, power in W. None where not measured: `reasons` says why."""

    uuid: str
    name: str
    driver: str | None
    measured_unix_s: int
    counter_period_s: float | None = None
    instant_period_s: float | None = None
    average_period_s: float | None = None
    instant_window_s: float | None = None  # length of the mean behind an instant reading
    instant_duty: float | None = None  # share of the time that instant readings see
    idle_bare_w: float | None = None
    idle_bare_sd_w: float | None = None
    idle_context_w: float | None = None  # CUDA context resident, no kernels
    idle_context_sd_w: float | None = None
    # joules by the counter over joules by average power, over the idle stretch
    counter_to_average: float | None = None
    read_p50_s: float | None = None
    read_p99_s: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    schema_version: int = CARD_SCHEMA


@dataclass(frozen=True)
class Actions:
    """What a load can do: make the context; run at full power for about that many seconds and
    return when it began and ended (CLOCK_MONOTONIC, ns)."""

    context: Callable[[], None]
    burst: Callable[[float], tuple[int, int]]


# --- measuring
def poll(
    source: Source, cards: Sequence[Card], card: int, until: Callable[[], bool], period_s: float = POLL_S
) -> tuple[Series, list[float]]:
    """Read one card until `until()`; the series and the seconds that each read took."""
    origin = time.monotonic_ns()
    head = {
        "energy_unit_j": source.energy_unit_j,
        "power_unit_w": source.power_unit_w,
        "period_s": period_s,
        "origin_ns": origin,
        "cards": [segment_file.card_json(c) for c in cards],
    }
    series, recorder, costs = Series(head, card), segment_file.Recorder(round(2 * period_s / S_PER_NS)), []
    k = 0
    while not until():
        t0 = time.monotonic_ns()
        reading = source.read(card)
        t1 = time.monotonic_ns()
        costs.append((t1 - t0) * S_PER_NS)
        row = recorder.offer(card, t0, t1, reading)
        if row is not None:
            series.add(row)
        k = max(k + 1, math.ceil((t1 - origin) * S_PER_NS / period_s))
        time.sleep(max(0.0, origin * S_PER_NS + k * period_s - time.monotonic()))
    return series, costs


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def measure(
    source: Source,
    cards: Sequence[Card],
    card: int,
    *,
    seconds: float,
    actions: Actions | None,
    why_no_actions: str,
    steps: int = 24,
    settle_s: float = SETTLE_GIVE_UP_S,
) -> SensorCard:
    """Measure a card that is idle now. `seconds` of bare idle, as many with a context once its
    power has settled, for which `settle_s` are given at most, and `steps` bursts of load.
    Its 8 parameters are the card, the load and the times of one measurement.
    """
    c = cards[card]
    out = SensorCard(c.uuid, c.name, c.driver, round(time.time()))
    bare, costs = poll(source, cards, card, after(seconds))
    out.read_p50_s, out.read_p99_s = statistics.median(costs), sorted(costs)[int(0.99 * (len(costs) - 1))]
    out.idle_bare_w, out.idle_bare_sd_w = _idle(bare, out, "idle_bare_w")
    out.counter_to_average = _ratio(bare)
    out.counter_period_s = bare.tick_period_s()
    moving = bare
    if actions is None:
        for name in ("instant_window_s", "instant_duty", "idle_context_w"):
            out.reasons[name] = why_no_actions
    else:
        actions.context()
        if settle(source, cards, card, settle_s) is None:
            out.reasons["idle_context_w"] = f"idle power did not settle within {settle_s:g} s"
        else:
            warm, _ = poll(source, cards, card, after(seconds))
            out.idle_context_w, out.idle_context_sd_w = _idle(warm, out, "idle_context_w")
        moving, onsets = bursts(source, cards, card, actions, steps)
        out.instant_window_s = instant_window(moving, onsets)
        out.counter_period_s = moving.tick_period_s() or out.counter_period_s
        if out.instant_window_s is None:
            out.reasons["instant_window_s"] = "too few bursts began inside the stretch that a reading sees"
    out.instant_period_s, out.average_period_s = _period(moving.instant), _period(moving.average)
    if out.instant_window_s and out.instant_period_s:
        out.instant_duty = min(1.0, out.instant_window_s / out.instant_period_s)
    for name in ("counter_period_s", "instant_period_s", "average_period_s", "counter_to_average"):
        if getattr(out, name) is None:
            out.reasons.setdefault(name, "the reading did not move, or the card has none")
    return out


def _ratio(s: Series) -> float | None:
    """Joules by the counter over joules by average power, between the ticks that both cover."""
    ticks = [k for k, t in enumerate(s.hi_s) if s.average.w and t >= s.average.t_s[0]]
    if len(ticks) < 3:
        return None
    first, last = ticks[0], ticks[-1]
    shown = s.average.integral(s.hi_s[first], s.hi_s[last])
    return (s.joule[last] - s.joule[first]) / shown if shown else None


def settle(source: Source, cards: Sequence[Card], card: int, give_up_s: float = SETTLE_GIVE_UP_S) -> float | None:
    """Wait until idle power drifts less than 1 W over 5 s; how long that took, s, or None if it did
    not happen."""
    begin = time.monotonic()
    while time.monotonic() - begin < give_up_s:
        series, _ = poll(source, cards, card, after(SETTLE_OVER_S), 0.02)
        reading = series.average if series.average.w else series.instant
        if reading.w and abs(reading.w[-1] - reading.w[0]) < SETTLED_W:
            return time.monotonic() - begin
    return None


def bursts(
    source: Source, cards: Sequence[Card], card: int, actions: Actions, steps: int
) -> tuple[Series, list[tuple[float, float]]]:
    """Poll while bursts of load come and go; the series, and when each burst began and ended in its
    seconds."""
    edges: list[tuple[int, int]] = []

    def load() -> None:
        for _ in range(steps):
            time.sleep(1.2 + random.uniform(0, 0.2))
            edges.append(actions.burst(1.2))

    worker = threading.Thread(target=load)
    worker.start()
    series, _ = poll(source, cards, card, lambda: not worker.is_alive())
    worker.join()
    return series, [(series.time_s(a), series.time_s(b)) for a, b in edges]


def instant_window(series: Series, onsets: Sequence[tuple[float, float]]) -> float | None:
    """Length w of the mean behind instant readings, from bursts (begin, end) at random phases, s;
    None if too few tell.

    The first reading after a sharp rise shows the share min(1, (t - begin) / w) of it; readings
    between 10 and 90 % give w, and their median is the answer. A slow rise of the power itself
    lengthens it.
    """
    reading, windows = series.instant, []
    for begin, end in onsets:
        low = reading.at(begin - 0.02)
        high = reading.at(end - 0.2)
        later = [i for i, t in enumerate(reading.t_s) if t > begin]
        if low is None or high is None or high - low < 20 or not later:
            continue
        first = later[0]
        share = (reading.w[first] - low) / (high - low)
        if 0.1 < share < 0.9:
            windows.append((reading.t_s[first] - begin) / share)
    return statistics.median(windows) if len(windows) >= 3 else None


def _period(reading: StepFunction) -> float | None:
    """Median time between changes of a reading, s; None with fewer than four."""
    gaps = [b - a for a, b in zip(reading.t_s[:-1], reading.t_s[1:], strict=True)]
    return statistics.median(gaps) if len(gaps) >= 3 else None


def _idle(series: Series, out: SensorCard, name: str) -> tuple[float | None, float | None]:
    """Mean idle power and its standard error from the scatter of 1 s means, W: by the counter, else
    by average power."""
    begin, end = series.begin_s(), series.end_s()
    if begin is None or end is None or end - begin < 3 * BLOCK_S:
        out.reasons[name] = "too few readings while idle"
        return None, None
    reading = series.average if series.average.w else series.instant
    if series.has_counter and series.hi_s:
        mean = (series.joule[-1] - series.joule[0]) / (series.hi_s[-1] - series.hi_s[0])
    else:
        mean = (reading.integral(begin, end) or 0.0) / (end - begin)
    n = int((end - begin) / BLOCK_S)
    blocks = [reading.integral(end - (k + 1) * BLOCK_S, end - k * BLOCK_S) for k in range(n)] if reading.w else []
    known = [b / BLOCK_S for b in blocks if b is not None]
    return mean, statistics.stdev(known) / math.sqrt(len(known)) if len(known) >= 3 else None


# --- keeping
def folder() -> Path:
    """`$XDG_CACHE_HOME/scaling-harness/sensors`, else below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scaling-harness" / "sensors"


def path_of(uuid: str, driver: str | None) -> Path:
    return folder() / f"{uuid}_{driver or 'unknown'}.json"


def store(card: SensorCard) -> Path:
    """Keep a card; raises OSError."""
    path = path_of(card.uuid, card.driver)
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_text_atomic(path, json.dumps(dataclasses.asdict(card), indent=1) + "\n")
    return path


def stored(uuid: str, driver: str | None) -> SensorCard | None:
    """The card of this GPU under this driver; None where there is none that this version can
    read."""
    path = path_of(uuid, driver)
    try:
        card = records.from_json(SensorCard, records.parse(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, RecordError):
        return None
    return card if card.schema_version == CARD_SCHEMA else None
