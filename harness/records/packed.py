"""Rows of one kind in one compressed file, as a committed reference holds its records: JSON Lines
in xz (gzip in older ones)."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import RecordError
from harness.records.files import from_json, parse, to_json, write_bytes_atomic

T = TypeVar("T")


def write_packed(path: Path, rows: Sequence[Any]) -> None:
    """Write dataclasses as one line of JSON each, compressed. Equal rows give equal bytes."""
    lines = [json.dumps(to_json(row), separators=(",", ":"), allow_nan=False) + "\n" for row in rows]
    write_bytes_atomic(path, lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))


def read_packed(path: Path, cls: type[T]) -> list[T]:
    """The rows of a packed file. RecordError where the file or a line of it is damaged."""
    decompress = gzip.decompress if path.suffix == ".gz" else lzma.decompress
    try:
        data = path.read_bytes()
        lines = decompress(data).decode().splitlines()
        if not data:  # which gzip takes for an archive of nothing
            raise ValueError("it is empty")
        rows = [parse(line) for line in lines]
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as e:
        raise RecordError(f"{path} cannot be read: {e}. Restore it from the repository.") from e
    return [from_json(cls, row, f"{path} line {i}") for i, row in enumerate(rows, start=1)]
