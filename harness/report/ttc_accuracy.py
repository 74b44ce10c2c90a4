"""Figures and the table of test-time compute, from evaluations alone."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from harness.analysis.ttc import curves as ttc_curves
from harness.analysis.ttc import emergence
from harness.records.ttc import TtcRecord, TtcRow
from harness.report.axes import Axis, axis
from harness.report.layers import Figure, Layer, Row, band, figure
from harness.report.palette import Palette
from harness.report.sentences import number
from harness.report.tables import PageTable

AXES = {
    "test_flop": "test compute per problem, causal count (FLOP)",
    "tokens": "generated tokens per problem",
    "wall_s": "seconds per problem",
    "energy_j": "joules per problem, gross (J)",
}


# Strategies that need no answer, or only a verifier of steps; more marks would hide one another
STRATEGIES = ("greedy", "majority", "best_steps", "step_search")


def _marks(rows: Sequence[Row], x: Axis, y: Axis) -> Layer:
    return Palette(list(dict.fromkeys(r["series"] for r in rows))).marks(rows, x, y, size=40)


def against(records: Sequence[TtcRecord], cost: str) -> Figure:
    """Accuracy of the cells of the largest model against one cost, with their Pareto front."""
    key, title = f"ttc_accuracy_{cost}", f"Accuracy against {AXES[cost].split(' per')[0]}"
    thinking = [record for record in records if record.task.get("arm", "cot") == "cot"] or records
    size = max(record.n_total for record in thinking)
    pairs = [
        (record, row)
        for record in thinking
        if record.n_total == size
        for row in record.rows
        if row.strategy in STRATEGIES
    ]

    def rows_of(pairs: Sequence[tuple[TtcRecord, TtcRow]]) -> list[Row]:
        return [
            {"x": c, "y": row.accuracy, "series": row.strategy.replace("_", " "), "tip": f"{ttc_curves.cell_name(r)}, n = {row.n}", "line": "front"}
            for r, row in pairs
            if row.accuracy is not None and (c := ttc_curves.cost(row, cost))
        ]  # fmt: skip

    dots = rows_of(pairs)
    if not dots:
        reasons = {row.energy_reason for _, row in pairs if row.energy_reason} if cost == "energy_j" else set()
        return Figure(key, title, "", None, "; ".join(sorted(reasons)) or f"{cost} was not measured")
    front = rows_of(ttc_curves.pareto(pairs, cost))
    x = axis(AXES[cost], (r["x"] for r in dots), power_labels=cost == "test_flop")
    y = axis("accuracy", (r["y"] for r in dots), log=False)
    step = alt.Chart().mark_line(style="law", interpolate="step-after")
    order = alt.Order("x", type="quantitative")
    caption = (
        f"Cells of every end point of the largest model (N = {size:,}), without formats whose vocabulary gives another N; dashed: their "
        "Pareto front. Costs include wrong answers. "
        "The table below has all sizes and strategies at the end of training."
    )
    if cost in ("wall_s", "energy_j"):
        caption += " Metered at a few n, modelled from these at the others; the table marks which."
    return figure(key, title, caption, [Layer(front, step.encode(x.x(), y.y(), order=order)), _marks(dots, x, y)])


def emergence_pair(records: Sequence[TtcRecord]) -> Figure:
    """Exact match, its null and the token probability of the same problems, by training FLOP."""
    key, title = "ttc_emergence", "Exact match beside the probability of the right token"
    points = [
        (record, p)
        for record in records
        if record.task.get("arm", "cot") == "cot" and (p := emergence.point(record)) is not None and p.train_flop
    ]
    if not points:
        return Figure(
            key, title, "", None, "no evaluation has likelihoods of a reference trace and its training compute"
        )
    # The longest trace
    label = max(points, key=lambda q: q[0].smooth.trace_tokens if q[0].smooth else 0.0)[0].label
    size = max(r.n_total for r, _ in points if r.label == label)
    audited = sorted((p for r, p in points if r.label == label and r.n_total == size), key=lambda p: p.train_flop or 0)
    dots, null = [], []
    for p in audited:
        shared = {"x": p.train_flop, "tip": p.cell}
        dots += [
            shared | {"y": p.exact_match, "series": "exact match"},
            shared | {"y": p.p_token, "series": "p of the right token"},
        ]
    for flop in dict.fromkeys(
        p.train_flop for p in audited
    ):  # seeds of one budget: the mean of their nulls, all of their bands
        seeds = [p for p in audited if p.train_flop == flop]
        interval = {"low": min(p.null_low for p in seeds), "high": max(p.null_high for p in seeds)}
        null.append({"x": flop, "y": sum(p.null for p in seeds) / len(seeds), **interval, "line": "null"})
    x = axis("training compute, causal count (FLOP)", (r["x"] for r in dots), power_labels=True)
    y = axis("share of 1", [*(r["y"] for r in dots), *(r[k] for r in null for k in ("low", "high"))], log=False)
    line = alt.Chart().mark_line(style="law").encode(x.x(), y.y(), order=alt.Order("x", type="quantitative"))
    caption = f"Control: {label}; N = {size:,}. Dashed with band: exact match with independent tokens, c + (1 − c) p^T."
    return figure(key, title, caption, [band(null, x, y), Layer(null, line), _marks(dots, x, y)])


def forcing(records: Sequence[TtcRecord]) -> list[Figure]:
    """Silent depth S(r), and greedy accuracy against mean tokens, of forced lengths of thought.

    Both at the last end point of each size.
    """
    keys = (
        ("ttc_silent_depth", "Silent depth: accuracy with r products still to do"),
        ("ttc_budget", "Accuracy at forced lengths of thought"),
    )
    last: dict[int, int] = {}
    for record in records:
        if record.control.get("max_states") is not None:
            last[record.n_total] = max(last.get(record.n_total, 0), record.tokens or 0)
    if not last:
        return [Figure(k, t, "", None, "no length of thought was forced (ttc.max_states)") for k, t in keys]
    depth_rows, accuracy_rows = [], []
    for n, tokens in sorted(last.items()):
        cells = [
            record
            for record in records
            if record.n_total == n and (record.tokens or 0) == tokens and record.control.get("max_states") is not None
        ]
        name = f"width {cells[0].width}" if cells[0].width else f"N {n:,}"
        for k, (value, count) in ttc_curves.silent_depth(cells).items():
            depth_rows.append({"x": k, "y": value, "series": name, "tip": f"{count} problems"})
        for record in cells:
            for x in record.rows:
                if x.strategy == "greedy" and x.accuracy is not None:
                    accuracy_rows.append(
                        {"x": x.tokens, "y": x.accuracy, "series": name, "tip": ttc_curves.cell_name(record)}
                    )
    captions = (
        "Greedy, pooled over forced lengths and seeds; last end point of each size.",
        "Tokens that were generated, forced ones included. The shape of the line is that of the problems' sizes, not of the model.",
    )
    titles = "products still to do r", "mean generated tokens per problem"
    out = []
    for (key, title), rows, caption, x_title in zip(keys, (depth_rows, accuracy_rows), captions, titles, strict=True):
        if not rows:
            out.append(
                Figure(
                    key, title, "", None, "no forced length of the group task, the only one with products left to do"
                )
            )
            continue
        x = axis(x_title, (r["x"] for r in rows), log=False)
        y = axis("greedy accuracy", (r["y"] for r in rows), log=False)
        out.append(figure(key, title, caption, [_marks(rows, x, y)]))
    return out


def figures(records: Sequence[TtcRecord]) -> list[Figure]:
    return [*(against(records, c) for c in AXES), emergence_pair(records), *forcing(records)] if records else []


def cells(records: Sequence[TtcRecord]) -> PageTable:
    """A row per cell, strategy and n at the last end point of each run.

    Costs say metered or modelled.
    """
    head = [
        "cell",
        "strategy",
        "n",
        "accuracy",
        "95 %",
        "tokens",
        "prefill FLOP",
        "decode FLOP",
        "verify FLOP",
        "seconds",
        "joules",
    ]
    out = []
    for record in ttc_curves.last_end_points(records):
        for x in record.rows:
            interval = "–" if x.accuracy_low is None else f"[{number(x.accuracy_low)}, {number(x.accuracy_high)}]"
            flop = [number(v) for v in (x.prefill_flop, x.decode_flop, x.verify_flop)]
            wall, joules = (
                number(v) + (f" {b}" if b else "") for v, b in ((x.wall_s, x.wall_basis), (x.energy_j, x.energy_basis))
            )
            out.append(
                [
                    ttc_curves.cell_name(record),
                    x.strategy,
                    str(x.n),
                    number(x.accuracy),
                    interval,
                    number(x.tokens),
                    *flop,
                    wall,
                    joules,
                ]
            )
    return PageTable(
        "Test-time compute, per problem",
        head,
        out,
        "Last end point of each run; the others are in their records. Useful FLOP, causal count; intervals resample clusters of problems.",
    )
