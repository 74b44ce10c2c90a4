"""Figures of what was fitted to a study's evaluations: laws with residuals, and forecasts; `figures` lists those of costs after them.

Numbers are those of `fits.json` and `ttc.json`; `report.ttc` draws the accuracies. A figure whose data is missing carries
the reason. Only fits with a certificate are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harness import laws
from harness.analysis.ttc import curves as ttc_curves
from harness.analysis.ttc.study import FORECASTS, StudyAnswers
from harness.laws import estimators
from harness.laws.gram import Array
from harness.laws.result import Fit
from harness.records.ttc import TtcRecord
from harness.report import ttc_costs
from harness.report.axes import axis
from harness.report.layers import Figure, Row, figure, level
from harness.report.palette import Palette, y_values

CELLS = 6  # curves per figure
UNFITTED = "ttc.json is missing: run harness fit on the study"


def _shown(records: Sequence[TtcRecord]) -> tuple[list[TtcRecord], int]:
    """Cells of the largest size whose curves have a shape, evenly spaced by their accuracy; and of how many."""
    shaped = [r for r in records if ttc_curves.flat(r) is None and r.samples > 1]
    if not shaped:
        return [], 0
    size = max(r.n_total for r in shaped)
    width = {r.width for r in shaped if r.n_total == size}  # formats of one width differ in vocabulary, so in N
    own = [r for r in shaped if (r.width in width if None not in width else r.n_total == size)]
    own.sort(key=lambda r: float(ttc_curves.hits(r).mean()) / r.samples)
    picked = sorted({round(i) for i in np.linspace(0, len(own) - 1, min(CELLS, len(own)))})
    return [own[i] for i in picked], len(own)


def law_pair(records: Sequence[TtcRecord], fits: Mapping[str, Fit], law: str) -> list[Figure]:
    """The voting or the coverage curve of some cells with its law, and the law's residuals."""
    voting = law == "voting"
    key, symbol = f"ttc_{law}", "n" if voting else "k"
    title = "Voting: accuracy of the majority of n samples" if voting else "Coverage: pass@k"
    y_title = "accuracy of the majority (share of problems)" if voting else "pass@k (share of problems)"
    cells, of = _shown(records)
    if not cells:
        why = "no cell whose curve over n has a shape: single samples are at chance or nearly always right"
        return [Figure(key, title, "", None, why), Figure(f"{key}_residuals", f"{title}: residuals", "", None, why)]
    palette = Palette([ttc_curves.cell_name(r) for r in cells], ordered=True)
    dots, drawn, missed, other = [], [], [], []
    for r in cells:
        n, right = ttc_curves.voting_curve(r) if voting else ttc_curves.coverage_curve(r)
        cluster = np.array(r.stats.cluster)
        own: list[Row] = []
        for x, column in zip(n.tolist(), right.T, strict=True):
            low, high = estimators.interval(column, cluster, draws=400)
            name = ttc_curves.cell_name(r)
            own.append(
                {
                    "x": x,
                    "y": float(column.mean()),
                    "low": low,
                    "high": high,
                    "series": name,
                    "tip": f"{symbol} = {x:g}",
                }
            )
        dots += own
        for name, into in ((law, missed), ("pass_at_k", other)):
            fit = fits.get(ttc_curves.fit_name(name, r))
            if fit is None or not fit.certificate.passed or (voting and name != law):
                continue
            into += [q | {k: q[k] - v for k in ("y", "low", "high")} for q, v in zip(own, _law(fit, n), strict=True)]
            if name == law:
                grid = np.geomspace(1, n[-1], 40)
                line = {"series": ttc_curves.cell_name(r), "line": ttc_curves.cell_name(r)}
                drawn += [{"x": a, "y": b} | line for a, b in zip(grid.tolist(), _law(fit, grid).tolist(), strict=True)]
    x = axis(f"samples per problem {symbol}", (r["x"] for r in dots))
    y = axis(y_title, y_values(dots, drawn), log=False)
    formula = "1 − e_inf − q n^−b" if voting else "exp(−a k^−b)"
    which = (
        f"{len(cells)} of the {of} cells of the largest size whose curve has a shape, evenly spaced by accuracy; bars: 95 %, over problems. "
        "Left out: cells at chance or nearly always right."
    )
    caption = f"{which} Every subset of {symbol} samples counts alike. "
    caption += f"Dashed: {formula}." if drawn else "No trusted law to draw."
    if voting:
        caption += " A vote of 2 is one sample's worth: ties share the credit."
    parts = [palette.lines(drawn, x, y, dashed=True)] if drawn else []
    first = figure(key, title, caption, [*parts, palette.bars(dots, x, y), palette.marks(dots, x, y)])
    if not missed:
        return [first, Figure(f"{key}_residuals", f"{title}: residuals", "", None, f"no trusted {law} law")]
    apart = {ttc_curves.cell_name(r): 2 ** (0.08 * (i - (len(cells) - 1) / 2)) for i, r in enumerate(cells)}
    missed, other = ([q | {"x": q["x"] * apart[q["series"]]} for q in rows] for rows in (missed, other))
    x = axis(f"samples per problem {symbol}, cells set apart", (r["x"] for r in missed))
    z = axis("measured − fitted (share of problems)", [*y_values(missed, other), 0.0], log=False)
    words = f"Of {formula}, same cells. The points of a curve share problems, so neighbours err together; bars are those of the points."
    parts = [*level(0.0, "", x, z), palette.bars(missed, x, z), palette.marks(missed, x, z)]
    if other:
        parts.append(palette.marks(other, x, z, filled=False, size=90))
        words += " Hollow: the beta-binomial, fitted to the counts."
    return [first, figure(f"{key}_residuals", f"{title}: residuals", words, parts)]


