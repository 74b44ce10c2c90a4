"""The figure of one fit to a table: data, law and its 95 % band above, residuals below. Numbers come from the Fit and its points.

A law of one quantity is drawn against it; a law of N and D against D, a line for each size (or for the middle of each of six
groups of sizes); any other as measured against fitted. A fit without a certificate shows its data alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import altair as alt
import numpy as np
from numpy.typing import NDArray

from harness.laws import predict, predict_interval
from harness.laws.catalogue import is_from_counts, law_of
from harness.laws.law import Law
from harness.laws.result import Fit
from harness.report.axes import SHAPES, Axis, axis, label, ramp
from harness.report.layers import Figure, Layer, Row, level, panel

TITLES = {
    "N": "parameters N",
    "D": "training tokens D",
    "C": "training compute C (FLOP)",
    "J": "energy J (J)",
    "t": "time t (s)",
    "S": "update steps S",
    "loss": "loss (nat per token)",
    "energy": "energy (J)",
    "n_star": "best size N* (parameters)",
    "k": "samples per problem k",
    "n": "votes n",
    "coverage": "pass@k (share of problems)",
    "accuracy": "accuracy (share)",
    "error": "error (share)",
}
GRID, GROUPS = 80, 6
LOG_AXIS_FROM = 30.0  # largest over smallest x
FITTED, HELD = "fitted", "held out"


@dataclass(frozen=True)
class _Points:
    """What is drawn: x and y of each point, its group, and the law's lines with their bands."""

    x: NDArray
    y: NDArray
    group: list[str]
    names: list[str]  # groups in order; one unnamed where there is nothing to tell apart
    by: str
    curves: list[Row]


def draw(fit: Fit, points: Mapping[str, NDArray], held_out: NDArray) -> Figure:
    """`points`: the law's symbols and its y, (n,) each; `held_out`: mask (n,) of rows that the fit did not see."""
    form = law_of(fit)
    y_title = TITLES.get(form.y, form.y)
    passed = fit.certificate.passed
    model = predict(fit, points, extrapolate=True) if passed else None
    both = set(form.symbols) == {"N", "D"}
    if len(form.symbols) == 1 or (model is None and not both):
        p = _one(fit, form.symbols[0], points, passed)
        x_symbol, x_title = form.symbols[0], TITLES.get(form.symbols[0], form.symbols[0])
    elif both or model is None:
        p = _sizes(fit, points, passed)
        x_symbol, x_title = "D", TITLES["D"]
    else:
        p = _against_fitted(fit, points, model)
        x_symbol, x_title, y_title = "", f"fitted {y_title}", f"measured {y_title}"
    linear_y = form.residual == "linear"
    log_x = not (linear_y and not x_symbol) and (x_symbol not in form.linear or _spans_decades(form, p.x))
    rows: list[Row] = [
        {"x": float(a), "y": float(b), "series": g, "role": HELD if h else FITTED}
        for a, b, g, h in zip(p.x, p.y, p.group, held_out, strict=True)
    ]
    powers = x_symbol == "C" or (not x_symbol and form.y == "energy")
    drawn = [r[k] for r in (*rows, *p.curves) for k in ("y", "low", "high") if k in r]
    x = axis(x_title, [r["x"] for r in (*rows, *p.curves)], log=log_x, power_labels=powers)
    y = axis(y_title, drawn, log=not linear_y, power_labels=form.y == "energy")
    color = alt.Color(
        "series",
        type="nominal",
        title=p.by,
        sort=p.names,
        scale=alt.Scale(domain=p.names, range=ramp(len(p.names))),
        legend=alt.Legend(titleLimit=400) if len(p.names) > 1 else None,
    )
    shape = alt.Shape(
        "series",
        type="nominal",
        title=p.by,
        sort=p.names,
        scale=alt.Scale(domain=p.names, range=[SHAPES[i % len(SHAPES)] for i in range(len(p.names))]),
        legend=alt.Legend(titleLimit=400) if len(p.names) > 1 else None,
    )

    def dots(values: list[Row], x: Axis, y: Axis) -> list[Layer]:
        """Filled where fitted, hollow where held out."""
        out = []
        for role, filled in ((FITTED, True), (HELD, False)):
            if mine := [r for r in values if r["role"] == role]:
                mark = alt.Chart().mark_point(filled=filled, size=44 if filled else 70, opacity=0.85, strokeWidth=1.6)
                out.append(Layer(mine, mark.encode(x.x(), y.y(), color, shape)))
        return out

    upper = x if model is None else replace(x, title="")  # the panel below carries the title of both
    layers: list[Layer] = []
    if p.curves:
        line = alt.Chart().mark_line(strokeWidth=1.6).encode(upper.x(), y.y(), color, order=alt.Order("x:Q"))
        if all("low" in r for r in p.curves):
            area = alt.Chart().mark_area(opacity=0.16).encode(upper.x(), y.y("low"), color, y2="high:Q")
            layers.append(Layer(p.curves, area))
        layers.append(Layer(p.curves, line))
    datasets: dict[str, list[Row]] = {}
    panels = [panel([*layers, *dots(rows, upper, y)], datasets)]
    if model is not None:
        miss = p.y - model if linear_y else 100 * (p.y / model - 1)
        missed = [r | {"y": float(m)} for r, m in zip(rows, miss, strict=True)]
        title = "measured − fitted" if linear_y else "measured / fitted − 1 (%)"
        z = axis(title, [*miss.tolist(), 0.0], log=False)
        panels.append(panel([*level(0.0, "", x, z), *dots(missed, x, z)], datasets, height=150))
    words = _words(fit, bool(p.curves) and all("low" in r for r in p.curves), bool(held_out.any()))
    title = alt.TitleParams(fit.formula, subtitle=words, anchor="start", fontSize=13, subtitleFontSize=11, offset=10)
    spec = alt.vconcat(*panels, title=title, spacing=14).to_dict()
    spec["datasets"] = datasets
    return Figure("fit", fit.formula, " ".join(words), spec)


