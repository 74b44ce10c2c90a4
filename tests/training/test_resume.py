"""Killed or stopped anywhere, a run ends with the same weights, moments, rows and points, and
everything it cost is booked once.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from harness import records
from harness.config.schema import (
    AttemptConfig,
    ConstantConfig,
    CosineConfig,
    GroupConfig,
    GroupFormat,
    MuonConfig,
    ScheduleConfig,
    WsdConfig,
)
from harness.runtime import attempt, signals
from harness.sweep.status import describe
from harness.training import checkpoint
from harness.training import step as train_step
from harness.training import trunk as paths

COOLDOWNS = [0.5]  # branch points at steps 18 and 36, points at 24 and 48


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The run that nobody interrupts."""
    config = tiny.config(tmp_path_factory.mktemp("whole"), cooldowns=COOLDOWNS)
    state = tiny.train(config)
    assert (state.state, state.reason) == ("done", None)
    return tiny.outcome(tiny.run_dir(config))


@pytest.fixture(scope="module")
def server() -> Iterator[tiny.Server]:
    with tiny.server() as it:
        yield it


def stop_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """Have a stop signal arrive during update number `updates` of an attempt."""
    made = 0
    original = train_step.Trainer._step

    def counted(self: train_step.Trainer, *update: Any) -> object:
        nonlocal made
        made += 1
        return original(self, *update)

    monkeypatch.setattr(train_step.Trainer, "_step", counted)
    monkeypatch.setattr(signals, "reason", lambda: "SIGTERM" if made >= updates else None)


# --- stops ---------------------------------------------------------------------------------------
# 18: a branch point; 36: the last branch point; 42: the end of the first cooldown; 54: the very
# last update
@pytest.mark.parametrize("updates", [1, 17, 18, 19, 35, 36, 37, 41, 42, 43, 53, 54])
def test_stopped_once(tmp_path: Path, whole: dict, updates: int) -> None:
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, updates)
        stopped = tiny.train(config)
    assert stopped.state == "interrupted"
    assert "SIGTERM" in (stopped.reason or "")
    assert not (tiny.run_dir(config) / "record.json").exists()
    assert tiny.train(config).state == "done"
    assert tiny.outcome(tiny.run_dir(config)) == whole
    trained = [r for r in tiny.spend(tiny.run_dir(config)) if r.phase == "train"]
    assert sum(r.tokens for r in trained) == 54 * tiny.BATCH, "a clean stop trains nothing twice"
    assert sum(r.tokens for r in tiny.spend(tiny.run_dir(config)) if r.phase == "lost") == 0


def test_stopped_every_few_updates(tmp_path: Path, whole: dict) -> None:
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS)
    attempts, state = 0, "interrupted"
    while state == "interrupted" and attempts < 20:
        attempts += 1
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 5)
            state = tiny.train(config).state
    assert (state, attempts) == ("done", 11)  # 54 updates, five an attempt
    assert tiny.outcome(tiny.run_dir(config)) == whole
    assert records.load_record(tiny.run_dir(config)).provenance["attempts"] == attempts


def test_checkpoints_at_every_update_change_nothing(tmp_path: Path, whole: dict) -> None:
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS, control=AttemptConfig(checkpoint_every_s=1e-9))
    assert tiny.train(config).state == "done"
    assert tiny.outcome(tiny.run_dir(config)) == whole


@pytest.mark.parametrize("schedule", [CosineConfig(), ConstantConfig()], ids=["cosine", "constant"])
def test_schedules_of_one_path(tmp_path: Path, schedule: ScheduleConfig) -> None:
    straight, broken = (tiny.config(tmp_path / n, steps=24, schedule=schedule) for n in ("a", "b"))
    assert tiny.train(straight).state == "done"
    for updates in (7, 17):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, updates)
            assert tiny.train(broken).state == "interrupted"
    assert tiny.train(broken).state == "done"
    assert tiny.outcome(tiny.run_dir(broken)) == tiny.outcome(tiny.run_dir(straight))
    (point,) = records.load_record(tiny.run_dir(straight)).points
    assert point.annealed == isinstance(schedule, CosineConfig)


CHANGES = {
    "deterministic": {"device__deterministic": True, "device__micro_batch_tokens": 2 * 21},
    "muon": {"optim": MuonConfig(lr=0.01, batch_tokens=tiny.BATCH)},
    "task": {"corpus": GroupConfig(group="S3", operators=[], steps=4, format=GroupFormat.budget, val_tokens=480)},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_other_choices_resume_bitwise(tmp_path: Path, changes: dict) -> None:
    """The task has a mask and position ids that do not rise."""
    straight, broken = (tiny.config(tmp_path / n, steps=24, **changes) for n in ("a", "b"))
    assert tiny.train(straight).state == "done"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 11)
        assert tiny.train(broken).state == "interrupted"
    assert tiny.train(broken).state == "done"
    assert tiny.outcome(tiny.run_dir(broken)) == tiny.outcome(tiny.run_dir(straight))


