"""A run of the group task so small that a test can train and evaluate it in a second, and what two
evaluations must have in common.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from harness import records
from harness.config import checks, identity
from harness.config.schema import (
    BudgetConfig,
    DeviceConfig,
    DeviceKind,
    GroupConfig,
    LlamaConfig,
    RunConfig,
    TtcConfig,
    WsdConfig,
)
from harness.records import RunState
from harness.records import ttc as ttc_records
from harness.records.ttc import TtcRecord

MEASURED = {"wall_s", "wall_basis", "energy_j", "energy_se_j", "energy_basis", "energy_reason"}


def config(runs: Path, **ttc: Any) -> RunConfig:
    run = RunConfig(
        model=LlamaConfig(width=8, depth=1),
        corpus=GroupConfig(group="S3", operators=[], steps=6, strides=[1, 6], val_tokens=128),
        budget=BudgetConfig(tokens=24_000, cooldowns=[0.5]),
        schedule=WsdConfig(warmup_tokens=1_000),
        device=DeviceConfig(kind=DeviceKind.cpu, threads=1),
        study="small",
    )
    run.optim.batch_tokens, run.optim.lr = 400, 0.01
    run.paths.runs = str(runs)
    settings = {
        "problems": 64,
        "samples": 16,
        "strides": [1],
        "meter_s": 0.01,
        "meter_samples": [1, 4, 16],
        "beam_width": 2,
    }
    run.ttc = TtcConfig(**{**settings, **ttc})
    assert checks.check_run(run) == []
    return run


def folder(run: RunConfig) -> Path:
    return Path(run.paths.runs) / run.study / identity.run_id(run)


def train(runs: Path) -> Path:
    from harness.training.run import train

    run = config(runs)
    state = train(run)
    assert state.state == "done", state.reason
    return folder(run)


def evaluated(run: RunConfig) -> RunState:
    from harness.ttc.run import evaluate

    return evaluate(run)


def beside(trained: Path, runs: Path, **ttc: Any) -> RunConfig:
    """The config of a copy of a trained run below `runs`."""
    run = config(runs, **ttc)
    shutil.copytree(trained, folder(run))
    return run


def changed(run: RunConfig, **ttc: Any) -> RunConfig:
    run = copy.deepcopy(run)
    for key, value in ttc.items():
        setattr(run.ttc, key, value)
    return run


def found(run: RunConfig) -> list[TtcRecord]:
    return ttc_records.load(folder(run).parent)


def outcome(run: RunConfig) -> list[dict[str, Any]]:
    """Everything of the records but what a clock or a sensor gave, and how often the work was taken
    up.
    """
    out = []
    for record in found(run):
        whole = records.to_json(record)
        rows = [{k: v for k, v in r.items() if k not in MEASURED} for r in whole["rows"]]
        kept = {k: v for k, v in whole.items() if k not in ("rows", "windows", "config", "provenance", "meter")}
        out.append({**kept, "rows": rows})
    return out


def block_files(run: RunConfig) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder(run))): (p.stat().st_mtime_ns, p.read_bytes())
        for p in folder(run).glob("ttc/*/blocks/*.npz")
    }
