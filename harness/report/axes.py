"""Axes with domains computed from the data and ticks at round numbers; the palette and the themes.

Domains are explicit because a chart that clips or rounds its domain hides points silently. A test
checks that every mark of every figure is inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

_MANTISSAS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))

# Hues in the order of plasma at middle lightness; a test checks a contrast of 3:1 to both
# backgrounds
RAMP = ("#3f63cf", "#8052cf", "#b8479f", "#d64f5a", "#d9701c", "#a38a12")
CATEGORIES = (
    "#0072b2",
    "#d55e00",
    "#009070",
    "#b05f90",
    "#8a7a00",
    "#5566cc",
)  # Okabe and Ito, darkened where too pale
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
# A smaller relative span is rounding error, and an axis over it would draw at infinity
MIN_RELATIVE_SPAN = 1e-6
PAGE_BACKGROUNDS = ("#ffffff", "#15171b")  # light, dark


@dataclass(frozen=True)
class Axis:
    """One quantitative axis: title with unit, domain, scale type."""

    title: str
    low: float
    high: float
    log: bool = True
    power_labels: bool = False  # 1e12 instead of 1T

    def scale(self) -> alt.Scale:
        return alt.Scale(type="log" if self.log else "linear", domain=[self.low, self.high], nice=False, zero=False)

    def axis(self) -> alt.Axis:
        values = ticks(self.low, self.high, self.log)
        return alt.Axis(title=self.title, values=values, labelExpr=_label_expr(values, self.power_labels))

    def x(self, field: str = "x") -> alt.X:
        return alt.X(field, type="quantitative", scale=self.scale(), axis=self.axis())

    def y(self, field: str = "y") -> alt.Y:
        return alt.Y(field, type="quantitative", scale=self.scale(), axis=self.axis())


def axis(
    title: str, values: Iterable[float], *, log: bool = True, power_labels: bool = False, pad: float = 0.06
) -> Axis:
    """The axis of all `values`, with a margin of `pad` times their span on both sides."""
    data = [float(v) for v in values]
    low, high = min(data), max(data)
    if log:
        a, b = math.log(low), math.log(high)
        margin = pad * (b - a) if b - a > MIN_RELATIVE_SPAN else 0.2
        return Axis(title, math.exp(a - margin), math.exp(b + margin), True, power_labels)
    flat = high - low <= MIN_RELATIVE_SPAN * max(abs(high), abs(low))
    margin = (0.1 * abs(high) or 1.0) if flat else pad * (high - low)
    return Axis(title, low - margin, high + margin, False, power_labels)


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Between four and nine round values inside [low, high] where the span allows it."""
    if log:
        for mantissas in _MANTISSAS:
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            inside = [_round(m * 10.0**e) for e in decades for m in mantissas if low <= m * 10.0**e <= high]
            if len(inside) >= 4:
                return inside[:: math.ceil(len(inside) / 9)]
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    return [_round(i * step) for i in range(first, math.floor(high / step) + 1)]


def _round(value: float) -> float:
    return float(f"{value:.10g}")


def label(value: float, power: bool) -> str:
    """`label(2e12, True) == "2e12"`; `label(2e6, False) == "2M"`.

    Common fonts lack superscripts.
    """
    if power and value != 0:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        mantissa = f"{value / 10**exponent:.3g}"
        return f"{mantissa}e{exponent}".replace("-", "−")
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{letter}"
    return f"{value:.4g}".replace("-", "−")


def _label_expr(values: Sequence[float], power: bool) -> str:
    """A Vega expression with the label of each value, the same on the page and in the files."""
    cases = "".join(f"abs(datum.value - {v!r}) <= 1e-9 * {abs(v)!r} ? '{label(v, power)}' : " for v in values)
    return cases + "''"


def ramp(count: int, anchors: Sequence[str] = RAMP) -> list[str]:
    """`count` colours along the ordered palette."""
    if count <= 1:
        return [anchors[0]][:count]
    out = []
    for i in range(count):
        place = i * (len(anchors) - 1) / (count - 1)
        k = min(int(place), len(anchors) - 2)
        pair = [[int(anchors[j][p : p + 2], 16) for p in (1, 3, 5)] for j in (k, k + 1)]
        mixed = (round(a + (b - a) * (place - k)) for a, b in zip(*pair, strict=True))
        out.append("#" + "".join(f"{c:02x}" for c in mixed))
    return out


def theme(ink: str, background: str | None) -> dict[str, Any]:
    """Vega-Lite config; with `currentColor` as `ink`, a drawing follows light, dark and print."""
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 12}
    line = {"gridColor": ink, "gridOpacity": 0.12, "domainColor": ink, "domainOpacity": 0.5, "tickColor": ink}
    return {
        "background": background,
        "font": "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        # Marks without a series: laws, bands, references
        "mark": {"color": ink},
        "rule": {"color": ink},
        "text": {"color": ink},
        "axis": text
        | line
        | {
            "tickOpacity": 0.5,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelOverlap": "greedy",
            "labelSeparation": 8,
        },
        "legend": text | {"orient": "bottom", "titleFontWeight": "normal", "columns": 7, "symbolOpacity": 1},
        "style": {
            "law": {"stroke": ink, "strokeWidth": 1.5, "strokeDash": [6, 4]},
            "band": {"fill": ink, "fillOpacity": 0.1},
            "reference": {"stroke": ink, "strokeOpacity": 0.55, "strokeDash": [2, 3]},
            "note": {"fill": ink, "fillOpacity": 0.8, "fontSize": 11},
        },
    }
