"""Columns as a law reads them: any mapping or data frame whose `table[name]` is array-like, checked
and made float64."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import FitError
from harness.laws.gram import Array


class Table(Protocol):
    """A mapping of columns, a pandas data frame, or anything else that has these three methods."""

    def __getitem__(self, key: str, /) -> Any: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __iter__(self) -> Iterator[Any]: ...


class ColumnReader(Protocol):
    """What `column` asks of a law."""

    @property
    def name(self) -> str: ...
    @property
    def y(self) -> str: ...
    @property
    def symbols(self) -> Sequence[str]: ...
    @property
    def unit_range(self) -> bool: ...
    @property
    def positive(self) -> bool: ...


def column(table: Table, key: str, law: ColumnReader) -> Array:
    """One column as float64. FitError where it is missing, not one-dimensional, not of numbers or
    not finite, or not positive where the law takes logarithms; a share lies in 0..1.
    """
    if key not in table:
        names = ", ".join(sorted(str(name) for name in table))
        raise FitError(
            f"law {law.name} needs the column {key!r}; the table has {names or 'none'}. "
            f"Needed: {', '.join([*dict.fromkeys(law.symbols), law.y])}."
        )
    try:
        values = np.asarray(table[key], dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise FitError(
            f"column {key!r} holds entries that are no numbers ({e}). Convert it, or drop the rows that have none."
        ) from e
    if values.ndim != 1:
        raise FitError(f"column {key!r} has {values.ndim} dimensions; give one value per row.")
    if law.unit_range and key == law.y:
        _refuse_rows(
            key, values, ~((values >= 0) & (values <= 1)), "no share of 1",
            f"law {law.name} is one of {key} between 0 and 1. Divide percentages by 100 and drop unmeasured rows.",
        )  # fmt: skip
    elif law.positive:
        _refuse_rows(
            key, values, ~np.isfinite(values) | (values <= 0), "not a positive number",
            f"the law {law.name} takes its logarithm. Drop the rows of failed or unmeasured runs and count them as excluded.",
        )  # fmt: skip
    else:
        _refuse_rows(
            key,
            values,
            ~np.isfinite(values),
            "not a finite number",
            "it is neither fitted nor guessed. Drop such rows.",
        )
    return values


def _refuse_rows(key: str, values: Array, bad: NDArray[np.bool_], what: str, why: str) -> None:
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise FitError(
            f"column {key!r}, row {i}: {float(values[i])!r} is {what} ({int(bad.sum())} such rows), and {why}"
        )


def logs(table: Mapping[str, Array], symbol: str) -> Array:
    """ln of a column that `column` has read."""
    return np.log(np.asarray(table[symbol], dtype=np.float64))


def data_hash(columns: Mapping[str, Array]) -> str:
    """sha256 over the sorted column names and their float64 bytes, 16 hex digits."""
    h = hashlib.sha256()
    for name in sorted(columns):
        h.update(name.encode() + b"\0" + np.ascontiguousarray(columns[name], dtype="<f8").tobytes())
    return h.hexdigest()[:16]
