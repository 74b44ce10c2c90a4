"""The figures of a report: functions from views to `Figure`s; `page` renders them.

One study is coloured by rung, several by study. Points are thinned evenly above `layers.MAX_ROWS`,
and the caption says so; the full table is exported as parquet. Laws are drawn inside the span of
their own data, and never without a certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness import laws
from harness.analysis.points import PointTable, seed_means
from harness.laws.result import Fit, HeldOut
from harness.report.axes import axis
from harness.report.layers import (
    Figure,
    Grouping,
    Layer,
    Row,
    band,
    figure,
    law,
    level,
    lines,
    marks,
    predictions,
    rows_of,
    thinned,
)
from harness.report.palette import y_values
from harness.report.view import StudyView

GRID = 60  # points of a drawn law
COMPUTE = "training compute, causal count (FLOP)"
LOSS = "validation loss (nat per token)"
JOULES = "energy of the point, gross (J)"


def loss_compute(views: Sequence[StudyView]) -> Figure:
    """Loss against FLOP: all points, the law of the frontier, and the predicted held-out rung."""
    grouping, dots, paths, predicted, curve, levels = Grouping(views), [], [], [], [], {}
    for view in views:
        means = seed_means(view.table)
        dots += rows_of(grouping, view, view.table, view.table.train_flop, view.table.loss_nat)
        paths += rows_of(grouping, view, means, means.train_flop, means.loss_nat)
        if fit := view.trusted("loss_compute"):
            curve += _curve(fit, "C", view.name)
        fit = view.trusted("loss_nd_heldout")
        if fit and fit.held_out:
            predicted += _held_out(view, grouping, fit.held_out)
        if view.oracle_nat:  # a log axis has no 0
            levels[f"floor {view.oracle_nat:.3f} nat"] = view.oracle_nat
    x = axis(COMPUTE, (r["x"] for r in dots + curve), power_labels=True)
    y = axis(LOSS, [*y_values(dots, curve, predicted), *levels.values()])
    parts = [lines(paths, x, y, grouping, thin=True), *law(curve, x, y), marks(dots, x, y, grouping)]
    caption = "Every annealed point; thin lines join the seed means of a rung."
    if curve:
        caption += " Dashed: the power law with floor fitted to the frontier, with its 95 % band."
    if predicted:
        parts += predictions(predicted, x, y, grouping)
        caption += (
            " Hollow diamonds with 95 % bars: the largest rung, predicted by L(N, D) fitted without it; the filled marks"
            " of the same colour are measured."
        )
    for text, value in levels.items():
        parts += level(value, text, x, y)
    return figure("loss_compute", "Loss against training compute", caption + thinned(views), parts)


def _curve(fit: Fit, symbol: str, line: str) -> list[Row]:
    """A law of one variable over the span of its data, with its interval if the fit has draws."""
    low, high = fit.span[symbol]
    grid = {symbol: np.geomspace(low, high, GRID)}
    y = laws.predict(fit, grid)
    rows: list[Row] = [{"x": a, "y": b, "line": line} for a, b in zip(grid[symbol].tolist(), y.tolist(), strict=True)]
    if fit.draws:
        for row, bottom, top in zip(rows, *laws.predict_interval(fit, grid, 0.95), strict=True):
            row |= {"low": float(bottom), "high": float(top)}
    return rows


def _held_out(view: StudyView, grouping: Grouping, held_out: HeldOut) -> list[Row]:
    """One predicted mark per FLOP of the held-out rung; `h` has the order of the table."""
    target = view.table.where(view.table.rung == held_out.label)
    rows: dict[float, Row] = {}
    for i, flop in enumerate(target.train_flop[: len(held_out.predicted)]):
        row: Row = {"x": float(flop), "y": held_out.predicted[i], "series": grouping.name_of(view, held_out.label)}
        low, high = held_out.interval[i] if held_out.interval else (held_out.predicted[i], held_out.predicted[i])
        rows[float(flop)] = row | {"low": low, "high": high}
    return list(rows.values())


def loss_tokens(views: Sequence[StudyView]) -> Figure:
    """Loss against tokens, per rung, with the fitted L(N, D)."""
    grouping, dots, fitted = Grouping(views), [], []
    for view in views:
        dots += rows_of(grouping, view, view.table, view.table.tokens, view.table.loss_nat)
        fit = view.trusted("loss_nd")
        if fit is None:
            continue
        for rung in view.table.rungs():
            points = view.table.where(view.table.rung == rung)
            grid = np.geomspace(points.tokens.min(), points.tokens.max(), GRID // 2)
            values = laws.predict(fit, {"N": np.full_like(grid, points.n_total[0]), "D": grid})
            same = {"series": grouping.name_of(view, rung), "line": f"{view.name} {rung}"}
            fitted += [{"x": a, "y": b} | same for a, b in zip(grid.tolist(), values.tolist(), strict=True)]
    x = axis("training tokens D", (r["x"] for r in dots + fitted))
    y = axis(LOSS, y_values(dots, fitted))
    parts = [lines(fitted, x, y, grouping)] if fitted else []
    caption = "Points are measured. "
    caption += "Lines: one law L = E + A/N^α + B/D^β for all rungs together." if fitted else "No trusted fit to draw."
    title = "Loss against tokens, per rung"
    return figure("loss_tokens", title, caption + thinned(views), [*parts, marks(dots, x, y, grouping)])


def excess(views: Sequence[StudyView]) -> Figure:
    """Loss above the floor against tokens per parameter, if the corpus has a known entropy."""
    title = "Excess over the known floor"
    grouping, dots, paths = Grouping(views), [], []
    for view in views:
        for rows, table in ((dots, view.table), (paths, seed_means(view.table))):
            floor = np.where(np.isfinite(table.oracle_nat), table.oracle_nat, view.floor.entropy_nat or np.nan)
            above = np.where(table.loss_nat > floor, table.loss_nat - floor, np.nan)
            rows += rows_of(grouping, view, table, table.tokens / table.n_total, above)
    if not dots:
        return Figure("excess", title, "", None, views[0].floor.reason or "no point lies above the floor")
    x = axis("tokens per parameter D/N (total)", (r["x"] for r in dots + paths))
    y = axis("loss − floor (nat per token)", y_values(dots, paths))
    caption = (
        "The best possible loss on the same validation tokens is subtracted. A straight line here is a power law; a "
        "curve that flattens has run out of parameters, not of tokens."
    )
    parts = [lines(paths, x, y, grouping, thin=True), marks(dots, x, y, grouping)]
    return figure("excess", title, caption + thinned(views), parts)


def residuals(views: Sequence[StudyView]) -> Figure:
    """Residuals of L(N, D) in per cent against tokens, with the seed noise where it is known."""
    title = "Residuals of L(N, D)"
    grouping, dots, noise = Grouping(views), [], []
    for view in views:
        if fit := view.trusted("loss_nd"):
            table = view.table
            model = laws.predict(fit, {"N": table.n_total, "D": table.tokens})
            dots += rows_of(grouping, view, table, table.tokens, 100 * (table.loss_nat / model - 1))
            noise += [200 * view.noise.sd_ln] if view.noise else []
    if not dots:
        return Figure("residuals", title, "", None, "no L(N, D) with a passed certificate")
    x = axis("training tokens D", (r["x"] for r in dots))
    y = axis("measured / fitted − 1 (%)", [*y_values(dots), 0.0, *noise, *(-b for b in noise)], log=False)
    parts: list[Layer] = []
    for b in noise:
        parts.append(band([{"x": e, "low": -b, "high": b, "line": "noise"} for e in (x.low, x.high)], x, y))
    parts += [*level(0.0, "", x, y), marks(dots, x, y, grouping)]
    caption = (
        "A pattern (small rungs above, large ones below) would mean that the form is wrong, not that runs are noisy."
    )
    caption += " Shaded: two standard deviations of the seed noise." if noise else " The seed noise is unknown."
    return figure("residuals", title, caption + thinned(views), parts)


def throughput(views: Sequence[StudyView]) -> Figure:
    """Tokens per second against N, at each run's largest budget."""
    rows = _per_run(views, "tokens_per_s")
    caption = "One mark per run, at its largest budget."
    return _against_n(views, rows, "throughput", "Training speed", "tokens per second", caption)


