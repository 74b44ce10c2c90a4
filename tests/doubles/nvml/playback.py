"""A script played on a virtual clock in this process: the real client, recorder and reader, without
waiting.

    player = Player(library, script_folder)   # library built with soname=False
    series = player.play(script, until_s=20)  # one Series per card; second 0 of the script is 0
"""

from __future__ import annotations

import ctypes
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pynvml

from doubles.nvml import Script
from harness.power import segment_file
from harness.power.nvml import NvmlSource
from harness.power.sampler import JITTER, MAX_POLL_PERIODS, PERIOD_SHARE, Spec, header, look_line
from harness.power.series import Series


class Player:
    """Owns the double inside this process.

    Nothing else here may talk to a real NVML: `pynvml.nvmlLib` is replaced.
    """

    def __init__(self, library: Path, folder: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.scripted_set_time.argtypes = [ctypes.c_double]
        self.folder = folder

    def play(
        self,
        script: Script,
        until_s: float,
        period_s: float = 0.01,
        skip: Callable[[float], bool] = lambda t: False,
        seed: int = 0,
    ) -> list[Series]:
        """Polls come at the sampler's jittered deadlines; those for which `skip(t)` holds do not
        happen.
        """
        pynvml.nvmlLib = self.library
        pynvml._nvmlGetFunctionPointer_cache.clear()
        script.virtual, script.origin_ns = True, 0
        os.environ["SCRIPTED_NVML"] = script.environment(self.folder / "lib", self.folder)["SCRIPTED_NVML"]
        self.library.scripted_reset()
        source = NvmlSource(None, mig_whole_card=True)
        cards = source.open()
        spec = Spec("nvml", "", period_s, os.getpid(), 1, 0, False)
        head = json.loads(json.dumps(header(spec, source, cards, True))) | {"origin_ns": 0}
        series = [Series(head, i) for i in range(len(cards))]
        recorder = segment_file.Recorder(round(MAX_POLL_PERIODS * period_s * 1e9))
        next_look_s = 0.0
        chance = random.Random(seed)
        for k in range(1, int(until_s / (period_s * PERIOD_SHARE))):
            t = period_s * PERIOD_SHARE * (k + chance.uniform(-JITTER, JITTER))
            if skip(t):
                continue
            self.library.scripted_set_time(t)
            if t >= next_look_s:
                next_look_s += 1.0
                for card in range(len(cards)):
                    series[card].look(look_line(card, round(t * 1e9), source.watch(card) or {}, os.getpid()))
            for card in range(len(cards)):
                row = recorder.offer(card, round(t * 1e9), round(t * 1e9), source.read(card))
                if row is not None:
                    series[card].add(row)
        source.close()
        return series

    def close(self) -> None:
        self.library.scripted_reset()
