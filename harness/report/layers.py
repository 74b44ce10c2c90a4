"""Building blocks of the figures: groups of points, rows of data, layers of marks, their assembly.

Rows are attached to a finished spec by name. Altair checks every value that passes through it
against the Vega-Lite schema, and for 10,000 points that takes longer than the rest of a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import numpy as np

from harness.analysis.points import PointTable
from harness.report.axes import CATEGORIES, SHAPES, Axis, ramp
from harness.report.view import StudyView

Row = dict[str, Any]
MAX_ROWS = 1200  # points drawn per figure; keeps a page of nine figures under 2.5 MB
TIPS = {"n": "N (total)", "tokens": "tokens", "flop": "FLOP", "loss": "loss (nat)"}


@dataclass(frozen=True)
class Figure:
    """A Vega-Lite spec with title and caption, or the reason why there is none."""

    key: str  # file name without extension
    title: str
    caption: str
    spec: dict[str, Any] | None
    reason: str | None = None


@dataclass(frozen=True)
class Layer:
    """Marks without data, and the rows that they draw."""

    rows: Sequence[Row]
    chart: alt.Chart


@dataclass(frozen=True)
class Grouping:
    """What colour and shape show: the rung within one study, the study among several."""

    views: Sequence[StudyView]
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        names = self.views[0].table.rungs() if self.single else [view.name for view in self.views]
        object.__setattr__(self, "names", names)

    @property
    def single(self) -> bool:
        return len(self.views) == 1

    @property
    def by(self) -> str:
        return "rung" if self.single else "study"

    def name_of(self, view: StudyView, rung: object) -> str:
        return str(rung) if self.single else view.name

    def color(self) -> alt.Color:
        count = len(self.names)
        colors = ramp(count) if self.single else [CATEGORIES[i % len(CATEGORIES)] for i in range(count)]
        scale = alt.Scale(domain=self.names, range=colors)
        return alt.Color("series", type="nominal", title=self.by, sort=self.names, scale=scale)

    def shape(self) -> alt.Shape:
        scale = alt.Scale(domain=self.names, range=[SHAPES[i % len(SHAPES)] for i in range(len(self.names))])
        return alt.Shape("series", type="nominal", title=self.by, sort=self.names, scale=scale)


def rows_of(grouping: Grouping, view: StudyView, table: PointTable, x: np.ndarray, y: np.ndarray) -> list[Row]:
    """The rows of finite `x` and `y` (n,) with their tooltips, up to the study's share of them."""
    keep = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    limit = MAX_ROWS // len(grouping.views)
    # Evenly in table order, and always the extremes, so that the axes show the whole range
    if len(keep) > limit:
        even = keep[np.linspace(0, len(keep) - 1, limit).round().astype(int)]
        extremes = [keep[pick(a[keep])] for a in (x, y) for pick in (np.argmin, np.argmax)]
        keep = np.unique([*even, *extremes])
    extra = {
        "x": x,
        "y": y,
        "n": table.n_total,
        "tokens": table.tokens,
        "flop": table.train_flop,
        "loss": table.loss_nat,
    }
    columns = {k: np.asarray(a)[keep].tolist() for k, a in extra.items()}
    columns["series"] = [grouping.name_of(view, r) for r in table.rung[keep]]
    columns["run"] = table.name[keep].tolist()
    columns["line"] = [f"{view.name} {r}" for r in table.rung[keep]]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def thinned(views: Sequence[StudyView]) -> str:
    """The sentence about points that are not drawn; empty where all are."""
    count = sum(len(view.table) for view in views)
    return f" About {MAX_ROWS:,} of {count:,} points are drawn; the table holds all." if count > MAX_ROWS else ""


