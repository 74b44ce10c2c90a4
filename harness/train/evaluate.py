"""Validation loss with its sampling error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel

from harness.data.batches import Batch, Corpus
from harness.models import llama


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
    """Copy to the device without waiting for it, which on a GPU only pinned memory allows."""
    return host.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def logits(model: PreTrainedModel, inputs: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """(B, S) tokens to (B, S, V) logits. Position ids of a task need not rise, which transformers' forward would misread."""
    if positions is not None or (inputs.device.type == "cpu" and isinstance(model, LlamaForCausalLM)):
        assert isinstance(model, LlamaForCausalLM), "position ids are for the models that are trained here"
        return llama.eager_logits(model, inputs, positions)
    return model(input_ids=inputs, use_cache=False).logits


@torch.no_grad()
def evaluate(
    model: PreTrainedModel, corpus: Corpus, device: torch.device, sequences: int, autocast: torch.dtype | None
) -> Evaluation:
    """Mean loss over the corpus's validation set, in a fixed order and fixed batches, so that it repeats bitwise."""
    sums, counts, fed = [], [], 0
    for batch in corpus.val_batches(sequences):
        inputs, targets, positions = tensors(batch, device)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            scores = logits(model, inputs, positions)
        loss = F.cross_entropy(
            scores.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
        ).view(targets.shape)
        sums.append(loss.sum(1, dtype=torch.float64).cpu())
        counts.append((targets != -100).sum(1).double().cpu())
        fed += inputs.numel()
    total, scored = torch.cat(sums), torch.cat(counts)
    mean = float(total.sum() / scored.sum())
    # Ratio estimator: sequences differ in scored tokens, so the error is that of sum / count
    spread = float((total - mean * scored).square().sum())
    n = len(total)
    se = math.sqrt(spread * n / max(1, n - 1)) / float(scored.sum())
    return Evaluation(mean, se, int(scored.sum()), fed)