# --- kills ---------------------------------------------------------------------------------------
class Died(BaseException):
    """Stands for a SIGKILL at a chosen line: nothing of ours runs after it."""


def die_at(patch: pytest.MonkeyPatch, owner: object, name: str, call: int, before: bool) -> None:
    """Make call number `call` (from 1) of a function the last thing that happens, or its end."""
    original = getattr(owner, name)
    made = 0

    def deadly(*args: object, **kwargs: object) -> object:
        nonlocal made
        made += 1
        if made == call and before:
            raise Died
        result = original(*args, **kwargs)
        if made == call:
            raise Died
        return result

    patch.setattr(owner, name, deadly)
    patch.setattr(attempt.Attempt, "end", lambda *a: pytest.fail("a dead process writes nothing"))


# A run writes: progress at its start, then after each of two branch points and two points; weights
# before each of the latter four
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(checkpoint, "save_progress", n) for n in (1, 3, 4)]
    + [(checkpoint, "save", n) for n in (1, 3)]
    + [(records, "write_json", n) for n in (1, 7)]
    + [(train_step.Trainer, "_step", n) for n in (2, 19, 37, 54)],
)
def test_killed_at_a_chosen_line(
    tmp_path: Path, whole: dict, owner: object, name: str, call: int, before: bool
) -> None:
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS)
    folder = tiny.run_dir(config)
    executed = 0
    make_update = train_step.Trainer._step

    def counted(self: train_step.Trainer, *update: Any) -> object:
        nonlocal executed
        result = make_update(self, *update)
        executed += 1
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step.Trainer, "_step", counted)
        with pytest.MonkeyPatch.context() as deadly:
            die_at(deadly, owner, name, call, before)
            deadly.setattr(attempt.Attempt, "end", lambda *a: None)
            with pytest.raises(Died):
                tiny.train(config)
        assert tiny.train(config).state == "done"
    assert tiny.outcome(folder) == whole
    booked = sum(r.tokens for r in tiny.spend(folder) if r.phase in ("train", "lost")) / tiny.BATCH
    # What no row can know: the update in flight, and the one whose row waits for a possible
    # evaluation
    assert executed - 2 <= booked <= executed


def test_killed_between_booking_the_loss_and_the_next_checkpoint(tmp_path: Path, whole: dict) -> None:
    """Three deaths in a row without a checkpoint between them: each attempt's work is booked, each
    once.
    """
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS)
    for call in (9, 6, 12):
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, train_step.Trainer, "_step", call, before=False)
            patch.setattr(attempt.Attempt, "end", lambda *a: None)
            with pytest.raises(Died):
                tiny.train(config)
    assert tiny.train(config).state == "done"
    folder = tiny.run_dir(config)
    assert tiny.outcome(folder) == whole
    lost = [(r.attempt, r.tokens // tiny.BATCH) for r in tiny.spend(folder) if r.phase == "lost"]
    assert lost == [(1, 7), (2, 4), (3, 10)]  # each less the update in flight and the row held back
    record = records.load_record(folder)
    assert record.spent["lost"]["tokens"] == 21 * tiny.BATCH
    assert record.spent["lost"]["flop"] == record.counts.fpt_causal * 21 * tiny.BATCH
    assert record.spent["total"]["tokens"] == sum(v["tokens"] for k, v in record.spent.items() if k != "total")


def test_killed_between_a_window_and_its_checkpoint_counts_the_window_once(tmp_path: Path, whole: dict) -> None:
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS)
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, checkpoint, "save", 2, before=True)  # the second branch point, 36 updates in
        patch.setattr(attempt.Attempt, "end", lambda *a: None)
        with pytest.raises(Died):
            tiny.train(config)
    assert tiny.train(config).state == "done"
    folder = tiny.run_dir(config)
    assert tiny.outcome(folder) == whole
    tokens = {p: sum(r.tokens for r in tiny.spend(folder) if r.phase == p) for p in ("train", "lost")}
    assert tokens == {"train": (54 + 18) * tiny.BATCH, "lost": 0}


