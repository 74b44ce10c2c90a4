"""How a run ends other than well: states, reasons, retry and force, locks, out of memory,
divergence, a full disk.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from harness import hardware, records
from harness.config.schema import AttemptConfig, Retry, Toggle
from harness.errors import BusyError, DeviceError, RecordError
from harness.records import RunState
from harness.runtime import attempt, lock
from harness.sweep.status import describe
from harness.training import checkpoint, ledger, run
from harness.training import step as train_step


def failing_step(patch: pytest.MonkeyPatch, call: int, error: BaseException) -> None:
    original, made = train_step.Trainer._step, 0

    def step(self: train_step.Trainer, *update: Any) -> object:
        nonlocal made
        made += 1
        if made == call:
            raise error
        return original(self, *update)

    patch.setattr(train_step.Trainer, "_step", step)


# --- retry and force -----------------------------------------------------------------------------
def test_a_failed_run_stays_failed_until_it_is_retried(tmp_path: Path) -> None:
    calm = tiny.config(tmp_path / "calm", cooldowns=[0.5])
    tiny.train(calm)
    config = tiny.config(tmp_path, cooldowns=[0.5])
    with pytest.MonkeyPatch.context() as patch:
        failing_step(patch, 30, DeviceError("the sensor caught fire. Replace it."))
        state = tiny.train(config)
    assert (state.state, state.reason) == ("failed", "the sensor caught fire. Replace it.")
    (lost,) = [r for r in tiny.spend(tiny.run_dir(config)) if r.phase == "lost"]
    assert lost.tokens > 0, "booked at once: nobody may ever take the run up again"
    trained = next(r for r in tiny.spend(tiny.run_dir(calm)) if r.phase == "train")
    assert lost.flop / lost.tokens == pytest.approx(trained.flop / trained.tokens)
    assert tiny.train(config).state == "failed", "not taken up without being asked"
    retry = tiny.config(tmp_path, cooldowns=[0.5], control=AttemptConfig(retry=Retry.failed))
    assert tiny.train(retry).state == "done"
    assert tiny.outcome(tiny.run_dir(config)) == tiny.outcome(tiny.run_dir(calm))
    assert records.load_record(tiny.run_dir(config)).spent["lost"]["tokens"] == lost.tokens, "and not once more"


def test_a_bug_of_ours_keeps_its_traceback_and_is_written_down(tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        failing_step(patch, 3, ZeroDivisionError("division by zero"))
        with pytest.raises(ZeroDivisionError):
            tiny.train(config)
    state = records.load_state(tiny.run_dir(config))
    assert state is not None
    assert (state.state, state.reason) == ("failed", "ZeroDivisionError: division by zero")


def test_force_starts_afresh(tmp_path: Path) -> None:
    config = tiny.config(tmp_path, steps=24)
    tiny.train(config)
    folder = tiny.run_dir(config)
    (folder / "left over").write_text("x")
    first = tiny.outcome(folder)
    forced = tiny.config(tmp_path, steps=24, control=AttemptConfig(force=True))
    assert tiny.train(forced).state == "done"
    assert not (folder / "left over").exists()
    assert tiny.outcome(folder) == first, "force changes nothing about what a run is"
    assert len([r for r in tiny.spend(folder) if r.phase == "train"]) == 2
    assert records.load_record(folder).provenance["attempts"] == 1


def test_ctrl_c_before_training_is_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    config = tiny.config(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "open_corpus", slow)
        with pytest.raises(KeyboardInterrupt):
            tiny.train(config)
    assert describe(tiny.run_dir(config))[0] == "interrupted"
    assert tiny.train(config).state == "done"


def test_another_device_is_refused(tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        failing_step(patch, 30, DeviceError("x"))
        tiny.train(config)
    path = tiny.run_dir(config) / "progress.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "device": "cuda:NVIDIA H200:bf16"}))
    state = tiny.train(tiny.config(tmp_path, control=AttemptConfig(retry=Retry.failed)))
    assert state.state == "failed"
    assert all(w in (state.reason or "") for w in ("NVIDIA H200", "cpu:", "attempt.force=true"))


@pytest.mark.parametrize("name", ["state.json", "progress.json"])
def test_a_broken_file_of_a_run_is_named(tmp_path: Path, name: str) -> None:
    config = tiny.config(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        failing_step(patch, 30, DeviceError("x"))
        tiny.train(config)
    (tiny.run_dir(config) / name).write_text('{"state": "runn')
    retry = tiny.config(tmp_path, control=AttemptConfig(retry=Retry.failed))
    if name == "state.json":
        with pytest.raises(RecordError, match=r"state\.json cannot be read.*attempt\.force=true"):
            tiny.train(retry)
    else:
        state = tiny.train(retry)
        assert state.state == "failed"
        assert "progress.json cannot be read" in (state.reason or "")
    assert tiny.train(tiny.config(tmp_path, control=AttemptConfig(force=True))).state == "done"


# --- locks ---------------------------------------------------------------------------------------
def test_two_processes_never_train_one_run(tmp_path: Path) -> None:
    config = tiny.config(tmp_path, steps=400)
    folder, executed = tiny.run_dir(config), tmp_path / "executed"
    with tiny.server() as server:
        pid = server.start(config, executed)
        end = time.monotonic() + 60
        while not (executed.exists() and executed.stat().st_size > 2):
            assert time.monotonic() < end
            time.sleep(0.002)
        os.kill(pid, signal.SIGSTOP)
        try:
            before = (folder / "steps.jsonl").read_bytes()
            with pytest.raises(BusyError, match=rf"run {folder.name} is being trained by another process.*{pid}"):
                tiny.train(config)
            with pytest.raises(BusyError):
                tiny.train(tiny.config(tmp_path, steps=400, control=AttemptConfig(force=True)))
            assert (folder / "steps.jsonl").read_bytes() == before
            assert describe(folder)[0] == "running"
        finally:
            os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
        server.wait(pid)
        assert not lock.is_held(folder), "the kernel frees the lock of a dead process: it is never stale"
        assert describe(folder)[0] == "died"


def test_asking_who_holds_a_lock_does_not_take_it(tmp_path: Path) -> None:
    stop, refused = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            lock.is_held(tmp_path)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for _ in range(200):
            try:
                with lock.hold(tmp_path):
                    pass
            except BusyError as e:
                refused.append(e)
    finally:
        stop.set()
        asker.join()
    assert refused == []


# --- out of memory -------------------------------------------------------------------------------
def test_out_of_memory_halves_the_micro_batch_and_goes_on(tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    original = train_step.Trainer._accumulate
    seen: list[int] = []

    def hungry(self: train_step.Trainer, batch: object) -> torch.Tensor:
        seen.append(self.micro_sequences)
        if self.micro_sequences > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return original(self, batch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step.Trainer, "_accumulate", hungry)
        assert tiny.train(config).state == "done"
    assert seen[:3] == [4, 2, 1]
    assert set(seen[3:]) == {1}
    record = records.load_record(tiny.run_dir(config))
    assert [e for e in record.events if "micro-batch was halved to" in e] == [
        f"out of memory: the micro-batch was halved to {n} sequences" for n in (2, 1)
    ]
    whole = tiny.config(tmp_path / "whole")
    tiny.train(whole)
    other = records.load_record(tiny.run_dir(whole))
    assert record.points[0].tokens == other.points[0].tokens
    assert record.points[0].loss_nat == pytest.approx(other.points[0].loss_nat, rel=1e-3), "accumulated, not dropped"


def test_out_of_memory_with_one_sequence_fails_in_words(tmp_path: Path) -> None:
    config = tiny.config(tmp_path)

    def hungry(self: train_step.Trainer, batch: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step.Trainer, "_accumulate", hungry)
        state = tiny.train(config)
    assert state.state == "failed"
    assert "out of memory" in (state.reason or "")


def test_a_compiled_model_accumulates_into_memory_of_our_own(tmp_path: Path) -> None:
    """A CUDA graph's gradients are overwritten by its next replay; here the graph only looks on.

    Its warm-up may run out of memory too.
    """
    config = tiny.config(tmp_path / "compiled", device__compile=Toggle.always)
    original, calls = train_step.Trainer._eager_loss_sum, 0

    def compiled(loss_sum: object, **settings: object) -> object:
        def call(*tensors: torch.Tensor | None) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            trainer = loss_sum.__self__  # type: ignore[attr-defined]
            assert all(p.grad is not None for p in trainer.parameters), "made before the first micro-batch"
            return original(trainer, *tensors)  # type: ignore[arg-type]

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compiled)
        assert tiny.train(config).state == "done"
    record = records.load_record(tiny.run_dir(config))
    assert record.events == ["out of memory: the micro-batch was halved to 2 sequences"]
    plain = tiny.config(tmp_path / "plain", device__micro_batch_tokens=2 * 21)
    assert tiny.train(plain).state == "done"
    other = records.load_record(tiny.run_dir(plain))
    assert record.points[0].loss_nat == other.points[0].loss_nat, "a gradient added to zero is the gradient"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla V100-PCIE-16GB", None),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_peak_of_a_card_by_whole_words(name: str, peak: float | None) -> None:
    assert hardware.bf16_peak_flop_per_s(name) == peak


# --- divergence ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "words"), [(math.nan, "loss nan"), (math.inf, "loss inf"), (11.0, "above the bound 10.397")]
)
def test_divergence_is_an_end_of_its_own(tmp_path: Path, value: float, words: str) -> None:
    config = tiny.config(tmp_path)
    original, made = train_step.Trainer._step, 0

    def step(self: train_step.Trainer, *update: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal made
        made += 1
        loss, norm = original(self, *update)
        return (torch.tensor(value), norm) if made == 9 else (loss, norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step.Trainer, "_step", step)
        state = tiny.train(config)
    assert state.state == "diverged"
    assert words in (state.reason or "")
    assert "step 9" in (state.reason or "")
    assert "optim.lr_scale" in (state.reason or "")
    folder = tiny.run_dir(config)
    assert [r.step for r in tiny.steps(folder)] == list(range(1, 9)), "the rows before it are kept"
    assert not (folder / "record.json").exists()
    for control in (AttemptConfig(), AttemptConfig(retry=Retry.failed)):
        assert tiny.train(tiny.config(tmp_path, control=control)).state == "diverged", "never taken up but by force"
    booked = sum(r.tokens for r in tiny.spend(folder) if r.phase == "train")
    assert booked == 9 * tiny.BATCH, "what a diverged run spent is not forgotten"
    assert tiny.train(tiny.config(tmp_path, control=AttemptConfig(force=True))).state == "done"


def test_a_rate_that_is_far_too_high_diverges_by_itself(tmp_path: Path) -> None:
    config = tiny.config(tmp_path, optim__lr=1e4, optim__grad_clip=1e9)
    assert tiny.train(config).state == "diverged"


def test_a_validation_loss_that_is_not_a_number_is_a_divergence(tmp_path: Path) -> None:
    from harness.training import trunk
    from harness.training.validate import Evaluation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trunk, "evaluate", lambda *a: Evaluation(math.nan, math.nan, 630, 630))
        state = tiny.train(tiny.config(tmp_path))
    assert state.state == "diverged"
    assert "validation loss nan" in (state.reason or "")


# --- a full disk ---------------------------------------------------------------------------------
def test_no_room_for_a_row_fails_with_the_reason_and_resumes(tmp_path: Path) -> None:
    calm = tiny.config(tmp_path / "calm")
    tiny.train(calm)
    config = tiny.config(tmp_path)
    original, rows = ledger.append_row, 0

    def full(path: Path, row: object) -> None:
        nonlocal rows
        rows += 1
        if rows < 20:
            return original(path, row)  # type: ignore[arg-type]
        with path.open("ab") as f:
            f.write(b'{"step": 2')  # what fitted
        raise DeviceError("cannot write steps.jsonl: No space left on device. Free disk space")

    def no_room(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "append_row", full)
        patch.setattr(attempt, "HEARTBEAT_S", 1e9)
        with pytest.MonkeyPatch.context() as disk:
            failing_after(disk, 18, no_room)
            state = tiny.train(config)
    assert state.state == "failed"
    written = records.load_state(tiny.run_dir(config))
    assert written is not None
    assert (written.state, written.reason) == ("failed", state.reason)
    assert "No space left" in (state.reason or "")
    assert tiny.train(tiny.config(tmp_path, control=AttemptConfig(retry=Retry.failed))).state == "done"
    assert tiny.outcome(tiny.run_dir(config)) == tiny.outcome(tiny.run_dir(calm))


def failing_after(patch: pytest.MonkeyPatch, updates: int, no_room) -> None:
    """Let every new file fail from update number `updates` on, as a full disk does."""
    original, made = train_step.Trainer._step, 0

    def step(self: train_step.Trainer, *update: Any) -> object:
        nonlocal made
        made += 1
        if made == updates:
            patch.setattr(os, "fsync", no_room)
        return original(self, *update)

    patch.setattr(train_step.Trainer, "_step", step)


def test_no_room_for_a_checkpoint_leaves_no_half_of_one(tmp_path: Path) -> None:
    calm = tiny.config(tmp_path / "calm", cooldowns=[0.5])
    tiny.train(calm)
    config = tiny.config(tmp_path, cooldowns=[0.5])
    original, saves = checkpoint.save_file, 0

    def full(tensors: dict, path: Path) -> None:
        nonlocal saves
        saves += 1
        original(tensors, path)
        if saves == 4:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        state = tiny.train(config)
    assert state.state == "failed"
    assert all(w in (state.reason or "") for w in ("cannot write checkpoint", "No space left", "paths.runs", "resumes"))
    assert not list((tiny.run_dir(config) / "checkpoints").glob(".*"))
    assert tiny.train(tiny.config(tmp_path, cooldowns=[0.5], control=AttemptConfig(retry=Retry.failed))).state == "done"
    assert tiny.outcome(tiny.run_dir(config)) == tiny.outcome(tiny.run_dir(calm))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        failing_step(patch, 40, DeviceError("x"))  # behind the branch point
        tiny.train(config)
    (path,) = (tiny.run_dir(config) / "checkpoints").glob("trunk-*/model.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    state = tiny.train(tiny.config(tmp_path, control=AttemptConfig(retry=Retry.failed)))
    assert state.state == "failed"
    assert f"checkpoint {path.parent.name} cannot be read" in (state.reason or "")
    assert "attempt.force=true" in (state.reason or "")


def test_state_of_a_run_that_was_never_started(tmp_path: Path) -> None:
    assert describe(tmp_path / "x") == ("not started", None)
    records.write_json(tmp_path / "state.json", RunState("running", pid=1))
    assert describe(tmp_path)[0] == "died"


def test_the_driver_s_spelling_of_pcie_does_not_lend_a_card_another_board_s_power() -> None:
    assert hardware.floor_j_per_flop("NVIDIA A100-SXM4-40GB") == pytest.approx(400 / 312e12)
    assert hardware.floor_j_per_flop("NVIDIA A100-PCIE-40GB") is None
    assert hardware.floor_j_per_flop("NVIDIA A100 80GB PCIe") is None
