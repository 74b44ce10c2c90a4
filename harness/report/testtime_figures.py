"""Figures of what was fitted to a study's evaluations: laws with residuals, forecasts, votes against longer thought, exchange,
break-even, cost per correct answer. Numbers are those of `fits.json` and `testtime.json`; `report.testtime` draws the accuracies.

A figure whose data is missing carries the reason. Only fits with a certificate are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np

from harness import equalcost, laws, testtime
from harness.exchange import Exchange
from harness.laws import samples
from harness.laws.forms import Array
from harness.laws.result import Fit
from harness.payback import Payback
from harness.report.axes import CATEGORIES, SHAPES, Axis, axis, ramp
from harness.report.layers import Figure, Layer, Row, figure, level
from harness.report.testtime import AXES
from harness.report.words import number
from harness.testtime_study import FORECASTS, StudyAnswers
from harness.ttc_records import TtcRecord

CELLS = 6  # curves per figure
UNFITTED = "testtime.json is missing: run harness fit on the study"
PER_CORRECT = {"wall_s": "seconds per correct answer (s)", "energy_j": "joules per correct answer, gross (J)"}
TEST = {
    "decode": "test compute of one sample, decode alone (FLOP)",
    "prefill+decode": "test compute of one sample, prefill + decode (FLOP)",
    "joules": "energy of one sample at test, gross (J)",
}


class Palette:
    """Colour and shape of named series: in order along a ramp, or as categories."""

    def __init__(self, names: Sequence[str], *, ordered: bool = False) -> None:
        self.names = list(names)
        n = len(self.names)
        self.colors = ramp(n) if ordered else [CATEGORIES[i % len(CATEGORIES)] for i in range(n)]
        self.legend = alt.Legend(labelLimit=300, columns=2 if max(map(len, self.names)) > 16 else 7)

    def color(self) -> alt.Color:
        scale = alt.Scale(domain=self.names, range=self.colors)
        return alt.Color("series", type="nominal", title="", sort=self.names, scale=scale, legend=self.legend)

    def shape(self) -> alt.Shape:
        scale = alt.Scale(domain=self.names, range=[SHAPES[i % len(SHAPES)] for i in range(len(self.names))])
        return alt.Shape("series", type="nominal", title="", sort=self.names, scale=scale, legend=self.legend)

    def marks(self, rows: Sequence[Row], x: Axis, y: Axis, *, filled: bool = True, size: int = 52) -> Layer:
        tips = [alt.Tooltip(f, type="nominal") for f in ("series", "tip")]
        tips += [alt.Tooltip(f, type="quantitative", format=".4~g") for f in ("x", "y")]
        mark = alt.Chart().mark_point(filled=filled, size=size, opacity=0.9, strokeWidth=1.5)
        return Layer(rows, mark.encode(x.x(), y.y(), self.color(), self.shape(), tooltip=tips))

    def bars(self, rows: Sequence[Row], x: Axis, y: Axis) -> Layer:
        """95 % intervals along y of the rows that have one."""
        kept = [r for r in rows if "low" in r]
        bar = alt.Chart().mark_rule(strokeWidth=1.2, opacity=0.6)
        return Layer(kept, bar.encode(x.x(), y.y("low"), self.color(), y2="high:Q"))

    def lines(self, rows: Sequence[Row], x: Axis, y: Axis, *, dashed: bool = False) -> Layer:
        mark = alt.Chart().mark_line(strokeWidth=1.5, opacity=0.85, strokeDash=[6, 4] if dashed else [1, 0])
        return Layer(rows, mark.encode(x.x(), y.y(), self.color(), detail="line:N", order=alt.Order("x:Q")))


def _reach(*groups: Sequence[Row]) -> list[float]:
    """Everything that some rows draw along y."""
    return [r[k] for rows in groups for r in rows for k in ("y", "low", "high") if k in r]


# --- laws -------------------------------------------------------------------------------------------------------------
def _shown(records: Sequence[TtcRecord]) -> tuple[list[TtcRecord], int]:
    """Cells of the largest size whose curves have a shape, evenly spaced by their accuracy; and of how many."""
    shaped = [r for r in records if testtime.flat(r) is None and r.samples > 1]
    if not shaped:
        return [], 0
    size = max(r.n_total for r in shaped)
    width = {r.width for r in shaped if r.n_total == size}  # formats of one width differ in vocabulary, so in N
    own = [r for r in shaped if (r.width in width if None not in width else r.n_total == size)]
    own.sort(key=lambda r: float(testtime.hits(r).mean()) / r.samples)
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
    palette = Palette([testtime.cell_name(r) for r in cells], ordered=True)
    dots, drawn, missed, other = [], [], [], []
    for r in cells:
        n, right = testtime.voting_curve(r) if voting else testtime.coverage_curve(r)
        cluster = np.array(r.stats.cluster)
        own: list[Row] = []
        for x, column in zip(n.tolist(), right.T, strict=True):
            low, high = samples.interval(column, cluster, draws=400)
            name = testtime.cell_name(r)
            own.append({"x": x, "y": float(column.mean()), "low": low, "high": high, "series": name, "tip": "measured"})
        dots += own
        for name, into in ((law, missed), ("pass_at_k", other)):
            fit = fits.get(testtime.fit_name(name, r))
            if fit is None or not fit.certificate.passed or (voting and name != law):
                continue
            into += [q | {k: q[k] - v for k in ("y", "low", "high")} for q, v in zip(own, _law(fit, n), strict=True)]
            if name == law:
                grid = np.geomspace(1, n[-1], 40)
                line = {"series": testtime.cell_name(r), "line": testtime.cell_name(r)}
                drawn += [{"x": a, "y": b} | line for a, b in zip(grid.tolist(), _law(fit, grid).tolist(), strict=True)]
    x = axis(f"samples per problem {symbol}", (r["x"] for r in dots))
    y = axis(y_title, _reach(dots, drawn), log=False)
    formula = "1 − e_inf − q n^−b" if voting else "exp(−a k^−b)"
    which = (
        f"{len(cells)} of the {of} cells of the largest size whose curve has a shape, evenly spaced by accuracy; bars: 95 %, over problems. "
        "Left out: cells at chance or nearly always right."
    )
    caption = f"{which} Every subset of {symbol} samples counts alike. "
    caption += f"Dashed: {formula}." if drawn else "No trusted law to draw."
    parts = [palette.lines(drawn, x, y, dashed=True)] if drawn else []
    first = figure(key, title, caption, [*parts, palette.bars(dots, x, y), palette.marks(dots, x, y)])
    if not missed:
        return [first, Figure(f"{key}_residuals", f"{title}: residuals", "", None, f"no trusted {law} law")]
    z = axis("measured − fitted (share of problems)", [*_reach(missed, other), 0.0], log=False)
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
    y = axis("forecast − measured (share of problems)", [*_reach(rows), 0.0], log=False)
    caption = (
        f"From {_listed(fitted)} samples per problem to the other {_listed(ks)}, which no fit saw; {len(kept)} cells of every size. "
        f"Root mean square error: {', '.join(told)}. Left out: cells at chance or nearly always right."
    )
    return figure(key, title, caption, [*level(0.0, "", x, y), palette.marks(rows, x, y)])


def _listed(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


# --- costs ------------------------------------------------------------------------------------------------------------
def serial_parallel(records: Sequence[TtcRecord], cost: str) -> Figure:
    """Greedy answers of longer and longer thought, and votes over samples of shorter ones, against one cost."""
    key, title = f"ttc_serial_parallel_{cost}", f"Longer thought against votes, by {AXES[cost].split(' per')[0]}"
    groups = [c for c in equalcost.longest(records) if len(c) > 1 and c[0].task.get("arm", "cot") == "cot"]
    if not groups:
        return Figure(key, title, "", None, "no end point was asked under several controls")
    cells = max(groups, key=lambda c: (len(c), c[0].n_total))
    serial: list[Row] = []
    for r in cells:
        if (row := equalcost.greedy(r)) and (spent := testtime.cost(row, cost)):
            serial.append(_priced(row, spent, "one answer, longer thought", r.label))
    if not serial:
        why = {x.energy_reason for r in cells for x in r.rows if x.energy_reason} if cost == "energy_j" else set()
        return Figure(key, title, "", None, "; ".join(sorted(why)) or f"{cost} was not measured")
    voted: list[Row] = []
    picked = sorted({round(i) for i in np.linspace(0, len(cells) - 1, min(4, len(cells)))})
    for i in picked:
        for row in equalcost.votes(cells[i]):
            if spent := testtime.cost(row, cost):
                voted.append(_priced(row, spent, f"votes, {cells[i].label}", f"n = {row.n}"))
    palette = Palette([serial[0]["series"], *dict.fromkeys(r["series"] for r in voted)])
    x = axis(AXES[cost], (r["x"] for r in serial + voted), power_labels=cost == "test_flop")
    y = axis("accuracy (share of problems)", _reach(serial, voted), log=False)
    gains = equalcost.compare(cells, cost)
    wins = sum(e.gain.low is not None and e.gain.low > 0 for e in gains)
    losses = sum(e.gain.high is not None and e.gain.high < 0 for e in gains)
    caption = (
        f"{cells[0].name} {cells[0].branch}, T={cells[0].temperature:g}; votes over 1, 2, 4 … samples side by side; bars: 95 %. Against the best "
        f"single answer that costs no more, {wins} of {len(gains)} votes win and {losses} lose (95 %, paired by problem). Wrong answers are paid for."
    )
    if cost in ("wall_s", "energy_j"):
        caption += " Metered at a few n, modelled from these at the others."
    both = serial + voted
    return figure(
        key, title, caption, [palette.lines(both, x, y), palette.bars(both, x, y), palette.marks(both, x, y)]
    )


def _priced(row, spent: float, series: str, tip: str) -> Row:
    out = {"x": spent, "y": row.accuracy, "series": series, "line": series, "tip": tip}
    return out if row.accuracy_low is None else out | {"low": row.accuracy_low, "high": row.accuracy_high}


def exchanges(found: Sequence[Exchange]) -> list[Figure]:
    """Settings of equal accuracy, training cost against test cost; a figure per basis and format."""
    out = []
    for e in found:
        key = f"ttc_exchange_{e.basis}_{e.of}".replace(" ", "_").replace("+", "_")
        title = f"Training for test compute at equal accuracy: {e.of}, {e.basis}"
        if e.g is None or not e.points:
            out.append(Figure(key, title, "", None, e.reason or "no rate"))
            continue
        palette = Palette([f"{a:g}" for a in sorted({p.accuracy for p in e.points})], ordered=True)
        rows = [
            {"x": p.train, "y": p.test, "series": f"{p.accuracy:g}", "line": f"{p.family} {p.accuracy}", "tip": f"{p.family}, {p.line}"}
            for p in e.points
        ]  # fmt: skip
        power = e.basis != "joules"
        x = axis(f"training {'compute, causal count (FLOP)' if power else 'energy, gross (J)'}", (r["x"] for r in rows), power_labels=power)
        y = axis(TEST[e.basis], (r["y"] for r in rows), power_labels=power)
        ends = "without an interval" if e.low is None else f"95 % [{number(e.low)}, {number(e.high)}]"
        caption = (
            f"A line joins the controls of one size that reach one accuracy (colours) of a single sample. Test cost falls as training cost to the "
            f"−g, g = {number(e.g)}, {ends}. Interpolated between end points, never extrapolated; verification costs nothing and is not in it."
        )
        caption += f" {e.note[0].upper()}{e.note[1:]}." if e.note else ""
        out.append(figure(key, title, caption, [palette.lines(rows, x, y), palette.marks(rows, x, y)]))
    return out


def break_even(found: Sequence[Payback]) -> Figure:
    """Lifetime cost of the setting that is cheapest to ask over that of the one cheapest to train, against the number of queries."""
    key, title = "ttc_break_even", "Break-even: from how many queries on dearer training pays"
    crossed = [p for p in found if p.result.queries is not None and p.train and p.query]
    without = [p for p in found if p.result.queries is None]
    if not crossed:
        why = dict.fromkeys(f"{p.task}, {p.unit}: {p.result.reason}" for p in without)
        return Figure(key, title, "", None, "; ".join(why) or UNFITTED)
    names = {id(p): f"{p.task}, {p.unit}" for p in crossed}
    palette = Palette(list(dict.fromkeys(names.values())))
    stars = [p.result.queries or 1.0 for p in crossed]
    grid = np.geomspace(min(stars) / 300, max(stars) * 300, 90)
    rows: list[Row] = []
    at: list[Row] = []
    told = []
    for p in crossed:
        (ta, tb), (qa, qb), q = p.train or [], p.query or [], p.result
        same = {"series": names[id(p)], "line": names[id(p)], "tip": f"{p.cheap_to_ask} against {p.cheap_to_train}"}
        rows += [{"x": n, "y": (tb + n * qb) / (ta + n * qa)} | same for n in grid.tolist()]
        at.append({"x": q.queries, "y": 1.0} | same | ({} if q.low is None else {"left": q.low, "right": q.high}))
        ends = q.note if q.low is None else f"95 % [{number(q.low)}, {number(q.high)}]" + (f", {q.note}" if q.note else "")
        told.append(f"{names[id(p)]}: {p.cheap_to_ask} against {p.cheap_to_train} from {number(q.queries)} queries, {ends}")
    x = axis("queries over the lifetime", [*grid.tolist(), *(r[k] for r in at for k in ("left", "right") if k in r)], power_labels=True)
    y = axis("lifetime cost, cheapest to ask / cheapest to train", _reach(rows, at))
    bar = alt.Chart().mark_rule(strokeWidth=5, opacity=0.5).encode(x.x("left"), y.y(), palette.color(), x2="right:Q")
    spans = [Layer(kept, bar)] if (kept := [r for r in at if "left" in r]) else []
    caption = (
        f"Training plus queries, at greedy accuracy {crossed[0].accuracy:g}; below 1 the dearer training has paid. Thick: 95 % of the break-even. "
        f"{'; '.join(told)}. Costs are taken as exact."
    )
    if without:
        caption += " None: " + "; ".join(dict.fromkeys(f"{p.task}, {p.unit}: {p.result.reason}" for p in without)) + "."
    parts = [*level(1.0, "", x, y), palette.lines(rows, x, y), *spans, palette.marks(at, x, y)]
    return figure(key, title, caption, parts)


def per_correct(records: Sequence[TtcRecord], cost: str) -> Figure:
    """Seconds or joules per correct answer against tokens used, of greedy answers and votes; wrong answers are paid for."""
    unit = "seconds" if cost == "wall_s" else "joules"
    key, title = f"ttc_per_correct_{cost}", f"{unit.capitalize()} per correct answer"
    rows: list[Row] = []
    why: set[str] = set()
    none_right = 0
    for r in (r for cells in equalcost.longest(records) for r in cells):
        answers = [x for x in (equalcost.greedy(r), *equalcost.votes(r)) if x is not None and x.strategy != "sample"]
        for x in answers:
            e = testtime.per_correct(r, x, cost, draws=400)
            if e.value is None:
                none_right += x.accuracy == 0
                why |= {e.reason or "not measured"}
                continue
            series = f"{equalcost.kind(r)}, {x.strategy}"
            row = {"x": x.tokens, "y": e.value, "series": series, "tip": f"{testtime.cell_name(r)}, n = {x.n}"}
            rows.append(row if e.low is None or e.high is None else row | {"low": e.low, "high": e.high})
    if not rows:
        return Figure(key, title, "", None, "; ".join(sorted(why)) or "no greedy answer and no vote")
    palette = Palette(sorted({r["series"] for r in rows}))
    x = axis(AXES["tokens"], (r["x"] for r in rows))
    y = axis(PER_CORRECT[cost], _reach(rows))
    caption = (
        f"All {unit} of a cell over its right answers; the most training of the largest size of each task and format, samples side by side. "
        "Bars: 95 % of the accuracy, an open end above is left out; the cost per query is taken as exact, metered at a few n and modelled at the others."
    )
    caption += f" Left out: {none_right} cells without a right answer." if none_right else ""
    return figure(key, title, caption, [palette.bars(rows, x, y), palette.marks(rows, x, y)])


def figures(records: Sequence[TtcRecord], fits: Mapping[str, Fit], said: StudyAnswers | None) -> list[Figure]:
    """All figures in reading order; `said` is what `harness fit` wrote to testtime.json, None where it has not run."""
    if not records:
        return []
    out = [*law_pair(records, fits, "voting"), *law_pair(records, fits, "coverage")]
    titles = {"ttc_forecast": "Forecast of held-out pass@k", "ttc_exchange": "Training for test compute", "ttc_break_even": "Break-even"}
    if said is None:
        out += [Figure(key, title, "", None, UNFITTED) for key, title in titles.items()]
    else:
        out += [forecasts(said), *exchanges(said.exchange), break_even(said.paybacks)]
    out += [serial_parallel(records, c) for c in ("test_flop", "wall_s", "energy_j")]
    return out + [per_correct(records, c) for c in PER_CORRECT]
