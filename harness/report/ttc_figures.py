"""Figures of the laws and forecasts of evaluations; `figures` lists those of costs after them.

Numbers are those of `fits.json` and `ttc.json`; `report.ttc_accuracy` draws the accuracies. A
figure whose data is missing carries the reason. Only fits with a certificate are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from harness import laws
from harness.analysis.ttc import curves as ttc_curves
from harness.analysis.ttc.answers import FORECASTS, StudyAnswers
from harness.laws import estimators
from harness.laws.gram import Array
from harness.laws.result import Fit
from harness.records.ttc import TtcRecord
from harness.report import ttc_costs
from harness.report.axes import axis
from harness.report.layers import Figure, Row, figure, level
from harness.report.palette import Palette, y_values

MAX_CELLS = 6  # curves per figure
UNFITTED = "ttc.json is missing: run harness fit on the study"


def _example_cells(records: Sequence[TtcRecord]) -> tuple[list[TtcRecord], int]:
    """Cells of the largest size with curves that are not flat, evenly spaced by accuracy.

    And of how many.
    """
    shaped = [record for record in records if ttc_curves.flat(record) is None and record.samples > 1]
    if not shaped:
        return [], 0
    size = max(record.n_total for record in shaped)
    # Formats of one width differ in vocabulary, so in N
    width = {record.width for record in shaped if record.n_total == size}
    cells = [record for record in shaped if (record.width in width if None not in width else record.n_total == size)]
    cells.sort(key=lambda r: float(ttc_curves.hits(r).mean()) / r.samples)
    indices = sorted({round(i) for i in np.linspace(0, len(cells) - 1, min(MAX_CELLS, len(cells)))})
    return [cells[i] for i in indices], len(cells)


def law_pair(records: Sequence[TtcRecord], fits: Mapping[str, Fit], law: Literal["voting", "coverage"]) -> list[Figure]:
    """The voting or the coverage curve of some cells with its law, and the law's residuals."""
    voting = law == "voting"
    key, symbol = f"ttc_{law}", "n" if voting else "k"
    title = "Voting: accuracy of the majority of n samples" if voting else "Coverage: pass@k"
    y_title = "accuracy of the majority (share of problems)" if voting else "pass@k (share of problems)"
    formula = "1 − e_inf − q n^−b" if voting else "exp(−a k^−b)"
    cells, count = _example_cells(records)
    if not cells:
        reason = "no cell whose curve over n has a shape: single samples are at chance or nearly always right"
        return [Figure(k, t, "", None, reason) for k, t in ((key, title), (f"{key}_residuals", f"{title}: residuals"))]
    palette = Palette([ttc_curves.cell_name(record) for record in cells], ordered=True)
    points = {ttc_curves.cell_name(record): _curve_points(record, voting) for record in cells}
    dots = [row for rows in points.values() for row in rows]
    curves: list[Row] = []
    for name, rows in points.items():
        if fit := _trusted(fits, law, name):
            grid = np.geomspace(1, rows[-1]["x"], 40)
            pairs = zip(grid.tolist(), _law(fit, grid).tolist(), strict=True)
            curves += [{"x": a, "y": b, "series": name, "line": name} for a, b in pairs]
    x = axis(f"samples per problem {symbol}", (r["x"] for r in dots))
    y = axis(y_title, y_values(dots, curves), log=False)
    caption = (
        f"{len(cells)} of the {count} cells of the largest size whose curve has a shape, evenly spaced by accuracy; bars: 95 %, over problems. "
        f"Left out: cells at chance or nearly always right. Every subset of {symbol} samples counts alike. "
    )
    caption += f"Dashed: {formula}." if curves else "No trusted law to draw."
    if voting:
        caption += " A vote of 2 is one sample's worth: ties share the credit."
    parts = [palette.lines(curves, x, y, dashed=True)] if curves else []
    first = figure(key, title, caption, [*parts, palette.bars(dots, x, y), palette.marks(dots, x, y)])
    return [first, _residuals(Figure(f"{key}_residuals", f"{title}: residuals", "", None), law, formula, points, fits)]


def _curve_points(record: TtcRecord, voting: bool) -> list[Row]:
    """The curve of one cell, with intervals over clusters of problems."""
    n, right = ttc_curves.voting_curve(record) if voting else ttc_curves.coverage_curve(record)
    rows: list[Row] = []
    for x, column in zip(n.tolist(), right.T, strict=True):
        low, high = estimators.interval(column, np.array(record.stats.cluster), draws=400)
        row: Row = {"x": x, "y": float(column.mean()), "low": low, "high": high}
        rows.append(row | {"series": ttc_curves.cell_name(record), "tip": f"{'n' if voting else 'k'} = {x:g}"})
    return rows


def _trusted(fits: Mapping[str, Fit], law: str, cell: str) -> Fit | None:
    """The law of a cell, if its certificate passed."""
    fit = fits.get(ttc_curves.fit_name(law, cell))
    return fit if fit is not None and fit.certificate.passed else None


