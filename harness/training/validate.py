"""Validation loss with its sampling error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from harness.data.batches import Batch, Corpus
from harness.models import llama
from harness.runtime.device import Device

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 16_384, 131_072
LOGIT_BYTES = 12  # bf16 logits, their fp32 copy, its log-softmax, rounded up


@dataclass(frozen=True)
class Evaluation:
    loss_nat: float  # mean over scored tokens
    loss_se_nat: float  # standard error over sequences, which are the independent draws
    tokens: int  # scored
    fed_tokens: int  # fed forward; times fpt / 3 they are the evaluation's FLOP


def tensors(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Inputs (B, S), targets (B, S) with -100 where unscored, positions (B, S) or None."""
    tokens = torch.from_numpy(batch.tokens)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if not batch.mask.all():
        targets = targets.masked_fill(torch.from_numpy(batch.mask) == 0, -100)
    positions = None if batch.positions is None else _to(torch.from_numpy(batch.positions), device)
    return _to(inputs, device), _to(targets, device), positions


def _to(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting for it, which on a GPU only pinned memory allows.

    Always contiguous: other strides would be another variant to compile.
    """
    host = host.contiguous()
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def batch_sequences(batch_tokens: int | None, context: int, vocab: int, device: Device) -> int:
    """Sequences per forward pass of an evaluation, at least one.

    Without a setting: 16,384 tokens on a CPU; on a GPU, which so small a batch leaves idle,
    131,072, as far as the logits and what the loss makes of them (12 bytes per entry) fit into a
    quarter of the memory. A function of the card, so that it repeats.
    """
    if batch_tokens is None:
        batch_tokens = CPU_BATCH_TOKENS
        if device.memory_bytes is not None:
            batch_tokens = min(GPU_BATCH_TOKENS, device.memory_bytes // (4 * LOGIT_BYTES * vocab))
    return max(1, batch_tokens // context)


@torch.no_grad()
def batch_losses(model: PreTrainedModel, batch: Batch, device: Device) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of -ln p and number of scored tokens of each sequence, fp64 (B,), on the device."""
    inputs, targets, positions = tensors(batch, device.torch_device)
    with torch.autocast(device.torch_device.type, dtype=device.autocast, enabled=device.autocast is not None):
        scores = llama.logits(model, inputs, positions)
    loss = F.cross_entropy(scores.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return loss.view(targets.shape).sum(1, dtype=torch.float64), (targets != -100).sum(1).double()


def evaluate(model: PreTrainedModel, corpus: Corpus, device: Device, sequences: int) -> Evaluation:
    """Mean loss over the corpus's validation set, in a fixed order and fixed batches, so that it
    repeats bitwise.
    """
    sums, counts, fed = [], [], 0
    for batch in corpus.val_batches(sequences):
        loss, scored = batch_losses(model, batch, device)
        sums.append(loss)
        counts.append(scored)
        fed += batch.mask.size
    total, scored = torch.cat(sums).cpu(), torch.cat(counts).cpu()
    mean = float(total.sum() / scored.sum())
    # Ratio estimator: sequences differ in scored tokens, so the error is that of sum / count
    spread = float((total - mean * scored).square().sum())
    n = len(total)
    se = math.sqrt(spread * n / max(1, n - 1)) / float(scored.sum())
    return Evaluation(mean, se, int(scored.sum()), fed)