def _law(fit: Fit, n: Array) -> Array:
    """The law as a share of right answers."""
    value = laws.predict(fit, {"n" if fit.law == "voting" else "k": n})
    return 1 - value if fit.law == "voting" else value


def forecasts(said: StudyAnswers) -> Figure:
    """Errors of pass@k forecast from a part of the samples, on the samples held out."""
    key, title = "ttc_forecast", "Forecast of held-out pass@k"
    flat = set(said.unfitted)
    kept = [f for f in said.forecasts if f"ttc/pass_at_k/{f.cell}" not in flat]
    if not kept:
        return Figure(key, title, "", None, "no cell with a curve to forecast and samples to hold out")
    names = {k: k.replace("_", " ").replace("beta binomial", "beta-binomial") for k in FORECASTS}
    palette = Palette(list(names.values()))
    rows: list[Row] = []
    told = []
    for k, name in names.items():
        errors = [(f, v - f.measured) for f in kept if (v := getattr(f, k)) is not None]
        rows += [{"x": f.measured, "y": e, "series": name, "tip": f"{f.cell}, k={f.k}"} for f, e in errors]
        if errors:
            rms = float(np.sqrt(np.mean([e**2 for _, e in errors])))
            told.append(f"{name} {rms:.3f}" + (f" ({len(errors)} cells)" if len(errors) < len(kept) else ""))
    ks, fitted = (sorted({getattr(f, n) for f in kept}) for n in ("k", "fitted"))
    x = axis("measured pass@k of the held-out samples (share of problems)", (r["x"] for r in rows), log=False)
    y = axis("forecast − measured (share of problems)", [*y_values(rows), 0.0], log=False)
    caption = (
        f"From {_listed(fitted)} samples per problem to the other {_listed(ks)}, which no fit saw; {len(kept)} cells of every size. "
        f"Root mean square error: {', '.join(told)}. Left out: cells at chance or nearly always right."
    )
    return figure(key, title, caption, [*level(0.0, "", x, y), palette.marks(rows, x, y)])


def _listed(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def figures(records: Sequence[TtcRecord], fits: Mapping[str, Fit], said: StudyAnswers | None) -> list[Figure]:
    """All figures in reading order; `said` is what `harness fit` wrote to ttc.json, None where it has not run."""
    if not records:
        return []
    out = [*law_pair(records, fits, "voting"), *law_pair(records, fits, "coverage")]
    titles = {
        "ttc_forecast": "Forecast of held-out pass@k",
        "ttc_exchange": "Training for test compute",
        "ttc_break_even": "Break-even",
    }
    if said is None:
        out += [Figure(key, title, "", None, UNFITTED) for key, title in titles.items()]
    else:
        out += [forecasts(said), *ttc_costs.exchanges(said.exchange), ttc_costs.break_even(said.paybacks)]
    out += [ttc_costs.serial_parallel(records, c) for c in ("test_flop", "wall_s", "energy_j")]
    return out + [ttc_costs.per_correct(records, c) for c in ttc_costs.PER_CORRECT]