def _residuals(
    empty: Figure, law: str, formula: str, points: Mapping[str, list[Row]], fits: Mapping[str, Fit]
) -> Figure:
    """Measured minus fitted of `points` (cell -> its curve); `empty` has the key and the title."""
    symbol = "n" if law == "voting" else "k"

    def misses(name: str) -> list[Row]:
        rows = []
        for i, (cell, curve) in enumerate(points.items()):
            if fit := _trusted(fits, name, cell):
                # Marks of the cells do not hide each other
                shift = 2 ** (0.08 * (i - (len(points) - 1) / 2))
                values = _law(fit, np.array([r["x"] for r in curve]))
                rows += [
                    r | {"x": r["x"] * shift} | {k: r[k] - value for k in ("y", "low", "high")}
                    for r, value in zip(curve, values, strict=True)
                ]
        return rows

    residuals, beta_residuals = misses(law), misses("pass_at_k") if law == "coverage" else []
    if not residuals:
        return replace(empty, reason=f"no trusted {law} law")
    x = axis(f"samples per problem {symbol}, cells set apart", (r["x"] for r in residuals))
    z = axis("measured − fitted (share of problems)", [*y_values(residuals, beta_residuals), 0.0], log=False)
    caption = f"Of {formula}, same cells. The points of a curve share problems, so neighbours err together; bars are those of the points."
    palette = Palette(list(points), ordered=True)
    parts = [*level(0.0, "", x, z), palette.bars(residuals, x, z), palette.marks(residuals, x, z)]
    if beta_residuals:
        parts.append(palette.marks(beta_residuals, x, z, filled=False, size=90))
        caption += " Hollow: the beta-binomial, fitted to the counts."
    return figure(empty.key, empty.title, caption, parts)


def _law(fit: Fit, n: Array) -> Array:
    """The law as a share of right answers."""
    value = laws.predict(fit, {"n" if fit.law == "voting" else "k": n})
    return 1 - value if fit.law == "voting" else value


def forecasts(answers: StudyAnswers) -> Figure:
    """Errors of pass@k, forecast from some of the samples, on the samples held out."""
    key, title = "ttc_forecast", "Forecast of held-out pass@k"
    flat = set(answers.unfitted)
    shaped = [f for f in answers.forecasts if ttc_curves.fit_name("pass_at_k", f.cell) not in flat]
    if not shaped:
        return Figure(key, title, "", None, "no cell with a curve to forecast and samples to hold out")
    names = {k: k.replace("_", " ").replace("beta binomial", "beta-binomial") for k in FORECASTS}
    palette = Palette(list(names.values()))
    rows: list[Row] = []
    scores = []
    for k, name in names.items():
        errors = [(f, v - f.measured) for f in shaped if (v := getattr(f, k)) is not None]
        rows += [{"x": f.measured, "y": e, "series": name, "tip": f"{f.cell}, k={f.k}"} for f, e in errors]
        if errors:
            rms = float(np.sqrt(np.mean([e**2 for _, e in errors])))
            scores.append(f"{name} {rms:.3f}" + (f" ({len(errors)} cells)" if len(errors) < len(shaped) else ""))
    ks, fitted = (sorted({getattr(f, n) for f in shaped}) for n in ("k", "fitted"))
    x = axis("measured pass@k of the held-out samples (share of problems)", (r["x"] for r in rows), log=False)
    y = axis("forecast − measured (share of problems)", [*y_values(rows), 0.0], log=False)
    caption = (
        f"From {_range_of(fitted)} samples per problem to the other {_range_of(ks)}, which no fit saw; {len(shaped)} cells of every size. "
        f"Root mean square error: {', '.join(scores)}. Left out: cells at chance or nearly always right."
    )
    return figure(key, title, caption, [*level(0.0, "", x, y), palette.marks(rows, x, y)])


def _range_of(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def figures(records: Sequence[TtcRecord], fits: Mapping[str, Fit], answers: StudyAnswers | None) -> list[Figure]:
    """All figures in reading order; `answers` are those of ttc.json, None before `harness fit`."""
    if not records:
        return []
    out = [*law_pair(records, fits, "voting"), *law_pair(records, fits, "coverage")]
    titles = {
        "ttc_forecast": "Forecast of held-out pass@k",
        "ttc_exchange": "Training for test compute",
        "ttc_break_even": "Break-even",
    }
    if answers is None:
        out += [Figure(key, title, "", None, UNFITTED) for key, title in titles.items()]
    else:
        out += [forecasts(answers), *ttc_costs.exchanges(answers.exchange), ttc_costs.break_even(answers.break_evens)]
    out += [ttc_costs.serial_parallel(records, c) for c in ("test_flop", "wall_s", "energy_j")]
    return out + [ttc_costs.per_correct(records, c) for c in ttc_costs.PER_CORRECT]
