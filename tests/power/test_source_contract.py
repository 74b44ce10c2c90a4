"""What every power source keeps to: it says what it is, and the real sampler and estimator make
joules of it under its own label.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml
import pytest
from doubles import nvml as double
from doubles.nvml import ENERGY, Fault, Script, integral_j, square
from doubles.nvml.playback import Player

from harness.config import identity, schema
from harness.config.setting import REQUIRED, setting
from harness.power import estimate, reason_codes, sampler, segment_file
from harness.power.meter import open_meter
from harness.power.nvml import NvmlSource
from harness.power.rapl import RaplSource
from harness.power.replay import ReplaySource
from harness.power.sampler import Sampler, Spec
from harness.power.segment_process import Segment
from harness.power.source import NO_VALUE, OK, READ_FAILED, Card, Reading, Refused, Source

LOAD = square(150.0, 250.0, 0.5, 0.6, 60.0, -5.0)
WINDOW_S = 2.0
NS = 10**9


def watts(t: float) -> float:
    """The load at second `t`."""
    return 250.0 if (t + 5.0) % 0.5 < 0.3 else 150.0


class FileSource:
    """Watts of a file that somebody else writes, as hwmon gives them: no energy counter, no power
    limit, nothing to watch.
    """

    energy_unit_j = 1.0
    power_unit_w = 1.0
    boundary = "whatever the file is about"
    exclusive = False

    def __init__(self, path: str, period_s: float = 0.01) -> None:
        self.path, self.period_s = Path(path), period_s

    def open(self) -> list[Card]:
        if not self.path.is_file():
            raise Refused("NO_SOURCE", f"{self.path} is not there")
        return [Card("file-1", self.path.name, label="file", counter=None)]

    def read(self, card: int) -> Reading:
        try:
            return Reading(None, float(self.path.read_text()), None, NO_VALUE, OK, NO_VALUE, None)
        except (OSError, ValueError):
            return Reading(None, None, None, NO_VALUE, READ_FAILED, NO_VALUE, None)

    def watch(self, card: int) -> None:
        return None

    def close(self) -> None:
        return None


@dataclass
class FileConfig(schema.PowerConfig):
    """Its settings."""

    path: str = setting(REQUIRED, "file of the sensor", path=True)
    period_s: float = 0.01


# --- the family -----------------------------------------------------------------------------------
Member = tuple[Source, str, str]  # a source, its label, its counter


class Stage:
    """Everything that a source may read, moving with `LOAD` from `origin_ns` on."""

    def __init__(self, folder: Path, player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.player, self.monkeypatch = folder, player, monkeypatch
        self.origin_ns = time.monotonic_ns()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def keep(self, path: Path, text: Callable[[float], str]) -> Path:
        """A file that always holds `text(seconds)`."""

        def write() -> None:
            temporary = path.with_name(".new")
            temporary.write_text(text((time.monotonic_ns() - self.origin_ns) / NS))
            temporary.replace(path)

        def go_on() -> None:
            while not self._stop.wait(0.002):
                write()

        write()
        self._threads.append(threading.Thread(target=go_on))
        self._threads[-1].start()
        return path

    def nvml(self, *faults: Fault) -> NvmlSource:
        script = Script([double.Card(LOAD)], list(faults), origin_ns=self.origin_ns)
        environment = script.environment(self.folder / "lib", self.folder)
        self.monkeypatch.setenv("SCRIPTED_NVML", environment["SCRIPTED_NVML"])
        self.monkeypatch.setattr(pynvml, "nvmlLib", self.player.library)
        self.monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        self.player.library.scripted_reset()
        return NvmlSource(None)

    def rapl(self) -> RaplSource:
        zone = self.folder / "powercap" / "intel-rapl:0"
        zone.mkdir(parents=True)
        (zone / "name").write_text("package-0\n")
        (zone / "max_energy_range_uj").write_text("262143328850\n")
        self.keep(zone / "energy_uj", lambda t: f"{round(1e6 * integral_j(LOAD, 0.0, t))}\n")
        return RaplSource(str(zone.parent), period_s=0.05)

    def replay(self) -> ReplaySource:
        rows = [
            (t + 1e-6 * (i % 2 == 0), w) for i, (t, w) in enumerate(LOAD) if t >= 0
        ]  # two rows of a step may not share a time
        trace = self.folder / "trace.csv"
        trace.write_text("t_s,power_w\n" + "".join(f"{t!r},{w!r}\n" for t, w in rows))
        return ReplaySource(str(trace), self.origin_ns + round(rows[0][0] * NS))

    def file(self) -> FileSource:
        return FileSource(str(self.keep(self.folder / "power1_input", lambda t: f"{watts(t)}\n")))

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.player.library.scripted_reset()


FAMILY: dict[str, Callable[[Stage], Member]] = {
    "nvml": lambda s: (s.nvml(), "nvml-counter", "ticks"),
    "nvml without its counter": lambda s: (s.nvml(Fault(ENERGY, 3)), "nvml-average", ""),
    "rapl": lambda s: (s.rapl(), "rapl", "points"),
    "replay": lambda s: (s.replay(), "replay", "points"),
    "a source without a counter": lambda s: (s.file(), "file", ""),
}


@pytest.fixture
def stage(tmp_path: Path, player: Player, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = Stage(tmp_path, player, monkeypatch)
    yield made
    made.stop()


def record(source: Source, cards: list[Card], folder: Path, seconds: float) -> Segment:
    """What the sampler's loop writes in that time, read back from its file."""
    path = segment_file.path_of(folder, 1, 0)
    spec = Spec("", str(path), source.period_s, os.getppid(), 1, 0, False)
    writer = segment_file.Writer(path)
    writer.put(sampler.header(spec, source, cards, locked=True))
    theirs, ours = os.pipe()
    loop = threading.Thread(target=Sampler(spec, source, writer, cards, theirs).run)
    loop.start()
    time.sleep(seconds)
    os.write(ours, sampler.LEAVE)
    loop.join()
    writer.close()
    os.close(theirs)
    os.close(ours)
    segment = Segment(path)
    segment.poll()
    return segment


