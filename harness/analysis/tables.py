"""A CSV or parquet file as columns, and the columns that a law needs: chosen, derived and checked.

Units are those of the laws: N in parameters, D in tokens, C in FLOP, J (or energy) in joules, t in
seconds, loss in nat per token. Columns that cannot be in these units are rejected, because a table
in billions, kilojoules or perplexities fits smoothly to meaningless numbers.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness import records
from harness.analysis.points import study_table
from harness.analysis.row_filter import find_column, is_text
from harness.errors import FitError
from harness.laws.catalogue import NAMES, law_named

SUFFIXES = (".csv", ".parquet")
# Columns taken without being named, first match wins: this project's own names, then the symbols
# themselves
DEFAULTS = {
    "N": ("n_total", "N"),
    "D": ("tokens", "D"),
    "C": ("train_flop", "C"),
    "J": ("energy_j", "J"),
    "t": ("wall_s", "t"),
    "loss": ("loss_nat", "loss"),
    "energy": ("energy_j", "energy"),
}
OPTION = {"N": "--n", "D": "--d", "C": "--flop", "J": "--energy", "t": "--time", "loss": "--loss", "energy": "--energy"}
ROW_CHECKS = (  # columns by which `laws.fit` rejects rows
    "state",
    "annealed",
    "role",
    "energy_verdict",
    "tokenizer",
    "corpus",
    "corpus_id",
    "data_id",
    "val_id",
    "n_convention",
    "flop_convention",
    "device",
)
# Of C and 6ND: embedding and attention conventions stay within, wrong units do not
FLOP_RATIO = (0.1, 30.0)
MIN_COUNT = 10  # of parameters and of tokens in a row
TOKENS_PER_N = (1e-4, 1e6)
# 100 TFLOP per joule is 50 times today's cards; a small model on a CPU stays far below the other
# end
J_PER_FLOP = (1e-14, 1e-4)
POWER_W = (0.5, 1e9)  # a small board; a power station
MAX_LOSS = 20.0  # nat per token, of the median: a uniform guess over 400,000 words is 12.9


@dataclass(frozen=True)
class TableFile:
    """The columns of a file, of equal length: float64 (empty cells are NaN) or text (empty '')."""

    name: str  # base name: a fit holds no local path
    sha256: str  # of the file, 16 hex digits
    columns: dict[str, NDArray]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def read_table(path: Path) -> TableFile:
    """Read a comma-separated .csv file with a header, a .parquet file, or the records of a study.

    `path` is a study's folder for the last. Raises FitError for anything else.
    """
    if path.is_dir():
        return of_study(path)
    if path.suffix not in SUFFIXES:
        raise FitError(f"{path}: a table ends in {' or '.join(SUFFIXES)}.")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        columns = _csv(path) if path.suffix == ".csv" else _parquet(path)
    except FileNotFoundError as e:
        raise FitError(f"table {path} does not exist.") from e
    except (OSError, UnicodeDecodeError) as e:
        raise FitError(f"table {path} cannot be read: {e}.") from e
    table = TableFile(path.name, digest, columns)
    if not len(table):
        raise FitError(f"table {path} has no rows.")
    return table


def of_study(folder: Path) -> TableFile:
    """The fit points of a study: annealed points of finished runs, without probes.

    The columns have the names of `harness export`.
    """
    runs, _ = records.load(folder)
    rows = [row for row in study_table(runs) if row["role"] == "fit" and row["state"] == "done" and row["annealed"]]
    if not rows:
        raise FitError(f"study {folder} has no point to fit: no finished run with a decayed learning rate.")
    names = list(dict.fromkeys(k for row in rows for k in row))
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return TableFile(folder.resolve().name, digest, {n: _column([row.get(n) for row in rows]) for n in names})


def _csv(path: Path) -> dict[str, NDArray]:
    with path.open(newline="", encoding="utf-8-sig") as f:
        try:
            reader = csv.reader(f, strict=True)
            lines = [(reader.line_num, line) for line in reader if line]
        except csv.Error as e:
            raise FitError(f"table {path} is not comma-separated text: {e}.") from e
    if not lines:
        raise FitError(f"table {path} is empty: its first line must name the columns.")
    head = [h.strip() for h in lines[0][1]]
    if doubles := sorted({h for h in head if head.count(h) > 1}):
        raise FitError(f"table {path}: two columns are named {', '.join(map(repr, doubles))}. Rename one of each.")
    for number, line in lines[1:]:
        if len(line) != len(head):
            raise FitError(f"table {path}, line {number}: {len(line)} cells under {len(head)} column names.")
    return {h: _array([line[i].strip() for _, line in lines[1:]]) for i, h in enumerate(head)}


def _array(cells: list[str]) -> NDArray:
    """Numbers where every filled cell is a number, else text."""
    try:
        return np.array([float(c) if c else np.nan for c in cells])
    except ValueError:
        return np.array(cells, dtype=str)


def _parquet(path: Path) -> dict[str, NDArray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as e:
        raise FitError(f"table {path} is not a parquet file: {e}.") from e
    out: dict[str, NDArray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        out[name] = _column(column.to_pylist())
    return out


def _column(values: Sequence[object]) -> NDArray:
    """Numbers where every value is a number or None, else text."""
    if all(v is None or (isinstance(v, (int, float, Decimal)) and not isinstance(v, bool)) for v in values):
        return np.array([np.nan if v is None else float(v) for v in values])  # type: ignore[arg-type]
    return np.array(["" if v is None else str(v) for v in values], dtype=str)


# --- the columns of a law -------------------------------------------------------------------------
@dataclass(frozen=True)
class Chosen:
    """The input of `laws.fit`: symbol -> values, and symbol -> column (a formula where derived)."""

    table: dict[str, NDArray]
    columns: dict[str, str]


def choose(
    source: Mapping[str, NDArray],
    law: str,
    columns: Mapping[str, str],
    where: str,
    needed: Sequence[str] | None = None,
) -> Chosen:
    """The columns that `law` needs.

    `columns`: symbol -> column; other symbols are looked up in `DEFAULTS`. `needed`: symbols other
    than the law's own, such as those of the runs that optima are made from. D is derived as C/(6N)
    and C as 6ND where one of them has no column; the result's `columns` then gives the formula.
    Columns of `ROW_CHECKS` are included, so that `laws.fit` rejects rows that are not finished,
    annealed points of one kind. Raises FitError for columns that are missing, not numbers, not
    positive, or in units that cannot be right; rows are counted as in `source`.
    """
    if needed is None:
        form = law_named(law)
        needed = list(dict.fromkeys([*form.symbols, form.y]))
    if foreign := [s for s in columns if s not in needed and s not in DEFAULTS]:
        raise FitError(
            f"{where}: law {law}{_formula(law)} has no symbol {', '.join(foreign)}; it has {', '.join(needed)}. Leave it out."
        )
    names = {
        s: columns.get(s) or next((c for c in DEFAULTS.get(s, (s,)) if c in source), None) for s in {*needed, *columns}
    }
    table: dict[str, NDArray] = {}
    origin: dict[str, str] = {}
    for s in [*needed, *(s for s in names if s not in needed)]:
        name = names[s]
        if name is not None:
            table[s], origin[s] = _positive(source, name, s, where), name
    derived = {"D", "C"} & (set(needed) - table.keys())
    related = ("N", "D", "C") if {"N", "D", "C", "J", "energy"} & set(needed) else ()
    for s in related:  # to derive from; a column that only checks units may be unusable
        name = next((c for c in DEFAULTS[s] if c in source), None)
        if s in names or name is None:
            continue
        values = source[name]
        if derived or not (is_text(values) or (~np.isfinite(values) | (values <= 0)).any()):
            table[s], origin[s] = _positive(source, name, s, where), name
    if "D" in needed and "D" not in table and {"N", "C"} <= table.keys():
        table["D"], origin["D"] = table["C"] / (6 * table["N"]), f"{origin['C']} / (6 {origin['N']})"
    if "C" in needed and "C" not in table and {"N", "D"} <= table.keys():
        table["C"], origin["C"] = 6 * table["N"] * table["D"], f"6 {origin['N']} {origin['D']}"
    if missing := [s for s in needed if s not in table]:
        available = ", ".join(repr(c) for c in source)
        raise FitError(
            f"{where}: law {law}{_formula(law)} needs {', '.join(missing)}, and no column was named for it: "
            f"{' '.join(f'{option(s)} COLUMN' for s in missing)}. Columns: {available}."
        )
    if problems := units(table):
        raise FitError(f"{where}: " + "\n".join(problems))
    symbols = {s: v for s, v in table.items() if s in needed}
    return Chosen(symbols | {k: source[k] for k in ROW_CHECKS if k in source}, {s: origin[s] for s in needed})


def _formula(law: str) -> str:
    return f" ({law_named(law).formula})" if law in NAMES else ""


def option(symbol: str) -> str:
    return OPTION.get(symbol, f"--column {symbol}=")


def number_column(source: Mapping[str, NDArray], name: str, symbol: str, where: str) -> NDArray:
    values = find_column(source, name, f"{where}, {option(symbol)}")
    if is_text(values):
        bad = next((str(v) for v in values if not _is_number(str(v))), "text")
        raise FitError(
            f"{where}: column {name!r} ({symbol}) holds {bad!r}, which is not a number. Choose another column."
        )
    return np.asarray(values, dtype=np.float64)


def _positive(source: Mapping[str, NDArray], name: str, symbol: str, where: str) -> NDArray:
    values = number_column(source, name, symbol, where)
    # Other symbols have units that only their law knows, and the law checks them
    bad = ~np.isfinite(values) | ((values <= 0) if symbol in DEFAULTS else False)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        text = "empty or not a number" if np.isnan(values[i]) else f"{float(values[i]):g}"
        # A share or a count may be 0, and a filter that drops these rows as well would bias the fit
        expected, relation = ("a positive number", ">") if symbol in DEFAULTS else ("a number", ">=")
        raise FitError(
            f"{where}: column {name!r} ({symbol}) is {text} in row {i + 1} of {len(values)} ({int(bad.sum())} such rows), "
            f'and the law needs {expected}. Leave such rows out, and count them: --filter "[{name}] {relation} 0".'
        )
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def units(table: Mapping[str, NDArray]) -> list[str]:
    """One line for each column, by symbol, whose values cannot be in the symbol's unit."""
    out = []
    for s, unit in (("N", "parameters"), ("D", "tokens")):
        if s in table and (table[s].max() < 1000 or table[s].min() < MIN_COUNT):
            bound = "at most" if table[s].max() < 1000 else "down to"
            value = table[s].max() if table[s].max() < 1000 else table[s].min()
            out.append(
                f"{s} is {bound} {value:.4g} {unit}: that is a column, or a row, in thousands, millions or billions. "
                f"Multiply it, so that {s} counts {unit}."
            )
    if not out and {"N", "D"} <= table.keys():
        ratio = float(np.median(table["D"] / table["N"]))
        if not TOKENS_PER_N[0] <= ratio <= TOKENS_PER_N[1]:
            out.append(
                f"D is {ratio:.3g} times N (median): no run has {TOKENS_PER_N[1]:g} tokens per parameter, or as few as "
                f"{TOKENS_PER_N[0]:g}. One of the two is in thousands, millions or billions; give plain counts."
            )
    if "C" in table and table["C"].max() < 1e6:
        out.append(
            f"C is at most {table['C'].max():.4g} FLOP: that is a column in PFLOP, PF-days or a logarithm. Give plain FLOP."
        )
    if "loss" in table and np.median(table["loss"]) > MAX_LOSS:
        out.append(
            f"the median loss is {np.median(table['loss']):.4g} nat per token, more than guessing: that is a perplexity, a "
            "per cent or a sum. Give the mean cross-entropy in nat per token."
        )
    if not out and {"N", "D", "C"} <= table.keys():
        ratio = float(np.median(table["C"] / (6 * table["N"] * table["D"])))
        if not FLOP_RATIO[0] <= ratio <= FLOP_RATIO[1]:
            out.append(
                f"C is {ratio:.3g} times 6 N D (median): no convention of counting differs that much "
                f"({FLOP_RATIO[0]:g} to {FLOP_RATIO[1]:g}). One of N, D, C is in another unit or is another run's."
            )
    joules = table.get("energy", table.get("J"))
    if joules is not None and "C" in table:
        rate = float(np.median(joules / table["C"]))
        if not J_PER_FLOP[0] <= rate <= J_PER_FLOP[1]:
            out.append(
                f"the energy is {rate:.3g} per FLOP (median): joules per FLOP lie between {J_PER_FLOP[0]:g} and "
                f"{J_PER_FLOP[1]:g} on any hardware. Kilojoules, kWh or Wh? Give joules (1 kWh = 3.6e6 J)."
            )
    if (
        joules is not None
        and "t" in table
        and not POWER_W[0] <= (power := float(np.median(joules / table["t"]))) <= POWER_W[1]
    ):
        out.append(
            f"energy over time is {power:.3g} W (median), outside {POWER_W[0]:g} to {POWER_W[1]:g} W: no computer draws that. Give "
            "joules and seconds."
        )
    return out