def utilisation(views: Sequence[StudyView]) -> Figure:
    """Model FLOP utilisation against N."""
    rows = [r | {"y": 100 * r["y"]} for r in _per_run(views, "mfu")]
    if not rows:
        reasons = {
            p.mfu_reason
            for view in views
            for record in view.records
            for p in record.points
            if p.mfu is None and p.mfu_reason
        }
        reason = "; ".join(sorted(reasons)) or "not recorded"
        return Figure("utilisation", "Model FLOP utilisation", "", None, reason)
    caption = "Training FLOP (causal count) per second over the peak that the record names. One mark per run."
    return _against_n(views, rows, "utilisation", "Model FLOP utilisation", "MFU (%)", caption)


def _per_run(views: Sequence[StudyView], column: str) -> list[Row]:
    grouping, rows = Grouping(views), []
    for view in views:
        by_tokens = np.argsort(view.table.tokens, kind="stable")
        # Its largest budget
        last = dict(zip(view.table.run_id[by_tokens].tolist(), by_tokens.tolist(), strict=True))
        table = view.table.where(np.array(sorted(last.values()), dtype=int))
        rows += rows_of(grouping, view, table, table.n_total, getattr(table, column))
    return rows


def _against_n(views: Sequence[StudyView], rows: list[Row], key: str, title: str, y_title: str, caption: str) -> Figure:
    x = axis("parameters N (total)", (r["x"] for r in rows))
    y = axis(y_title, (r["y"] for r in rows))
    return figure(key, title, caption, [marks(rows, x, y, Grouping(views))])


