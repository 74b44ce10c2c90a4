"""RAPL on a directory tree, replayed traces, and what `doctor` asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from doubles.nvml import ENERGY, Card, Fault, Script, build
from hypothesis import given
from hypothesis import strategies as st

from harness.config import schema
from harness.errors import ConfigError
from harness.power import estimate, nvml, rapl, replay
from harness.power.meter import open_meter
from harness.power.segment_file import Recorder
from harness.power.series import Series
from harness.power.source import READ_FAILED, Reading

RANGE_UJ = 262_143_328_850


# --- RAPL -----------------------------------------------------------------------------------------
ZONES = {
    "intel-rapl:0": ("package-0", 40),
    "intel-rapl:0:0": ("core", 30),
    "intel-rapl:0:1": ("dram", 5),
    "intel-rapl:1": ("psys", 60),
    "intel-rapl-mmio:0": ("package-0", 40),
}


class Tree:
    """A powercap tree whose counters a thread advances: package 40 W, its core 30 W, dram 5 W,
    psys, an mmio twin.
    """

    def __init__(self, root: Path, start_uj: int) -> None:
        self.root, self.start_uj = root, start_uj
        self.origin = time.monotonic_ns()
        self._stop = threading.Event()
        for zone, (name, _) in ZONES.items():
            (root / zone).mkdir(parents=True)
            (root / zone / "name").write_text(name + "\n")
            (root / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        self.write()
        self.thread = threading.Thread(target=self.run)

    def write(self) -> None:
        for zone, (_, watts) in ZONES.items():
            now = (time.monotonic_ns() - self.origin) * 1e-9
            temporary = self.root / zone / ".new"
            temporary.write_text(f"{(self.start_uj + round(now * watts * 1e6)) % RANGE_UJ}\n")
            temporary.replace(self.root / zone / "energy_uj")

    def run(self) -> None:
        while not self._stop.wait(0.002):
            self.write()

    def stop(self) -> None:
        self._stop.set()
        self.thread.join()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Callable[[int], Tree]]:
    made: list[Tree] = []

    def make(start_uj: int) -> Tree:
        made.append(Tree(tmp_path / "powercap", start_uj))
        made[-1].thread.start()
        return made[-1]

    yield make
    for t in made:
        t.stop()


# the second wraps within the window
@pytest.mark.parametrize("start_uj", [5_000_000, RANGE_UJ - 20_000_000])
def test_package_and_dram_are_counted_once_and_a_wrap_is_followed(
    tree: Callable[[int], Tree], tmp_path: Path, start_uj: int
) -> None:
    made = tree(start_uj)
    meter = open_meter(
        schema.RaplConfig(root=str(made.root), period_s=0.2), tmp_path / "power", attempt=1, cuda_visible=None
    )
    meter.start()
    assert meter.reason is None
    a = time.monotonic_ns()
    time.sleep(0.7)
    b = time.monotonic_ns()
    measured = meter.energy(a, b, wait_s=10)
    assert measured.energy_j is not None, measured.reason
    assert measured.energy_se_j is not None
    truth = 45 * (b - a) * 1e-9
    assert measured.source == "rapl"
    # 2 ms steps of the fake counter
    assert abs(measured.energy_j - truth) < 3 * measured.energy_se_j + 0.05 * truth
    assert measured.energy_j == pytest.approx(truth, rel=0.2)
    meter.close()
    zones = [c["name"] for c in meter.describe()["cards"]]
    assert zones == ["package-0", "dram"]


def rapl_window(values_uj: list[tuple[float, int]], a: float, b: float) -> estimate.CardWindow:
    card = {
        "uuid": "intel-rapl:0",
        "name": "package-0",
        "limit_w": None,
        "range_j": RANGE_UJ * 1e-6,
        "max_w": 2000.0,
        "wrap_power_w": 500.0,
    }
    head = {
        "source": "rapl",
        "counter": "points",
        "period_s": 1.0,
        "origin_ns": 0,
        "energy_unit_j": 1e-6,
        "power_unit_w": 1.0,
        "cards": [card],
    }
    recorder, s = Recorder(2 * 10**9), Series(head, 0)
    for t, value in values_uj:
        row = recorder.offer(0, round(t * 1e9), round(t * 1e9), Reading(value, None, None, 0, -1, -1, None))
        assert row is not None
        s.add(row)
    return estimate.card_window(s, a, b)


def test_wraps_resets_and_long_gaps() -> None:
    steady = [
        (float(t), (RANGE_UJ - 300_000_000 + 100_000_000 * t) % RANGE_UJ) for t in range(10)
    ]  # 100 W, wraps at 3 s
    assert rapl_window(steady, 0.5, 8.5).energy_j == pytest.approx(800)
    low = [(float(t), 10**9 + 100_000_000 * t if t < 5 else 100_000_000 * (t - 5)) for t in range(10)]
    reset = rapl_window(low, 0.5, 8.5)  # no wrap explains it: that would be 260 kW
    assert (reset.energy_j, reset.codes) == (None, ["RESET"])
    assert rapl_window(low, 6.5, 8.5).energy_j == pytest.approx(200)
    hole = [
        (float(t), 10**9 + 100_000_000 * t) for t in (0, 1, 2, 3, 700, 701, 702)
    ]  # 697 s: it may have wrapped at 500 W
    gap = rapl_window(hole, 0.5, 701.5)
    assert (gap.energy_j, gap.codes) == (None, ["GAP"])
    still = rapl_window([(float(t), 10**9) for t in range(10)], 0.5, 8.5)
    assert (still.energy_j, still.codes[-1]) == (None, "STUCK")


def test_rapl_that_cannot_be_read_says_which_command_helps(tmp_path: Path) -> None:
    assert rapl.probe(str(tmp_path / "none"))["code"] == "NO_POWERCAP"
    Tree(tmp_path / "a", 0)
    stuck = rapl.probe(str(tmp_path / "a"))
    assert (stuck["code"], stuck["zones"]) == ("STUCK", [])
    (tmp_path / "b" / "intel-rapl:0").mkdir(parents=True)
    assert rapl.probe(str(tmp_path / "b"))["code"] == "MASKED"


def test_rapl_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tree(tmp_path / "a", 0)
    real = Path.read_text

    def denied(self: Path, *args: str, **kw: str) -> str:
        # root may read anything, so the test takes it away here
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kw)

    monkeypatch.setattr(Path, "read_text", denied)
    out = rapl.probe(str(tmp_path / "a"))
    assert out["code"] == "PERMISSION"
    assert "sudo chmod a+r" in out["reason"]


# --- replay ---------------------------------------------------------------------------------------
def csv(path: Path, rows: list[tuple[float, float]]) -> Path:
    path.write_text("t_s,power_w\n" + "".join(f"{t!r},{w!r}\n" for t, w in rows))
    return path


def test_a_replayed_trace_gives_its_exact_integral(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", [(10.0, 100.0), (10.5, 300.0), (11.0, 50.0), (70.0, 50.0)])
    meter = open_meter(schema.ReplayConfig(path=str(path)), tmp_path / "power", attempt=1, cuda_visible=None)
    meter.start()
    time.sleep(0.2)
    b = time.monotonic_ns()
    assert meter._spec is not None
    origin = meter._spec.trace_origin_ns
    measured = meter.energy(origin, b)
    trace = replay.load(path)
    assert measured.energy_j == pytest.approx(trace.energy_to(10.0 + (b - origin) * 1e-9), rel=1e-9)
    assert (measured.energy_se_j, measured.source, measured.verdict) == (0.0, "replay", "valid")
    # 100 + 87.5
    assert meter.energy(origin, origin + 1_000_000_000).energy_j == pytest.approx(187.5)
    assert meter.total_j() is not None
    assert (meter.power_w() or 0) > 0
    over = meter.energy(origin, origin + 61 * 10**9)
    assert over.energy_j is None
    assert "60 s long" in (over.reason or "")
    meter.close()
    next_attempt = open_meter(schema.ReplayConfig(path=str(path)), tmp_path / "power", attempt=2, cuda_visible=None)
    lost = next_attempt.recover(1, origin)
    assert lost.energy_j == pytest.approx(meter.total_j(), rel=1e-6)
    # nothing was booked: all of it
    assert next_attempt.recover(1, 0).energy_j == pytest.approx(lost.energy_j)


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 1000)), min_size=2, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_trace_integrals_are_additive_and_bounded(steps: list[tuple[float, float]], x: float, y: float) -> None:
    t = [sum(d for d, _ in steps[: i + 1]) for i in range(len(steps))]
    trace = replay.PowerTrace.of(t, [w for _, w in steps])
    a, b = sorted((t[0] + x * (t[-1] - t[0]), t[0] + y * (t[-1] - t[0])))
    a, b = min(a, t[-1]), min(b, t[-1])
    whole, to_a, to_b = trace.energy_to(t[-1]), trace.energy_to(a), trace.energy_to(b)
    assert whole is not None
    assert to_a is not None
    assert to_b is not None
    slack = 1e-9 * max(1.0, whole)
    low, high = min(trace.power_w), max(trace.power_w)
    assert low * (b - a) - slack <= to_b - to_a <= high * (b - a) + slack
    assert to_b <= whole + slack
    assert trace.energy_to(t[0] - 1) is trace.power_at(t[-1] + 1) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,w\n0,1\n", "no column power_w, t_s"),
        ("t_s,power_w\n0,1\n", "1 rows"),
        ("t_s,power_w\n0,1\n1,x\n", r"line 3.*not two numbers"),
        ("t_s,power_w\n0,1\n0,2\n", "does not rise"),
        ("t_s,power_w\n0,1\n1,-2\n", "not negative"),
        ("t_s,power_w\n0,1\n1,nan\n", "finite"),
        ("", "no column"),
    ],
)
def test_bad_traces_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        replay.load(tmp_path / "t.csv")


# --- doctor ---------------------------------------------------------------------------------------
def probe(environment: dict[str, str]) -> dict:
    code = "import json; from harness.power import nvml; print(json.dumps(nvml.probe()))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_probe_tells_what_each_card_can_do(nvml_library: Path, tmp_path: Path) -> None:
    script = Script([Card([(0, 300)]), Card([(0, 200)], name="Scripted vGPU", mig="MIG-1")], [Fault(ENERGY, 3, gpu=1)])
    out = probe(script.environment(nvml_library, tmp_path))
    assert (out["reason"], out["driver"], out["nvml"]) == (None, "580.65.06", "13.580.65")
    first, second = out["cards"]
    assert (first["counter"], first["instant"], first["average"], first["limit_w"], first["mig"]) == (
        "yes",
        "yes",
        "yes",
        700.0,
        False,
    )
    assert (second["counter"], second["instant"], second["mig"]) == ("Not Supported (3)", "yes", True)


def test_probe_gives_the_reason_and_what_to_do(nvml_library: Path, tmp_path: Path) -> None:
    out = probe(Script([], init_error=18).environment(nvml_library, tmp_path))
    assert (out["code"], out["cards"]) == ("NO_DRIVER", [])
    assert "reboot" in out["reason"]
    assert "power=unmetered" in out["do"]


def test_probe_of_a_driver_that_lacks_symbols(tmp_path: Path) -> None:
    library = build(
        tmp_path / "old", without=("nvmlDeviceGetFieldValues", "nvmlDeviceGetMigMode", "nvmlDeviceGetArchitecture")
    )
    out = probe(Script([Card([(0, 300)])]).environment(library, tmp_path))
    assert (out["reason"], out["cards"][0]["counter"], out["cards"][0]["average"]) == (None, "yes", "no such reading")


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_a_double_that_is_no_number_is_a_failed_read(garbage: float) -> None:
    value = SimpleNamespace(nvmlReturn=0, valueType=0, value=SimpleNamespace(dVal=garbage))
    assert nvml._field(value) == (None, READ_FAILED)
