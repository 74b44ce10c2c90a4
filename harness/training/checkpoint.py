"""Checkpoints: safetensors for weights and moments, JSON for the rest. No pickle anywhere.

A checkpoint is a folder `checkpoints/<name>/`, written beside its place, flushed, and renamed, so
it is there whole or not at all. `progress.json` names the last committed one and is the only thing
that a resumed run believes.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from harness import records
from harness.errors import DeviceError, RecordError
from harness.records import Point, SpendRow


@dataclass
class Position:
    """How far a path has come, and what it has cost: `windows` are the training windows that lead
    here.
    """

    branch: str
    step: int
    windows: list[SpendRow] = field(default_factory=list)


@dataclass
class Progress:
    """Everything a resumed run needs besides tensors.

    Rewritten by rename after every checkpoint and every point.
    """

    attempt: int = 1
    latest: str | None = None  # checkpoint to resume from
    position: Position = field(default_factory=lambda: Position("trunk", 0))  # of `latest`
    steps_bytes: int = 0  # length of steps.jsonl at `latest`; rows behind it belong to lost work
    # branch points that later branches start from
    milestones: dict[str, Position] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    micro_sequences: int | None = None  # sequences per forward pass, after any halving
    corpus_id: str = ""  # content and settings of the corpus; a run never changes its data half way
    device: str = ""  # a run never changes its device half way
    threads: int | None = None  # sums depend on the thread count, so a resumed run keeps it
    events: list[str] = field(default_factory=list)
    schema_version: int = records.SCHEMA_VERSION


def load_progress(run_dir: Path) -> Progress | None:
    path = run_dir / "progress.json"
    return records.load_json(path, Progress) if path.exists() else None


def save_progress(run_dir: Path, progress: Progress) -> None:
    records.write_json(run_dir / "progress.json", progress)


def save(run_dir: Path, name: str, model: nn.Module, optimizers: list[torch.optim.Optimizer] | None) -> None:
    """Write `checkpoints/<name>`; with `optimizers=None` the weights alone (an end point).

    DeviceError when the disk refuses.
    """
    folder = run_dir / "checkpoints"
    temporary, final = folder / f".{name}.tmp", folder / name
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_weights(model), temporary / "model.safetensors")
        if optimizers is not None:
            save_file(_moments(optimizers), temporary / "optim.safetensors")
        for path in temporary.iterdir():
            with path.open("rb") as f:
                os.fsync(f.fileno())
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DeviceError(
            f"cannot write checkpoint {name}: {e}. Free disk space or choose another folder (paths.runs); the run resumes from its last checkpoint."
        ) from e


def restore(run_dir: Path, name: str, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Load weights and moments in place, bitwise.

    RecordError when the checkpoint is missing or damaged.
    """
    folder = run_dir / "checkpoints" / name
    try:
        weights = load_file(folder / "model.safetensors")
        moments = load_file(folder / "optim.safetensors")
    except (OSError, SafetensorError) as e:
        raise RecordError(
            f"checkpoint {name} cannot be read: {e}. Start the run afresh with attempt.force=true."
        ) from e
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(weights[key if key in weights else _untied(key)])
    for index, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for p in group["params"]:
                optimizer.state[p] = {}
        position = 0
        for group in optimizer.param_groups:
            for p in group["params"]:
                prefix = f"{index}.{position}."
                state = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
                # A fused optimiser keeps its step counter on the parameter's device; an unfused one
                # on the CPU
                optimizer.state[p] = {
                    k: v.to(p.device) if v.ndim or group.get("fused") else v for k, v in state.items()
                }
                position += 1


def prune(run_dir: Path, keep: set[str]) -> None:
    """Remove every checkpoint that is not named in `keep`, and temporaries of a killed writer."""
    folder = run_dir / "checkpoints"
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        k: p.detach().to("cpu", copy=False).contiguous() for k, p in model.named_parameters()
    }  # tied weights appear once


def _untied(key: str) -> str:
    raise RecordError(f"the checkpoint has no tensor {key}: it belongs to another model shape")


def _moments(optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    tensors = {}
    for index, optimizer in enumerate(optimizers):
        position = 0
        for group in optimizer.param_groups:
            for p in group["params"]:
                for key, value in optimizer.state.get(p, {}).items():
                    tensors[f"{index}.{position}.{key}"] = value.detach().to("cpu").contiguous()
                position += 1
    return tensors
