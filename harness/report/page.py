"""One self-contained HTML page, and PNG and SVG of every figure beside it.

The page loads nothing from outside (its content security policy forbids it): Vega is inlined once for all charts, from
the bundle that ships with vl-convert. Charts draw in `currentColor`, so one drawing serves light, dark and print.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import altair as alt
import vl_convert

from harness import __version__
from harness.analysis.study import Study
from harness.analysis.ttc.curves import of_cell
from harness.analysis.ttc.study import StudyAnswers
from harness.errors import DeviceError
from harness.records import write_text_atomic
from harness.records.ttc import TtcRecord
from harness.report import paper, tables, ttc_figures, ttc_sentences
from harness.report import ttc as ttc_curves
from harness.report.axes import theme
from harness.report.charts import figures
from harness.report.layers import Figure
from harness.report.sentences import ABILITIES, NOT_SHOWN, findings, fit_warnings, not_measured, warnings
from harness.report.study import StudyView, view

VL_VERSION = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
ASSETS = Path(__file__).parent / "assets"
INK = "#1b1d21"


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script without outside imports (about 0.9 MB)."""
    bundle = vl_convert.javascript_bundle("globalThis.vegaEmbed = vegaEmbed;", vl_version=VL_VERSION)
    return bundle.replace("</script", "<\\/script")


def spec(figure: Figure, *, static: bool) -> dict[str, Any]:
    """The Vega-Lite spec of a figure: fixed size and colours for files, fluid and in `currentColor` for the page."""
    assert figure.spec is not None
    body = dict(figure.spec)
    body["config"] = theme(INK, "#ffffff") if static else theme("currentColor", "transparent")
    if not static:
        body["width"] = "container"
        body["autosize"] = {"type": "fit-x", "contains": "padding"}
    return body


def build_report(studies: Sequence[Study], out: Path) -> Path:
    """Write the page of one or several studies and their figures; returns the page's path.

    `out`: a folder, or a path ending in .html; figures go into `figures/` beside the page. Evaluations are shown for a single study. A
    single study with fits also gets `fits.md` and `fits.tex`, its laws (those of single cells left out) and their reporting checklists
    for a paper.
    """
    evaluations = studies[0].evaluations if len(studies) == 1 else []
    answers = studies[0].answers if len(studies) == 1 else None
    page = out if out.suffix == ".html" else out / "report.html"
    views = [view(study) for study in studies]
    tested = ttc_curves.figures(evaluations) + ttc_figures.figures(evaluations, views[0].fits, answers)
    drawn = [*tested, *figures(views)]
    folder = page.parent / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for figure in drawn:
            if figure.spec is not None:
                write_figure(figure, folder / f"{figure.key}.svg", folder / f"{figure.key}.png")
    except OSError as e:
        raise DeviceError(f"cannot write to {folder}: {e.strerror}. Free space or choose another --out.") from e
    write_text_atomic(page, html(views, drawn, evaluations, answers))
    if len(views) == 1 and (own := {name: fit for name, fit in views[0].fits.items() if not of_cell(name)}):
        write_text_atomic(page.parent / "fits.md", paper.markdown(own))
        write_text_atomic(page.parent / "fits.tex", paper.latex(own))
    return page


def write_figure(figure: Figure, *paths: Path) -> None:
    """Write a drawn figure as .svg or .png, by each path's ending."""
    svg = vl_convert.vegalite_to_svg(spec(figure, static=True), vl_version=VL_VERSION)
    for path in paths:
        path.write_bytes(vl_convert.svg_to_png(svg, scale=2) if path.suffix == ".png" else svg.encode())