def test_torn_last_lines_are_mended(tmp_path: Path, whole: dict) -> None:
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS)
    folder = tiny.run_dir(config)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 25)
        tiny.train(config)
    for name in ("steps.jsonl", "spend.jsonl"):
        with (folder / name).open("a") as f:
            f.write('{"step": 26, "bra')
    (folder / "checkpoints" / ".trunk-00000026.tmp").mkdir()
    assert tiny.train(config).state == "done"
    assert tiny.outcome(folder) == whole
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize("seed", [1, 2])
def test_sigkill_at_random_moments(tmp_path: Path, whole: dict, server: tiny.Server, seed: int) -> None:
    rng = random.Random(seed)
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS, control=AttemptConfig(checkpoint_every_s=0.02))
    folder, executed = tiny.run_dir(config), tmp_path / "executed"
    kills = 0
    while kills < 8:
        target = (executed.stat().st_size if executed.exists() else 0) + rng.randint(0, 12)
        pid = server.start(config, executed)
        wait_for(lambda target=target: reached(executed, target) or describe(folder)[0] == "done")
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        if server.wait(pid) != -signal.SIGKILL:
            break
        kills += 1
    assert server.wait(server.start(config, executed)) == 0
    assert tiny.outcome(folder) == whole
    booked = sum(r.tokens for r in tiny.spend(folder) if r.phase in ("train", "lost")) // tiny.BATCH
    assert executed.stat().st_size - 2 * kills <= booked <= executed.stat().st_size
    assert kills > 1


def reached(executed: Path, updates: int) -> bool:
    return executed.exists() and executed.stat().st_size >= updates


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_interrupted(tmp_path: Path, whole: dict, server: tiny.Server, number: signal.Signals) -> None:
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS)
    folder, executed = tiny.run_dir(config), tmp_path / "executed"
    pid = server.start(config, executed)
    wait_for(lambda: reached(executed, 3))
    os.kill(pid, number)
    assert server.wait(pid) == 3
    state = records.load_state(folder)
    assert state is not None
    assert state.state == "interrupted"
    assert ("Ctrl-C" if number == signal.SIGINT else "SIGTERM") in (state.reason or "")
    assert server.wait(server.start(config, executed)) == 0
    assert tiny.outcome(folder) == whole
    assert executed.stat().st_size == 54


