"""Records: what is written is read back equal, and what is torn, foreign, newer or not a number is
refused with its reason.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import records
from harness.errors import RecordError
from harness.records import Counts, Measured, Point, RunRecord, RunState, SpendRow, StepRow

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.dictionaries(
    st.text(max_size=5), st.recursive(st.none() | st.integers() | FLOATS | st.text(max_size=5), st.lists), max_size=3
)


def instances(cls: type) -> st.SearchStrategy:
    """Any instance of a record dataclass, from its type hints."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: of(hints[f.name]) for f in dataclasses.fields(cls)}
    if "schema_version" in fields:
        fields["schema_version"] = st.just(records.SCHEMA_VERSION)
    return st.builds(cls, **fields)


def of(hint: Any) -> st.SearchStrategy:
    if dataclasses.is_dataclass(hint):
        return instances(typing.cast(type, hint))
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return st.none() | of(next(a for a in arguments if a is not type(None)))
    if typing.get_origin(hint) is list:
        return st.lists(of(arguments[0]), max_size=2)
    if typing.get_origin(hint) is dict:
        return JSON
    return {int: st.integers(), float: FLOATS, str: st.text(max_size=8), bool: st.booleans()}[hint]


@pytest.mark.parametrize(
    "cls", [Measured, StepRow, SpendRow, Counts, Point, RunState, RunRecord], ids=lambda c: c.__name__
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_round_trip(cls: type, data: st.DataObject) -> None:
    value = data.draw(instances(cls))
    text = json.dumps(records.to_json(value), allow_nan=False)
    assert records.from_json(cls, json.loads(text), "here") == value


def test_dicts_of_dataclasses_are_read_back_as_such() -> None:
    from harness.training.checkpoint import Position, Progress

    progress = Progress(
        milestones={"trunk-1": Position("trunk", 1, [SpendRow(1, "train", "trunk", 0, 1, 84, 1.0, 0.5)])}
    )
    assert records.from_json(Progress, json.loads(json.dumps(records.to_json(progress))), "here") == progress


def step_row(step: int = 1, **changes: Any) -> StepRow:
    row = StepRow(
        step, "trunk", tokens=84, train_flop=1.0, loss_nat=3.0, grad_norm=1.0, lr=0.1, wall_s=0.1, tokens_per_s=840.0
    )
    return dataclasses.replace(row, **changes)


# --- refused --------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: [x], lambda x: {"a": {"b": [x]}}, lambda x: step_row(loss_nat=x)]
)
def test_non_finite_is_refused(bad: float, wrap, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"non-finite number {bad}"):
        records.to_json(wrap(bad))
    path = tmp_path / "x.json"
    records.write_json(path, {"old": 1})
    with pytest.raises(RecordError):
        records.write_json(path, wrap(bad))
    assert records.read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": "one"}, ["step", "expected int", "'one'"]),
        ({"step": True}, ["step", "expected int", "True"]),
        ({"step": 1.5}, ["step", "expected int", "1.5"]),
        ({"loss_nat": None}, ["loss_nat", "expected float", "None"]),
        ({"branch": 3}, ["branch", "expected str"]),
        ({"losss": 1.0}, ["StepRow has no field losss"]),
    ],
)
def test_wrong_fields_are_named(change: dict, words: list[str]) -> None:
    with pytest.raises(RecordError) as e:
        records.from_json(StepRow, {**records.to_json(step_row()), **change}, "runs/x/steps.jsonl line 3")
    assert "runs/x/steps.jsonl line 3" in str(e.value)
    assert all(w in str(e.value) for w in words), str(e.value)


def test_missing_field_and_wrong_shapes_are_named() -> None:
    value = records.to_json(step_row())
    del value["lr"]
    with pytest.raises(RecordError, match=r"StepRow\.lr is missing"):
        records.from_json(StepRow, value, "x")
    with pytest.raises(RecordError, match=r"StepRow: expected object, got array: \[\]"):
        records.from_json(StepRow, [], "x")
    with pytest.raises(RecordError, match=r"codes: expected array, got str: 'COUNTER_RESET'"):
        records.from_json(Measured, {"codes": "COUNTER_RESET"}, "x")
    with pytest.raises(RecordError, match=r"codes\[1\]: expected str, got int: 3"):
        records.from_json(Measured, {"codes": ["a", 3]}, "x")


def test_an_int_is_a_float_but_not_the_reverse() -> None:
    assert records.from_json(StepRow, {**records.to_json(step_row()), "lr": 1}, "x").lr == 1.0


