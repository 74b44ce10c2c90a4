"""The scripted NVML, built once: for sampler processes, and for this process on a virtual clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from doubles import nvml as double
from doubles.nvml.playback import Player

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
def player(tmp_path_factory: pytest.TempPathFactory) -> Player:
    """For this process; without a soname, so that nothing else here takes it for a driver."""
    folder = tmp_path_factory.mktemp("nvml_inside")
    return Player(_build(folder, soname=False), folder)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, nvml_library: Path) -> Callable[[double.Script, Path], None]:
    """Let sampler processes that start from now on see a script."""

    def install(script: double.Script, folder: Path) -> None:
        for key, value in script.environment(nvml_library, folder).items():
            monkeypatch.setenv(key, value)

    return install


Sampled = Callable[..., list[Series]]


@pytest.fixture
def sampled(player: Player, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sampled]:
    """`sampled(script, until_s)`: what the real source and recorder make of a script on a virtual
    clock, as Series.

    Polls come at jittered deadlines; those for which `skip(t)` holds do not happen. Second 0 of the
    script is time 0.
    """
    monkeypatch.setattr(pynvml, "nvmlLib", pynvml.nvmlLib)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setenv("SCRIPTED_NVML", "")
    yield player.play
    player.close()
