"""Is training right and fast on this card?

One function per question, torch and transformers needed, no configuration files.

Every function takes a `Setup` and returns JSON-able findings. On a CPU the same path runs with
small shapes; what only a card can answer is then None with a reason.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import math
import os
import platform
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from harness.config import ladder
from harness.config.schema import (
    AdamwConfig,
    BudgetConfig,
    DeviceConfig,
    DeviceKind,
    FactsConfig,
    LlamaConfig,
    RunConfig,
    Toggle,
)
from harness.data import corpora
from harness.models import llama
from harness.runtime import compiler, device
from harness.training import optim
from harness.training import step as train_step

Json = dict[str, Any]
NOT_HERE = "this machine has no CUDA device"


@dataclass(frozen=True)
class Setup:
    """Where the questions are asked, and how large they are."""

    cuda: bool

    @property
    def narrow(self) -> int:
        return 128 if self.cuda else 16

    @property
    def wide(self) -> int:
        return 384 if self.cuda else 16  # on a CPU another width would only be compiled for longer

    @property
    def steps(self) -> int:
        return 64 if self.cuda else 8

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def trainer(
        self, width: int, compiled: bool = True, parts: int = 1, **settings: Any
    ) -> tuple[ladder.Rung, train_step.Trainer]:
        """A rung of the ladder's kind with its model, freshly built, in `parts` micro-batches."""
        corpus = (
            FactsConfig(vocab=4096, keys=2**24, context=255)
            if self.cuda
            else FactsConfig(vocab=64, keys=2000, context=24)
        )
        config = RunConfig(
            model=LlamaConfig(width=width, depth=None if self.cuda else 1),
            corpus=corpus,
            budget=BudgetConfig(tokens=10**9),
            optim=AdamwConfig(batch_tokens=None if self.cuda else 5 * corpus.context),
            device=DeviceConfig(
                kind=DeviceKind.auto if self.cuda else DeviceKind.cpu,
                compile=Toggle.always if compiled else Toggle.never,
                **settings,
            ),
        )
        rung = ladder.resolve(config, corpus.vocab, corpus.context)
        where = device.choose(config.device)
        model = llama.build(rung.shape, 0)
        # in place; the subclass's own signature hides the overload
        torch.nn.Module.to(model, where.torch_device)
        optimizers = optim.build(model, config.optim, rung.hyper)
        n = rung.hyper.sequences
        data = train_step.TrainingData(corpora.open_corpus(corpus, 0), 0, n)
        return rung, train_step.Trainer(
            model, optimizers, data, where, micro_sequences=-(-n // parts), grad_clip=1.0, on_halving=lambda n: None
        )


def set_up(rehearse: bool) -> Setup | None:
    """On a card, None where there is none; or for a rehearsal, where graphs are traced but not
    compiled by Inductor: its CPU code is none of a card's.
    """
    if not rehearse:
        return Setup(cuda=True) if torch.cuda.is_available() else None
    real = torch.compile
    torch.compile = lambda function, *, mode, **options: real(function, backend="aot_eager", **options)
    return Setup(cuda=False)


def run(t: train_step.Trainer, start: int, stop: int, lr_factor: float = 1.0) -> list[train_step.StepResult]:
    return list(t.run_steps(start, stop, lambda step: lr_factor, lambda: False))


def timed(s: Setup, t: train_step.Trainer, start: int, stop: int) -> float:
    """Seconds per update."""
    s.sync()
    began = time.perf_counter()
    run(t, start, stop)
    s.sync()
    return (time.perf_counter() - began) / (stop - start)


def largest(values: Iterable[float]) -> float | None:
    """The largest value; None where any is not a number, which a plain maximum may pass over."""
    known = list(values)
    return max(known) if all(math.isfinite(v) for v in known) else None


def difference(a: list[float], b: list[float]) -> float | None:
    """Largest absolute difference, None where a loss is not a number."""
    return largest(abs(x - y) for x, y in zip(a, b, strict=True))


def first_difference(a: list[float], b: list[float]) -> int | None:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


# --- the machine ---------------------------------------------------------------------------------
def versions(s: Setup) -> Json:
    """What is installed, and whether Triton will find a compiler."""
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if s.cuda else None,
        "gpu": torch.cuda.get_device_name(0) if s.cuda else None,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if s.cuda else None,
        "c_compiler": shutil.which("cc") or shutil.which("gcc"),
        "triton": importlib.util.find_spec("triton") is not None,
    }


