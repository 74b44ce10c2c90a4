"""The optimiser of a run: AdamW (fused), or torch's Muon on the hidden matrices with AdamW on the
rest.
"""

from __future__ import annotations

import torch
from torch import nn

from harness.config.ladder import Hyper
from harness.config.schema import AdamwConfig, MuonConfig, OptimConfig


def build(model: nn.Module, config: OptimConfig, hyper: Hyper) -> list[torch.optim.Optimizer]:
    """Optimisers whose groups carry `peak_lr`; weight decay on hidden matrices only, none on
    embeddings and norms.
    """
    matrices, rest = [], []
    for name, p in model.named_parameters():
        hidden = p.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if hidden else rest).append(p)
    match config:
        case AdamwConfig():
            return [
                torch.optim.AdamW(
                    [_group(matrices, hyper.lr, hyper.weight_decay), _group(rest, hyper.lr, 0.0)],
                    lr=hyper.lr,
                    betas=(config.beta1, hyper.beta2),
                    eps=config.eps,
                    fused=True,
                )
            ]
        case MuonConfig():
            muon = torch.optim.Muon(
                [_group(matrices, hyper.lr, hyper.weight_decay)],
                lr=hyper.lr,
                momentum=config.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
            adamw_lr = hyper.lr * config.adamw_lr_ratio
            return [
                muon,
                torch.optim.AdamW([_group(rest, adamw_lr, 0.0)], lr=adamw_lr, betas=(0.9, hyper.beta2), fused=True),
            ]
        case _:
            raise TypeError(f"no optimiser for {type(config).__name__}")


def _group(params: list[nn.Parameter], lr: float, weight_decay: float) -> dict[str, object]:
    return {"params": params, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay}


def set_factor(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's rate to `factor` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
