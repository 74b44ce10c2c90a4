"""The figure of one fit to a table: data, law and its 95 % band above, residuals below.

A law of one quantity is drawn against it. A law of N and D is drawn against D, with a line for each
size, or for the middle size of each of six groups. Other laws are drawn as measured against fitted
values. A fit without a certificate shows its data alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from harness.laws import predict, predict_interval
from harness.laws.catalogue import is_from_counts, law_of
from harness.laws.law import Law
from harness.laws.result import Fit
from harness.report.axes import SHAPES, Axis, axis, label, ramp
from harness.report.layers import Figure, Layer, Row, level, panel
from harness.report.palette import y_values

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
GRID, MAX_GROUPS = 80, 6
MIN_LOG_RATIO = 30.0  # of the largest x to the smallest, for a logarithmic axis
FITTED, HELD_OUT = "fitted", "held out"


@dataclass(frozen=True)
class _Plot:
    """The upper panel: points and curves of the law by group, and the axis titles."""

    x_symbol: str  # empty: the fitted value
    x_title: str
    y_title: str
    x: NDArray
    y: NDArray
    group: list[str]
    names: list[str]  # of the groups, in order; a single name has no legend
    by: str  # what the groups are; the title of the legend
    curves: list[Row]

    def encodings(self) -> tuple[alt.Color, alt.Shape]:
        """Colour and shape of the groups."""
        legend = alt.Legend(titleLimit=400) if len(self.names) > 1 else None
        shapes = [SHAPES[i % len(SHAPES)] for i in range(len(self.names))]
        scales = [alt.Scale(domain=self.names, range=values) for values in (ramp(len(self.names)), shapes)]
        channels: dict[str, Any] = {"type": "nominal", "title": self.by, "sort": self.names, "legend": legend}
        return alt.Color("series", scale=scales[0], **channels), alt.Shape("series", scale=scales[1], **channels)


def draw(fit: Fit, points: Mapping[str, NDArray], held_out: NDArray) -> Figure:
    """The figure of `fit` to `points` (symbol -> values (n,), with y); mask `held_out` (n,)."""
    form = law_of(fit)
    model = predict(fit, points, extrapolate=True) if fit.certificate.passed else None
    plot = _plot(fit, points, model)
    linear_y = form.residual == "linear"
    log_x = not (linear_y and not plot.x_symbol) and (plot.x_symbol not in form.linear or _spans_decades(form, plot.x))
    rows: list[Row] = [
        {"x": float(a), "y": float(b), "series": g, "role": HELD_OUT if h else FITTED}
        for a, b, g, h in zip(plot.x, plot.y, plot.group, held_out, strict=True)
    ]
    powers = plot.x_symbol == "C" or (not plot.x_symbol and form.y == "energy")
    x = axis(plot.x_title, [r["x"] for r in (*rows, *plot.curves)], log=log_x, power_labels=powers)
    y = axis(plot.y_title, y_values(rows, plot.curves), log=not linear_y, power_labels=form.y == "energy")
    upper = x if model is None else replace(x, title="")  # the panel below has the title of both
    datasets: dict[str, list[Row]] = {}
    banded = bool(plot.curves) and all("low" in r for r in plot.curves)
    panels = [panel([*_curves(plot, upper, y, banded), *_dots(plot, rows, upper, y)], datasets)]
    if model is not None:
        residuals = plot.y - model if linear_y else 100 * (plot.y / model - 1)
        residual_rows = [r | {"y": float(value)} for r, value in zip(rows, residuals, strict=True)]
        title = "measured − fitted" if linear_y else "measured / fitted − 1 (%)"
        z = axis(title, [*residuals.tolist(), 0.0], log=False)
        panels.append(panel([*level(0.0, "", x, z), *_dots(plot, residual_rows, x, z)], datasets, height=150))
    lines = _subtitle(fit, banded, bool(held_out.any()))
    title = alt.TitleParams(fit.formula, subtitle=lines, anchor="start", fontSize=13, subtitleFontSize=11, offset=10)
    spec = alt.vconcat(*panels, title=title, spacing=14).to_dict()
    spec["datasets"] = datasets
    return Figure("fit", fit.formula, " ".join(lines), spec)


def _dots(plot: _Plot, rows: list[Row], x: Axis, y: Axis) -> list[Layer]:
    """Points: filled where fitted, hollow where held out."""
    layers = []
    for role, filled in ((FITTED, True), (HELD_OUT, False)):
        if of_role := [r for r in rows if r["role"] == role]:
            mark = alt.Chart().mark_point(filled=filled, size=44 if filled else 70, opacity=0.85, strokeWidth=1.6)
            layers.append(Layer(of_role, mark.encode(x.x(), y.y(), *plot.encodings())))
    return layers


def _curves(plot: _Plot, x: Axis, y: Axis, banded: bool) -> list[Layer]:
    """The law's lines, below them their bands."""
    if not plot.curves:
        return []
    color, _ = plot.encodings()
    line = alt.Chart().mark_line(strokeWidth=1.6).encode(x.x(), y.y(), color, order=alt.Order("x:Q"))
    area = alt.Chart().mark_area(opacity=0.16).encode(x.x(), y.y("low"), color, y2="high:Q")
    return [*([Layer(plot.curves, area)] if banded else []), Layer(plot.curves, line)]


