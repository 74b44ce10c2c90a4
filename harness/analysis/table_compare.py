"""Approaches 1, 2 and 3 on one table, their disagreements, and the roll-out of L(N, D)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.analysis import tables
from harness.analysis.table_fit import error_bars, filtered, not_judged
from harness.errors import FitError
from harness.laws import compare
from harness.laws.catalogue import law_named
from harness.laws.refuse import refuse_rows
from harness.laws.result import Fit, Warn

COMPARE = "compare"  # among the names of laws
NEEDED = ("C", "N", "D", "loss")
FIT_NAMES: dict[str, str] = dict(
    zip(compare.NAMES, ("envelope", "isoflop_parabola", "isoflop_akima", "chinchilla"), strict=True)
)
MAX_COUNT_DIFFERENCE = 0.05  # of C to 6ND (median), as a share, within one count of FLOP


@dataclass(frozen=True)
class Compared:
    """The comparison, the roll-out over budgets, and how the table counts FLOP."""

    comparison: compare.Comparison
    rollout: list[compare.Dropped]
    flop_ratio: float  # median C / (6 N D)

    @property
    def fits(self) -> dict[str, Fit]:
        """The fits by the names of the written file, without approaches that reject the table."""
        return {FIT_NAMES[r.name]: r.fit for r in self.comparison.rows if r.fit is not None}

    def text(self) -> str:
        """The comparison and the roll-out as Markdown."""
        parts = [compare.text(self.comparison)]
        if abs(self.flop_ratio - 1) > MAX_COUNT_DIFFERENCE:
            parts.append(
                f"C is {self.flop_ratio:.3g} times 6 N D (median). Approach 3 reads a budget as 6 N D, so its N* is "
                "of another count than the others'. To compare it, leave --flop out."
            )
        parts.append("Roll-out of L(N, D): the largest budgets are left out, one after the other.")
        parts.append(compare.rollout_text(self.rollout, "C"))
        return "\n\n".join(parts)


def compare_table(
    table: tables.TableFile,
    columns: Mapping[str, str],
    *,
    sigma: str | None = None,
    keep: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Compared:
    """Approaches 1, 2 and 3 on the rows of `table` where `keep` is true.

    The comparison gives the reason of each approach that rejects the table. Raises FitError where
    all of them do.
    """
    source, excluded = filtered(table, keep)
    chosen = tables.choose(source, COMPARE, columns, table.name, NEEDED)
    refuse_rows(law_named("chinchilla"), chosen.table)
    origin = chosen.columns | {"table": f"{table.name} (sha256 {table.sha256})"}
    bars = None
    if sigma is not None:
        bars = error_bars(source, sigma, chosen, "loss", table.name)
        origin["sigma"] = sigma
    comparison = compare.approaches(chosen.table, bootstrap=bootstrap, seed=seed, sigma=bars)
    if all(r.fit is None for r in comparison.rows):
        reasons = "\n".join(f"approach {r.name}: {r.reason}" for r in comparison.rows)
        raise FitError(f"{table.name}: no approach can read this table.\n{reasons}")
    for r in comparison.rows:
        if r.fit is not None:
            r.fit.columns = dict(origin)
            r.fit.excluded = excluded | r.fit.excluded
            disagreements = [
                Warn("APPROACHES_DISAGREE", f"beyond their intervals: {d}.") for d in comparison.disagree if r.name in d
            ]
            r.fit.warnings = [*disagreements, *r.fit.warnings, *not_judged(chosen)]
    ratio = float(np.median(chosen.table["C"] / (6 * chosen.table["N"] * chosen.table["D"])))
    return Compared(comparison, compare.rollout("chinchilla", chosen.table, "C"), ratio)
