"""What a GPU run relies on, as far as a CPU can show it: real Dynamo everywhere, doubles for what
only a card has.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness import records
from harness.config import ladder
from harness.config.schema import (
    AdamwConfig,
    DeviceConfig,
    DeviceKind,
    FactsConfig,
    LlamaConfig,
    MuonConfig,
    OptimConfig,
    RunConfig,
    Toggle,
)
from harness.data import corpora
from harness.data.batches import Batch
from harness.models import llama
from harness.runtime import compiler
from harness.runtime import device as devices
from harness.runtime.device import CudaClock, Device
from harness.training import optim, validate
from harness.training import step as train_step

CPU = DeviceConfig(kind=DeviceKind.cpu, threads=1)
COMPILED = DeviceConfig(kind=DeviceKind.cpu, threads=1, compile=Toggle.always)
Backend = Callable[[torch.fx.GraphModule, list[torch.Tensor]], Callable[..., Any]]


def compile_with(patch: pytest.MonkeyPatch, backend: Backend | str) -> None:
    """Real Dynamo, without Inductor behind it: graphs and their limits are the same, in
    milliseconds instead of seconds.
    """
    real = torch.compile
    patch.setattr(torch, "compile", lambda function, *, mode, **options: real(function, backend=backend, **options))


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    compiler.forget()
    yield
    devices.choose(CPU)


def trainer(
    device: Device | DeviceConfig = CPU,
    *,
    optimizer: OptimConfig | None = None,
    sequences: int = 4,
    micro: int | None = None,
    halvings: list[int] | None = None,
    corpus: FactsConfig | None = None,
    width: int = 16,
) -> train_step.Trainer:
    config = RunConfig(
        model=LlamaConfig(width=width, depth=2),
        corpus=corpus or FactsConfig(context=21, vocab=32, keys=200, val_tokens=630),
        optim=optimizer or AdamwConfig(lr=0.01),
    )
    config.optim.batch_tokens = sequences * config.corpus.context
    config.budget.tokens = 1000 * config.optim.batch_tokens
    config.schedule.warmup_tokens = 0
    rung = ladder.resolve(config, *corpora.sizes(config.corpus))
    model = llama.build(rung.shape, 0)
    return train_step.Trainer(
        model,
        optim.build(model, config.optim, rung.hyper),
        train_step.TrainingData(corpora.open_corpus(config.corpus, 0), 0, sequences),
        device if isinstance(device, Device) else devices.choose(device),
        micro_sequences=micro or sequences,
        grad_clip=1.0,
        on_halving=(halvings if halvings is not None else []).append,
    )


def losses(t: train_step.Trainer, stop: int, start: int = 0) -> list[float]:
    return [r.loss_nat for r in t.run_steps(start, stop, lambda step: 1.0, lambda: False)]


# --- causal attention ----------------------------------------------------------------------------
def attention_calls(graph: torch.fx.GraphModule) -> list[tuple[bool, bool]]:
    """(whether a mask is given, is_causal) of each call of attention in a graph."""
    calls = [n for n in graph.graph.nodes if "scaled_dot_product_attention" in str(n.target)]
    return [(len(n.args) > 3 or n.kwargs.get("attn_mask") is not None, n.kwargs.get("is_causal")) for n in calls]


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_the_traced_loss_is_one_graph_with_causal_attention_and_no_mask(precision: torch.dtype | None) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    with pytest.MonkeyPatch.context() as patch:
        compile_with(patch, keep)
        t = trainer(
            DeviceConfig(
                **{**vars(COMPILED), "precision": devices.Precision.bf16 if precision else devices.Precision.fp32}
            )
        )
    assert t.device.autocast is precision
    losses(t, 3)
    (graph,) = graphs
    assert attention_calls(graph) == [(False, True)] * 2
    square = [n for n in graph.graph.nodes if tuple(getattr(n.meta.get("example_value"), "shape", ()))[-2:] == (21, 21)]
    assert not square, "nothing of sequence by sequence is built"


def test_why_transformers_forward_is_not_compiled() -> None:
    """Traced, it hands a dense mask to attention, under every version that is allowed today."""
    t, graphs = trainer(), []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    tokens = torch.zeros(2, 21, dtype=torch.int64)
    torch.compile(lambda x: t.model(input_ids=x, use_cache=False).logits, backend=keep, dynamic=False)(tokens)
    assert attention_calls(graphs[0]) == [(True, False)] * 2


# --- nothing falls back to eager in silence ------------------------------------------------------
def test_twenty_shapes_in_one_process_are_all_compiled(tmp_path: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        compile_with(patch, "eager")
        for context in range(3, 63, 3):
            corpus = FactsConfig(context=context, vocab=32, keys=200, val_tokens=630)
            run = tiny.config(tmp_path / str(context), steps=20, device__compile=Toggle.always, corpus=corpus)
            run.optim.batch_tokens = 4 * context
            run.budget.tokens = 20 * run.optim.batch_tokens
            run.schedule.warmup_tokens = 0
            assert tiny.train(run).state == "done"
            ran = records.load_record(tiny.run_dir(run)).provenance
            assert ran["compiled"] is True
            assert ran["compiler"] == {
                "compiled_graphs": 1, "recompilations": 0, "graph_replays": 0, "graph_skips": 0,
            }  # fmt: skip
            assert ran["attention"] == "flash"


def test_one_shape_too_many_is_an_error_and_no_eager_execution() -> None:
    with pytest.MonkeyPatch.context() as patch:
        compile_with(patch, "eager")
        for context in range(3, 27, 3):
            losses(trainer(COMPILED, corpus=FactsConfig(context=context, vocab=32, keys=200)), 1)
        with pytest.raises(Exception, match="fullgraph=True"):
            losses(trainer(COMPILED, corpus=FactsConfig(context=27, vocab=32, keys=200)), 1)


def test_a_run_that_is_not_compiled_says_so(tmp_path: Any) -> None:
    run = tiny.config(tmp_path, steps=20)
    tiny.train(run)
    ran = records.load_record(tiny.run_dir(run)).provenance
    assert (ran["compiled"], ran["compiler"]["compiled_graphs"]) == (False, 0)


def test_replays_of_cuda_graphs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    played = []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: played.append(self))
    with compiler.watched() as report:
        torch.cuda.CUDAGraph.replay("graph")  # type: ignore[arg-type]
        torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] += 3
    torch.cuda.CUDAGraph.replay("another")  # type: ignore[arg-type]
    assert played == ["graph", "another"]
    assert (report.graph_replays, report.graph_skips) == (1, 3)


@pytest.mark.parametrize("sequences", [2, 5, 7, 12, 217])
def test_compiled_micro_batches_have_one_shape_and_lose_nothing(sequences: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        compile_with(patch, "eager")
        t = trainer(COMPILED, sequences=sequences)
    batch = t.data.batch(0)
    batch.positions = np.arange(21)[None].repeat(sequences, 0)
    for micro in range(1, sequences + 1):
        t.micro_sequences = micro
        parts = t._micro_batches(batch)
        assert len({len(p.tokens) for p in parts}) == 1
        assert len(parts[0].tokens) <= micro
        assert len(parts) == -(-sequences // micro), "no more passes than are needed"
        whole = np.concatenate([p.tokens for p in parts])
        assert (whole[:sequences] == batch.tokens).all()
        assert sum(p.mask.sum() for p in parts) == batch.mask.sum()


def test_a_filled_up_micro_batch_gives_the_same_losses() -> None:
    uneven = losses(trainer(CPU, sequences=5, micro=2), 8)
    with pytest.MonkeyPatch.context() as patch:
        compile_with(patch, "eager")
        with compiler.watched() as report:
            filled = losses(trainer(COMPILED, sequences=5, micro=2), 8)
    assert filled == pytest.approx(uneven, rel=1e-5)
    assert report.recompilations == 0


# --- the first window is like the others ---------------------------------------------------------
def state(t: train_step.Trainer) -> dict[str, Any]:
    return {
        "weights": {k: p.detach().clone() for k, p in t.model.named_parameters()},
        "gradients": [p.grad for p in t.parameters],
        "optimizers": [copy.deepcopy(o.state_dict()) for o in t.optimizers],
        "random": torch.get_rng_state(),
    }


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("optimizer", [AdamwConfig(lr=0.01), MuonConfig(lr=0.01)], ids=["adamw", "muon"])
@pytest.mark.parametrize("device", [CPU, COMPILED], ids=["eager", "compiled"])
@pytest.mark.parametrize("before", [0, 3])
def test_warming_up_changes_no_bit(optimizer: OptimConfig, device: DeviceConfig, before: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        compile_with(patch, "eager")
        warm, cold = (trainer(device, optimizer=copy.deepcopy(optimizer)) for _ in range(2))
        for t in (warm, cold):
            losses(t, before)
        known = state(warm)
        moved: list[float] = []
        update = warm._update

        def watched(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            result = update(batch)
            moved.append(
                max(float((p.detach() - known["weights"][k]).abs().max()) for k, p in warm.model.named_parameters())
            )
            torch.rand(3)  # as a kernel that draws
            return result

        warm._update = watched  # type: ignore[method-assign]
        warm.warm_up()
        warm._update = update  # type: ignore[method-assign]
        assert min(moved) > 0, "whole updates: the weights did move"
        assert_equal(state(warm), known)
        assert losses(warm, before + 5, before) == losses(cold, before + 5, before)


def test_a_run_warms_up_an_update_and_an_evaluation_batch_before_its_first_window(tmp_path: Any) -> None:
    order: list[str] = []

    def noted(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*args: Any, **options: Any) -> Any:
            order.append(name)
            return original(*args, **options)

        patch.setattr(owner, name, call)

    run = tiny.config(tmp_path, steps=20)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (train_step.Trainer, "_update"),
            (train_step.Trainer, "run_steps"),
            (train_step.nn.utils, "clip_grad_norm_"),
            (validate.llama, "logits"),
        ):
            noted(patch, owner, name)
        tiny.train(run)
    first = order[: order.index("run_steps")]
    assert first == ["_update", "logits", "clip_grad_norm_", "logits"]
    phases = [r.phase for r in tiny.spend(tiny.run_dir(run))]
    assert phases[0] == "warmup"


# --- precision and kernels -----------------------------------------------------------------------
def test_tf32_is_on_only_where_it_is_asked_for() -> None:
    for asked in (False, True, False):
        devices.choose(DeviceConfig(kind=DeviceKind.cpu, tf32=asked))
        assert torch.backends.cuda.matmul.allow_tf32 is asked
        assert torch.get_float32_matmul_precision() == ("high" if asked else "highest")


def test_cudnn_attention_is_off_unless_asked_for() -> None:
    for asked in (False, True, False):
        devices.choose(DeviceConfig(kind=DeviceKind.cpu, cudnn_attention=asked))
        assert torch.backends.cuda.cudnn_sdp_enabled() is asked
        assert torch.backends.cuda.flash_sdp_enabled()


def test_deterministic_kernels_are_on_only_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    from torch._inductor import config as inductor

    for asked in (False, True, False):
        devices.choose(DeviceConfig(kind=DeviceKind.cpu, deterministic=asked, compile=Toggle.always))
        assert torch.are_deterministic_algorithms_enabled() is asked
        assert inductor.deterministic is asked
    assert train_step.torch.get_num_threads() >= 1
    assert devices.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


class NoMatrixProduct(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("mm", "bmm", "addmm", "matmul", "linear"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [False, True])
def test_rotary_angles_are_fp32_and_no_matrix_product(autocast: bool) -> None:
    """TF32 or bf16 would round the angles, by 0.3 rad at position 2048."""
    rotary = trainer().model.model.rotary_emb
    positions = torch.arange(2048)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), NoMatrixProduct():
        cos, sin = llama.rotary_turns(rotary, positions)
    assert cos.dtype == sin.dtype == torch.float32
    exact = positions[:, None].double() * rotary.inv_freq.double()
    turned = torch.atan2(sin[:, : exact.shape[1]].double(), cos[:, : exact.shape[1]].double())
    off = torch.remainder(turned - exact + torch.pi, 2 * torch.pi) - torch.pi
    assert off.abs().max() < 2e-4  # fp32 at 2048 rad resolves 1.2e-4


# --- out of memory -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory."),
    ],
)
def test_short_memory_behind_the_real_compiler_halves_the_micro_batch(error: RuntimeError) -> None:
    """The compiled function runs out of memory above two sequences, as a capture may: not always by
    an OutOfMemoryError.
    """

    def small(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        def call(*tensors: torch.Tensor) -> Any:
            rows = next(t.shape[0] for t in tensors if t.dtype == torch.int64)
            if rows > 2:
                raise error
            return graph(*tensors)

        return call

    halvings: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        compile_with(patch, small)
        t = trainer(COMPILED, sequences=10, halvings=halvings)
        found = losses(t, 5)
    assert halvings == [5, 3, 2]
    assert found == pytest.approx(losses(trainer(CPU, sequences=10, micro=2), 5), rel=1e-5)


@pytest.mark.parametrize(
    "text",
    ["CUDA error: an illegal memory access was encountered", "CUDA error: device-side assert triggered", "shapes"],
)
def test_other_errors_are_raised(text: str) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        def call(*tensors: torch.Tensor) -> Any:
            raise RuntimeError(text)

        return call

    with pytest.MonkeyPatch.context() as patch:
        compile_with(patch, broken)
        t = trainer(COMPILED)
        with pytest.raises(RuntimeError, match=text):
            losses(t, 1)
    assert t.micro_sequences == 4


def test_short_memory_for_the_first_moments_halves_too() -> None:
    halvings: list[int] = []
    t = trainer(CPU, sequences=4, halvings=halvings)
    clean = losses(trainer(CPU, sequences=4, micro=2), 5)
    step = t.optimizers[0].step

    def hungry(*args: Any, **options: Any) -> Any:
        if t.micro_sequences > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(*args, **options)

    t.optimizers[0].step = hungry  # type: ignore[method-assign]
    t.warm_up()
    assert halvings == [2]
    assert losses(t, 5) == clean


def test_an_evaluation_that_runs_out_of_memory_goes_on_in_smaller_batches(tmp_path: Any) -> None:
    run = tiny.config(tmp_path, steps=20)
    original = validate.batch_losses

    def hungry(model: Any, batch: Batch, device: Device) -> Any:
        if len(batch.tokens) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch, device)

    from harness.training import trunk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "batch_losses", hungry)
        patch.setattr(trunk, "batch_losses", hungry)
        assert tiny.train(run).state == "done"
    record = records.load_record(tiny.run_dir(run))
    assert record.events[-1] == "out of memory: evaluation batches were halved to 7 sequences"
    whole = tiny.config(tmp_path / "whole", steps=20)
    tiny.train(whole)
    expected = records.load_record(tiny.run_dir(whole)).points[0]
    assert record.points[0].loss_nat == pytest.approx(expected.loss_nat, rel=1e-6)
    assert record.points[0].val_tokens == expected.val_tokens


# --- times, NaN, evaluation, corpora -------------------------------------------------------------
class Event:
    """A CUDA event on a device that needs 5 ms for what is issued in no time."""

    device_ms = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.device_ms += 5.0
        self.at_ms = Event.device_ms

    def synchronize(self) -> None: ...

    def elapsed_time(self, later: Event) -> float:
        return later.at_ms - self.at_ms


def test_rows_carry_the_device_s_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *a: None)
    t = trainer()
    monkeypatch.setattr(Device, "clock", lambda self: CudaClock())
    t.block = 4
    times = [r.time_ns for r in t.run_steps(0, 10, lambda step: 1.0, lambda: False)]
    assert np.diff(times).tolist() == [5_000_000] * 9


def test_the_cache_of_compiled_graphs_knows_which_attention_is_in_them() -> None:
    """Torch keeps compiled graphs on disk, and these switches are not in its key: the kernel of an
    earlier run would run again.
    """
    tags = []
    for allowed in (False, True):
        devices.choose(DeviceConfig(kind=DeviceKind.cpu, cudnn_attention=allowed, compile=Toggle.always))
        tags.append(torch.compiler.config.cache_key_tag)
    assert tags[0] != tags[1]


@pytest.mark.parametrize("bad", [0, 15, 16, 17, 40])
def test_a_nan_is_seen_within_32_updates(bad: int) -> None:
    t = trainer()
    t.block = train_step.GPU_BLOCK
    update = t._update
    made = 0

    def nan_at(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal made
        loss, norm = update(batch)
        made += 1
        return (loss * torch.nan, norm) if made == bad + 1 else (loss, norm)

    t._update = nan_at  # type: ignore[method-assign]
    results = t.run_steps(0, 200, lambda step: 1.0, lambda: False)
    seen = next(r.step for r in results if not np.isfinite(r.loss_nat))
    assert seen == bad
    assert made - bad <= 32


@pytest.mark.parametrize("bad", [13, 20, 28])
def test_a_nan_under_way_leaves_no_point_and_no_checkpoint_behind_it(tmp_path: Any, bad: int) -> None:
    run = tiny.config(tmp_path, steps=29, cooldowns=[])
    run.attempt.checkpoint_every_s = 1e-9
    update, made = train_step.Trainer._step, 0

    def nan_at(self: train_step.Trainer, *step: Any) -> Any:
        nonlocal made
        self.block = train_step.GPU_BLOCK
        loss, norm = update(self, *step)
        made += 1
        return (loss * torch.nan, norm) if made == bad + 1 else (loss, norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step.Trainer, "_step", nan_at)
        assert tiny.train(run).state == "diverged"
    folder = tiny.run_dir(run)
    assert not (folder / "record.json").exists()
    saved = [int(p.name.rsplit("-", 1)[1]) for p in (folder / "checkpoints").glob("*")]
    assert all(step <= bad for step in saved), saved


def test_evaluation_batches_fill_a_gpu_and_fit_into_it() -> None:
    cpu = devices.choose(CPU)
    h200 = Device(torch.device("cuda"), "NVIDIA H200", torch.bfloat16, True, 1, None, "", "x", 150_000_000_000)
    small = Device(torch.device("cuda"), "L4", torch.bfloat16, True, 1, None, "", "x", 24_000_000_000)
    size = validate.batch_sequences
    assert size(None, 255, 4096, cpu) == 16_384 // 255
    assert size(None, 255, 4096, h200) == 131_072 // 255
    assert size(None, 255, 50_304, small) * 255 * 50_304 * 12 <= 6_000_000_000
    assert size(None, 255, 50_304, small) * 255 > 8_000
    assert size(1000, 255, 4096, h200) == 3
    assert size(1, 255, 4096, h200) == 1


def test_computed_corpora_are_built_once_per_process() -> None:
    first = FactsConfig(context=21, vocab=32, keys=200)
    corpus = corpora.open_corpus(first, 0)
    assert corpora.open_corpus(FactsConfig(context=21, vocab=32, keys=200), 10**6) is corpus
    other = corpora.open_corpus(FactsConfig(context=21, vocab=32, keys=201), 0)
    assert other is not corpus
    first.keys = 5
    assert corpora.open_corpus(FactsConfig(context=21, vocab=32, keys=200), 0).config.keys == 200  # type: ignore[attr-defined]
