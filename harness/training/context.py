"""What a training needs around its updates: device, meter, mirror and ledger, opened together and
always closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.config import identity
from harness.config.ladder import PlannedPoint, Rung
from harness.config.schema import RunConfig
from harness.data.batches import Corpus
from harness.data.corpora import save_tokenizer
from harness.errors import DeviceError
from harness.power.meter import Meter, open_meter
from harness.records import Json
from harness.runtime import compiler, energy_budget, signals
from harness.runtime import device as devices
from harness.runtime.attempt import Attempt
from harness.runtime.compiler import CompilerReport
from harness.track.wandb import Mirror
from harness.training.checkpoint import Progress, save_progress
from harness.training.ledger import Ledger


@dataclass(frozen=True)
class RunPlan:
    """What a run trains: its rung and corpus, and the points that earlier attempts have left."""

    config: RunConfig
    rung: Rung
    corpus: Corpus
    progress: Progress
    missing: list[PlannedPoint]
    resumed: bool


@dataclass(frozen=True)
class RunContext:
    """What the parts of one training share."""

    config: RunConfig
    rung: Rung
    corpus: Corpus
    progress: Progress
    attempt: Attempt
    device: devices.Device
    meter: Meter
    mirror: Mirror
    ledger: Ledger
    compiled: CompilerReport
    began_unix_s: float
    reason_to_stop: Callable[[], str | None]


@contextlib.contextmanager
def opened(plan: RunPlan, attempt: Attempt, workers: int) -> Iterator[RunContext]:
    """Open everything that a training needs; when the block ends, the meter is closed, and the
    mirror too if it failed.
    """
    config, progress, folder = plan.config, plan.progress, attempt.folder
    attempt.begin()
    save_tokenizer(plan.corpus, folder / "tokenizer")
    # NVML counts cards by PCI bus; CUDA does so only when this is set. A run uses the first visible
    # card
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    first_card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    meter = open_meter(config.power, folder / "power", attempt=progress.attempt, cuda_visible=first_card)
    meter.start()  # its own process, before CUDA is touched
    mirror = _mirror(config, attempt)
    began_unix_s = time.time()
    with contextlib.ExitStack() as stack:
        ledger = Ledger(folder, progress, meter, fpt=float(plan.rung.counts.fpt_causal))
        try:
            device = _device(plan, workers)
            _check_metered_card(device, meter, plan)
            if plan.resumed:
                ledger.recover()
                where = progress.position
                progress.events.append(f"attempt {progress.attempt}: resumed at {where.branch} step {where.step}")
            # From here on this attempt counts: a kill before its first checkpoint is booked
            save_progress(folder, progress)
            mirror.start()
            compiled = stack.enter_context(compiler.watched()) if device.compile else CompilerReport()
            guard = energy_budget.guard(config.budget.kwh, folder.parent, signals.reason)
            yield RunContext(
                config,
                plan.rung,
                plan.corpus,
                progress,
                attempt,
                device,
                meter,
                mirror,
                ledger,
                compiled,
                began_unix_s,
                guard,
            )
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


def _mirror(config: RunConfig, attempt: Attempt) -> Mirror:
    return Mirror(
        config.tracker,
        run_id=identity.run_id(config),
        study=config.study,
        job_type="train",
        name=identity.run_name(config),
        run_config=identity.resolved(config),
        tags=[config.role.value],
        folder=attempt.folder,
    )


def _device(plan: RunPlan, workers: int) -> devices.Device:
    """The run's device; a resumed run keeps its kind of device and its thread count."""
    settings, progress = plan.config.device, plan.progress
    if progress.threads is not None:
        settings = dataclasses.replace(settings, threads=progress.threads)
    device = devices.choose(settings, workers)
    if progress.device not in ("", device.label):
        raise DeviceError(
            f"run {identity.run_id(plan.config)} was started on {progress.device} and this is {device.label}: its joules, seconds and "
            "rounding would not belong together. Resume it there, or start afresh with attempt.force=true."
        )
    progress.device, progress.threads = device.label, device.threads
    return device


def _check_metered_card(device: devices.Device, meter: Meter, plan: RunPlan) -> None:
    """DeviceError when the meter watches another GPU than the one that trains; an event when
    training is not on a GPU.
    """
    cards: list[Json] = meter.describe().get("cards", [])
    cards = [c for c in cards if str(c["uuid"]).startswith("GPU-")]  # those that CUDA may train on
    metered = [str(c["uuid"]) for c in cards if not c.get("mig")]
    if device.uuid is not None and metered and all(device.uuid not in uuid for uuid in metered):
        raise DeviceError(
            f"the meter watches {', '.join(metered)}, but CUDA trains on GPU-{device.uuid}. "
            "Name the card by its UUID: CUDA_VISIBLE_DEVICES=GPU-…, as `nvidia-smi -L` prints it."
        )
    if cards and device.uuid is None:
        plan.progress.events.append(
            f"the meter watches {cards[0]['name']}, but training is on {device.label}: not its joules"
        )
