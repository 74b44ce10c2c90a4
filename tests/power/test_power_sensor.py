"""The sensor card against the script it was measured on, and what runs make of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles import nvml as double
from doubles.nvml import Script

from harness.cli import main as cli
from harness.config import schema
from harness.power import sensor
from harness.power.meter import open_meter
from harness.power.series import Series
from harness.power.source import Card, Reading

Play = Callable[[Script, Path], None]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize("window_s", [0.025, 0.06, 0.1])
def test_the_window_of_instant_readings_follows_from_bursts(
    sampled: Callable[..., list[Series]], window_s: float
) -> None:
    chance, t, trace, onsets = random.Random(1), 2.0, [(-3.0, 100.0)], []
    for _ in range(60):
        t += 1.2 + chance.uniform(0, 0.2)
        trace += [(t, 100.0), (t, 600.0), (t + 1.2, 600.0), (t + 1.2, 100.0)]
        onsets.append((t, t + 1.2))
        t += 1.2
    (s,) = sampled(Script([double.Card(trace, window_s=window_s)]), t + 1, period_s=0.002)
    assert sensor.instant_window(s, onsets) == pytest.approx(window_s, rel=0.15)
    assert sensor.instant_window(s, onsets[:1]) is None  # one burst tells nothing


def test_doctor_measures_keeps_and_says(
    player: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = Script([double.Card([(-9.0, 90.0)])])
    monkeypatch.setenv("SCRIPTED_NVML", script.environment(tmp_path / "lib", tmp_path)["SCRIPTED_NVML"])
    import pynvml

    from harness.cli import doctor

    library = player.library  # type: ignore[attr-defined]
    library.scripted_reset()
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(doctor.sensor_cards, "__defaults__", (3.5,))
    assert cli.main(["doctor", "--sensor"]) == 0
    said = capsys.readouterr().out
    library.scripted_reset()
    card = sensor.stored(script.cards[0].uuid, "580.65.06")
    assert card is not None
    assert card.idle_bare_w == pytest.approx(90, rel=0.03)
    assert card.counter_to_average == pytest.approx(1, rel=0.05)
    assert card.counter_period_s == pytest.approx(0.1, rel=0.1)
    assert card.read_p50_s is not None
    assert (card.idle_context_w, card.instant_window_s) == (None, None)
    assert "CUDA" in card.reasons["idle_context_w"]
    assert card.uuid in said
    assert "idle_bare_w" in said


def test_runs_state_net_joules_where_a_card_is_kept(play: Play, tmp_path: Path) -> None:
    import time

    script = Script([double.Card([(-9.0, 300.0)])])
    kept = sensor.SensorCard(script.cards[0].uuid, "Scripted H100", "580.65.06", 0, idle_context_w=110.0)
    sensor.store(kept)
    play(script, tmp_path)
    meter = open_meter(schema.NvmlConfig(), tmp_path / "power", attempt=1, cuda_visible=None)
    meter.start()
    a = time.monotonic_ns()
    time.sleep(1.0)
    b = time.monotonic_ns()
    measured = meter.energy(a, b)
    meter.close()
    assert measured.energy_j is not None
    assert measured.idle_power_w == 110.0
    assert measured.energy_net_j == pytest.approx(measured.energy_j - 110.0 * (b - a) * 1e-9)
    assert meter.describe()["sensor_cards"][0]["idle_context_w"] == 110.0


def test_a_card_of_another_driver_or_a_damaged_one_is_none(tmp_path: Path) -> None:
    path = sensor.store(sensor.SensorCard("GPU-1", "x", "1.0", 0))
    assert sensor.stored("GPU-1", "1.0") is not None
    assert sensor.stored("GPU-1", "2.0") is None
    path.write_text("{")
    assert sensor.stored("GPU-1", "1.0") is None


def test_idle_power_that_never_settles_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still:
        energy_unit_j, power_unit_w = 1e-3, 1e-3

        def read(self, card: int) -> Reading:
            return Reading(None, 90_000, 90_000, 3, 0, 0, None)

    monkeypatch.setattr(sensor, "settle", lambda *_: None)
    cards = [Card("GPU-1", "x", label="still", counter=None, limit_w=700.0)]
    actions = sensor.Actions(lambda: None, lambda s: (0, 0))
    out = sensor.measure(Still(), cards, 0, seconds=0.05, actions=actions, why_no_actions="", steps=0)  # type: ignore[arg-type]
    assert out.idle_context_w is None
    assert "did not settle" in out.reasons["idle_context_w"]