def html(
    views: Sequence[StudyView],
    drawn: Sequence[Figure],
    evaluations: Sequence[TtcRecord] = (),
    answers: StudyAnswers | None = None,
) -> str:
    """The whole page as text."""
    title = " and ".join(v.name for v in views)
    charts = {f.key: spec(f, static=False) for f in drawn if f.spec is not None}
    single = len(views) == 1
    lead = (
        _lead(views[0], ttc_sentences.findings(evaluations, answers))
        if single
        else "".join(f"<h2>{escape(v.name)}</h2>{_lead(v)}" for v in views)
    )
    compare = "" if single else tables.comparison(views).html()
    body = "".join(_details(v, heading=not single) for v in views)
    if evaluations:
        body = ttc_curves.cells(evaluations).html() + body
    template = Template((ASSETS / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        style=(ASSETS / "page.css").read_text(encoding="utf-8"),
        lead=lead + compare,
        figures=_figures(drawn),
        body=body,
        not_shown="".join(f"<li>{escape(line)}</li>" for line in NOT_SHOWN if not (evaluations and line == ABILITIES)),
        version=escape(__version__),
        vega=_vega(),
        # "<" is escaped so that no text inside a record can close the script element
        charts=json.dumps(charts, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        script=(ASSETS / "page.js").read_text(encoding="utf-8"),
    )


def _lead(v: StudyView, tested: Sequence[str] = ()) -> str:
    """First screen: one-line summary, findings (those of `tested` answers first), warnings."""
    first, *rest = [*tested, *findings(v)]
    runs = f"{len(v.records):,} runs, {len(v.table):,} points in the fits"
    corpora = ", ".join(sorted({str(r.corpus.get("corpus_id")) for r in v.records})) or "none"
    devices = ", ".join(sorted({str(r.provenance.get("device")) for r in v.records})) or "none"
    facts = f"<p class='facts'>{escape(runs)} · corpus {escape(corpora)} · device {escape(devices)}</p>"
    items = "".join(f"<li>{escape(line)}</li>" for line in rest)
    bad = "".join(f"<li>{escape(line)}</li>" for line in warnings(v))
    warned = f"<aside class='warnings'><h3>Before you read the numbers</h3><ul>{bad}</ul></aside>" if bad else ""
    return f"{facts}<p class='headline'>{escape(first)}</p><ul class='findings'>{items}</ul>{warned}"


def _figures(drawn: Sequence[Figure]) -> str:
    """Numbered figures, then a line for each reason why others have nothing to draw."""
    there = "".join(_figure(i, f) for i, f in enumerate((f for f in drawn if f.spec is not None), start=1))
    titles: dict[str, list[str]] = {}
    for f in drawn:
        if f.spec is None:
            titles.setdefault((f.reason or "no data").rstrip("."), []).append(f.title)
    absent = "".join(
        f"<li><strong>{escape('; '.join(names))}.</strong> Not drawn: {escape(reason)}.</li>"
        for reason, names in titles.items()
    )
    return f"<div class='figures'>{there}</div>" + (f"<ul class='absent'>{absent}</ul>" if absent else "")


def _figure(number: int, f: Figure) -> str:
    label = escape(f"{f.title}. {f.caption}", quote=True)
    chart = f"<div class='chart' id='{f.key}' role='img' aria-label=\"{label}\"></div>"
    caption = f"<strong>Figure {number}. {escape(f.title)}.</strong> {escape(f.caption)}"
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


def _details(v: StudyView, *, heading: bool) -> str:
    missing = "".join(f"<li>{escape(line)}</li>" for line in not_measured(v)) or "<li>Nothing that was asked for.</li>"
    title = f"<h2>{escape(v.name)}: tables</h2>" if heading else "<h2>Tables</h2>"
    listed = "".join(t.html() for t in tables.tables(v))
    notes = "".join(f"<li>{escape(line)}</li>" for line in fit_warnings(v, all_of_them=True)) or "<li>None.</li>"
    return (
        f"{title}{listed}<section><h3>Warnings of all fits</h3><ul>{notes}</ul></section>"
        f"<section><h3>Not measured, and why</h3><ul>{missing}</ul></section>"
    )
