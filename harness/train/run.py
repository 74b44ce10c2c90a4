"""START HERE: the path of one run, from a config to a record on disk.

A run trains one trunk (constant rate) and, from its branch points, one cooldown per token budget; each cooldown ends in a point.
Everything happens in `<runs>/<study>/<run_id>/`. Killed at any moment, the run resumes from its last committed checkpoint and ends with
the same weights and the same ledger, bit for bit, but for the measured columns (times, watts, joules).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness import records
from harness.config import ladder
from harness.config.schema import LlamaConfig, Retry, RunConfig
from harness.data.corpora import open_corpus, save_tokenizer, sizes
from harness.errors import CorpusError, DeviceError, HarnessError, RecordError
from harness.models import llama
from harness.power.meter import open_meter
from harness.records import Json, RunRecord, RunState
from harness.runtime import compiler, energy_budget, lock, provenance, signals
from harness.runtime import device as devices
from harness.runtime.compiler import CompilerReport
from harness.runtime.signals import Interrupted
from harness.track.wandb import Mirror
from harness.train import optim
from harness.train.checkpoint import Progress, load_progress, save_progress
from harness.train.ledger import Ledger
from harness.train.step import Trainer
from harness.train.trunk import Diverged, PathRunner

HEARTBEAT_S = 2.0


def run(
    config: RunConfig, run_id: str, name: str, resolved: Json, overrides: list[str], *, parallel_runs: int = 1
) -> RunState:
    """Train what is missing of this run and return its final state. Never raises for what happens inside the run.

    `resolved` is the config as JSON for the record. Raises `BusyError` when another process trains the same run.
    """
    run_dir = Path(config.paths.runs) / config.study / run_id
    with lock.held(run_dir):
        if config.run.force:
            _discard(run_dir)
        state = records.load_state(run_dir)
        if state is not None and state.state == "diverged":
            return state
        if state is not None and state.state == "failed" and config.run.retry is not Retry.failed:
            return state
        started = dataclasses.replace(
            state or RunState("running"),
            state="running",
            reason=None,
            name=name,
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        try:
            return _attempt(config, run_id, name, resolved, overrides, run_dir, started, parallel_runs)
        except HarnessError as e:
            return _end(run_dir, started, "failed", str(e))
        except Diverged as e:
            return _end(run_dir, started, "diverged", str(e))
        except Interrupted as e:
            return _end(run_dir, started, "interrupted", str(e))
        except KeyboardInterrupt:
            _end(run_dir, started, "interrupted", "stopped by Ctrl-C before training began; launch again to go on")
            raise
        except BaseException as e:
            if devices.out_of_memory(e):
                return _end(run_dir, started, "failed", str(e))
            _end(run_dir, started, "failed", f"{type(e).__name__}: {e}")
            raise


def _attempt(
    config: RunConfig,
    run_id: str,
    name: str,
    resolved: Json,
    overrides: list[str],
    run_dir: Path,
    state: RunState,
    parallel_runs: int,
) -> RunState:
    progress = load_progress(run_dir)
    rung = ladder.resolve(config, *sizes(config.corpus))
    corpus = open_corpus(config.corpus, tokens_needed=max(p.tokens for p in rung.points))
    finished = {p.branch for p in progress.points} if progress else set()
    missing = [p for p in rung.points if p.branch not in finished]
    if not missing and (run_dir / "record.json").exists():
        return _end(run_dir, state, "done", None)

    resumed = progress is not None
    if progress is None:
        progress = Progress(corpus_id=corpus.info["corpus_id"])
    else:
        progress.attempt += 1
        if progress.corpus_id != corpus.info["corpus_id"]:
            raise CorpusError(
                f"run {run_id} was started on corpus {progress.corpus_id} and this is {corpus.info['corpus_id']}: its text or settings changed. "
                "Restore the files, or start afresh with run.force=true."
            )
    state.attempt = progress.attempt
    records.write_json(run_dir / "state.json", state)
    save_tokenizer(corpus, run_dir / "tokenizer")

    # NVML counts cards by PCI bus; CUDA does so only when told, and a run uses the first card that it is shown
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    first_card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    meter = open_meter(config.power, run_dir / "power", attempt=progress.attempt, cuda_visible=first_card)
    meter.start()  # its own process, before CUDA is touched
    mirror = Mirror(
        config.tracker,
        run_id=run_id,
        study=config.study,
        job_type="train",
        name=name,
        run_config=resolved,
        tags=[config.role.value],
        folder=run_dir,
    )
    began_unix_s = time.time()
    with signals.listening(), contextlib.ExitStack() as stack:
        ledger = Ledger(run_dir, progress, meter, fpt=float(rung.counts.fpt_causal))
        try:
            device = _device(config, progress, run_id, parallel_runs)
            cards = meter.describe().get("cards", [])
            _require_metered_card(device, cards)
            if device.uuid is None and _gpus(cards):
                progress.events.append(
                    f"the meter watches {cards[0]['name']}, but training is on {device.label}: not its joules"
                )
            if resumed:
                ledger.recover()
                progress.events.append(
                    f"attempt {progress.attempt}: resumed at {progress.position.branch} step {progress.position.step}"
                )
            save_progress(
                run_dir, progress
            )  # from here on this attempt counts: a kill before its first checkpoint is booked
            mirror.start()
            compiled = stack.enter_context(compiler.watched()) if device.compile else CompilerReport()
            assert isinstance(config.model, LlamaConfig)
            model = llama.build(rung.shape, config.seed, config.model.rope_theta)
            torch.nn.Module.to(model, device.torch_device)  # in place; the subclass's own signature hides the overload
            trainer = Trainer(
                model,
                optim.build(model, config.optim, rung.hyper),
                corpus,
                device,
                seed=config.seed,
                sequences=rung.hyper.sequences,
                micro_sequences=progress.micro_sequences or _micro_sequences(config, rung),
                grad_clip=config.optim.grad_clip,
                on_halving=lambda n: _halved(progress, n),
            )
            reason_to_stop = energy_budget.guard(config.budget.kwh, run_dir.parent, signals.reason)
            heartbeat = Heartbeat(run_dir, state, meter.power_w)
            runner = PathRunner(
                config, rung, corpus, trainer, device, progress, ledger, mirror, heartbeat.beat, reason_to_stop, run_dir
            )
            runner.train(missing)
            if device.compile:
                compiled.update()
            if compiled.graph_skips:
                progress.events.append(
                    f"CUDA graphs were declined {compiled.graph_skips} times: this run is slower than others"
                )
        except BaseException:
            mirror.finish(exit_code=1)
            raise
        finally:
            meter.close()
        record = RunRecord(
            run_id=run_id,
            study=config.study,
            name=name,
            role=config.role.value,
            state="done",
            seed=config.seed,
            config=resolved,
            overrides=overrides,
            counts=rung.counts,
            shape=dataclasses.asdict(rung.shape),
            hyper={**dataclasses.asdict(rung.hyper), "warmup_steps": rung.warmup_steps},
            corpus={**corpus.info, "oracle_nat": corpus.val_oracle_nat()},
            points=sorted(progress.points, key=lambda p: p.tokens),
            spent=ledger.spent(),
            provenance={
                **provenance.describe(device),
                **provenance.training(device, rung.shape, compiled),
                "began_unix_s": round(began_unix_s),
                "ended_unix_s": round(time.time()),
                "attempts": progress.attempt,
            },
            meter=meter.describe(),
            events=progress.events,
        )
        records.write_json(run_dir / "record.json", record)
        for point in record.points:
            mirror.summary({f"point/{point.branch}/{k}": v for k, v in flat_point(point).items()})
        mirror.artifact(f"record-{run_id}", "record", [run_dir / "record.json"])
        status = mirror.finish()
        record.mirror = status.split(":", 1)[0]  # the rest says how to sync, with a path of this machine
        record.events = progress.events + mirror.events
        records.write_json(run_dir / "record.json", record)
    return _end(run_dir, state, "done", None if record.mirror in ("disabled", "online") else f"W&B {status}")


def _device(config: RunConfig, progress: Progress, run_id: str, parallel_runs: int) -> devices.Device:
    """The run's device; a resumed run keeps its kind of device and its thread count."""
    settings = config.device
    if progress.threads is not None:
        settings = dataclasses.replace(settings, threads=progress.threads)
    device = devices.choose(settings, parallel_runs)
    if progress.device not in ("", device.label):
        raise DeviceError(
            f"run {run_id} was started on {progress.device} and this is {device.label}: its joules, seconds and rounding would not belong together. "
            "Resume it there, or start afresh with run.force=true."
        )
    progress.device, progress.threads = device.label, device.threads
    return device