def _spans_decades(law: Law, x: NDArray) -> bool:
    """Whether a caller's law, which says nothing of its axes, is drawn over a logarithmic one."""
    return not law.analytic and bool(x.min() > 0 and x.max() / x.min() > LOG_AXIS_FROM)


def _words(fit: Fit, banded: bool, held: bool) -> list[str]:
    """Lines under the title: what was fitted, and how the marks are to be read."""
    if not fit.certificate.passed:
        return [f"{fit.n_points} points. NOT CONVERGED: the law is not drawn."]
    values = ", ".join(f"{k} = {v:.4g}" for k, v in fit.params.items())
    counts = is_from_counts(fit)
    parts = [f"{fit.n_points} {'problems' if counts else 'points'}"]
    parts += ["shaded: 95 % of the law"] if banded else []
    parts += ["hollow: held out"] if held else []
    return [values, "; ".join(parts)]


def _one(fit: Fit, symbol: str, points: Mapping[str, NDArray], passed: bool) -> _Points:
    x = np.asarray(points[symbol], dtype=np.float64)
    curves = []
    if passed:
        grid = np.unique(np.round(np.geomspace(x.min(), x.max(), GRID))) if symbol == "k" else None
        curves = _curve(fit, {symbol: np.geomspace(x.min(), x.max(), GRID) if grid is None else grid}, symbol, "law")
    return _Points(x, points[law_of(fit).y], ["law"] * len(x), ["law"], "", curves)


def _sizes(fit: Fit, points: Mapping[str, NDArray], passed: bool) -> _Points:
    """A line for each size; above `GROUPS` sizes, for the middle one of groups of equally many sizes."""
    n, d = points["N"], points["D"]
    groups = np.array_split(np.unique(n), min(GROUPS, len(np.unique(n))))
    middle = [float(g[len(g) // 2]) for g in groups]
    names = [label(float(f"{m:.3g}"), False) for m in middle]
    of = np.searchsorted([g[-1] for g in groups], n)
    curves = []
    for i, m in enumerate(middle):
        mine = d[of == i]
        if passed and len(mine) > 1:
            grid = np.geomspace(mine.min(), mine.max(), GRID)
            curves += _curve(fit, {"N": np.full(GRID, m), "D": grid}, "D", names[i])
    by = "N" if len(groups) == len(np.unique(n)) else "N of the line, and sizes near it"
    return _Points(d, points[law_of(fit).y], [names[i] for i in of], names, by, curves)


def _against_fitted(fit: Fit, points: Mapping[str, NDArray], model: NDArray) -> _Points:
    order = np.argsort(model)
    curves = _curve(fit, {s: points[s][order] for s in law_of(fit).symbols}, None, "law")
    return _Points(model, points[law_of(fit).y], ["law"] * len(model), ["law"], "", curves)


def _curve(fit: Fit, table: dict[str, NDArray], symbol: str | None, name: str) -> list[Row]:
    """The law over the rows of `table`, against `symbol` (None: against itself), with its band where there are draws."""
    value = predict(fit, table, extrapolate=True)
    x = value if symbol is None else table[symbol]
    rows: list[Row] = [{"x": float(a), "y": float(b), "series": name} for a, b in zip(x, value, strict=True)]
    if fit.draws:
        for row, low, high in zip(rows, *predict_interval(fit, table, extrapolate=True), strict=True):
            row |= {"low": float(low), "high": float(high)}
    return rows
