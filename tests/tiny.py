"""Runs so small that a test can train, kill and resume them by the dozen, and what must be equal
between two of them bit for bit.

`python tests/tiny.py` is a server that imports torch once and forks a process per run: real
processes to kill, without paying for imports each time. Its standard input has one pickled request
per line, see `Server`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import records
from harness.config import checks, identity
from harness.config.schema import (
    AttemptConfig,
    BudgetConfig,
    DeviceConfig,
    DeviceKind,
    FactsConfig,
    LlamaConfig,
    RunConfig,
    ScheduleConfig,
    WsdConfig,
)
from harness.records import RunState, SpendRow, StepRow

BATCH = 84  # tokens per update: four sequences of 21
WARMUP = 5  # updates
# never equal between two runs
MEASURED = {"wall_s", "tokens_per_s", "flop_per_s", "mfu", "energy", "energy_j"}


def config(
    runs: Path,
    steps: int = 48,
    cooldowns: list[float] | None = None,
    schedule: ScheduleConfig | None = None,
    control: AttemptConfig | None = None,
    **changes: Any,
) -> RunConfig:
    """A run of `steps` updates on one thread; a model of width 8 and a few thousand parameters,
    about 3 ms an update.
    """
    run = RunConfig(
        model=LlamaConfig(width=8, depth=1),
        corpus=FactsConfig(context=21, vocab=32, keys=200, val_tokens=630),
        budget=BudgetConfig(tokens=steps * BATCH, cooldowns=cooldowns or []),
        schedule=schedule or WsdConfig(decay_fraction=0.25),
        device=DeviceConfig(kind=DeviceKind.cpu, threads=1),
        attempt=control or AttemptConfig(),
        study="tiny",
    )
    run.schedule.warmup_tokens = WARMUP * BATCH
    run.optim.batch_tokens = BATCH
    run.optim.lr = 0.01
    run.paths.runs = str(runs)
    for key, value in changes.items():
        family, _, name = key.partition("__")
        if name:
            setattr(getattr(run, family), name, value)
        else:
            setattr(run, family, value)
    assert checks.check_run(run) == []
    return run


def run_dir(run: RunConfig) -> Path:
    return Path(run.paths.runs) / run.study / identity.run_id(run)


def train(run: RunConfig) -> RunState:
    """Train in this process, as `harness run` would in a worker."""
    from harness.training import run as train_run

    return train_run.train(run)


# --- what two runs must have in common ------------------------------------------------------------
def steps(folder: Path) -> list[StepRow]:
    return list(records.read_rows(folder / "steps.jsonl", StepRow))


def spend(folder: Path) -> list[SpendRow]:
    return list(records.read_rows(folder / "spend.jsonl", SpendRow))


def unmeasured(row: Any) -> dict[str, Any]:
    """A row without what a clock or a sensor gave."""
    return {k: v for k, v in records.to_json(row).items() if k not in MEASURED}


def outcome(folder: Path, optimiser: bool = True) -> dict[str, Any]:
    """Points, step rows in path order, and a hash of every tensor of the end points and branch
    points.
    """
    return {
        "points": [unmeasured(p) for p in records.load_record(folder).points],
        "steps": sorted((unmeasured(r) for r in steps(folder)), key=lambda r: (r["branch"], r["step"])),
        "tensors": tensors(folder, optimiser),
    }


def tensors(folder: Path, optimiser: bool = True) -> dict[str, str]:
    """SHA-256 of each checkpoint file's tensors, by checkpoint and tensor name."""
    from safetensors.numpy import load_file

    return {
        f"{path.parent.name}/{name}": hashlib.sha256(value.tobytes()).hexdigest()
        for path in sorted((folder / "checkpoints").glob("*/*.safetensors"))
        if optimiser or path.name == "model.safetensors"
        for name, value in load_file(path).items()
    }


# --- real processes, forked from one that has imported torch --------------------------------------
class Server:
    """Starts runs in processes of their own; `wait` gives the exit code, negative for a signal."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._read() == "ready"

    def start(self, run: RunConfig, executed: Path) -> int:
        """Process id of a new process that trains `run`; each update it makes adds one byte to the
        file `executed`.
        """
        self._write(("start", run, str(executed)))
        return int(self._read())

    def wait(self, pid: int) -> int:
        self._write(("wait", pid, ""))
        return int(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _write(self, request: tuple[str, Any, str]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(base64.b64encode(pickle.dumps(request)).decode() + "\n")

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the server of tiny runs has died"
        return line


@contextmanager
def server() -> Iterator[Server]:
    it = Server()
    try:
        yield it
    finally:
        it.close()


def _serve() -> None:
    import torch

    from harness.runtime import device
    from harness.training import run
    from harness.training import step as train_step

    torch.set_num_threads(1)
    device.cpu_peak_flop_per_s(1)
    print("ready", flush=True)
    for line in sys.stdin:
        verb, argument, executed = pickle.loads(base64.b64decode(line))
        if verb == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(argument, 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        os.close(sys.stdin.fileno())
        code = 1
        try:
            count = os.open(executed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            make_update = train_step.Trainer._step

            def counted(self: train_step.Trainer, *update: Any, make: Any = make_update, to: int = count) -> Any:
                result = make(self, *update)
                os.write(to, b".")
                return result

            train_step.Trainer._step = counted  # type: ignore[method-assign]
            state = run.train(argument)
            print(json.dumps(records.to_json(state)), file=sys.stderr, flush=True)
            code = {"done": 0, "interrupted": 3}.get(state.state, 1)
        finally:
            os._exit(code)


if __name__ == "__main__":
    _serve()
