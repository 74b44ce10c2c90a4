"""Refusals before a fit: rows that are no points of one kind, designs that cannot identify the
parameters. Thresholds are those of docs/conventions.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.errors import FitError
from harness.laws.gram import Array
from harness.laws.law import Law
from harness.laws.table import Table

MAX_COLLINEARITY = 0.98  # |correlation| of ln N and ln D
UNIFORM_COLUMNS = ("tokenizer", "corpus", "corpus_id", "data_id", "val_id", "n_convention", "flop_convention")


def refuse_rows(law: Law, table: Table) -> None:
    """Refuse rows that are not finished, annealed points of one kind. Columns that are absent are
    not judged."""
    if "state" in table:
        states = np.asarray(table["state"]).astype(str)
        if (states != "done").any():
            values = ", ".join(sorted(set(states[states != "done"])))
            raise FitError(
                f"column 'state' holds {values} in {(states != 'done').sum()} rows: only finished "
                "runs are points. Drop them."
            )
    if "annealed" in table:
        cells = [str(v).strip().lower() for v in np.asarray(table["annealed"])]
        annealed = np.array([v in ("true", "1", "1.0") for v in cells])
        if odd := sorted(set(cells) - {"true", "1", "1.0", "false", "0", "0.0"}):
            shown = ", ".join(repr(v) for v in odd[:3])
            raise FitError(f"column 'annealed' holds {shown}: write true or false, or leave the column out.")
        if not annealed.all():
            raise FitError(
                f"column 'annealed' is false in {(~annealed).sum()} rows: a checkpoint before its cooldown lies "
                "0.04-0.09 nat above an annealed one and bends the law. Drop these rows or branch a cooldown from them."
            )
    if "role" in table and (probes := np.asarray(table["role"]).astype(str) == "probe").any():
        raise FitError(
            f"column 'role' holds probe in {probes.sum()} rows: trial runs, such as those of a learning-rate check, are no "
            "points of a law. Drop them."
        )
    joules = law.y == "energy" or "J" in law.symbols
    if joules and "energy_verdict" in table:
        invalid = np.asarray(table["energy_verdict"]).astype(str) == "invalid"
        if invalid.any():
            raise FitError(
                f"column 'energy_verdict' holds invalid in {invalid.sum()} rows: the meter rejected these joules. Drop them."
            )
    for key in (*UNIFORM_COLUMNS, *(("device",) if joules else ())):
        if key in table and len(values := sorted(set(np.asarray(table[key]).astype(str)))) > 1:
            raise FitError(
                f"column {key!r} mixes {', '.join(values)}: their values are not comparable. Fit each on its own."
            )


def refuse_design(law: Law, columns: Mapping[str, Array], y: Array, fixed: Mapping[str, float]) -> None:
    """Refuse designs that cannot identify the free parameters."""
    free = [p for p in law.params if p not in fixed]
    if not free:
        raise FitError(f"law {law.name}: all parameters are fixed, nothing is left to fit.")
    if len(y) <= len(free):
        raise FitError(
            f"law {law.name} has {len(free)} free parameters ({', '.join(free)}) and the table {len(y)} rows: "
            f"no residual is left. Give at least {len(free) + 1} rows (5 more to judge the fit), or fix a parameter."
        )
    places = np.unique(np.stack([columns[s] for s in law.symbols]), axis=1).shape[1]
    if places < len(free):
        raise FitError(
            f"law {law.name} has {len(free)} free parameters ({', '.join(free)}) and the {len(y)} rows stand at {places} "
            f"different places of {', '.join(law.symbols)}: rows at one place (seeds) cannot tell parameters "
            "apart. Add runs at other places, or fix a parameter."
        )
    for need in law.distinct_needed(fixed):
        values = columns[need.symbol]
        distinct = len(np.unique(np.round(np.log(values), 9) if law.positive else values))
        if distinct < need.count:
            raise FitError(
                f"column {need.symbol!r} has {distinct} distinct values; {need.what} needs {need.count}. Add runs at other values "
                f"of {need.symbol}{need.instead}."
            )
    if law.is_crossed(fixed):
        first, second = law.symbols[:2]
        x, y_log = (np.log(columns[s]) for s in (first, second))
        corr = float(np.corrcoef(x, y_log)[0, 1])
        if "U" in law.symbols:  # unique tokens can part N and D where tokens seen do not
            unique = np.minimum(y_log, np.log(columns["U"]))
            corr = min(corr, float(np.corrcoef(x, unique)[0, 1]), key=abs) if np.ptp(unique) > 0 else corr
        if abs(corr) > MAX_COLLINEARITY:
            raise FitError(
                f"ln {first} and ln {second} correlate at {corr:.3f} (limit {MAX_COLLINEARITY}): in a fixed-ratio ladder A, B, "
                f"alpha and beta are not separable. Fit law loss_compute, or vary {second} at each {first} by a factor of 4 "
                "or more."
            )
    if np.ptp(y) == 0:
        raise FitError(f"{law.y} is {float(y[0]):g} in all {len(y)} rows: there is no dependence to fit.")
    if (floor := law.floor) in fixed and fixed[str(floor)] >= np.median(y):
        raise FitError(
            f"fixed: {floor}={fixed[str(floor)]:g} is no floor: half of the rows have a {law.y} of {np.median(y):.4g} or less. "
            f"Give it in the unit of {law.y}."
        )
    law.refuse_design(columns, y, fixed)
