"""Laws over the end points of one control, with all sizes together.

The accuracy of one sample is fitted against training FLOP, and against the loss of the reference
traces of the same problems, which is the second of two steps (FLOP to loss, loss to accuracy). The
floor is the task's chance and is not fitted. Where a FLOP is worth more at one size than at
another, no single curve follows the first law, and its residuals show that; the second law depends
on the loss alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness import laws
from harness.analysis.ttc import curves as ttc_curves
from harness.analysis.ttc.votes import setup
from harness.errors import FitError
from harness.laws.result import Fit
from harness.records.ttc import TtcRecord

CONTROL_LAWS = ("accuracy_flop", "accuracy_loss")


def fit_controls(
    records: Sequence[TtcRecord], *, bootstrap: int = 200, seed: int = 0
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Fits by "ttc/<law>/<task and format>, <control>, T=<temperature>", and why others are absent.

    The bootstrap resamples whole runs.
    """
    groups: dict[str, list[TtcRecord]] = {}
    for record in records:
        groups.setdefault(f"{setup(record)}, {record.label}, T={record.temperature:g}", []).append(record)
    fits: dict[str, Fit] = {}
    absent: dict[str, str] = {}
    for control, cells in groups.items():
        for law in CONTROL_LAWS:
            name = f"ttc/{law}/{control}"
            of_flop = law == "accuracy_flop"
            pairs = [
                (record, record.train_flop if of_flop else record.smooth.ce_nat if record.smooth else None)
                for record in cells
            ]
            points = [(r, x) for r, x in pairs if x]
            accuracy = np.array([float(np.mean(r.stats.correct)) / r.samples for r, _ in points])
            chance = cells[0].chance
            if not points or float(accuracy.max()) < 2 * chance + 0.05:
                absent[name] = "no end point rises above chance" if points else "no end point has the law's variable"
                continue
            table = {"C" if of_flop else "loss": np.array([x for _, x in points]), "accuracy": accuracy}
            run = np.array([r.run_id for r, _ in points])
            try:
                fits[name] = laws.fit(law, table, fixed={"chance": chance}, cluster=run, bootstrap=bootstrap, seed=seed)
            except FitError as e:
                absent[name] = str(e)
    return fits, absent


def fit_all(
    records: Sequence[TtcRecord], *, bootstrap: int = 200, seed: int = 0
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Every law of a study's evaluations: of single cells (`curves.fit_cells`) and of controls.

    The fits have intervals but no draws: nothing is predicted from them beyond their data, and the
    draws of hundreds of cells would be most of `fits.json`.
    """
    cells, no_cells = ttc_curves.fit_cells(records, bootstrap=bootstrap, seed=seed)
    controls, no_controls = fit_controls(records, bootstrap=bootstrap, seed=seed)
    fits = {name: replace(fit, draws={}, scope="cell") for name, fit in cells.items()}
    fits |= {name: replace(fit, draws={}, scope="control") for name, fit in controls.items()}
    return fits, no_cells | no_controls
