"""`harness reproduce LADDER`: run a ladder afresh and compare what it says with the committed reference.

The reference of a ladder is `results/reference/<study>/reference.json`: for each quantity its value at the reference seed, the standard
deviation over the reference's seeds, and the bound, three of those. Without git the reference is looked for in the working directory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness import laws, records
from harness.analysis import study_laws
from harness.errors import RecordError
from harness.laws.result import Fit
from harness.records import RunRecord
from harness.units import sci

ROOT = Path(__file__).resolve().parents[2]
SEED_DEVIATIONS = 3.0


@dataclass
class Quantity:
    value: float
    seed_sd: float
    bound: float  # three seed standard deviations


@dataclass
class Reference:
    """What a ladder's run at one seed is compared with."""

    ladder: str
    seed: int
    seeds: list[int]
    device: str
    bootstrap: int
    quantities: dict[str, Quantity] = field(default_factory=dict)
    schema_version: int = records.SCHEMA_VERSION


def load_reference(ladder: str) -> Reference:
    """The committed reference of a ladder. RecordError lists the ladders that have one."""
    found: dict[str, Path] = {}
    for base in (ROOT, Path.cwd()):
        for path in sorted(base.glob("results/reference/*/reference.json")):
            found.setdefault(str(records.read_json(path).get("ladder")), path)
    if ladder not in found:
        raise RecordError(
            f"ladder {ladder!r} has no committed reference. Ladders with one: {', '.join(sorted(found)) or 'none'}."
        )
    return records.from_json(Reference, records.read_json(found[ladder]), str(found[ladder]))


def quantities(found: list[RunRecord], fits: dict[str, Fit]) -> dict[str, float]:
    """Exponents and floor of L(N, D), and the loss on its compute-optimal frontier at three budgets inside the measured range."""
    if "loss_nd" not in fits:
        return {}
    fit = fits["loss_nd"]
    values = {f"L(N,D) {k}": fit.params[k] for k in ("alpha", "beta", "E")}
    flop = [p.train_flop for r in found if r.role == "fit" for p in r.points]
    budgets = np.geomspace(min(flop), max(flop), 5)[1:-1]
    for budget, loss in zip(budgets, laws.frontier(fit, budgets, force=True).L, strict=True):
        values[f"frontier loss at {sci(float(budget))} FLOP"] = float(loss)
    return values


def make_reference(ladder: str, found: list[RunRecord], seed: int, bootstrap: int = 1000) -> Reference:
    """A reference from the records of one study with several seeds; each seed is fitted by itself for its deviation."""
    seeds = sorted({r.seed for r in found if r.role == "fit"})
    if len(seeds) < 2 or seed not in seeds:
        raise RecordError(f"a reference needs two seeds or more, {seed} among them; the records have seeds {seeds}.")
    per_seed = {}
    for s in seeds:
        mine = [r for r in found if r.role == "fit" and r.seed == s]
        per_seed[s] = quantities(mine, study_laws.fit_study(mine, {}, bootstrap=bootstrap))
    out = Reference(ladder, seed, seeds, str(found[0].provenance["device"]), bootstrap)
    for name, value in per_seed[seed].items():
        values = [per_seed[s][name] for s in seeds]
        mean = sum(values) / len(values)
        sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        out.quantities[name] = Quantity(value, sd, SEED_DEVIATIONS * sd)
    return out


def compare(reference: Reference, measured: dict[str, float]) -> tuple[str, bool]:
    """A table of differences, and whether every quantity lies within its bound."""
    rows = [("quantity", "reference", "measured", "difference", "bound", "")]
    same = True
    for name, q in reference.quantities.items():
        if name not in measured:
            rows.append((name, f"{q.value:.5g}", "–", "–", f"{q.bound:.2g}", "MISSING"))
            same = False
            continue
        difference = measured[name] - q.value
        inside = abs(difference) <= q.bound
        same = same and inside
        rows.append(
            (
                name,
                f"{q.value:.5g}",
                f"{measured[name]:.5g}",
                f"{difference:+.2g}",
                f"{q.bound:.2g}",
                "" if inside else "OUTSIDE",
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(6)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows), same
