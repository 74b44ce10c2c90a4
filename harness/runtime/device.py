"""Which device a run uses, in which precision and with which kernels, and the peak that its MFU
refers to."""

from __future__ import annotations

import functools
import os
import re
import time
import warnings
from dataclasses import dataclass

import torch

from harness.config.schema import DeviceConfig, DeviceKind, Precision, Toggle
from harness.errors import DeviceError
from harness.hardware import bf16_peak_flop_per_s, cpu_model
from harness.units import NS_PER_MS

# What torch, cuBLAS, cuDNN and the CPU's allocator say when memory is short; "illegal memory
# access" is another thing
_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|not enough memory|can't allocate memory|_ALLOC_FAILED|cudaErrorMemoryAllocation", re.I
)


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
    memory_bytes: int | None = None  # of a GPU

    @property
    def label(self) -> str:
        return f"{self.torch_device.type}:{self.name}:{'bf16' if self.autocast else 'fp32'}"

    @property
    def cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.torch_device)

    def clock(self) -> HostClock | CudaClock:
        """A clock of what the device has done, started now; on a GPU this waits for the device."""
        return CudaClock() if self.cuda else HostClock()


class HostClock:
    """Marks of work that is done when its call returns."""

    def mark(self) -> int:
        return time.monotonic_ns()

    def time_ns(self, mark: int) -> int:
        return mark


class CudaClock:
    """Marks in the stream of a GPU, as times of CLOCK_MONOTONIC: when the device got there, not
    when the work was issued.

    Events are measured from an anchor at which host and device had waited for each other. An
    event's time is a float of milliseconds: each is measured from the one read before it, so that
    it stays short and exact.
    """

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self._anchor = self.mark()
        self._anchor.synchronize()
        self._anchor_ns = time.monotonic_ns()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def time_ns(self, mark: torch.cuda.Event) -> int:
        """The mark must have been reached. Marks are read in order."""
        self._anchor_ns += round(self._anchor.elapsed_time(mark) * NS_PER_MS)
        self._anchor = mark
        return self._anchor_ns


def choose(config: DeviceConfig, parallel_runs: int = 1) -> Device:
    """Resolve every `auto` and set torch's process-wide switches to what the config says.
    DeviceError when impossible.

    The switches are set whichever way they point: an earlier run of this process, or a launcher,
    may have left them otherwise.
    """
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
    _set_kernels(config, compiled)
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
    properties = torch.cuda.get_device_properties(0)
    return Device(
        torch.device("cuda", torch.cuda.current_device()),
        name,
        torch.bfloat16 if bf16 else None,
        compiled,
        threads,
        peak,
        source,
        str(properties.uuid),
        properties.total_memory,
    )


def _set_kernels(config: DeviceConfig, compiled: bool) -> None:
    """Which kernels torch may choose from, in this process."""
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    # Inductor advises to switch TF32 on; that is what the setting decides
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores", category=UserWarning)
    torch.backends.cuda.enable_cudnn_sdp(config.cudnn_attention)
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # fixed workspaces, fixed sums
        # A search for bugs, which costs a pass over every new tensor
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    if compiled:
        from torch._inductor import config as inductor

        # The kernels of attention are in a compiled graph, and these switches are not in the key
        # under which it is kept on disk
        torch.compiler.config.cache_key_tag = f"cudnn_attention={config.cudnn_attention}"
        inductor.deterministic = config.deterministic  # kernels are not chosen by timing them


# torch.nn.attention.SDPBackend by number
BACKENDS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}


def attention_backend(device: Device, heads: int, kv_heads: int, context: int, head_dim: int) -> str | None:
    """The kernel that torch chooses for causal attention of this shape in training; None where
    torch names one of no kind here."""
    dtype = device.autocast or torch.float32
    query = torch.empty(1, heads, context, head_dim, dtype=dtype, device=device.torch_device, requires_grad=True)
    key = torch.empty(1, kv_heads, context, head_dim, dtype=dtype, device=device.torch_device, requires_grad=True)
    choice = torch._fused_sdp_choice(  # type: ignore[attr-defined]
        query, key, key, is_causal=True, enable_gqa=kv_heads != heads
    )
    return BACKENDS.get(int(choice))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, its compiler or a CUDA library says that memory was short."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


@functools.cache
def cpu_peak_flop_per_s(threads: int, size: int = 768, budget_s: float = 0.2) -> float:
    """Best rate of an fp32 matmul of `size` over about `budget_s` seconds on `threads` threads: the
    peak that MFU refers to."""
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