def _plot(fit: Fit, points: Mapping[str, NDArray], model: NDArray | None) -> _Plot:
    """The form of the plot that suits the law, as the module's docstring says.

    `model`: fitted values.
    """
    symbols = law_of(fit).symbols
    of_size = set(symbols) == {"N", "D"}
    if len(symbols) == 1 or (model is None and not of_size):
        return _against_symbol(fit, symbols[0], points, model is not None)
    if of_size or model is None:
        return _by_size(fit, points, model is not None)
    return _against_fitted(fit, points, model)


def _spans_decades(law: Law, x: NDArray) -> bool:
    """Whether a caller's law, which does not describe its axes, gets a logarithmic x axis."""
    return not law.analytic and bool(x.min() > 0 and x.max() / x.min() > MIN_LOG_RATIO)


def _subtitle(fit: Fit, banded: bool, held_out: bool) -> list[str]:
    """Lines below the title: the parameters, and the meaning of the marks."""
    if not fit.certificate.passed:
        return [f"{fit.n_points} points. NOT CONVERGED: the law is not drawn."]
    values = ", ".join(f"{k} = {v:.4g}" for k, v in fit.params.items())
    counts = is_from_counts(fit)
    parts = [f"{fit.n_points} {'problems' if counts else 'points'}"]
    parts += ["shaded: 95 % of the law"] if banded else []
    parts += ["hollow: held out"] if held_out else []
    return [values, "; ".join(parts)]


def _axis_title(symbol: str) -> str:
    return TITLES.get(symbol, symbol)


def _against_symbol(fit: Fit, symbol: str, points: Mapping[str, NDArray], passed: bool) -> _Plot:
    """Against one quantity, with the law over its range."""
    x, y = np.asarray(points[symbol], dtype=np.float64), law_of(fit).y
    curves = []
    if passed:
        grid = np.geomspace(x.min(), x.max(), GRID)
        grid = np.unique(np.round(grid)) if symbol == "k" else grid
        curves = _curve(fit, {symbol: grid}, symbol, "law")
    group = ["law"] * len(x)
    return _Plot(symbol, _axis_title(symbol), _axis_title(y), x, points[y], group, ["law"], "", curves)


def _by_size(fit: Fit, points: Mapping[str, NDArray], passed: bool) -> _Plot:
    """Against D, with a line for each size.

    Above `MAX_GROUPS` sizes, for the middle of equal groups.
    """
    n, d, y = points["N"], points["D"], law_of(fit).y
    groups = np.array_split(np.unique(n), min(MAX_GROUPS, len(np.unique(n))))
    middle = [float(sizes[len(sizes) // 2]) for sizes in groups]
    names = [label(float(f"{size:.3g}"), False) for size in middle]
    index = np.searchsorted([sizes[-1] for sizes in groups], n)
    curves = []
    for i, size in enumerate(middle):
        tokens = d[index == i]
        if passed and len(tokens) > 1:
            grid = np.geomspace(tokens.min(), tokens.max(), GRID)
            curves += _curve(fit, {"N": np.full(GRID, size), "D": grid}, "D", names[i])
    by = "N" if len(groups) == len(np.unique(n)) else "N of the line, and sizes near it"
    return _Plot("D", _axis_title("D"), _axis_title(y), d, points[y], [names[i] for i in index], names, by, curves)


def _against_fitted(fit: Fit, points: Mapping[str, NDArray], model: NDArray) -> _Plot:
    """Measured against fitted values."""
    order, y = np.argsort(model), law_of(fit).y
    curves = _curve(fit, {s: points[s][order] for s in law_of(fit).symbols}, None, "law")
    titles = f"fitted {_axis_title(y)}", f"measured {_axis_title(y)}"
    return _Plot("", *titles, model, points[y], ["law"] * len(model), ["law"], "", curves)


def _curve(fit: Fit, table: dict[str, NDArray], symbol: str | None, name: str) -> list[Row]:
    """The law over the rows of `table` against `symbol`, or against itself (None).

    With its band if the fit has draws.
    """
    value = predict(fit, table, extrapolate=True)
    x = value if symbol is None else table[symbol]
    rows: list[Row] = [{"x": float(a), "y": float(b), "series": name} for a, b in zip(x, value, strict=True)]
    if fit.draws:
        for row, low, high in zip(rows, *predict_interval(fit, table, extrapolate=True), strict=True):
            row |= {"low": float(low), "high": float(high)}
    return rows
