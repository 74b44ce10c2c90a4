"""What is evaluated: the end points of a finished run, or a pretrained model, and the task it is
evaluated on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from harness import models, records
from harness.config.schema import PretrainedConfig, QaConfig, RunConfig, TaskConfig, TtcPoints
from harness.errors import RecordError
from harness.models import pretrained
from harness.models.flops import Shape
from harness.records import Point, RunRecord
from harness.runtime.device import Device
from harness.tasks import open_task
from harness.tasks.task import Task
from harness.ttc.decode import Decoder, open_decoder


@dataclass
class Subject:
    """What is evaluated: the weights of one end point."""

    branch: str
    decoder: Decoder
    identity: str  # hash of the weights
    n_total: int
    record: RunRecord | None = None
    point: Point | None = None


def open_subjects(config: RunConfig, run_dir: Path, device: Device) -> tuple[Task, list[Subject]]:
    """The task, and the end points that the config names, the shortest first."""
    assert isinstance(config.corpus, TaskConfig)
    if not isinstance(config.model, PretrainedConfig):
        return open_task(config.corpus), list(_trained(config, run_dir, device))
    model = pretrained.load(config.model.path)
    if isinstance(config.corpus, QaConfig):
        codec = pretrained.load_codec(config.model.path, model)
        task = open_task(config.corpus, codec, config.ttc.max_new_tokens)
    else:
        task = open_task(config.corpus)
    decoder = open_decoder(model, None, device.torch_device, dtype(device))
    return task, [Subject("pretrained", decoder, weights_hash(model), pretrained.n_total(model))]


def dtype(device: Device) -> torch.dtype:
    return device.autocast or torch.float32


def _trained(config: RunConfig, run_dir: Path, device: Device) -> Iterator[Subject]:
    from safetensors.torch import load_file

    record = records.load_record(run_dir)
    shape = Shape.of_record(record.shape)
    points = record.points if config.ttc.points is TtcPoints.all else record.points[-1:]
    for point in points:
        path = run_dir / "checkpoints" / (point.hf_checkpoint or "") / "model.safetensors"
        if point.hf_checkpoint is None or not path.exists():
            raise RecordError(
                f"run {run_dir.name} has no weights of its point {point.branch}. Train it again with attempt.force=true."
            )
        own = models.build(
            record.config["model"]["kind"], shape, record.seed, rope_theta=record.config["model"]["rope_theta"]
        )
        own.load_state_dict(load_file(path), strict=False)
        decoder = open_decoder(own, shape, device.torch_device, dtype(device))
        yield Subject(point.branch, decoder, weights_hash(own), record.counts.n_total, record, point)


def weights_hash(model: torch.nn.Module) -> str:
    """Hash of all parameters: the checkpoint's identity in any folder."""
    h = hashlib.sha256()
    for key, p in sorted(model.named_parameters()):
        h.update(key.encode())
        h.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]