# --- layers ---------------------------------------------------------------------------------------
def marks(rows: Sequence[Row], x: Axis, y: Axis, grouping: Grouping, tips: dict[str, str] = TIPS) -> Layer:
    """Measured points."""
    tooltip = [alt.Tooltip("series", type="nominal", title=grouping.by), alt.Tooltip("run", type="nominal")]
    tooltip += [alt.Tooltip(f, type="quantitative", title=t, format=".4~g") for f, t in tips.items()]
    mark = alt.Chart().mark_point(filled=True, size=52, opacity=0.9)
    return Layer(rows, mark.encode(x.x(), y.y(), grouping.color(), grouping.shape(), tooltip=tooltip))


def lines(rows: Sequence[Row], x: Axis, y: Axis, grouping: Grouping, *, thin: bool = False) -> Layer:
    """Lines in the series' colour; `thin` ones only guide the eye from point to point."""
    mark = alt.Chart().mark_line(strokeWidth=1 if thin else 1.4, opacity=0.45 if thin else 0.8)
    order = alt.Order("x", type="quantitative")
    return Layer(rows, mark.encode(x.x(), y.y(), grouping.color(), detail="line:N", order=order))


def law(rows: Sequence[Row], x: Axis, y: Axis) -> list[Layer]:
    """A dashed curve in the text colour, with its 95 % band if the rows have one.

    [] without rows.
    """
    if not rows:
        return []
    curve = alt.Chart().mark_line(style="law")
    order = alt.Order("x", type="quantitative")
    line = Layer(rows, curve.encode(x.x(), y.y(), detail="line:N", order=order))
    return [band(rows, x, y), line] if all("low" in r for r in rows) else [line]


def band(rows: Sequence[Row], x: Axis, y: Axis) -> Layer:
    """A shaded area from `low` to `high`."""
    return Layer(rows, alt.Chart().mark_area(style="band").encode(x.x(), y.y("low"), y2="high:Q", detail="line:N"))


def predictions(rows: Sequence[Row], x: Axis, y: Axis, grouping: Grouping) -> list[Layer]:
    """Hollow diamonds with 95 % bars."""
    tooltip = [alt.Tooltip(f, type="quantitative", format=".5~g") for f in ("x", "y", "low", "high")]
    bar = alt.Chart().mark_rule(strokeWidth=2).encode(x.x(), y.y("low"), grouping.color(), y2="high:Q")
    mark = alt.Chart().mark_point(filled=False, size=150, strokeWidth=1.8, shape="diamond")
    return [Layer(rows, bar), Layer(rows, mark.encode(x.x(), y.y(), grouping.color(), tooltip=tooltip))]


def level(value: float, text: str, x: Axis, y: Axis) -> list[Layer]:
    """A horizontal reference, labelled unless `text` is empty."""
    rows = [{"x": x.low, "y": value, "text": text}]
    rule = Layer(rows, alt.Chart().mark_rule(style="reference").encode(y.y()))
    note = alt.Chart().mark_text(style="note", align="left", dx=6, dy=-7).encode(x.x(), y.y(), text="text:N")
    return [rule, Layer(rows, note)] if text else [rule]


def figure(key: str, title: str, caption: str, layers: Sequence[Layer]) -> Figure:
    """Assemble the layers into one spec; equal rows are stored once, numbers with six digits."""
    datasets: dict[str, list[Row]] = {}
    spec = panel(layers, datasets).to_dict()
    spec["datasets"] = datasets
    return Figure(key, title, caption, spec)


def panel(
    layers: Sequence[Layer], datasets: dict[str, list[Row]], height: int = 360
) -> alt.LayerChart | alt.FacetChart:
    """One plot of the layers; their rows are added to `datasets`, which goes into the spec."""
    names: dict[int, str] = {}
    charts = []
    for part in layers:
        if id(part.rows) not in names:
            names[id(part.rows)] = name = f"d{len(datasets)}"
            datasets[name] = [{k: _short(v) for k, v in row.items()} for row in part.rows]
        charts.append(part.chart.properties(data=alt.NamedData(name=names[id(part.rows)])))
    return alt.layer(*charts).properties(width=620, height=height)


def _short(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value