@pytest.mark.parametrize("version", [2, 99, "1", None])
def test_newer_or_foreign_versions_are_refused(tmp_path: Path, version: object) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"schema_version": version}))
    with pytest.raises(RecordError, match=r"schema_version=.*newer than 1.*Update the harness"):
        records.load_record(tmp_path)


def test_an_older_state_without_newer_optional_fields_is_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"state": "done"}')
    state = records.load_state(tmp_path)
    assert state is not None
    assert (state.state, state.attempt) == ("done", 1)
    assert records.load_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["", "{", '{"state": "do', "[1]", "nul", "\x00\x00", '{"state": "done"} x'])
def test_torn_json_is_refused_with_advice(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(RecordError) as e:
        records.load_record(tmp_path)
    assert str(path) in str(e.value)
    assert "cannot be read" in str(e.value) or "expected a JSON object" in str(e.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"cannot be read.*attempt\.force=true"):
        records.load_record(tmp_path)


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"record\.json does not exist"):
        records.load_record(tmp_path)


# --- rows -----------------------------------------------------------------------------------------
@given(cut=st.integers(min_value=0, max_value=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_file_cut_anywhere_gives_its_whole_rows(tmp_path: Path, cut: int) -> None:
    lines = [json.dumps(records.to_json(step_row(i))).encode() + b"\n" for i in (1, 2)]
    whole = b"".join(lines)
    path = tmp_path / "steps.jsonl"
    path.write_bytes(whole[:cut])
    found = [r.step for r in records.read_rows(path, StepRow)]
    ends = [len(lines[0]) - 1, len(whole) - 1]  # a row is whole with or without its newline
    assert found == [n for n, end in zip((1, 2), ends, strict=True) if cut >= end]


def test_a_torn_earlier_row_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    good = json.dumps(records.to_json(step_row()))
    path.write_text(f'{good}\n{{"step": 2, "br\n{good}\n')
    with pytest.raises(RecordError, match=r"steps\.jsonl line 2 is not JSON"):
        list(records.read_rows(path, StepRow))


def test_rows_from_an_offset_and_of_no_file(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    assert list(records.read_rows(path, StepRow)) == []
    lines = [json.dumps(records.to_json(step_row(i))) + "\n" for i in (1, 2, 3)]
    path.write_text("".join(lines))
    assert [r.step for r in records.read_rows(path, StepRow, offset=len(lines[0]))] == [2, 3]


# --- writing --------------------------------------------------------------------------------------
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    records.write_json(path, RunState("running"))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"cannot write .*No space left on device.*paths\.runs"):
        records.write_json(path, RunState("done"))
    state = records.load_state(tmp_path)
    assert state is not None
    assert state.state == "running"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"], "no half-written file stays"


def test_a_write_killed_before_its_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    records.write_json(path, RunState("running"))

    class Died(BaseException):
        pass

    def die(self: Path, target: Path) -> Path:
        raise Died

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(Died):
        records.write_json(path, RunState("done"))
    monkeypatch.undo()
    state = records.load_state(tmp_path)
    assert state is not None
    assert state.state == "running"


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot write .*nowhere"):
        records.write_json(tmp_path / "nowhere" / "state.json", {})


# --- a study folder -------------------------------------------------------------------------------
def test_a_study_counts_what_it_leaves_out(tmp_path: Path) -> None:
    from synthetic import record  # a record whose numbers come from a law

    for name, state in (("a", "done"), ("b", "failed"), ("c", "failed"), ("d", "interrupted")):
        (tmp_path / name).mkdir()
        records.write_json(tmp_path / name / "state.json", RunState(state))
    records.write_json(tmp_path / "a" / "record.json", record(16))
    (tmp_path / "e").mkdir()  # no run at all
    found, excluded = records.load(tmp_path)
    assert len(found) == 1
    assert excluded == {"failed": 2, "interrupted": 1}


def test_a_record_beside_a_state_that_is_not_done_is_left_out(tmp_path: Path) -> None:
    """A run forced afresh, or taken up for one more branch, has an old record beside it; it counts
    again when it is done.
    """
    from synthetic import record

    (tmp_path / "a").mkdir()
    records.write_json(tmp_path / "a" / "record.json", record(16))
    records.write_json(tmp_path / "a" / "state.json", RunState("running"))
    assert records.load(tmp_path) == ([], {"running": 1})


def test_a_study_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"is not a folder.*runs/cpu"):
        records.load(tmp_path / "x")