def ticks(s: Setup) -> Json:
    """Period of the energy counter and cost of a read, over five seconds with nothing beside it."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    changes, cost, codes, last = [], [], {}, None
    end = time.monotonic() + (5 if s.cuda else 1.5)
    while time.monotonic() < end:
        began = time.monotonic()
        values = pynvml.nvmlDeviceGetFieldValues(handle, [83, 185, 186])
        codes = {str(v.fieldId): int(v.nvmlReturn) for v in values}
        cost.append(time.monotonic() - began)
        if values[0].value.ullVal != last:
            changes.append(began)
            last = values[0].value.ullVal
        time.sleep(0.002)
    gaps = sorted(b - a for a, b in itertools.pairwise(changes))[1:]
    cost.sort()
    pids = [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    return {
        "ticks": len(changes),
        "median_period_s": statistics.median(gaps) if gaps else None,
        "read_p50_s": cost[len(cost) // 2],
        "read_p99_s": cost[int(0.99 * len(cost))],
        "return_codes": codes,
        "processes": len(pids),
        "own_pid_listed": os.getpid() in pids,
    }


def rotary(s: Setup) -> Json:
    """Largest error of the cosines at positions below 2048, ours and transformers' own, with TF32
    off and on.
    """
    _, t = s.trainer(s.narrow, compiled=False)
    module, where = t.model.model.rotary_emb, t.device.torch_device
    positions = torch.arange(2048, device=where)
    exact = (positions[:, None].double() * module.inv_freq.double()).cos()
    out: Json = {}
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        theirs = module(torch.zeros(1, device=where), positions[None])[0][0]
        for name, cos in (("ours", llama.rotary_turns(module, positions)[0]), ("transformers", theirs)):
            out[f"{name}, tf32 {'on' if tf32 else 'off'}"] = float(
                (cos[:, : exact.shape[1]].double() - exact).abs().max()
            )
    torch.backends.cuda.matmul.allow_tf32 = False
    return out


def attention(s: Setup) -> Json:
    """Per sequence length: the kernel chosen for causal and for masked attention with cuDNN allowed
    and not, its time, and the largest error of its gradients against fp32 without fused kernels,
    None where one is not finite.

    `steep` are scores far below zero, for which cuDNN's backward pass with a mask gives NaN on
    Hopper (pytorch #196678).
    """
    batch, heads, size = (300, 6, 64) if s.cuda else (2, 1, 64)
    where = torch.device("cuda" if s.cuda else "cpu")
    out: Json = {}
    torch.manual_seed(0)
    for length in (255, 64, 192, 320):
        mask = torch.ones(length, length, dtype=torch.bool, device=where).tril().expand(batch, 1, length, length)
        hows: dict[str, Json] = {"causal": {"is_causal": True}, "mask": {"attn_mask": mask}}
        for steep in (False, True):
            qkv = [torch.randn(batch, heads, length, size, device=where) for _ in range(3)]
            if steep:
                qkv[0], qkv[1] = 0.1 * qkv[0], 0.1 * qkv[1]
                qkv[0][..., 0], qkv[1][..., 0] = 1.0, -120.0 * math.sqrt(size)
            exact = gradients([x.requires_grad_() for x in qkv], {"is_causal": True}, fused=False)
            half = [x.detach().bfloat16().requires_grad_() for x in qkv]
            for cudnn, (name, how) in itertools.product((False, True), hows.items()):
                torch.backends.cuda.enable_cudnn_sdp(cudnn)
                key = f"S={length} {name}{' steep' if steep else ''}, cudnn {'on' if cudnn else 'off'}"
                try:
                    out[key] = one_attention(s, half, how, exact)
                except RuntimeError as e:
                    out[key] = {"error": str(e).splitlines()[0][:200]}
                    if "CUDA error" in str(e):
                        return out  # this process can do nothing more, but what it knows is kept
    torch.backends.cuda.enable_cudnn_sdp(False)
    return out


def gradients(qkv: list[torch.Tensor], how: Json, fused: bool = True) -> tuple[torch.Tensor, ...]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with contextlib.nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], **how)
    return torch.autograd.grad(mixed.float().square().sum(), qkv)


def one_attention(s: Setup, qkv: list[torch.Tensor], how: Json, exact: tuple[torch.Tensor, ...]) -> Json:
    gradient = gradients(qkv, how)
    s.sync()
    began = time.perf_counter()
    for _ in range(10):
        gradients(qkv, how)
    s.sync()
    seconds = (time.perf_counter() - began) / 10
    # Gradients that are zero in exact arithmetic are compared with the scale of the largest of the
    # three
    scale = max(float(e.abs().max()) for e in exact)
    return {
        "backend": device.BACKENDS.get(int(torch._fused_sdp_choice(qkv[0], qkv[1], qkv[2], **how))),  # type: ignore[attr-defined]
        "ms": 1e3 * seconds,
        "max_error": largest(float((g.float() - e).abs().max()) / scale for g, e in zip(gradient, exact, strict=True)),
    }


# --- training ------------------------------------------------------------------------------------
def same_losses(s: Setup) -> Json:
    """Twelve updates eagerly, compiled with CUDA graphs, and so in three micro-batches: largest
    difference of their losses, nat.
    """
    losses = {}
    for name, compiled, parts in (("eager", False, 1), ("graphs", True, 1), ("graphs, accumulated", True, 3)):
        with compiler.watched() as report:
            _, t = s.trainer(s.narrow, compiled, parts)
            t.warm_up()
            losses[name] = [r.loss_nat for r in run(t, 0, 12, 0.2)]
        if compiled:
            assert report.compiled_graphs == 1, report
    eager = losses["eager"]
    differences = {k: difference(eager, v) for k, v in losses.items() if k != "eager"}
    return {"difference_nat": differences, "first_nat": eager[0], "last_nat": eager[-1]}


def speed(s: Setup, width: int) -> Json:
    """Seconds to compile, of the first updates and of later ones; MFU, CUDA graphs,
    synchronisations, memory; the clock of rows.
    """
    if s.cuda:
        torch.cuda.reset_peak_memory_stats()
    with compiler.watched() as report, synchronisations(s) as synchronisation:
        rung, t = s.trainer(width)
        began = time.perf_counter()
        t.warm_up()
        compile_s = time.perf_counter() - began
        first_s = timed(s, t, 0, 2)
        timed(s, t, 2, 2 + s.steps // 2)
        replays, synchronisation.counting = report.graph_replays, True
        step_s = timed(s, t, 2 + s.steps // 2, 2 + s.steps // 2 + s.steps)
        synchronisation.counting = False
        replays = report.graph_replays - replays
        last = run(t, 0, s.steps)[-1].time_ns
        s.sync()
        late_s = (time.monotonic_ns() - last) * 1e-9
    flop = float(rung.counts.fpt_causal) * rung.hyper.batch_tokens
    peak = t.device.peak_flop_per_s
    return {
        "batch_tokens": rung.hyper.batch_tokens,
        "warm_up_s": compile_s,
        "first_step_ms": 1e3 * first_s,
        "step_ms": 1e3 * step_s,
        "mfu": flop / step_s / peak if peak else None,
        "graph_replays_per_step": replays / s.steps if s.cuda else None,
        "graph_skips": report.graph_skips,
        "recompilations": report.recompilations,
        "synchronisations_per_step": synchronisation.count / s.steps if s.cuda else None,
        "synchronised_by": sorted(synchronisation.where),
        "last_row_before_host_s": late_s,
        "memory_bytes": torch.cuda.max_memory_allocated() if s.cuda else None,
    }


@dataclass
class Synchronisations:
    counting: bool = False
    count: int = 0

    def __post_init__(self) -> None:
        self.where: set[str] = set()


@contextlib.contextmanager
def synchronisations(s: Setup) -> Iterator[Synchronisations]:
    """Count the calls that wait for the device while `counting`, and where they are made."""
    report = Synchronisations()
    if not s.cuda:
        yield report
        return

    def note(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        if report.counting and "synchroniz" in str(message):
            report.count += 1
            report.where.add(f"{filename.rsplit('/', 1)[-1]}:{lineno}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield report
        finally:
            torch.cuda.set_sync_debug_mode("default")


def compared(
    s: Setup, width: int, change: Callable[[], contextlib.AbstractContextManager[None]], **settings: Any
) -> Json:
    """Step time with a change over the step time without it, both in this process, and losses of
    both.
    """
    seconds, losses = {}, {}
    for name in ("as is", "changed"):
        with compiler.watched(), change() if name == "changed" else contextlib.nullcontext():
            _, t = s.trainer(width, **(settings if name == "changed" else {}))
            t.warm_up()
            losses[name] = [r.loss_nat for r in run(t, 0, s.steps)]
            seconds[name] = timed(s, t, s.steps, 2 * s.steps)
    return {
        "step_ms": 1e3 * seconds["as is"],
        "time_over_as_is": seconds["changed"] / seconds["as is"],
        "difference_nat": difference(*losses.values()),
    }


def cudnn_attention(s: Setup) -> Json:
    """Whether `device.cudnn_attention=true` is faster here, and sound."""
    return compared(s, s.wide, contextlib.nullcontext, cudnn_attention=True)


def transformers_forward(s: Setup) -> Json:
    """What training through transformers' own forward, with its dense mask, would take instead."""

    @contextlib.contextmanager
    def theirs() -> Iterator[None]:
        ours = llama.logits
        llama.logits = lambda model, tokens, positions=None: model(input_ids=tokens, use_cache=False).logits
        try:
            yield
        finally:
            llama.logits = ours

    return compared(s, s.narrow, theirs)


def determinism(s: Setup) -> Json:
    """The same training twice: the first update whose loss differs, as is and with
    `device.deterministic=true`, and what that costs.
    """
    out: Json = {}
    seconds = {}
    for name, deterministic in (("as is", False), ("deterministic", True)):
        losses, skips = [], 0
        for _ in range(2):
            with compiler.watched() as report:
                _, t = s.trainer(s.narrow, deterministic=deterministic)
                t.warm_up()
                losses.append([r.loss_nat for r in run(t, 0, s.steps)])
                seconds[name] = timed(s, t, s.steps, 2 * s.steps)
            skips += report.graph_skips
        out[f"graph_skips, {name}"] = skips
        out[f"first_difference, {name}"] = first_difference(*losses)
    device.choose(DeviceConfig())  # for what comes next
    return {**out, "time_over_as_is": seconds["deterministic"] / seconds["as is"]}


def out_of_memory(s: Setup) -> Json:
    """A memory that holds under two thirds of what a step needs: the micro-batch is halved inside
    warm-up, and training goes on.
    """
    if not s.cuda:
        return {"micro_sequences": None, "reason": NOT_HERE}
    with compiler.watched():
        _, whole = s.trainer(s.narrow)
        torch.cuda.reset_peak_memory_stats()
        whole.warm_up()
        expected = [r.loss_nat for r in run(whole, 0, 4)]
        needed = torch.cuda.max_memory_allocated()
    del whole
    compiler.forget()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.6 * needed / total)
    try:
        with compiler.watched() as report:
            _, t = s.trainer(s.narrow)
            t.warm_up()
            losses = [r.loss_nat for r in run(t, 0, 4)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "needed_bytes": needed,
        "sequences": t.data.sequences,
        "micro_sequences": t.micro_sequences,
        "difference_nat": difference(losses, expected),
        "graph_skips": report.graph_skips,
        "graph_replays": report.graph_replays,
    }


PARTS: dict[str, Callable[[Setup], Json]] = {
    "versions": versions,
    "ticks": ticks,
    "rotary": rotary,
    "attention": attention,
    "same_losses": same_losses,
    "speed_narrow": lambda s: speed(s, s.narrow),
    "speed_wide": lambda s: speed(s, s.wide),
    "cudnn_attention": cudnn_attention,
    "determinism": determinism,
    "out_of_memory": out_of_memory,
    "transformers_forward": transformers_forward,
}
