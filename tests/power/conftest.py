"""The scripted NVML, built once: for sampler processes, and for this process on a virtual clock."""

from __future__ import annotations

import ctypes
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from doubles import nvml as double

from harness.power import segment
from harness.power.nvml import NvmlSource
from harness.power.sampler import JITTER, LATE, Spec, header
from harness.power.series import Series


def _build(folder: Path, **options: Any) -> Path:
    try:
        return double.build(folder, **options)
    except double.NoCompiler as e:
        if os.environ.get("CI"):
            pytest.fail(str(e))
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For processes that a test starts (LD_LIBRARY_PATH)."""
    return _build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def _inside(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """For this process; without a soname, so that nothing else here takes it for a driver."""
    library = ctypes.CDLL(str(_build(tmp_path_factory.mktemp("nvml_inside"), soname=False)))
    library.scripted_set_time.argtypes = [ctypes.c_double]
    return library


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, nvml_library: Path) -> Callable[[double.Script, Path], None]:
    """Let sampler processes that start from now on see a script."""

    def install(script: double.Script, folder: Path) -> None:
        for key, value in script.environment(nvml_library, folder).items():
            monkeypatch.setenv(key, value)

    return install


Sampled = Callable[..., list[Series]]


@pytest.fixture
def sampled(_inside: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sampled]:
    """`sampled(script, until_s)`: what the real source and recorder make of a script on a virtual clock, as Series.

    Polls come at jittered deadlines; those for which `skip(t)` holds do not happen. Second 0 of the script is time 0.
    """
    monkeypatch.setattr(pynvml, "nvmlLib", _inside)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def run(
        script: double.Script,
        until_s: float,
        period_s: float = 0.01,
        skip: Callable[[float], bool] = lambda t: False,
        seed: int = 0,
    ) -> list[Series]:
        script.virtual, script.origin_ns = True, 0
        monkeypatch.setenv("SCRIPTED_NVML", script.environment(tmp_path / "lib", tmp_path)["SCRIPTED_NVML"])
        _inside.scripted_reset()
        source = NvmlSource(None, mig_whole_card=True)
        cards = source.open()
        spec = Spec("nvml", "", period_s, os.getpid(), 1, 0, False)
        head = json.loads(json.dumps(header(spec, source, cards, True))) | {"origin_ns": 0}
        series = [Series(head, i) for i in range(len(cards))]
        recorder = segment.Recorder(round(LATE * period_s * 1e9))
        chance = random.Random(seed)
        for k in range(1, int(until_s / period_s)):
            t = period_s * (k + chance.uniform(-JITTER, JITTER))
            if skip(t):
                continue
            _inside.scripted_set_time(t)
            for card in range(len(cards)):
                row = recorder.offer(card, round(t * 1e9), round(t * 1e9), source.read(card))
                if row is not None:
                    series[card].add(row)
        source.close()
        return series

    yield run
    _inside.scripted_reset()
