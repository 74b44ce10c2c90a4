"""Units of an evaluation's work, a file each: a block of problems x a block of samples.

A unit is on disk whole, or not at all.

A unit's name holds a hash of the problems in it, so a file can never be read for other problems;
its seed is a hash of the cell's key and that name, so extending an evaluation never changes what
was drawn before. The last block of problems or samples may be smaller. When more are requested
later, such a remainder is drawn again; its old file is left unused and never counted twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import DeviceError
from harness.records import Json
from harness.tasks.task import Problems

PROBLEMS, SAMPLES = 64, 16  # of a unit
Arrays = dict[str, np.ndarray]


def digest(value: Json) -> str:
    """16 hex digits that identify a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Unit:
    name: str  # of its file, without the suffix
    kind: str  # greedy | seen | sample | search | smooth
    problems: slice  # of the cell's problems
    samples: slice

    @property
    def count(self) -> int:
        return self.samples.stop - self.samples.start

    def seed(self, key: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{key}/{self.name}".encode()).digest()[:7], "little")


def problem_blocks(problems: Problems) -> Iterator[tuple[slice, str]]:
    """Blocks of problems, each with a hash of the ids in it."""
    for start in range(0, len(problems), PROBLEMS):
        part = slice(start, min(start + PROBLEMS, len(problems)))
        yield part, hashlib.sha256(problems.ids[part].astype("<u8").tobytes()).hexdigest()[:12]


def units(kind: str, problems: Problems, samples: int = 1, detail: str = "") -> list[Unit]:
    """All units of one kind; `samples` > 1 is split as well.

    `detail` names the other settings that fix what is drawn.
    """
    out = []
    for part, ids in problem_blocks(problems):
        for start in range(0, samples, SAMPLES):
            stop = min(start + SAMPLES, samples)
            name = f"{kind}{detail}-{ids}" + (f"-{start:06d}x{stop - start:02d}" if kind == "sample" else "")
            out.append(Unit(name, kind, part, slice(start, stop)))
    return out


def side_by_side(n: int, batch_rows: int) -> int:
    """Queries of `n` samples each that are decoded together, in a full block: fewer where
    `batch_rows` holds no more.
    """
    return max(1, min(PROBLEMS, batch_rows // n))


def path(folder: Path, unit: Unit) -> Path:
    return folder / "blocks" / f"{unit.name}.npz"


def write(folder: Path, unit: Unit, arrays: Arrays) -> None:
    """By a temporary name and rename. DeviceError when the disk refuses."""
    final = path(folder, unit)
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as f:
            np.savez(f, **arrays)  # type: ignore[arg-type]
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(final)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DeviceError(
            f"cannot write samples to {final.name}: {e.strerror}. Free disk space or choose another folder (paths.runs); "
            "launched again, the evaluation draws only what is missing."
        ) from e


def read(file: Path) -> Arrays:
    """The arrays of a unit's file. DeviceError where it is damaged."""
    try:
        with np.load(file) as stored:
            return {k: stored[k] for k in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise DeviceError(
            f"samples in {file.parent.parent.name}/blocks/{file.name} cannot be read: {e}. Remove the file and launch again with "
            "attempt.retry=failed; it alone is drawn again."
        ) from e


def merge(folder: Path, units: list[Unit], names: tuple[str, ...]) -> Arrays:
    """The arrays `names`, each (P, samples), of units that tile problems and samples."""
    rows, columns = max(u.problems.stop for u in units), max(u.samples.stop for u in units)
    out: Arrays = {}
    for unit in units:
        arrays = read(path(folder, unit))
        for name in names:
            whole = out.setdefault(name, np.zeros((rows, columns), dtype=arrays[name].dtype))
            whole[unit.problems, unit.samples] = arrays[name]
    return out
