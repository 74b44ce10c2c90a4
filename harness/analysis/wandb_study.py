"""The summary run of a study in W&B: the table of points and the fitted curves."""

from __future__ import annotations

import numpy as np

from harness import laws
from harness.analysis import points as study_points
from harness.analysis.study import Study
from harness.config.schema import TrackerConfig, WandbMode
from harness.laws.result import Fit
from harness.records import RunRecord, to_json
from harness.track.wandb import mirror_fit

CURVE_POINTS = 60


def mirror_study(study: Study, mode: str) -> str | None:
    """Mirror a study's fits and return the mirror's state.

    `mode` is a W&B mode, or "as-recorded" for the mode of the runs; None where that is disabled.
    """
    runs, folder, fits = study.records, study.folder, study.fits
    recorded = [record.config["tracker"] for record in runs if "tracker" in record.config]
    if mode == "as-recorded":
        enabled = [t for t in recorded if t["mode"] != WandbMode.disabled.value]
        if not enabled:
            return None
        chosen = enabled[-1]
    else:
        chosen = {**(recorded[-1] if recorded else {}), "mode": mode}
    config = TrackerConfig(**{**chosen, "mode": WandbMode(chosen["mode"])})
    rows = study_points.study_table(runs)
    columns = list(rows[0]) if rows else []
    table = (columns, [[r[c] for c in columns] for r in rows])
    files = [p for p in (study.results / "fits.json", *sorted(folder.glob("*/record.json"))) if p.exists()]
    return mirror_fit(
        config,
        study=runs[0].study if runs else study.name,
        folder=study.results,
        points=table,
        curves=_curves(runs, fits),
        fits={k: to_json(v) for k, v in fits.items()},
        files=files,
    )


def _curves(runs: list[RunRecord], fits: dict[str, Fit]) -> list[dict]:
    """W&B charts: the measured points, and the fitted line of every law of one variable."""
    charts = []
    for name, symbol, title in (
        ("loss_compute", "C", "loss against training FLOP"),
        ("loss_energy", "J", "loss against joules"),
        ("energy_compute", "C", "joules against training FLOP"),
    ):
        if name in fits and fits[name].certificate.passed:
            x = np.geomspace(fits[name].span[symbol][0], fits[name].span[symbol][1], CURVE_POINTS)
            y = laws.predict(fits[name], {symbol: x})
            rows = [[float(a), float(b)] for a, b in zip(x, y, strict=True)]
            charts.append(
                {
                    "name": f"law/{name}",
                    "title": title,
                    "kind": "line",
                    "columns": [symbol, "fitted"],
                    "rows": rows,
                    "x": symbol,
                    "y": "fitted",
                }
            )
    table = study_points.points(runs)
    if len(table):
        rows = [[float(c), float(loss)] for c, loss in zip(table.train_flop, table.loss_nat, strict=True)]
        charts.append(
            {
                "name": "points/loss_compute",
                "title": "measured loss against training FLOP",
                "kind": "scatter",
                "columns": ["train_flop", "loss_nat"],
                "rows": rows,
                "x": "train_flop",
                "y": "loss_nat",
            }
        )
    return charts
