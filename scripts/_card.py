"""A card under test: polling it while loads run beside it, and loads whose power, FLOP and bytes
per second are known.

The loads come from torch. In a rehearsal they run on the CPU, and smaller, so that the path is the
same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pynvml
import torch

from harness.models import flops, llama
from harness.power.nvml import NvmlSource
from harness.power.sensor import Actions, after, poll
from harness.power.series import Series
from harness.power.source import Card

Json = dict[str, Any]


@dataclass
class Bench:
    """A card, a load, and how much of each experiment's length is wanted (1: all; less in a
    rehearsal).
    """

    source: NvmlSource
    cards: list[Card]
    actions: Actions
    cuda: bool
    scale: float = 1.0

    def poll(self, seconds: float, period_s: float = 0.005) -> Series:
        return poll(self.source, self.cards, 0, after(max(1.5, seconds * self.scale)), period_s)[0]

    def during(self, load: Callable[[Callable[[], bool]], None], seconds: float) -> Series:
        """Poll while `load(stopped)` runs beside it."""
        done = threading.Event()
        worker = threading.Thread(target=load, args=(done.is_set,))
        worker.start()
        series = self.poll(seconds)
        done.set()
        worker.join()
        return series

    @property
    def handle(self) -> Any:
        return pynvml.nvmlDeviceGetHandleByIndex(self.cards[0].facts["index"])

    @property
    def device(self) -> str:
        return "cuda" if self.cuda else "cpu"

    def size(self, n: int) -> int:
        """A matrix size: as given on a GPU, a sixteenth of it on the CPU."""
        return n if self.cuda else n // 16

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def slopes(s: Series) -> np.ndarray:
    """Mean power between the counter's ticks, W."""
    t = 0.5 * (np.array(s.lo_s) + np.array(s.hi_s))
    return np.diff(np.array(s.joule)) / np.diff(t) if len(t) > 1 else np.array([])


def spread(values: Any) -> float | None:
    """95 % range over the mean; None with too few values."""
    v = np.asarray(values, dtype=float)
    return float((np.quantile(v, 0.975) - np.quantile(v, 0.025)) / np.mean(v)) if len(v) > 4 and np.mean(v) else None


def sources(s: Series) -> Json:
    """Joules by counter, instant and average over the stretch that all cover."""
    if len(s.hi_s) < 3:
        return {"seconds": None, "reason": "the counter did not tick"}
    a, b = s.hi_s[1], s.hi_s[-1]
    out: Json = {"seconds": b - a, "counter_j": s.joule[-1] - s.joule[1]}
    return {**out, "instant_j": s.instant.integral(a, b), "average_j": s.average.integral(a, b)}


# --- loads ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Load:
    """A call that takes the same work each time: FLOP, and the bytes that must cross the card's
    memory.
    """

    call: Callable[[], object]
    flop: float
    bytes: float


def matmul(b: Bench, n: int, zeros: bool = False) -> Load:
    """A square bf16 product; bytes are those of its three matrices, once each.

    Random values draw what training draws.
    """
    n = b.size(n)
    make = torch.zeros if zeros else torch.randn
    x, y, out = (make(n, n, device=b.device, dtype=torch.bfloat16) for _ in range(3))
    return Load(lambda: torch.mm(x, y, out=out), 2.0 * n**3, 6.0 * n**2)


def copy(b: Bench) -> Load:
    """2 GB read and 2 GB written on the card."""
    x = torch.randint(0, 255, (2_000_000_000 if b.cuda else 2_000_000,), device=b.device, dtype=torch.uint8)
    y = torch.empty_like(x)
    return Load(lambda: y.copy_(x), 0.0, 2.0 * x.numel())


def transformer(b: Bench) -> Load:
    """Forward and backward of a model of the ladder's kind.

    Bytes: the weights, read twice and written once as gradients; those of the activations are not
    in it.
    """
    shape = flops.Shape(vocab=4096, width=512, depth=8, heads=8, kv_heads=8, head_dim=64, ffn=1408, context=255)
    model = llama.build(shape, 0)
    torch.nn.Module.to(model, b.device)  # in place; the subclass's own signature hides the overload
    tokens = torch.randint(0, shape.vocab, (64 if b.cuda else 1, shape.context + 1), device=b.device)

    def step() -> None:
        with torch.autocast(b.device, dtype=torch.bfloat16):
            scores = llama.logits(model, tokens[:, :-1])
        torch.nn.functional.cross_entropy(scores.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        model.zero_grad()

    n = flops.counts(shape)
    return Load(step, float(n.fpt_causal * tokens[:, 1:].numel()), 6.0 * n.n_total)


def steady(b: Bench, load: Load, seconds: float) -> Json:
    """Mean power, FLOP/s, bytes/s and joules per FLOP of a load made again and again, over whole
    batches of calls well inside.
    """
    batch = max(1, int(0.02 / time_per_call(b, load, 2)))
    marks: list[tuple[float, int]] = []

    def again(stopped: Callable[[], bool]) -> None:
        count = 0
        while not stopped():
            for _ in range(batch):
                load.call()
            count += batch
            b.sync()
            marks.append((time.monotonic(), count))

    s = b.during(again, seconds + 2)
    origin = s.origin_ns * 1e-9
    inside = [(t - origin, c) for t, c in marks if s.hi_s and s.hi_s[0] + 1.5 * b.scale < t - origin < s.hi_s[-1]]
    if len(inside) < 2:
        return {"power_w": None, "reason": "too short"}
    (t0, c0), (t1, c1) = inside[0], inside[-1]
    joules = float(np.interp(t1, s.hi_s, s.joule) - np.interp(t0, s.hi_s, s.joule))
    rate = (c1 - c0) / (t1 - t0)
    return {
        "power_w": joules / (t1 - t0),
        "flop_per_s": rate * load.flop,
        "bytes_per_s": rate * load.bytes,
        "j_per_flop": joules / ((c1 - c0) * load.flop) if load.flop else None,
    }


def time_per_call(b: Bench, load: Load, calls: int) -> float:
    """Seconds of a call, after one that is not counted."""
    load.call()
    b.sync()
    begin = time.monotonic()
    for _ in range(calls):
        load.call()
    b.sync()
    return (time.monotonic() - begin) / calls
