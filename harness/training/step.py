"""The inner loop: one optimiser step after another along one path, without waiting for the device
inside a window.

Losses stay on the device in a small tape and are copied out a block late, so that a row never
forces a sync; on the CPU the block is one step. Shapes: B sequences, S positions, V vocabulary.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from harness.data.batches import Batch, Corpus
from harness.models import llama
from harness.runtime import compiler
from harness.runtime.device import Device, out_of_memory
from harness.training import optim
from harness.training.validate import tensors

T = TypeVar("T")
# of a compiled step: with CUDA graphs the first call compiles, the second records, the third
# replays
WARM_UPS = 3
# Updates between two copies of the tape. A value is read a block after its own was issued: a NaN is
# seen within 32 updates
GPU_BLOCK = 16


@dataclass
class StepResult:
    step: int  # update number, from 0
    loss_nat: float
    grad_norm: float
    lr: float
    time_ns: int  # monotonic, when the device had made the update


@dataclass(frozen=True)
class TrainingData:
    """The batches of a run: `sequences` sequences per update, drawn from `corpus` by `seed`."""

    corpus: Corpus
    seed: int
    sequences: int

    def batch(self, step: int) -> Batch:
        return self.corpus.train_batch(self.seed, step, self.sequences)


class Trainer:
    """Model, optimisers and data of one run; `run_steps` is the only thing that changes weights."""

    def __init__(
        self,
        model: PreTrainedModel,
        optimizers: list[torch.optim.Optimizer],
        data: TrainingData,
        device: Device,
        *,
        micro_sequences: int,
        grad_clip: float,
        on_halving: Callable[[int], None],
    ) -> None:
        self.model, self.optimizers, self.data, self.device = model, optimizers, data, device
        self.micro_sequences, self.grad_clip, self.on_halving = micro_sequences, grad_clip, on_halving
        self.parameters = list(model.parameters())
        self.issued = 0  # updates that are in the weights
        self.block = GPU_BLOCK if device.cuda else 1
        self._loss_sum = self._eager_loss_sum
        if device.compile:
            self._loss_sum = torch.compile(
                self._eager_loss_sum,
                # CUDA graphs remove launch overhead, which is most of a small rung's step
                mode="reduce-overhead" if device.cuda else "default",
                dynamic=False,
                # a break, or one variant too many, is an error: eager parts would be timed as if
                # compiled
                fullgraph=True,
            )

    def _eager_loss_sum(
        self, inputs: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum of -ln p over scored targets; inputs, targets (B, S)."""
        scores = llama.logits(self.model, inputs, positions)
        return F.cross_entropy(scores.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        """The batch in parts of `micro_sequences`.

        Compiled parts have one shape: the last is filled up with unscored rows.
        """
        rows, size = len(batch.tokens), self.micro_sequences
        if rows <= size:
            return [batch]
        if self.device.compile:
            size = -(-rows // -(-rows // size))  # as many parts, as equal as can be
            batch = _padded(batch, -rows % size)
        return [batch[start : start + size] for start in range(0, len(batch.tokens), size)]

    def _accumulate(self, batch: Batch) -> torch.Tensor:
        """Gradients of the mean loss over the batch's scored tokens; returns that loss, on the
        device.
        """
        scored = float(batch.mask.sum())
        parts = self._micro_batches(batch)
        if self.device.compile and len(parts) > 1:
            # A gradient that a CUDA graph allocates is overwritten by the graph's next replay:
            # accumulate into memory of our own
            for p in self.parameters:
                p.grad = torch.zeros_like(p)
        total = None
        for part in parts:
            with torch.autocast(
                self.device.torch_device.type, dtype=self.device.autocast, enabled=self.device.autocast is not None
            ):
                loss = self._loss_sum(*tensors(part, self.device.torch_device)) / scored
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _fitting(self, work: Callable[[], T]) -> T:
        """`work()`; out of memory halves the micro-batch and begins again, so it must be safe to
        repeat.
        """
        while True:
            try:
                return work()
            except RuntimeError as e:
                # while a CUDA graph is captured it need not be an OutOfMemoryError
                if self.micro_sequences == 1 or not out_of_memory(e):
                    raise
            # Only here is the error gone, whose traceback holds the tensors of the failed pass
            self._zero_grad()
            self.micro_sequences = -(-self.micro_sequences // 2)
            if self.device.compile:
                compiler.forget()  # the graphs of the old shape hold their memory
            if self.device.cuda:
                torch.cuda.empty_cache()
            self.on_halving(self.micro_sequences)

    def _step(self, step: int, batch: Batch, lr_factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Update number `step` of a path: loss and gradient norm, on the device."""
        optim.set_factor(self.optimizers, lr_factor)
        loss, norm = self._update(batch)
        self.issued = step + 1
        return loss, norm

    def _update(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        loss = self._fitting(lambda: self._accumulate(batch))  # no gradient was used yet
        norm = nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self._zero_grad()
        return loss, norm

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def warm_up(self) -> None:
        """Compile, tune and allocate by whole updates on the first batch, then undo them: weights,
        moments, rates and random state are left as they were, bit for bit. The cost is booked
        apart, and the first window is like the others.
        """
        weights = [p.detach().to("cpu", copy=True) for p in self.parameters]
        optimizers = [copy.deepcopy(optimizer.state_dict()) for optimizer in self.optimizers]
        batch = self.data.batch(0)
        cuda = [self.device.torch_device] if self.device.cuda else []
        with torch.random.fork_rng(devices=cuda):
            for _ in range(WARM_UPS if self.device.compile else 1):
                # the first update allocates the moments, too
                self._fitting(lambda: self._update(batch))
        with torch.no_grad():
            for p, weight in zip(self.parameters, weights, strict=True):
                p.copy_(weight)
        for optimizer, state in zip(self.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(state)
        self.device.sync()

    def run_steps(
        self, start: int, stop: int, lr_factor: Callable[[int], float], pause: Callable[[], bool]
    ) -> Iterator[StepResult]:
        """Updates start .. stop - 1; yields results in order, on a GPU up to two blocks after they
        were issued.

        `pause` is called after each block. When it returns True, the loop yields what is
        outstanding and ends with `issued` < stop.
        """
        self.issued = start
        clock = self.device.clock()
        pending: list[tuple[int, float, Any]] = []
        tape: list[torch.Tensor] = []
        late: tuple[list[tuple[int, float, Any]], torch.Tensor, torch.cuda.Event | None] | None = None

        def read() -> Iterator[StepResult]:
            if late is not None:
                rows, values, copied = late
                if copied is not None:
                    # a block behind: already done unless the device is more than a block late
                    copied.synchronize()
                for (step, lr, mark), (loss, norm) in zip(rows, values.tolist(), strict=True):
                    yield StepResult(step, loss, norm, lr, clock.time_ns(mark))

        for step, batch in _batches(self.data, start, stop, prefetch=self.block > 1):
            loss, norm = self._step(step, batch, lr_factor(step))
            pending.append((step, self.optimizers[0].param_groups[0]["lr"], clock.mark()))
            tape.append(torch.stack([loss, norm]))
            if len(tape) == self.block or step == stop - 1:
                yield from read()
                late = (pending, *self._copy_out(torch.stack(tape)))
                pending, tape = [], []
                if self.block == 1:
                    yield from read()
                    late = None
                if pause():
                    break
        yield from read()

    def _copy_out(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        if not self.device.cuda:
            return block, None
        host = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
        host.copy_(block, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event


def _padded(batch: Batch, rows: int) -> Batch:
    """The batch and `rows` more sequences, none of whose targets is scored: they add exact zeros to
    the gradients.
    """
    if rows == 0:
        return batch
    tokens, mask = (np.pad(a, ((0, rows), (0, 0))) for a in (batch.tokens, batch.mask))
    return Batch(tokens, mask, None if batch.positions is None else np.pad(batch.positions, ((0, rows), (0, 0))))


def _batches(data: TrainingData, start: int, stop: int, prefetch: bool) -> Iterator[tuple[int, Batch]]:
    """Batches of the updates start .. stop - 1; on a GPU a thread prepares them ahead."""
    if not prefetch:
        for step in range(start, stop):
            yield step, data.batch(step)
        return
    ready: queue.Queue[tuple[int, Batch] | BaseException] = queue.Queue(maxsize=8)
    closed = threading.Event()

    def produce() -> None:
        try:
            for step in range(start, stop):
                item = (step, data.batch(step))
                while not closed.is_set():
                    try:
                        ready.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if closed.is_set():
                    return
        except BaseException as e:  # handed to the consumer, who raises it
            ready.put(e)

    threading.Thread(target=produce, name="batches", daemon=True).start()
    try:
        for _ in range(start, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
