"""JSON files: dataclasses to JSON and back, whole files written by rename, rows appended line by
line.

The dataclass of a file is its schema. msgspec checks every field against it when the file is read.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

from harness.errors import DeviceError, RecordError

SCHEMA_VERSION = 1
MAX_SHOWN = 60  # characters of a wrong value in a message
T = TypeVar("T")
Json = dict[str, Any]
_NUMBERS = re.compile(r'\[([^\[\]{}"]+)\](?=,?\n)')  # a list of numbers, over several lines
_PATH_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\[\.\.\.\]")
_ADVICE = "the file is damaged or foreign. Restore it, or make it again."
_SCALARS = (str, int, float, type(None))


# --- JSON <-> dataclass
def to_json(value: Any) -> Any:
    """Dataclasses, lists, dicts, enums and numbers as JSON values; a non-finite float is refused
    (missing is None)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in cast(dict[Any, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in cast(Sequence[Any], value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"refusing to write the non-finite number {value}: a missing value is None with a reason")
    if isinstance(value, Enum):
        return value.value
    return value


def from_json(cls: type[T], value: Any, where: str) -> T:
    """Build the dataclass `cls` from a JSON value; `where` names the file and the line in errors.

    A class with the static method `upgraded` is given the value first, to read what older versions
    have written. Raises RecordError for a missing field, a value of another type and a field that
    `cls` lacks.
    """
    import msgspec

    upgraded = getattr(cls, "upgraded", None)
    value = value if upgraded is None else upgraded(value)
    try:
        instance = msgspec.convert(value, cls)
    except msgspec.ValidationError as e:
        raise RecordError(f"{where}: {_describe(cls, value, str(e))}; {_ADVICE}") from e
    if unknown := sorted(_unknown_fields(value, instance, "")):
        raise RecordError(f"{where}: {cls.__name__} has no field {', '.join(unknown)}; {_ADVICE}")
    return instance


def wrong_type(instance: object) -> str | None:
    """The first field of a dataclass instance that holds a value of another type; None where all
    are right.
    """
    import msgspec

    cls: Any = type(instance)
    try:
        value = msgspec.to_builtins(instance)
    except TypeError as e:
        return f"{cls.__name__} holds a value that is no plain Python value: {e}"
    try:
        msgspec.convert(value, cls)
    except msgspec.ValidationError as e:
        return _describe(cls, value, str(e))
    return None


def _describe(cls: type, value: Any, error: str) -> str:
    """msgspec's message with the full path of the field, and with the value unless it is
    missing."""
    problem, _, path = error.replace("`", "").partition(" - at $")
    field, wrong = _locate(cls, value, error, path)
    if (missing := problem.removeprefix("Object missing required field ")) != problem:
        return f"{cls.__name__}{field}.{missing} is missing"
    shown = repr(wrong)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
    return f"{field.removeprefix('.') or cls.__name__}: {problem[0].lower()}{problem[1:]}: {shown}"


def _locate(cls: type, value: Any, error: str, path: str) -> tuple[str, Any]:
    """msgspec's path with the keys of mappings, for which msgspec writes `[...]`, and the value
    there.

    The key is the one whose item alone gives the same error.
    """
    import msgspec

    value = copy.deepcopy(value)
    field, wrong = "", value
    for match in _PATH_STEP.finditer(path):
        name, index = match.groups()
        if index is not None:
            field, wrong = f"{field}[{index}]", wrong[int(index)]
            continue
        if name is None:
            items = dict(wrong)
            for name, item in items.items():
                wrong.clear()
                wrong[name] = item
                try:
                    msgspec.convert(value, cls)
                except msgspec.ValidationError as e:
                    if str(e) == error:
                        break
        field, wrong = f"{field}.{name}", wrong[name]
    return field, wrong


def _unknown_fields(value: Any, instance: Any, path: str) -> Iterator[str]:
    """Paths of the keys in a JSON value that the dataclasses built from it lack."""
    if dataclasses.is_dataclass(instance):
        names = {f.name for f in dataclasses.fields(instance)}
        for key, item in value.items():
            if key not in names:
                yield f"{path}.{key}".removeprefix(".")
            else:
                yield from _unknown_fields(item, getattr(instance, key), f"{path}.{key}")
    elif isinstance(instance, dict) and instance is not value:
        for key, item in value.items():
            yield from _unknown_fields(item, instance[key], f"{path}.{key}")
    elif isinstance(instance, list) and instance and not isinstance(instance[0], _SCALARS):
        for i, item in enumerate(value):
            yield from _unknown_fields(item, instance[i], f"{path}[{i}]")


# --- files
def make_folder(path: Path) -> None:
    """Make a folder for results, and those above it. RecordError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RecordError(f"cannot make the folder {path}: {e.strerror}. Choose another place (--out).") from e


def write_text_atomic(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8 or nothing, as `write_bytes_atomic` does."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: a temporary sibling, flushed to disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RecordError(
            f"cannot write {path}: {e.strerror}. Free space or choose another folder (paths.runs)."
        ) from e


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, a list of numbers on one line."""
    text = json.dumps(to_json(value), indent=1, allow_nan=False)
    write_text_atomic(path, _NUMBERS.sub(lambda m: f"[{' '.join(m[1].split())}]", text) + "\n")


def parse(text: str | bytes) -> Any:
    """The JSON value of a text; ValueError where it is none or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e


def read_json(path: Path) -> Json:
    """The JSON object in `path`; RecordError when missing, torn, or of a newer schema."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise RecordError(f"{path} does not exist") from e
    except (OSError, ValueError) as e:
        raise RecordError(f"{path} cannot be read: {e}. Remove it, or run again with attempt.force=true.") from e
    if not isinstance(value, dict):
        raise RecordError(f"{path}: expected a JSON object, found {type(value).__name__}")
    value = cast(Json, value)
    version = value.get("schema_version", 1)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise RecordError(
            f"{path}: schema_version={version!r} is newer than {SCHEMA_VERSION}, the newest known here. Update the harness."
        )
    return value


def load_json(path: Path, cls: type[T]) -> T:
    """The dataclass `cls` from the JSON object in `path`; RecordError when the file is missing or
    damaged."""
    return from_json(cls, read_json(path), str(path))


def read_rows(path: Path, cls: type[T], offset: int = 0) -> Iterator[T]:
    """Rows of a JSONL file from byte `offset`, where a line begins.

    A torn last line (killed while writing) is dropped; a torn earlier one is a RecordError.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    first = 1 + data.count(b"\n", 0, offset)
    last = 1 + data.count(b"\n")
    for number, line in enumerate(data[offset:].split(b"\n"), start=first):
        if not line:
            continue
        try:
            value = parse(line)
        except ValueError as e:
            if number == last:  # no newline after it
                return
            raise RecordError(f"{path} line {number} is not JSON: {e}") from e
        yield from_json(cls, value, f"{path} line {number}")


def append_row(path: Path, row: object) -> None:
    """Append one row to a JSONL file. DeviceError where it cannot be written, such as on a full
    disk."""
    try:
        with path.open("ab") as f:
            f.write(json.dumps(to_json(row)).encode() + b"\n")
    except OSError as e:
        raise DeviceError(
            f"cannot write {path.name}: {e.strerror}. Free disk space or choose another folder (paths.runs); the run resumes where it stood."
        ) from e