def energy_compute(views: Sequence[StudyView]) -> Figure:
    """Joules against FLOP with the fitted power law."""
    title = "Training energy against compute"
    return _energy(views, "energy_compute", title, COMPUTE, JOULES, "C", lambda t: (t.train_flop, t.energy_j))


def loss_energy(views: Sequence[StudyView]) -> Figure:
    """Loss against joules with the law of its frontier."""
    title = "Loss against energy"
    return _energy(views, "loss_energy", title, JOULES, LOSS, "J", lambda t: (t.energy_j, t.loss_nat))


def _energy(
    views: Sequence[StudyView],
    name: str,
    title: str,
    x_title: str,
    y_title: str,
    symbol: str,
    pick: Callable[[PointTable], tuple[np.ndarray, np.ndarray]],
) -> Figure:
    grouping, dots, curve = Grouping(views), [], []
    for view in views:
        dots += rows_of(grouping, view, view.table, *pick(view.table))
        if fit := view.trusted(name):
            curve += _curve(fit, symbol, view.name)
    if not dots:
        return Figure(name, title, "", None, views[0].unfitted.get(name, "no joules were measured"))
    x = axis(x_title, (r["x"] for r in dots + curve), power_labels=symbol == "C")
    y = axis(y_title, y_values(dots, curve))
    caption = "Measured joules, as if each point were a run of its own."
    caption += " Dashed: the fitted law, with its 95 % band." if curve else " No trusted law to draw."
    return figure(name, title, caption + thinned(views), [*law(curve, x, y), marks(dots, x, y, grouping)])


def rates(views: Sequence[StudyView]) -> Figure:
    """Learning-rate check: loss at scaled rates, relative to that at the rule's rate."""
    title = "Learning-rate check"
    grouping, rows = Grouping(views), []
    for view in views:
        for c in view.rates:
            same = {"series": grouping.name_of(view, c.rung), "line": f"{view.name} {c.rung} {c.seed}"}
            same["run"] = f"seed {c.seed}, {c.tokens:,} tokens"
            rows += [{"x": scale, "y": 100 * relative} | same for scale, relative in c.relative.items()]
    if not rows:
        return Figure("rates", title, "", None, "no probe runs with optim.lr_scale other than 1")
    x = axis("learning rate, multiple of the rule", (r["x"] for r in rows))
    y = axis("loss, change from the rule's rate (%)", [*y_values(rows), 0.0], log=False)
    parts = [lines(rows, x, y, grouping), marks(rows, x, y, grouping, {"y": "change (%)"})]
    return figure("rates", title, "A rung whose best rate lies at an edge of the sweep was not tuned.", parts)


@dataclass(frozen=True)
class Builder:
    """A figure of the report: the key that names its files, and the function that makes it."""

    key: str
    build: Callable[[Sequence[StudyView]], Figure]
    of_loss: bool = False  # whether it draws losses, which are comparable on one corpus only


BUILDERS = (  # in reading order
    Builder("loss_compute", loss_compute, of_loss=True),
    Builder("loss_tokens", loss_tokens, of_loss=True),
    Builder("excess", excess, of_loss=True),
    Builder("residuals", residuals, of_loss=True),
    Builder("throughput", throughput),
    Builder("utilisation", utilisation),
    Builder("energy_compute", energy_compute),
    Builder("loss_energy", loss_energy, of_loss=True),
    Builder("rates", rates, of_loss=True),
)


def figures(views: Sequence[StudyView]) -> list[Figure]:
    """All figures in reading order; a figure without data carries its reason."""
    with_points = [view for view in views if len(view.table)]
    if not with_points:
        return [Figure(b.key, b.key.replace("_", " "), "", None, "no point to draw") for b in BUILDERS]
    mixed = any(len({record.corpus.get("corpus_id") for record in view.records}) > 1 for view in with_points)
    reason = "the study holds several corpora, whose losses are on different scales"
    figures = [(b, b.build(with_points)) for b in BUILDERS]
    return [replace(f, spec=None, reason=reason) if mixed and b.of_loss and f.spec else f for b, f in figures]
