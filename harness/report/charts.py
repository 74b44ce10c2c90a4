"""The figures of a report as Vega-Lite charts. Pure: views in, `Figure`s out; drawing and inlining happen in `page`.

One study is coloured by rung, several by study. Rows are thinned evenly above `MAX_ROWS` and the caption says so; the
full table is exported as parquet. Laws are drawn inside the span of their data only, and never when their certificate
failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from harness import laws
from harness.curves import PointTable, seed_means
from harness.laws.result import Fit, HeldOut
from harness.report.axes import CATEGORIES, SHAPES, Axis, axis, ramp
from harness.report.study import StudyView

Row = dict[str, Any]
MAX_ROWS = 1200  # marks per layer of a chart; keeps a page of ten figures under 2.5 MB
GRID = 60  # points of a drawn law
COMPUTE = "training compute, causal count (FLOP)"
LOSS = "validation loss (nat per token)"


@dataclass(frozen=True)
class Figure:
    """A chart with its words, or the reason why there is none."""

    key: str  # file name without extension
    title: str
    caption: str
    chart: alt.LayerChart | None
    reason: str | None = None


@dataclass(frozen=True)
class Series:
    """How points are told apart: by rung within one study, by study where there are several."""

    views: Sequence[StudyView]

    @property
    def by(self) -> str:
        return "rung" if len(self.views) == 1 else "study"

    def names(self) -> list[str]:
        return self.views[0].table.rungs() if len(self.views) == 1 else [v.name for v in self.views]

    def of(self, v: StudyView, rung: object) -> str:
        return str(rung) if len(self.views) == 1 else v.name

    def color(self) -> alt.Color:
        names = self.names()
        colors = (
            ramp(len(names)) if len(self.views) == 1 else [CATEGORIES[i % len(CATEGORIES)] for i in range(len(names))]
        )
        return alt.Color(
            "series", type="nominal", title=self.by, sort=names, scale=alt.Scale(domain=names, range=colors)
        )

    def shape(self) -> alt.Shape:
        names = self.names()
        marks = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
        return alt.Shape(
            "series", type="nominal", title=self.by, sort=names, scale=alt.Scale(domain=names, range=marks)
        )


# --- layers ----------------------------------------------------------------------------------------------------------
def _data(rows: Sequence[Row]) -> alt.Data:
    rounded = [{k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    return alt.Data(values=rounded)  # type: ignore[arg-type]


def thin(rows: Sequence[Row], limit: int = MAX_ROWS) -> list[Row]:
    """At most `limit` rows, evenly spaced and always with the last."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, limit).round().astype(int)]


def _marks(rows: Sequence[Row], x: Axis, y: Axis, series: Series, tips: dict[str, str]) -> alt.Chart:
    tooltip = [alt.Tooltip("series", type="nominal", title=series.by), alt.Tooltip("run", type="nominal")]
    tooltip += [alt.Tooltip(f, type="quantitative", title=t, format=".4~g") for f, t in tips.items()]
    mark = alt.Chart(_data(thin(rows))).mark_point(filled=True, size=52, opacity=0.9)
    return mark.encode(x.x(), y.y(), series.color(), series.shape(), tooltip=tooltip)


def _lines(
    rows: Sequence[Row], x: Axis, y: Axis, series: Series, *, width: float = 1.4, opacity: float = 0.8
) -> alt.Chart:
    mark = alt.Chart(_data(rows)).mark_line(strokeWidth=width, opacity=opacity)
    return mark.encode(x.x(), y.y(), series.color(), detail="line:N", order=alt.Order("x", type="quantitative"))


def _law(rows: Sequence[Row], x: Axis, y: Axis) -> list[alt.Chart]:
    """A neutral dashed curve, with its 95 % band where the rows carry one."""
    layers = []
    if rows and "low" in rows[0]:
        band = alt.Chart(_data(rows)).mark_area(style="band")
        layers.append(band.encode(x.x(), y.y("low"), y2="high:Q", detail="line:N"))
    curve = alt.Chart(_data(rows)).mark_line(style="law")
    return [*layers, curve.encode(x.x(), y.y(), detail="line:N", order=alt.Order("x", type="quantitative"))]


def _level(value: float, text: str, x: Axis, y: Axis) -> list[alt.Chart]:
    """A labelled horizontal reference."""
    data = _data([{"x": x.low, "y": value, "text": text}])
    rule = alt.Chart(data).mark_rule(style="reference").encode(y.y())
    note = alt.Chart(data).mark_text(style="note", align="left", dx=6, dy=-7).encode(x.x(), y.y(), text="text:N")
    return [rule, note]


def _figure(key: str, title: str, caption: str, layers: Sequence[alt.Chart]) -> Figure:
    return Figure(key, title, caption, alt.layer(*layers).properties(width=620, height=360))


