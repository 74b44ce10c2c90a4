"""Where a result comes from: code, versions, device, times. No local path, host name or secret."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from harness.hardware import cpu_model
from harness.models.flops import Shape
from harness.records import Json
from harness.runtime.compiler import CompilerReport
from harness.runtime.device import Device, attention_backend

_PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "hydra-core",
    "wandb",
    "nvidia-ml-py",
    "numpy",
    "tokenizers",
    "safetensors",
)


def commit() -> Json:
    """Commit of the harness's own checkout and whether it was clean; None with a reason when
    installed without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"commit": None, "reason": "the harness is not run from a git checkout"}
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--", "harness", "conf"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError) as e:
        return {"commit": None, "reason": f"git did not answer: {type(e).__name__}"}
    return {"commit": head.stdout.strip(), "dirty": bool(dirty.stdout.strip())}


def versions() -> Json:
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return {"python": platform.python_version(), **packages}


def describe(device: Device) -> Json:
    """The record's `provenance`, without times."""
    return {
        **commit(),
        "versions": versions(),
        "device": device.name,
        "device_type": device.torch_device.type,
        "precision": "bf16 autocast" if device.autocast else "fp32",
        "tf32": device.cuda and torch.backends.cuda.matmul.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": device.threads,
        "peak_flop_per_s": device.peak_flop_per_s,
        "peak_source": device.peak_source,
        "host": f"{platform.system()} {platform.machine()}, {cpu_model()}, {os.cpu_count()} cores",
    }


def training(device: Device, shape: Shape, compiled: CompilerReport) -> Json:
    """Which kernels trained a model: what ran, not what was asked for."""
    return {
        "attention": attention_backend(device, shape.heads, shape.kv_heads, shape.context, shape.head_dim),
        "compiled": compiled.compiled_graphs > 0,
        "compiler": dataclasses.asdict(compiled),
    }