def test_the_list_below_holds_the_whole_family() -> None:
    assert set(schema.FAMILIES["power"]) - {"unmetered"} <= set(FAMILY)


@pytest.mark.parametrize("name", FAMILY)
def test_a_source_says_what_it_is_and_its_joules_are_right(name: str, stage: Stage) -> None:
    source, label, counter = FAMILY[name](stage)
    assert source.energy_unit_j > 0
    assert source.power_unit_w > 0
    assert 0.001 <= source.period_s <= 10
    assert source.boundary
    assert isinstance(source.exclusive, bool)
    cards = source.open()
    (card,) = cards
    assert isinstance(card, Card)
    assert card.uuid
    assert card.name
    assert (card.counter or "") == counter
    assert all(code in reason_codes.EFFECT for code in card.codes)
    told = segment_file.card_json(card)
    assert str(stage.folder) not in json.dumps(told, allow_nan=False)
    assert segment_file.card_of({"cards": [json.loads(json.dumps(told))]}, 0).label == card.label
    seen = source.watch(0)
    assert seen is None or isinstance(seen, dict)

    segment = record(source, cards, stage.folder, WINDOW_S + 1.0)
    source.close()
    (series,) = segment.series
    begin = segment.begin_ns
    assert begin is not None
    a = begin + NS // 3
    b = a + round(WINDOW_S * NS)
    measured, _ = estimate.window(segment.series, a, b, tolerance=0.5, ended=True)
    truth = integral_j(LOAD, (a - stage.origin_ns) / NS, (b - stage.origin_ns) / NS)
    assert measured.energy_j is not None, measured.reason
    assert measured.energy_j == pytest.approx(truth, rel=0.05)
    assert measured.energy_se_j is not None
    assert abs(measured.energy_j - truth) <= 4 * measured.energy_se_j + 1e-3 * truth
    assert (measured.source, measured.verdict in ("valid", "suspect")) == (label, True)
    assert ("NO_COUNTER" in measured.codes) is (counter == "")
    assert series.so_far_j() is not None or series.power.reads.gaps  # a busy machine
    assert (segment.last_ns or 0) >= b