def _thinned(count: int) -> str:
    return f" {MAX_ROWS:,} of {count:,} points are drawn; the table holds all." if count > MAX_ROWS else ""


def _predicted(fit: Fit, symbols: dict[str, np.ndarray]) -> list[Row]:
    """`y` of a trusted fit, with its 95 % interval `low`, `high` where the fit carries bootstrap draws."""
    rows: list[Row] = [{"y": float(y)} for y in laws.predict(fit, symbols)]
    if fit.draws:
        for row, low, high in zip(rows, *laws.predict_interval(fit, symbols, 0.95), strict=True):
            row |= {"low": float(low), "high": float(high)}
    return rows


def _curve(fit: Fit, symbol: str, line: str) -> list[Row]:
    """A one-variable law over the span of its own data."""
    grid = np.geomspace(*fit.span[symbol], GRID)
    return [row | {"x": float(x), "line": line} for x, row in zip(grid, _predicted(fit, {symbol: grid}), strict=True)]


def _rows(v: StudyView, series: Series, t: PointTable, x: np.ndarray, y: np.ndarray) -> list[Row]:
    """Finite rows with what tooltips and lines need."""
    extra = {"n": t.n_total, "tokens": t.tokens, "flop": t.train_flop, "loss": t.loss_nat}
    return [
        {"x": float(x[i]), "y": float(y[i]), "series": series.of(v, t.rung[i]), "run": str(t.name[i])}
        | {"line": f"{v.name} {t.rung[i]}"}
        | {k: float(a[i]) for k, a in extra.items()}
        for i in np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    ]


TIPS = {"n": "N (total)", "tokens": "tokens", "flop": "FLOP", "loss": "loss (nat)"}


# --- figures ---------------------------------------------------------------------------------------------------------
def loss_compute(views: Sequence[StudyView]) -> Figure:
    """Loss against FLOP: all points, the frontier law, and the held-out rung predicted from the smaller ones."""
    series, dots, paths, held, law, levels = Series(views), [], [], [], [], {}
    for v in views:
        means = seed_means(v.table)
        dots += _rows(v, series, v.table, v.table.train_flop, v.table.loss_nat)
        paths += _rows(v, series, means, means.train_flop, means.loss_nat)
        if fit := v.trusted("loss_compute"):
            law += _curve(fit, "C", v.name)
        fit = v.trusted("loss_nd_heldout")
        if fit and fit.held_out:
            held += _held_out(v, series, fit.held_out)
        if v.oracle_nat is not None:
            levels[f"floor {v.oracle_nat:.3f} nat"] = v.oracle_nat
    x = axis(COMPUTE, (r["x"] for r in dots + law), power_labels=True)
    y = axis(LOSS, _spread(dots, law, held, levels))
    layers = [_lines(thin(paths), x, y, series, width=1, opacity=0.45), *_law(law, x, y)] if law else []
    layers = layers or [_lines(thin(paths), x, y, series, width=1, opacity=0.45)]
    layers.append(_marks(dots, x, y, series, TIPS))
    if held:
        base = alt.Chart(_data(held))
        layers.append(base.mark_rule(strokeWidth=2).encode(x.x(), y.y("low"), series.color(), y2="high:Q"))
        tooltip = [alt.Tooltip(f, type="quantitative", format=".5~g") for f in ("x", "y", "low", "high")]
        mark = base.mark_point(filled=False, size=150, strokeWidth=1.8, shape="diamond")
        layers.append(mark.encode(x.x(), y.y(), series.color(), tooltip=tooltip))
    for text, value in levels.items():
        layers += _level(value, text, x, y)
    caption = "Every annealed point; thin lines join the seed means of a rung."
    caption += " Dashed: the power law with floor fitted to the frontier, with its 95 % band." if law else ""
    caption += (
        " Hollow diamonds with 95 % bars: the largest rung, predicted by L(N, D) fitted without it; the filled marks of"
        " the same colour are what was measured."
        if held
        else ""
    )
    return _figure("loss_compute", "Loss against training compute", caption + _thinned(len(dots)), layers)


def _held_out(v: StudyView, series: Series, h: HeldOut) -> list[Row]:
    """One predicted mark per FLOP of the held-out rung; its rows stand in the order of the table."""
    target = v.table.where(v.table.rung == h.label)
    rows: dict[float, Row] = {}
    for i, flop in enumerate(target.train_flop[: len(h.predicted)]):
        row: Row = {"x": float(flop), "y": h.predicted[i], "series": series.of(v, h.label)}
        low, high = h.interval[i] if h.interval else (h.predicted[i], h.predicted[i])
        rows[float(flop)] = row | {"low": low, "high": high}
    return list(rows.values())


