"""Which device a run uses, in which precision, and the peak that its MFU refers to."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass

import torch

from harness.errors import DeviceError
from harness.gpus import bf16_peak_flop_per_s
from harness.host import cpu_model
from harness.schema import DeviceConfig, DeviceKind, Precision, Toggle


@dataclass(frozen=True)
class Device:
    torch_device: torch.device
    name: str  # GPU name, or the CPU's model
    autocast: torch.dtype | None  # None: fp32 throughout
    compile: bool
    threads: int
    peak_flop_per_s: float | None
    peak_source: str
    uuid: str | None = None  # of a GPU, without the prefix "GPU-"

    @property
    def label(self) -> str:
        return f"{self.torch_device.type}:{self.name}:{'bf16' if self.autocast else 'fp32'}"

    def sync(self) -> None:
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)


def choose(config: DeviceConfig, parallel_runs: int = 1) -> Device:
    """Resolve every `auto`. Sets torch's thread count, which launchers change behind our back. DeviceError when impossible."""
    cuda = torch.cuda.is_available()
    if config.kind is DeviceKind.cuda and not cuda:
        raise DeviceError(
            "device.kind=cuda, but torch sees no CUDA device. Use device.kind=cpu, or see `harness doctor` for the driver's state."
        )
    use_cuda = cuda and config.kind is not DeviceKind.cpu
    threads = config.threads or max(1, len(os.sched_getaffinity(0)) // max(1, parallel_runs))
    torch.set_num_threads(threads)
    bf16 = config.precision is Precision.bf16 or (config.precision is Precision.auto and use_cuda)
    compiled = config.compile is Toggle.always or (config.compile is Toggle.auto and use_cuda)
    if not use_cuda:
        peak = cpu_peak_flop_per_s(threads)
        return Device(
            torch.device("cpu"),
            cpu_model(),
            torch.bfloat16 if bf16 else None,
            compiled,
            threads,
            peak,
            f"fp32 matmul measured on {threads} thread(s)",
        )
    name = torch.cuda.get_device_name(0)
    peak = bf16_peak_flop_per_s(name) if bf16 else None
    source = "vendor's dense bf16 peak" if peak else f"no peak known for {name} in this precision"
    torch.backends.cuda.matmul.allow_tf32 = True
    return Device(
        torch.device("cuda", torch.cuda.current_device()),
        name,
        torch.bfloat16 if bf16 else None,
        compiled,
        threads,
        peak,
        source,
        str(torch.cuda.get_device_properties(0).uuid),
    )


@functools.cache
def cpu_peak_flop_per_s(threads: int, size: int = 768, budget_s: float = 0.2) -> float:
    """Best rate of an fp32 matmul of `size` over about `budget_s` seconds on `threads` threads: the peak that MFU refers to."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a = torch.randn(size, size)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < budget_s:
        t = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - t)
    torch.set_num_threads(before)
    return 2 * size**3 / best