def test_the_meter_hands_a_source_its_settings_and_cuts_its_path(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the front door, with settings of its own.

    The sampler's process would not know this source, so no joules here.
    """
    source = stage.file()
    monkeypatch.setitem(schema.FAMILIES["power"], "file", FileConfig)
    monkeypatch.setattr("harness.power.meter.make_source", lambda spec: FileSource(**spec.settings))
    meter = open_meter(
        FileConfig(path=str(source.path), period_s=0.02), stage.folder / "power", attempt=1, cuda_visible=None
    )
    assert meter._spec is not None
    assert (meter._spec.source, meter._spec.period_s) == ("file", 0.02)
    assert meter._spec.settings == {"path": str(source.path), "period_s": 0.02}
    assert meter.boundary == source.boundary
    meter._unmeasured("NO_SOURCE", f"{source.path} is not there")
    assert meter.reason == "power1_input is not there"


def test_a_source_keeps_its_local_path_out_of_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(schema.FAMILIES["power"], "file", FileConfig)
    run = schema.RunConfig(power=FileConfig(path=str(tmp_path / "power1_input")))
    assert identity.resolved(run)["power"] == {"kind": "file", "path": "power1_input", "period_s": 0.01}
    assert identity.public_overrides(["power.path=dev/power1_input", "power=file"]) == [
        "power.path=power1_input",
        "power=file",
    ]
    run.power = schema.RaplConfig()
    assert identity.resolved(run)["power"]["root"] == "/sys/class/powercap"  # that of every machine
    run.power.root = str(tmp_path / "powercap")
    assert identity.resolved(run)["power"]["root"] == "powercap"


# --- what older samplers wrote --------------------------------------------------------------------
GPU: dict[str, Any] = {
    "index": 0,
    "uuid": "GPU-x",
    "name": "x",
    "architecture": 9,
    "limit_w": 700.0,
    "mig": False,
    "driver": "580.65.06",
    "nvml": "13.580.65",
    "support": {"energy": 0, "instant": 0, "average": 0},
    "power_call": "fields 185, 186",
}
NO_ENERGY = {"support": {"energy": 3, "instant": 0, "average": 0}}
ZONE = {
    "uuid": "intel-rapl:0",
    "name": "package-0",
    "limit_w": None,
    "range_j": 262143.3,
    "max_w": 2e3,
    "wrap_power_w": 5e2,
}
TRACE = {"uuid": "replay", "name": "t.csv", "limit_w": None, "trace": {"origin_ns": 5, "t_s": [0.0], "power_w": [1.0]}}


@pytest.mark.parametrize(
    ("header", "counter", "labels", "codes"),
    [
        (("nvml", "ticks", GPU), "ticks", ("nvml-counter", "nvml-average", "nvml-instant"), ("UNCALIBRATED",)),
        (
            ("nvml", "ticks", {**GPU, **NO_ENERGY, "power_call": "nvmlDeviceGetPowerUsage"}),
            None,
            ("nvml-counter", "nvml-average", "nvml-power-usage"),
            ("UNCALIBRATED",),
        ),
        (("rapl", "points", ZONE), "points", ("rapl", None, None), ()),
        (("replay", "points", TRACE), "points", ("replay", None, None), ()),
    ],
)
def test_cards_of_the_first_schema_are_read(
    header: tuple[str, str, dict[str, Any]], counter: str | None, labels: tuple[str | None, ...], codes: tuple[str, ...]
) -> None:
    source, kind, value = header
    card = segment_file.card_of({"source": source, "counter": kind, "cards": [value]}, 0)
    assert (card.uuid, card.name, card.limit_w) == (value["uuid"], value["name"], value["limit_w"])
    assert (card.counter, card.label, card.average_label, card.instant_label) == (counter, *labels)
    assert card.codes == codes
    assert card.momentary is (value.get("power_call") != "nvmlDeviceGetPowerUsage")
    assert (card.range_j, card.trace, card.driver) == tuple(value.get(k) for k in ("range_j", "trace", "driver"))
