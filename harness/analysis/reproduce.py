"""`harness reproduce NAME`: run a ladder again and compare its results with a committed reference.

`reference.json` of a committed study holds quantities at one seed, each with its standard deviation
(over the seeds of the reference; with one seed, over the bootstrap draws of its law) and a bound of
three standard deviations. Joules and seconds belong to a machine and are not compared. An installed
package ships the file of every reference; in a checkout, those below `results/reference` are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev

import numpy as np

from harness import laws, records
from harness.analysis import study_laws
from harness.console import TextTable
from harness.errors import RecordError
from harness.laws.estimators import Z95
from harness.laws.result import Fit
from harness.records import RunRecord
from harness.records.ttc import TtcRecord
from harness.units import sci

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
FILE = "reference.json"
MAX_DEVIATIONS = 3.0


@dataclass
class Quantity:
    """A value at the reference's seed, and how far a run at that seed may lie from it."""

    value: float
    sd: float
    sd_over: str  # seeds | bootstrap | problems (of an accuracy, from their finite number)
    bound: float  # three standard deviations


@dataclass
class Reference:
    """The quantities that a ladder's run at one seed is compared with."""

    ladder: str
    verb: str  # run | ttc: what runs the ladder
    seed: int
    seeds: list[int]
    device: str
    bootstrap: int
    corpora: list[str]  # corpus ids, which hold the hash of a text
    quantities: dict[str, Quantity] = field(default_factory=dict)
    schema_version: int = records.SCHEMA_VERSION


def reference_files() -> dict[str, Path]:
    """Name of each committed study -> its reference.json.

    The working directory comes before the checkout, and the checkout before the installed package.
    """
    paths: dict[str, Path] = {}
    for base in (Path.cwd(), ROOT):
        for path in sorted(base.glob(f"results/reference/*/{FILE}")):
            paths.setdefault(path.parent.name, path)
    for path in sorted((PACKAGE / "references").glob("*.json")):
        paths.setdefault(path.stem, path)
    return paths


def load_reference(name: str) -> Reference:
    """The reference of a committed study, by the name of the study or of its ladder.

    Raises RecordError, with the names that exist, for any other name.
    """
    paths = reference_files()
    if name not in paths:
        ladders = {str(records.read_json(path).get("ladder")): study for study, path in reversed(paths.items())}
        if name not in ladders:
            raise RecordError(
                f"ladder {name!r} has no committed reference. Ladders with one: {', '.join(sorted({*paths, *ladders})) or 'none'}."
            )
        name = ladders[name]
    return records.load_json(paths[name], Reference)


def quantities(
    runs: Sequence[RunRecord], fits: dict[str, Fit], evaluations: Sequence[TtcRecord] = ()
) -> dict[str, tuple[float, float, str]]:
    """The compared results of a study: name -> (value, its standard deviation, what that is over).

    With a law L(N, D): its exponents and floor, and the loss on its compute-optimal frontier at
    three budgets, where that lies inside the measured N and D. With a law L(C): its loss at the
    same budgets. With evaluations: greedy accuracy of the longest point of each run under each
    control. A parameter that one seed does not pin has no standard deviation (NaN).
    """
    out: dict[str, tuple[float, float, str]] = {}
    flop = [p.train_flop for record in runs if record.role == "fit" for p in record.points]
    budgets = np.geomspace(min(flop), max(flop), 5)[1:-1] if flop else np.array([])
    if fit := fits.get("loss_nd"):
        for name in ("alpha", "beta", "E"):
            sd = _sd(*fit.interval[name]) if fit.identified.get(name) and name in fit.interval else math.nan
            out[f"L(N,D) {name}"] = (fit.params[name], sd, "bootstrap")
        curve = laws.frontier(fit, budgets, level=0.95, force=True)
        intervals = np.full((2, len(budgets)), np.nan) if curve.L_interval is None else curve.L_interval
        for i, budget in enumerate(budgets):
            if all(low <= x[i] <= high for x, (low, high) in ((curve.N, fit.span["N"]), (curve.D, fit.span["D"]))):
                value = (float(curve.L[i]), _sd(*intervals[:, i]), "bootstrap")
                out[f"frontier loss at {sci(float(budget))} FLOP"] = value
    if fit := fits.get("loss_compute"):
        losses = laws.predict(fit, {"C": budgets}, force=True)
        intervals = np.full((2, len(budgets)), np.nan)
        if fit.draws:
            intervals = np.array(laws.predict_interval(fit, {"C": budgets}, force=True))
        for i, budget in enumerate(budgets):
            out[f"L(C) at {sci(float(budget))} FLOP"] = (float(losses[i]), _sd(*intervals[:, i]), "bootstrap")
    from scipy import stats

    longest = {record.run_id: f"d{max(p.tokens for p in record.points)}" for record in runs if record.points}
    for e in evaluations:
        greedy = next((row.accuracy for row in e.rows if row.strategy == "greedy"), None)
        if greedy is not None and e.branch == longest.get(e.run_id, e.branch):
            # Jeffreys' posterior: it has a spread even where all answers are right
            sd = float(stats.beta.std(greedy * e.problems + 0.5, (1 - greedy) * e.problems + 0.5))
            name = e.name.removesuffix(f" s{e.seed}")
            temperature = f", T={e.temperature:g}" if e.temperature != 1 else ""
            out[f"greedy accuracy, {name}, {e.label}{temperature}"] = (greedy, sd, "problems")
    return out


