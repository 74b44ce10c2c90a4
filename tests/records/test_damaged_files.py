"""A damaged file gives its values or one RecordError that names the field, and never another
exception.
"""

from __future__ import annotations

import copy
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import records
from harness.errors import RecordError
from harness.records import RunRecord, RunState, SpendRow, StepRow, ttc
from harness.records import fits as fit_files
from harness.records.fits import FitsFile
from harness.records.ttc import TtcRecord
from harness.training.checkpoint import Position, Progress
from tests import synthetic, synthetic_ttc

ROOT = Path(__file__).resolve().parents[2]
WRONG_VALUES = (None, True, -3, 1.5, 10**400, float("nan"), "x", [], [None], ["x"], {}, {"a": None}, {"a": {"b": []}})
FieldPath = tuple[str | int, ...]


def fits_file() -> FitsFile:
    """Two committed fits, with lists of two numbers."""
    fits = list(fit_files.load_fits(ROOT / "results" / "reference" / "cpu_text").items())[:2]
    for _, fit in fits:
        fit.residuals = fit.residuals[:2]
        fit.draws = {name: values[:2] for name, values in fit.draws.items()}
    return FitsFile(dict(fits), "0" * 64)


SPEND = SpendRow(1, "train", "trunk", 0, 1, 84, 1.0, 0.5)
STEP = StepRow(1, "trunk", 84, 1.0, 3.0, 1.0, 0.1, 0.1, 840.0)
FILES: dict[type, Callable[[], Any]] = {
    RunRecord: lambda: synthetic.record(16),
    RunState: lambda: RunState("done"),
    SpendRow: lambda: SPEND,
    StepRow: lambda: STEP,
    Progress: lambda: Progress(milestones={"trunk-1": Position("trunk", 1, [SPEND])}),
    TtcRecord: lambda: synthetic_ttc.record(np.full(4, 0.5), rows=[synthetic_ttc.row("greedy", 1, 0.5)]),
    FitsFile: fits_file,
}


def paths(value: Any, path: FieldPath = ()) -> Iterator[FieldPath]:
    """Every field of a JSON value; of a list its first item alone, and of a mapping of numbers all
    keys.
    """
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from paths(value[0], (*path, 0))


def changed(value: Any, path: FieldPath, change: Callable[[Any, str | int], None]) -> Any:
    whole = copy.deepcopy(value)
    parent = whole
    for step in path[:-1]:
        parent = parent[step]
    change(parent, path[-1])
    return whole


def message_of(reader: Callable[[], object]) -> str:
    """The message of the RecordError that reading raises; empty where it raises none."""
    try:
        reader()
    except RecordError as e:
        return str(e)
    return ""


def read(cls: type, value: Any) -> str:
    return message_of(lambda: records.from_json(cls, value, "file.json"))


@pytest.mark.parametrize("cls", FILES, ids=lambda c: c.__name__)
def test_every_damaged_field_is_read_or_named(cls: type) -> None:
    value = records.to_json(FILES[cls]())
    assert read(cls, value) == ""
    refused = 0
    for path in paths(value):
        for wrong in WRONG_VALUES:
            message = read(cls, changed(value, path, lambda parent, key, wrong=wrong: parent.__setitem__(key, wrong)))
            refused += bool(message)
            names = [s for s in path if isinstance(s, str)]
            assert not message or all(n in message for n in names), f"{path} = {wrong!r}: {message}"
            assert not message or message.startswith("file.json: ")
        message = read(cls, changed(value, path, lambda parent, key: parent.pop(key)))
        assert not message or f"{path[-1]} is missing" in message
    assert refused > len(WRONG_VALUES)


@pytest.mark.parametrize("cls", FILES, ids=lambda c: c.__name__)
def test_a_surplus_field_is_named(cls: type) -> None:
    value = records.to_json(FILES[cls]())
    assert f"{cls.__name__} has no field surplus; the file is damaged or foreign" in read(cls, {**value, "surplus": 1})


def test_a_surplus_field_of_a_part_is_given_with_its_path() -> None:
    value = records.to_json(synthetic.record(16))
    value["points"][0]["energy"]["surplus"] = 1
    assert "RunRecord has no field points[0].energy.surplus" in read(RunRecord, value)
    file = records.to_json(fits_file())
    name, fit = next(iter(file["fits"].items()))
    fit["certificate"]["surplus"] = 1
    assert f"FitsFile has no field fits.{name}.certificate.surplus" in read(FitsFile, file)


def test_the_key_of_a_mapping_is_in_the_message() -> None:
    file = records.to_json(fits_file())
    name = list(file["fits"])[1]
    parameter = list(file["fits"][name]["params"])[-1]
    file["fits"][name]["params"][parameter] = "large"
    assert f"fits.{name}.params.{parameter}: expected float, got str: 'large'" in read(FitsFile, file)


def test_a_missing_field_of_a_part_is_given_with_its_path() -> None:
    value = records.to_json(synthetic.record(16))
    del value["points"][0]["tokens"]
    assert "RunRecord.points[0].tokens is missing" in read(RunRecord, value)


def test_draws_of_a_fit_that_is_gone_are_refused(tmp_path: Path) -> None:
    fit_files.write_fits(tmp_path, fits_file().fits)
    path = tmp_path / "fits.json"
    value = json.loads(path.read_text())
    gone = next(name for name, fit in fits_file().fits.items() if fit.draws)
    del value["fits"][gone]
    path.write_text(json.dumps(value))
    with pytest.raises(RecordError, match=f"the fit {gone} of the draws is missing"):
        fit_files.load_fits(tmp_path)


ODD_TEXTS = st.one_of(
    st.just("[" * 100_000),
    st.just('{"a":' * 100_000),
    st.just('{"state": ' + "9" * 5000 + "}"),
    st.just('{"schema_version": 1e999}'),
    st.text(max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["state", "fits", "law"]), inner),
    ).map(json.dumps),
)


@given(text=ODD_TEXTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_no_text_raises_anything_else(tmp_path: Path, text: str) -> None:
    readers: dict[str, Callable[[Path], object]] = {
        "record.json": lambda path: records.load_record(path.parent),
        "state.json": lambda path: records.load_state(path.parent),
        "steps.jsonl": lambda path: list(records.read_rows(path, StepRow)),
        "fits.json": lambda path: fit_files.load_fits(path.parent),
        "fit.json": fit_files.load_file,
        "ttc.jsonl.xz": lambda path: ttc.load(path.parent),
    }
    data = text.encode("utf-8", "surrogatepass")
    (tmp_path / "ttc.jsonl.xz").write_bytes(lzma.compress(data, preset=0))
    for name, reader in readers.items():
        if not name.endswith(".xz"):
            (tmp_path / name).write_bytes(data)
        message = message_of(lambda: reader(tmp_path / name))  # noqa: B023
        assert not message or name in message


def test_the_line_of_a_row_counts_from_the_start_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    good = json.dumps(records.to_json(STEP)) + "\n"
    path.write_text(good * 2 + '{"step": 1}\n')
    with pytest.raises(RecordError, match=r"steps\.jsonl line 3: StepRow\.branch is missing"):
        list(records.read_rows(path, StepRow, offset=len(good)))
