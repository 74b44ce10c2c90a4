"""Laws over the end points of one control, all sizes together: accuracy of one sample against training FLOP, and against the loss of the
reference traces of the same problems (the second of two steps: FLOP to loss, loss to accuracy).

The floor is the task's chance and is not fitted. Where sizes differ in what a FLOP buys, the first law has no one curve to find and its
residuals say so; the second does not ask how a loss was reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness import laws
from harness.analysis.ttc import curves as ttc_curves
from harness.analysis.ttc.votes import kind
from harness.errors import FitError
from harness.laws.result import Fit
from harness.records.ttc import TtcRecord

CONTROL_LAWS = ("accuracy_flop", "accuracy_loss")


def fit_controls(
    records: Sequence[TtcRecord], *, bootstrap: int = 200, seed: int = 0
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Fits by "ttc/<law>/<task and format>, <control>, T=<temperature>"; and name -> why it is absent. Runs are resampled whole."""
    groups: dict[str, list[TtcRecord]] = {}
    for r in records:
        groups.setdefault(f"{kind(r)}, {r.label}, T={r.temperature:g}", []).append(r)
    fits: dict[str, Fit] = {}
    absent: dict[str, str] = {}
    for control, cells in groups.items():
        for law in CONTROL_LAWS:
            name = f"ttc/{law}/{control}"
            of_flop = law == "accuracy_flop"
            along = [(r, r.train_flop if of_flop else r.smooth.ce_nat if r.smooth else None) for r in cells]
            known = [(r, x) for r, x in along if x]
            accuracy = np.array([float(np.mean(r.stats.correct)) / r.samples for r, _ in known])
            chance = cells[0].chance
            if not known or float(accuracy.max()) < 2 * chance + 0.05:
                absent[name] = (
                    "no end point rises above chance" if known else "no end point has what the law runs along"
                )
                continue
            table = {"C" if of_flop else "loss": np.array([x for _, x in known]), "accuracy": accuracy}
            run = np.array([r.run_id for r, _ in known])
            try:
                fits[name] = laws.fit(law, table, fixed={"chance": chance}, cluster=run, bootstrap=bootstrap, seed=seed)
            except FitError as e:
                absent[name] = str(e)
    return fits, absent


def fit_all(
    records: Sequence[TtcRecord], *, bootstrap: int = 200, seed: int = 0
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Every law of a study's evaluations: of single cells (`curves.fit_study_ttc`) and of controls.

    Without their draws: the intervals stand, nothing is predicted from these fits beyond their data, and the draws of hundreds of
    cells would be most of `fits.json`.
    """
    cells, no_cells = ttc_curves.fit_study_ttc(records, bootstrap=bootstrap, seed=seed)
    controls, no_controls = fit_controls(records, bootstrap=bootstrap, seed=seed)
    fits = {name: replace(fit, draws={}) for name, fit in (cells | controls).items()}
    return fits, no_cells | no_controls