def _sd(low: float, high: float) -> float:
    """The standard deviation of a normal law with this 95 % interval."""
    return float(high - low) / 2 / Z95


def make_reference(
    ladder: str, runs: Sequence[RunRecord], evaluations: Sequence[TtcRecord], seed: int, bootstrap: int = 1000
) -> Reference:
    """A reference from the records of one study; each of its seeds is fitted by itself.

    Raises RecordError for a seed without runs, or for a study without a quantity to compare.
    """
    seeds = sorted({record.seed for record in runs if record.role == "fit"})
    if seed not in seeds:
        raise RecordError(f"a reference at seed {seed} needs runs at it; the records have seeds {seeds}.")
    per_seed = {}
    for s in seeds:
        of_seed = [record for record in runs if record.role == "fit" and record.seed == s]
        ids = {r.run_id for r in of_seed}
        fits = study_laws.fit_study(of_seed, {}, bootstrap=bootstrap)
        per_seed[s] = quantities(of_seed, fits, [e for e in evaluations if e.run_id in ids])
    corpora = sorted({str(record.corpus["corpus_id"]) for record in runs if record.role == "fit"})
    device, verb = str(runs[0].provenance["device"]), "ttc" if evaluations else "run"
    out = Reference(ladder, verb, seed, seeds, device, bootstrap, corpora)
    for name, (value, sd, sd_over) in per_seed[seed].items():
        if len(values := [q[name][0] for q in per_seed.values() if name in q]) > 1:
            over_seeds = stdev(values)
            if sd_over == "bootstrap" or over_seeds > sd:
                sd, sd_over = over_seeds, "seeds"
        if sd > 0:  # false for NaN too
            out.quantities[name] = Quantity(value, sd, sd_over, MAX_DEVIATIONS * sd)
    if not out.quantities:
        raise RecordError(f"ladder {ladder!r}: no quantity of these records has a spread to compare by.")
    return out


def compare(
    reference: Reference, runs: Sequence[RunRecord], fits: dict[str, Fit], evaluations: Sequence[TtcRecord] = ()
) -> tuple[TextTable, bool]:
    """A table of differences, and whether every quantity lies within its bound.

    Raises RecordError for runs on another corpus.
    """
    corpora = sorted({str(record.corpus["corpus_id"]) for record in runs if record.role == "fit"})
    if runs and corpora != reference.corpora:
        raise RecordError(
            f"corpus {', '.join(corpora)} is not the reference's ({', '.join(reference.corpora)}): their losses cannot be compared. "
            "Train on the same text."
        )
    measured = quantities(runs, fits, evaluations)
    rows: list[tuple[str, ...]] = []
    same = True
    for name, q in reference.quantities.items():
        if name not in measured:
            rows.append((name, f"{q.value:.5g}", "–", "–", f"{q.bound:.2g}", q.sd_over, "MISSING"))
            same = False
            continue
        value = measured[name][0]
        inside = abs(value - q.value) <= q.bound
        same = same and inside
        verdict = "" if inside else "OUTSIDE"
        rows.append(
            (name, f"{q.value:.5g}", f"{value:.5g}", f"{value - q.value:+.2g}", f"{q.bound:.2g}", q.sd_over, verdict)
        )
    return TextTable(rows, ("quantity", "reference", "measured", "difference", "bound", "over", "")), same