def _spread(*groups: Iterable[Row] | dict[str, float]) -> list[float]:
    """All y-like values of some rows and reference levels."""
    values: list[float] = []
    for group in groups:
        if isinstance(group, dict):
            values += group.values()
        else:
            values += [r[k] for r in group for k in ("y", "low", "high") if k in r]
    return values


def loss_tokens(views: Sequence[StudyView]) -> Figure:
    """Loss against tokens, per rung, with the fitted L(N, D)."""
    series, dots, fitted = Series(views), [], []
    for v in views:
        dots += _rows(v, series, v.table, v.table.tokens, v.table.loss_nat)
        if fit := v.trusted("loss_nd"):
            for rung in v.table.rungs():
                own = v.table.where(v.table.rung == rung)
                grid = np.geomspace(own.tokens.min(), own.tokens.max(), GRID // 2)
                values = laws.predict(fit, {"N": np.full_like(grid, own.n_total[0]), "D": grid})
                for d, loss in zip(grid, values, strict=True):
                    row = {"x": float(d), "y": float(loss), "series": series.of(v, rung), "line": f"{v.name} {rung}"}
                    fitted.append(row)
    x = axis("training tokens D", (r["x"] for r in dots))
    y = axis(LOSS, _spread(dots, fitted))
    layers = [_lines(fitted, x, y, series)] if fitted else []
    caption = "Points are measured. "
    caption += "Lines: one law L = E + A/N^α + B/D^β for all rungs together." if fitted else "No trusted fit to draw."
    return _figure(
        "loss_tokens",
        "Loss against tokens, per rung",
        caption + _thinned(len(dots)),
        [*layers, _marks(dots, x, y, series, TIPS)],
    )


def excess(views: Sequence[StudyView]) -> Figure:
    """Loss above the known floor against tokens per parameter, where the entropy of the corpus is known."""
    title = "Excess over the known floor"
    series, dots, paths = Series(views), [], []
    for v in views:
        for rows, t in ((dots, v.table), (paths, seed_means(v.table))):
            above = t.loss_nat - np.where(np.isfinite(t.oracle_nat), t.oracle_nat, v.floor.entropy_nat or np.nan)
            rows += _rows(v, series, t, t.tokens / t.n_total, np.where(above > 0, above, np.nan))
    if not dots:
        return Figure("excess", title, "", None, views[0].floor.reason or "no point lies above the floor")
    x = axis("tokens per parameter D/N (total)", (r["x"] for r in dots))
    y = axis("loss − floor (nat per token)", (r["y"] for r in dots))
    layers = [_lines(thin(paths), x, y, series, width=1, opacity=0.45), _marks(dots, x, y, series, TIPS)]
    caption = (
        "The best possible loss on the same validation tokens is subtracted. A straight line here is a power law; a "
        "curve that flattens has run out of parameters, not of tokens."
    )
    return _figure("excess", title, caption + _thinned(len(dots)), layers)


def residuals(views: Sequence[StudyView]) -> Figure:
    """Residuals of L(N, D) in per cent against tokens, with the seed noise where it is known."""
    title = "Residuals of L(N, D)"
    series, dots, bands = Series(views), [], []
    for v in views:
        if fit := v.trusted("loss_nd"):
            t = v.table
            model = np.asarray(laws.predict(fit, {"N": t.n_total, "D": t.tokens}), dtype=float)
            dots += _rows(v, series, t, t.tokens, 100 * (t.loss_nat / model - 1))
            if v.noise:
                bands.append(200 * v.noise.sd_ln)
    if not dots:
        return Figure("residuals", title, "", None, "no L(N, D) with a passed certificate")
    x = axis("training tokens D", (r["x"] for r in dots))
    y = axis("measured / fitted − 1 (%)", [r["y"] for r in dots] + [0.0] + bands + [-b for b in bands], log=False)
    layers = []
    for b in bands:
        rows = [{"x": e, "low": -b, "high": b} for e in (x.low, x.high)]
        layers.append(alt.Chart(_data(rows)).mark_area(style="band").encode(x.x(), y.y("low"), y2="high:Q"))
    layers.append(alt.Chart(_data([{"y": 0.0}])).mark_rule(style="reference").encode(y.y()))
    caption = (
        "A pattern (small rungs above, large ones below) would mean that the form is wrong, not that runs are noisy."
    )
    caption += (
        " Shaded: two standard deviations of the seed noise."
        if bands
        else " No rung was repeated with another seed, so noise is unknown."
    )
    return _figure("residuals", title, caption + _thinned(len(dots)), [*layers, _marks(dots, x, y, series, TIPS)])


def throughput(views: Sequence[StudyView]) -> Figure:
    """Tokens per second against N, at each run's largest budget."""
    rows = _per_run(views, "tokens_per_s")
    return _against_n(
        views, rows, "throughput", "Training speed", "tokens per second", "One mark per run, at its largest budget."
    )


def utilisation(views: Sequence[StudyView]) -> Figure:
    """Model FLOP utilisation against N."""
    rows = [r | {"y": 100 * r["y"]} for r in _per_run(views, "mfu")]
    if not rows:
        why = {p.mfu_reason for v in views for r in v.records for p in r.points if p.mfu is None and p.mfu_reason}
        return Figure("utilisation", "Model FLOP utilisation", "", None, "; ".join(sorted(why)) or "not recorded")
    caption = "Training FLOP (causal count) per second over the peak that the record names. One mark per run."
    return _against_n(views, rows, "utilisation", "Model FLOP utilisation", "MFU (%)", caption)


def _per_run(views: Sequence[StudyView], column: str) -> list[Row]:
    series, rows = Series(views), []
    for v in views:
        last: dict[str, int] = {}
        for i in np.argsort(v.table.tokens, kind="stable"):
            last[str(v.table.run_id[i])] = int(i)
        t = v.table.where(np.array(sorted(last.values()), dtype=int))
        rows += _rows(v, series, t, t.n_total, getattr(t, column))
    return rows


def _against_n(views: Sequence[StudyView], rows: list[Row], key: str, title: str, y_title: str, caption: str) -> Figure:
    x = axis("parameters N (total)", (r["x"] for r in rows))
    y = axis(y_title, (r["y"] for r in rows))
    return _figure(key, title, caption + _thinned(len(rows)), [_marks(rows, x, y, Series(views), TIPS)])


def energy_compute(views: Sequence[StudyView]) -> Figure:
    """Joules against FLOP with the fitted power law."""
    return _energy(
        views, "energy_compute", "Training energy against compute", COMPUTE, "energy of the point, gross (J)", "C",
        lambda t: (t.train_flop, t.energy_j), True,
    )  # fmt: skip


def loss_energy(views: Sequence[StudyView]) -> Figure:
    """Loss against joules with the law of its frontier."""
    return _energy(
        views, "loss_energy", "Loss against energy", "energy of the point, gross (J)", LOSS, "J",
        lambda t: (t.energy_j, t.loss_nat), False,
    )  # fmt: skip


def _energy(
    views: Sequence[StudyView],
    name: str,
    title: str,
    x_title: str,
    y_title: str,
    symbol: str,
    pick: Callable[[PointTable], tuple[np.ndarray, np.ndarray]],
    power_labels: bool,
) -> Figure:
    series, dots, law = Series(views), [], []
    for v in views:
        dots += _rows(v, series, v.table, *pick(v.table))
        if fit := v.trusted(name):
            law += _curve(fit, symbol, v.name)
    if not dots:
        return Figure(name, title, "", None, views[0].unfitted.get(name, "no joules were measured"))
    x = axis(x_title, (r["x"] for r in dots + law), power_labels=power_labels)
    y = axis(y_title, _spread(dots, law))
    caption = "Joules that a run of its own would have cost, as measured."
    caption += " Dashed: the fitted law, with its 95 % band." if law else " No trusted law to draw."
    layers = _law(law, x, y) if law else []
    return _figure(name, title, caption + _thinned(len(dots)), [*layers, _marks(dots, x, y, series, TIPS)])


def rates(views: Sequence[StudyView]) -> Figure:
    """Learning-rate check: loss under scaled rates relative to the rule's own."""
    title = "Learning-rate check"
    series, rows = Series(views), []
    for v in views:
        for c in v.rates:
            line = f"{v.name} {c.rung} {c.seed}"
            for scale, relative in c.relative.items():
                row = {"x": scale, "y": 100 * relative, "series": series.of(v, c.rung), "line": line}
                rows.append(row | {"run": f"seed {c.seed}, {c.tokens:,} tokens"})
    if not rows:
        return Figure("rates", title, "", None, "no probe runs with optim.lr_scale other than 1")
    x = axis("learning rate, multiple of the rule", (r["x"] for r in rows))
    y = axis("loss, change from the rule's rate (%)", [r["y"] for r in rows] + [0.0], log=False)
    layers = [_lines(rows, x, y, series), _marks(rows, x, y, series, {"y": "change (%)"})]
    return _figure("rates", title, "A rung whose best rate lies at an edge of the sweep was not tuned.", layers)


def figures(views: Sequence[StudyView]) -> list[Figure]:
    """All figures in reading order; a figure without data carries its reason."""
    with_points = [v for v in views if len(v.table)]
    builders = (
        loss_compute,
        loss_tokens,
        excess,
        residuals,
        throughput,
        utilisation,
        energy_compute,
        loss_energy,
        rates,
    )
    if not with_points:
        return [Figure(b.__name__, b.__name__.replace("_", " "), "", None, "no point to draw") for b in builders]
    return [b(with_points) for b in builders]