def wait_for(condition, limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


# --- branches ------------------------------------------------------------------------------------
def test_a_cooldown_of_almost_nothing_is_the_trunk(tmp_path: Path) -> None:
    """phi -> 0: round(phi * steps) = 0, so the end point is the trunk's own checkpoint, bit for
    bit.
    """
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS, schedule=WsdConfig(decay_fraction=1e-6))
    assert tiny.train(config).state == "done"
    weights = tiny.tensors(tiny.run_dir(config), optimiser=False)
    for steps in (24, 48):
        branch = f"point-d{steps * tiny.BATCH}-{steps:08d}/"
        end = {k.removeprefix(branch): v for k, v in weights.items() if k.startswith(branch)}
        trunk = f"trunk-{steps:08d}/"
        assert end == {k.removeprefix(trunk): v for k, v in weights.items() if k.startswith(trunk)}
        assert end


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((48, []), (48, [0.5])),  # earlier than every branch point there is
        ((48, [0.5]), (48, [0.5, 0.75])),  # between two
        ((24, []), (48, [0.5])),  # longer than the longest
        ((36, []), (48, [0.5, 0.75])),  # both at once
    ],
)
def test_a_budget_added_later(tmp_path: Path, first: tuple, then: tuple) -> None:
    at_once = tiny.config(tmp_path / "once", steps=then[0], cooldowns=then[1])
    tiny.train(at_once)
    early, late = (tiny.config(tmp_path / "later", steps=s, cooldowns=c) for s, c in (first, then))
    folder = tiny.run_dir(early)
    assert folder == tiny.run_dir(late)
    assert tiny.train(early).state == "done"
    before = records.load_record(folder).points
    trained = sum(r.tokens for r in tiny.spend(folder) if r.phase == "train")
    assert tiny.train(late).state == "done"
    record, expected = records.load_record(folder), tiny.outcome(tiny.run_dir(at_once))
    assert [tiny.unmeasured(p) for p in record.points] == expected["points"]
    assert tiny.tensors(folder) == expected["tensors"]
    assert [p for p in record.points if p in before] == before, "an old point keeps its measured columns too"
    added = sum(r.tokens for r in tiny.spend(folder) if r.phase == "train") - trained
    cheapest = sum(p.steps // 4 for p in record.points if p not in before)  # their cooldowns
    furthest = max(p.steps * 3 // 4 for p in before)
    longest_new = max(p.steps * 3 // 4 for p in record.points)
    retrained = max(
        (p.steps * 3 // 4 for p in record.points if p not in before and p.steps * 3 // 4 < furthest), default=0
    )
    assert added / tiny.BATCH <= cheapest + max(0, longest_new - furthest) + retrained


def test_a_budget_added_to_a_run_stopped_in_its_cooldown(tmp_path: Path) -> None:
    at_once = tiny.config(tmp_path / "once", cooldowns=[0.5, 0.75])
    tiny.train(at_once)
    early, late = (tiny.config(tmp_path / "later", cooldowns=c) for c in ([0.5], [0.5, 0.75]))
    folder = tiny.run_dir(early)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 48)  # in the last cooldown
        assert tiny.train(early).state == "interrupted"
    assert tiny.train(late).state == "done"
    expected = tiny.outcome(tiny.run_dir(at_once))
    assert [tiny.unmeasured(p) for p in records.load_record(folder).points] == expected["points"]
    cooldown = [r.step for r in tiny.steps(folder) if r.branch == f"d{48 * tiny.BATCH}"]
    assert cooldown == list(range(37, 49)), "the cooldown under way was finished, not begun again"


def test_a_budget_dropped_from_a_run_stopped_in_its_cooldown(tmp_path: Path) -> None:
    long, short = (tiny.config(tmp_path, steps=s) for s in (48, 24))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 40)
        assert tiny.train(long).state == "interrupted"
    assert tiny.train(short).state == "done"
    assert [p.steps for p in records.load_record(tiny.run_dir(short)).points] == [24]
    assert tiny.train(long).state == "done"
    alone = tiny.config(tmp_path / "alone", cooldowns=COOLDOWNS)
    tiny.train(alone)
    expected = tiny.outcome(tiny.run_dir(alone))["points"]
    assert [tiny.unmeasured(p) for p in records.load_record(tiny.run_dir(long)).points] == expected


def test_a_done_run_is_not_touched(tmp_path: Path) -> None:
    config = tiny.config(tmp_path, steps=24)
    tiny.train(config)
    folder = tiny.run_dir(config)
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in ("state.json", "lock")}
    state = tiny.train(config)
    assert (state.state, state.step, state.steps) == ("done", 24, 24)
    assert {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in ("state.json", "lock")
    } == files


def test_evaluations_on_the_way(tmp_path: Path) -> None:
    """Every 10 updates and at the end, also when a stop falls on one; the points are those of a run
    without.
    """
    plain, often = (
        tiny.config(tmp_path / n, steps=24, evaluation__every_tokens=e) for n, e in (("a", None), ("b", 840))
    )
    tiny.train(plain)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 10)
        tiny.train(often)
    assert tiny.train(often).state == "done"
    rows = tiny.steps(tiny.run_dir(often))
    assert [r.step for r in rows if r.val_loss_nat is not None] == [10, 20, 24]
    assert len(rows) == 24
    a, b = (records.load_record(tiny.run_dir(c)).points for c in (plain, often))
    assert [tiny.unmeasured(p) for p in a] == [tiny.unmeasured(p) for p in b]


def test_point_windows_are_the_steps_of_its_path(tmp_path: Path) -> None:
    """As-if and spent: a point carries the trunk up to its branch plus its cooldown; the run
    carries each update once.
    """
    config = tiny.config(tmp_path, cooldowns=COOLDOWNS)
    tiny.train(config)
    folder = tiny.run_dir(config)
    record, rows = records.load_record(folder), tiny.spend(folder)
    train = {(r.branch, r.step_from, r.step_to): r for r in rows if r.phase == "train"}
    assert set(train) == {("trunk", 0, 18), ("trunk", 18, 36), (f"d{24 * 84}", 18, 24), (f"d{48 * 84}", 36, 48)}
    short, long = record.points
    assert short.wall_s == pytest.approx(train["trunk", 0, 18].wall_s + train[f"d{24 * 84}", 18, 24].wall_s)
    parts = [train["trunk", 0, 18], train["trunk", 18, 36], train[f"d{48 * 84}", 36, 48]]
    assert long.wall_s == pytest.approx(sum(p.wall_s for p in parts))
    assert long.train_flop == pytest.approx(sum(p.flop for p in parts))
    assert record.spent["train"]["tokens"] == 54 * tiny.BATCH
    last = [r for r in tiny.steps(folder) if r.branch == long.branch][-1]
    assert (last.tokens, last.train_flop) == (long.tokens, long.train_flop)
    assert last.wall_s <= long.wall_s
    assert last.val_loss_nat == long.loss_nat


def test_interrupted_reason_is_typed() -> None:
    assert issubclass(paths.Interrupted, Exception)
    assert not issubclass(paths.Interrupted, KeyboardInterrupt)
