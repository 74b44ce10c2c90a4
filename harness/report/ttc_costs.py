"""Figures of costs at test time: votes, exchange, break-even, cost per correct answer.

A figure whose data is missing carries the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from harness.analysis.ttc import curves as ttc_curves
from harness.analysis.ttc import votes
from harness.analysis.ttc.break_even import BreakEvenAnswer
from harness.analysis.ttc.exchange_rate import Exchange
from harness.records.ttc import TtcRecord, TtcRow
from harness.report.axes import axis
from harness.report.layers import Figure, Layer, Row, figure, level
from harness.report.palette import Palette, y_values
from harness.report.sentences import number
from harness.report.ttc_accuracy import AXES

PER_CORRECT = {"wall_s": "seconds per correct answer (s)", "energy_j": "joules per correct answer, gross (J)"}
TEST = {
    "decode": "test compute of one sample, decode alone (FLOP)",
    "prefill+decode": "test compute of one sample, prefill + decode (FLOP)",
    "joules": "energy of one sample at test, gross (J)",
}


def serial_parallel(records: Sequence[TtcRecord], cost: str) -> Figure:
    """Greedy answers after longer thought, and votes over shorter thoughts, by one cost."""
    key, title = f"ttc_serial_parallel_{cost}", f"Longer thought against votes, by {AXES[cost].split(' per')[0]}"
    groups = [c for c in votes.longest(records) if len(c) > 1 and c[0].task.get("arm", "cot") == "cot"]
    if not groups:
        return Figure(key, title, "", None, "no end point was evaluated under several controls")
    cells = max(groups, key=lambda c: (len(c), c[0].n_total))
    serial: list[Row] = []
    for record in cells:
        if (row := votes.greedy(record)) and (spent := ttc_curves.cost(row, cost)):
            serial.append(_point(row, spent, "one answer, longer thought", record.label))
    if not serial:
        reasons = (
            {x.energy_reason for record in cells for x in record.rows if x.energy_reason}
            if cost == "energy_j"
            else set()
        )
        return Figure(key, title, "", None, "; ".join(sorted(reasons)) or f"{cost} was not measured")
    voted: list[Row] = []
    indices = sorted({round(i) for i in np.linspace(0, len(cells) - 1, min(4, len(cells)))})
    for i in indices:
        for row in votes.votes(cells[i]):
            if spent := ttc_curves.cost(row, cost):
                voted.append(_point(row, spent, f"votes, {cells[i].label}", f"n = {row.n}"))
    palette = Palette([serial[0]["series"], *dict.fromkeys(r["series"] for r in voted)])
    x = axis(AXES[cost], (r["x"] for r in serial + voted), power_labels=cost == "test_flop")
    y = axis("accuracy (share of problems)", y_values(serial, voted), log=False)
    gains = votes.compare(cells, cost)
    wins = sum(e.gain.low is not None and e.gain.low > 0 for e in gains)
    losses = sum(e.gain.high is not None and e.gain.high < 0 for e in gains)
    caption = (
        f"{cells[0].name} {cells[0].branch}, T={cells[0].temperature:g}; votes over 1, 2, 4 … samples side by side; bars: 95 %. Against the best "
        f"single answer that costs no more, {wins} of {len(gains)} votes win and {losses} lose (95 %, paired by problem). Costs include wrong answers."
    )
    if cost in ("wall_s", "energy_j"):
        caption += (
            " Metered at a few n, modelled from these at the others; the bars exclude the scatter of the windows."
        )
    rows = serial + voted
    return figure(key, title, caption, [palette.lines(rows, x, y), palette.bars(rows, x, y), palette.marks(rows, x, y)])


def _point(row: TtcRow, spent: float, series: str, tip: str) -> Row:
    out = {"x": spent, "y": row.accuracy, "series": series, "line": series, "tip": tip}
    return out if row.accuracy_low is None else out | {"low": row.accuracy_low, "high": row.accuracy_high}


def exchanges(rates: Sequence[Exchange]) -> list[Figure]:
    """Settings of equal accuracy, training cost against test cost.

    A figure per basis and format.
    """
    out = []
    for rate in rates:
        key = f"ttc_exchange_{rate.basis}_{rate.of}".replace(" ", "_").replace("+", "_")
        title = f"Training for test compute, {rate.of}, {rate.basis}"
        if rate.g is None or not rate.points:
            out.append(Figure(key, title, "", None, rate.reason or "no rate"))
            continue
        palette = Palette([f"{a:g}" for a in sorted({p.accuracy for p in rate.points})], ordered=True, title="accuracy")
        shapes = Palette(list(dict.fromkeys(p.family for p in rate.points)), field="size", title="size and format")
        rows = [
            {"x": p.train, "y": p.test, "series": f"{p.accuracy:g}", "size": p.family, "line": f"{p.family} {p.accuracy}", "tip": p.line}
            for p in rate.points
        ]  # fmt: skip
        power = rate.basis != "joules"
        x = axis(
            f"training {'compute, causal count (FLOP)' if power else 'energy, gross (J)'}",
            (r["x"] for r in rows),
            power_labels=power,
        )
        y = axis(TEST[rate.basis], (r["y"] for r in rows), power_labels=power)
        interval = "without an interval" if rate.low is None else f"95 % [{number(rate.low)}, {number(rate.high)}]"
        caption = (
            f"A line joins the controls of one size that reach one accuracy (colours) of a single sample. Test cost falls as training cost to the "
            f"−g, g = {number(rate.g)}, {interval}. Interpolated between end points, never extrapolated; verification costs nothing and is not included."
        )
        caption += f" {rate.note[0].upper()}{rate.note[1:]}." if rate.note else ""
        out.append(figure(key, title, caption, [palette.lines(rows, x, y), palette.marks(rows, x, y, shapes=shapes)]))
    return out


def break_even(answers: Sequence[BreakEvenAnswer]) -> Figure:
    """Lifetime cost of the setting cheapest to ask over that cheapest to train, against queries."""
    key, title = "ttc_break_even", "Break-even: queries from which costlier training pays"
    crossed = [answer for answer in answers if answer.result.queries is not None and answer.train and answer.query]
    absent: dict[str, list[str]] = {}
    for answer in answers:
        if answer.result.queries is None:
            absent.setdefault(
                f"{answer.result.dominating + ': ' if answer.result.dominating else ''}{answer.result.reason}", []
            ).append(_name(answer))
    without = "; ".join(f"{' and '.join(names)}: {reason}" for reason, names in absent.items())
    if not crossed:
        return Figure(key, title, "", None, without or "no setting to compare")
    palette = Palette([_name(answer) for answer in crossed])
    queries = [v for answer in crossed for v in (answer.result.queries, answer.result.low, answer.result.high) if v]
    grid = np.geomspace(min(queries) / 30, max(queries) * 30, 90)
    rows: list[Row] = []
    crossings: list[Row] = []
    sentences = []
    for answer in crossed:
        (ta, tb), (qa, qb), q = answer.train or [], answer.query or [], answer.result
        shared = {
            "series": _name(answer),
            "line": _name(answer),
            "tip": f"{answer.cheap_to_ask} against {answer.cheap_to_train}",
        }
        rows += [{"x": n, "y": (tb + n * qb) / (ta + n * qa)} | shared for n in grid.tolist()]
        span = {} if q.low is None else {"left": q.low or float(grid[0]), "right": q.high or float(grid[-1])}
        crossings.append({"x": q.queries, "y": 1.0} | shared | span)
        interval = (
            [] if q.low is None else [f"95 % [{number(q.low)}, {'unbounded' if q.high is None else number(q.high)}]"]
        )
        sentences.append(
            f"{_name(answer)}: {answer.cheap_to_ask} against {answer.cheap_to_train} from {', '.join([f'{number(q.queries)} queries', *interval, q.note])}"
        )
    x = axis("queries over the lifetime", grid.tolist(), power_labels=True)
    y = axis("lifetime cost, cheapest to ask / cheapest to train", y_values(rows, crossings))
    bar = alt.Chart().mark_rule(strokeWidth=4, opacity=0.6).encode(x.x("left"), y.y(), palette.color(), x2="right:Q")
    # Intervals are drawn below one another; at 1 they would hide each other
    step = (y.high / y.low) ** 0.02
    wide = [r | {"y": step ** ((len(crossings) - 1) / 2 - i)} for i, r in enumerate(crossings) if "left" in r]
    spans = [Layer(wide, bar)] if wide else []
    caption = (
        f"Training plus queries, at greedy accuracy {crossed[0].accuracy:g}; below 1 the costlier training has paid. "
        f"Bars, set apart: 95 % of the break-even; one that runs to the end is unbounded. "
        f"{'; '.join(sentences)}. Costs are taken as exact; evaluation and failed runs are excluded."
    )
    caption += f" None for {without}." if without else ""
    parts = [*level(1.0, "", x, y), palette.lines(rows, x, y), *spans, palette.marks(crossings, x, y, size=36)]
    return figure(key, title, caption, parts)


def _name(answer: BreakEvenAnswer) -> str:
    return f"{answer.task}, {answer.unit}"


def per_correct(records: Sequence[TtcRecord], cost: str) -> Figure:
    """Seconds or joules per correct answer against tokens, of greedy answers and votes.

    The costs include those of wrong answers.
    """
    unit = "seconds" if cost == "wall_s" else "joules"
    key, title = f"ttc_per_correct_{cost}", f"{unit.capitalize()} per correct answer"
    rows: list[Row] = []
    reasons: set[str] = set()
    none_right = 0
    for record in (cell for cells in votes.longest(records) for cell in cells):
        answers = [x for x in (votes.greedy(record), *votes.votes(record)) if x is not None and x.strategy != "sample"]
        for x in answers:
            e = ttc_curves.per_correct(record, x, cost, draws=400)
            if e.value is None:
                none_right += x.accuracy == 0
                reasons |= {e.reason or "not measured"}
                continue
            row = {"x": x.tokens, "y": e.value, "series": votes.setup(record), "strategy": x.strategy}
            row |= {
                "line": f"{ttc_curves.cell_name(record)} {x.strategy}",
                "tip": f"{ttc_curves.cell_name(record)}, n = {x.n}",
            }
            rows.append(row if e.low is None else row | {"low": e.low, "high": e.high})
    if not rows:
        return Figure(key, title, "", None, "; ".join(sorted(reasons)) or "no greedy answer and no vote")
    palette = Palette(sorted({r["series"] for r in rows}))
    shapes = Palette(sorted({r["strategy"] for r in rows}), field="strategy")
    x = axis(AXES["tokens"], (r["x"] for r in rows))
    y = axis(PER_CORRECT[cost], [v for v in y_values(rows) if v is not None])
    rows = [r | {"high": y.high} if "low" in r and r["high"] is None else r for r in rows]
    caption = (
        f"All {unit} of a cell over its right answers; the most training of the largest size of each task and format. Thin lines join votes over more and "
        "more samples, side by side. Bars: 95 % of the accuracy; one that runs to the top has no upper end. The cost per query is taken as exact, metered at "
        "a few n and modelled at the others."
    )
    caption += f" Left out: {none_right} cells without a right answer." if none_right else ""
    majorities = [r for r in rows if r["strategy"] == "majority"]
    parts = [palette.lines(majorities, x, y, thin=True)] if majorities else []
    return figure(key, title, caption, [*parts, palette.bars(rows, x, y), palette.marks(rows, x, y, shapes=shapes)])
