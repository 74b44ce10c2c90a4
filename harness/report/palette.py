"""Named series of rows: colour and shape, with marks, intervals and lines.

Rows have x, y, series and tip; low and high for an interval along y; line where they are joined.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from harness.report.axes import CATEGORIES, SHAPES, Axis, ramp
from harness.report.layers import Layer, Row


class Palette:
    """Colours and shapes of series, in order along a ramp or as categories.

    `field` is the column with the name of the series. There are six shapes; further series repeat
    them.
    """

    def __init__(self, names: Sequence[str], *, ordered: bool = False, field: str = "series", title: str = "") -> None:
        self.names, self.field, self.title = list(names), field, title
        n = len(self.names)
        self.colors = ramp(n) if ordered else [CATEGORIES[i % len(CATEGORIES)] for i in range(n)]
        self.legend = alt.Legend(labelLimit=300, columns=2 if max(map(len, self.names)) > 24 else 4)

    def color(self) -> alt.Color:
        scale = alt.Scale(domain=self.names, range=self.colors)
        return alt.Color(self.field, type="nominal", title=self.title, sort=self.names, scale=scale, legend=self.legend)

    def shape(self) -> alt.Shape:
        scale = alt.Scale(domain=self.names, range=[SHAPES[i % len(SHAPES)] for i in range(len(self.names))])
        return alt.Shape(self.field, type="nominal", title=self.title, sort=self.names, scale=scale, legend=self.legend)

    def marks(
        self,
        rows: Sequence[Row],
        x: Axis,
        y: Axis,
        *,
        shapes: Palette | None = None,
        filled: bool = True,
        size: int = 52,
    ) -> Layer:
        """Measured points; `shapes` where shape and colour show different things."""
        tips = [alt.Tooltip(f, type="nominal") for f in (self.field, "tip")]
        tips += [alt.Tooltip(f, type="quantitative", format=".4~g") for f in ("x", "y")]
        mark = alt.Chart().mark_point(filled=filled, size=size, opacity=0.85, strokeWidth=1.5)
        return Layer(rows, mark.encode(x.x(), y.y(), self.color(), (shapes or self).shape(), tooltip=tips))

    def bars(self, rows: Sequence[Row], x: Axis, y: Axis) -> Layer:
        """Intervals along y of the rows that have one."""
        bar = alt.Chart().mark_rule(strokeWidth=1.2, opacity=0.6)
        with_interval = [r for r in rows if "low" in r]
        return Layer(with_interval, bar.encode(x.x(), y.y("low"), self.color(), y2="high:Q"))

    def lines(self, rows: Sequence[Row], x: Axis, y: Axis, *, dashed: bool = False, thin: bool = False) -> Layer:
        mark = alt.Chart().mark_line(
            strokeWidth=1 if thin else 1.5, opacity=0.5 if thin else 0.85, strokeDash=[6, 4] if dashed else [1, 0]
        )
        return Layer(rows, mark.encode(x.x(), y.y(), self.color(), detail="line:N", order=alt.Order("x:Q")))


def y_values(*groups: Sequence[Row]) -> list[float]:
    """All values of some rows along y, ends of intervals included."""
    return [r[k] for rows in groups for r in rows for k in ("y", "low", "high") if k in r]
