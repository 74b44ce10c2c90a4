"""The inner loop: one optimiser step after another along one path, with nothing that waits for the device inside a window.

Losses stay on the device in a small tape and are copied out a block late, so that a row never forces a sync; on the CPU the block is
one step. Shapes: B sequences, S positions, V vocabulary.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from harness.data.batches import Batch, Corpus
from harness.train import optim
from harness.train.device import Device
from harness.train.evaluate import logits, tensors

WARM_UPS = 3  # CUDA graphs: the first call compiles, the second records, the third replays


@dataclass
class StepResult:
    step: int  # update number, from 0
    loss_nat: float
    grad_norm: float
    lr: float
    time_ns: int  # monotonic, when the update was issued


class Trainer:
    """Model, optimisers and data of one run; `run_steps` is the only thing that changes weights."""

    def __init__(
        self,
        model: PreTrainedModel,
        optimizers: list[torch.optim.Optimizer],
        corpus: Corpus,
        device: Device,
        *,
        seed: int,
        sequences: int,
        micro_sequences: int,
        grad_clip: float,
        on_halving: Callable[[int], None],
    ) -> None:
        self.model, self.optimizers, self.corpus, self.device = model, optimizers, corpus, device
        self.seed, self.sequences, self.micro_sequences, self.grad_clip = seed, sequences, micro_sequences, grad_clip
        self.on_halving = on_halving
        self.parameters = list(model.parameters())
        self.issued = 0  # updates that are in the weights
        self._loss_sum = self._eager_loss_sum
        if device.compile:
            # CUDA graphs remove launch overhead, which is most of a small rung's step
            self._loss_sum = torch.compile(
                self._eager_loss_sum,
                mode="reduce-overhead" if device.torch_device.type == "cuda" else "default",
                dynamic=False,  # a smaller last micro-batch is a second shape, not a symbol
            )
        self.block = 32 if device.torch_device.type == "cuda" else 1

    def _eager_loss_sum(
        self, inputs: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum of -ln p over scored targets; inputs, targets (B, S)."""
        scores = logits(self.model, inputs, positions)
        return F.cross_entropy(scores.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")

    def _accumulate(self, batch: Batch) -> torch.Tensor:
        """Gradients of the mean loss over the batch's scored tokens; returns that loss, on the device."""
        scored = float(batch.mask.sum())
        if self.device.compile and len(batch.tokens) > self.micro_sequences:
            # A gradient that a CUDA graph allocates is overwritten by the graph's next replay: accumulate into memory of our own
            for p in self.parameters:
                p.grad = torch.zeros_like(p)
        total = None
        for start in range(0, len(batch.tokens), self.micro_sequences):
            rows = slice(start, start + self.micro_sequences)
            part = Batch(
                batch.tokens[rows], batch.mask[rows], None if batch.positions is None else batch.positions[rows]
            )
            with torch.autocast(
                self.device.torch_device.type, dtype=self.device.autocast, enabled=self.device.autocast is not None
            ):
                loss = self._loss_sum(*tensors(part, self.device.torch_device)) / scored
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _gradients(self, batch: Batch) -> torch.Tensor:
        """`_accumulate`; out of memory halves the micro-batch and begins again, as no gradient was used yet."""
        while True:
            try:
                return self._accumulate(batch)
            except torch.OutOfMemoryError:
                self._zero_grad()
                if self.micro_sequences == 1:
                    raise
                self.micro_sequences = -(-self.micro_sequences // 2)
                self.on_halving(self.micro_sequences)

    def _step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One update: loss and gradient norm, on the device."""
        loss = self._gradients(batch)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self._zero_grad()
        return loss, norm

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def warm_up(self) -> None:
        """Compile and autotune on the first batch without changing anything; its cost is booked apart."""
        if self.device.compile:
            batch = self.corpus.train_batch(self.seed, 0, self.sequences)
            for _ in range(WARM_UPS):
                self._gradients(batch)
                self._zero_grad()
            self.device.sync()

    def run_steps(
        self, start: int, stop: int, lr_factor: Callable[[int], float], pause: Callable[[], bool]
    ) -> Iterator[StepResult]:
        """Updates start .. stop - 1; yields results in order, on a GPU up to two blocks after they were issued.

        `pause` is asked after each block; when it says so the loop yields what is outstanding and ends with `issued` < stop.
        """
        self.issued = start
        pending: list[tuple[int, float, int]] = []
        tape: list[torch.Tensor] = []
        late: tuple[list[tuple[int, float, int]], torch.Tensor, torch.cuda.Event | None] | None = None
        for step, batch in _batches(self.corpus, self.seed, self.sequences, start, stop, prefetch=self.block > 1):
            factor = lr_factor(step)
            optim.set_factor(self.optimizers, factor)
            loss, norm = self._step(batch)
            self.issued = step + 1
            pending.append((step, self.optimizers[0].param_groups[0]["lr"], time.monotonic_ns()))
            tape.append(torch.stack([loss, norm]))
            if len(tape) == self.block or step == stop - 1:
                if late is not None:
                    yield from _read(*late)
                late = (pending, *self._copy_out(torch.stack(tape)))
                pending, tape = [], []
                if self.block == 1:
                    yield from _read(*late)
                    late = None
                if pause():
                    break
        if late is not None:
            yield from _read(*late)

    def _copy_out(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        if self.device.torch_device.type != "cuda":
            return block, None
        host = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
        host.copy_(block, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event


def _read(
    meta: list[tuple[int, float, int]], values: torch.Tensor, event: torch.cuda.Event | None
) -> Iterator[StepResult]:
    if event is not None:
        event.synchronize()  # a block behind: already done unless the device is more than a block late
    for (step, lr, at), (loss, norm) in zip(meta, values.tolist(), strict=True):
        yield StepResult(step, loss, norm, lr, at)


def _batches(
    corpus: Corpus, seed: int, sequences: int, start: int, stop: int, prefetch: bool
) -> Iterator[tuple[int, Batch]]:
    """Batches of the updates start .. stop - 1; on a GPU a thread prepares them ahead."""
    if not prefetch:
        for step in range(start, stop):
            yield step, corpus.train_batch(seed, step, sequences)
        return
    ready: queue.Queue[tuple[int, Batch] | BaseException] = queue.Queue(maxsize=8)
    closed = threading.Event()

    def produce() -> None:
        try:
            for step in range(start, stop):
                item = (step, corpus.train_batch(seed, step, sequences))
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