def _gpus(cards: list[Json]) -> list[Json]:
    """The cards of a meter that CUDA may train on, by their UUIDs."""
    return [c for c in cards if str(c["uuid"]).startswith("GPU-")]


def _require_metered_card(device: devices.Device, cards: list[Json]) -> None:
    """DeviceError when the meter watches another GPU than the one that trains."""
    metered = [str(c["uuid"]) for c in _gpus(cards) if not c.get("mig")]
    if device.uuid is not None and metered and all(device.uuid not in uuid for uuid in metered):
        raise DeviceError(
            f"the meter watches {', '.join(metered)}, but CUDA trains on GPU-{device.uuid}. "
            "Name the card by its UUID: CUDA_VISIBLE_DEVICES=GPU-…, as `nvidia-smi -L` prints it."
        )


def flat_point(point: records.Point) -> dict[str, Any]:
    """A point's columns by the ledger's names, its energy flattened."""
    row = {k: v for k, v in dataclasses.asdict(point).items() if not isinstance(v, (dict, list))}
    return {
        **row,
        "energy_j": point.energy.energy_j,
        "energy_se_j": point.energy.energy_se_j,
        "power_w": point.energy.power_w,
    }


class Heartbeat:
    """Rewrites state.json every two seconds at most, for `status`, the live table, and the reader after a kill."""

    def __init__(self, run_dir: Path, state: RunState, power_w: Callable[[], float | None]) -> None:
        self.run_dir, self.state, self.power_w = run_dir, state, power_w
        self._last_s = float("-inf")

    def beat(
        self, *, step: int, steps: int, loss_nat: float | None, tokens_per_s: float | None, remaining_s: float | None
    ) -> None:
        s = self.state
        s.step, s.steps, s.loss_nat, s.tokens_per_s, s.remaining_s = step, steps, loss_nat, tokens_per_s, remaining_s
        now = time.monotonic()
        if now - self._last_s < HEARTBEAT_S:
            return
        self._last_s = now
        s.power_w = self.power_w()
        s.updated_unix_s = time.time()
        records.write_json(self.run_dir / "state.json", s)


def _end(run_dir: Path, state: RunState, name: str, reason: str | None) -> RunState:
    state.state, state.reason, state.updated_unix_s, state.pid = name, reason, time.time(), None
    if name == "done":
        state.remaining_s, state.step = 0.0, state.steps
    path = run_dir / "state.json"
    try:
        records.write_json(path, state)
    except RecordError:
        if not path.exists():
            raise
        # A full disk has no room for a new file, but this one's block is there: the reason must not be lost with the run
        with path.open("r+", encoding="utf-8") as f:
            f.write(json.dumps(records.to_json(state)) + "\n")
            f.truncate()
    return state


def _discard(run_dir: Path) -> None:
    for path in run_dir.iterdir():
        if path.name == "lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _halved(progress: Progress, micro_sequences: int) -> None:
    progress.micro_sequences = micro_sequences
    progress.events.append(f"out of memory: the micro-batch was halved to {micro_sequences} sequences")


def _micro_sequences(config: RunConfig, rung: ladder.Rung) -> int:
    tokens = config.device.micro_batch_tokens
    return rung.hyper.sequences if tokens is None else max(1, min(rung.hyper.sequences, tokens // rung.shape.context))
