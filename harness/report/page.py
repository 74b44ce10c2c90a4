"""One self-contained HTML page, and PNG and SVG files of every figure.

The page loads nothing from outside; its content security policy forbids it. Vega is inlined once
for all charts, from the bundle of vl-convert. Charts draw in `currentColor`, so that one drawing
serves light, dark and print.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness import __version__
from harness.analysis.study import Study
from harness.analysis.ttc.answers import StudyAnswers
from harness.errors import DeviceError
from harness.records import write_text_atomic
from harness.records.ttc import TtcRecord
from harness.report import charts, paper, tables, ttc_accuracy, ttc_figures, ttc_sentences
from harness.report.axes import theme
from harness.report.layers import Figure
from harness.report.sentences import ABILITIES, NOT_SHOWN, findings, fit_warnings, not_measured, warnings
from harness.report.view import StudyView, view_of

VL_VERSION = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
ASSETS = Path(__file__).parent / "assets"
INK = "#1b1d21"


@cache
def _environment() -> Environment:
    """The templates of `assets/`.

    Text is escaped, and JSON too: no record closes the script element.
    """
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _asset(name: str) -> str:
    """A style sheet or script of this package, which goes into the page as it is."""
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script without outside imports (about 0.9 MB)."""
    bundle = vl_convert.javascript_bundle("globalThis.vegaEmbed = vegaEmbed;", vl_version=VL_VERSION)
    return bundle.replace("</script", "<\\/script")


def spec(figure: Figure, *, static: bool) -> dict[str, Any]:
    """The Vega-Lite spec: of fixed size for files, fluid in `currentColor` for the page."""
    assert figure.spec is not None
    body = dict(figure.spec)
    body["config"] = theme(INK, "#ffffff") if static else theme("currentColor", "transparent")
    if not static:
        body["width"] = "container"
        body["autosize"] = {"type": "fit-x", "contains": "padding"}
    return body


def build_report(studies: Sequence[Study], out: Path) -> Path:
    """Write the page of one or several studies and their figures; returns the path of the page.

    `out`: a folder, or a path ending in .html. Figures go to `figures/` in the same folder.
    Evaluations are shown for a single study. A single study with fits also gets `fits.md` and
    `fits.tex`, with its laws and their reporting checklists for a paper, without the laws of single
    cells. Raises DeviceError where a file cannot be written.
    """
    evaluations = studies[0].evaluations if len(studies) == 1 else []
    answers = studies[0].answers if len(studies) == 1 else None
    page = out if out.suffix == ".html" else out / "report.html"
    views = [view_of(study) for study in studies]
    of_evaluations = ttc_accuracy.figures(evaluations) + ttc_figures.figures(evaluations, views[0].fits, answers)
    all_figures = [*of_evaluations, *charts.figures(views)]
    folder = page.parent / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for figure in all_figures:
            if figure.spec is not None:
                write_figure(figure, folder / f"{figure.key}.svg", folder / f"{figure.key}.png")
    except OSError as e:
        raise DeviceError(f"cannot write to {folder}: {e.strerror}. Free space or choose another --out.") from e
    write_text_atomic(page, html(views, all_figures, evaluations, answers))
    if len(views) == 1 and (fits := {name: fit for name, fit in views[0].fits.items() if fit.scope != "cell"}):
        write_text_atomic(page.parent / "fits.md", paper.markdown(fits))
        write_text_atomic(page.parent / "fits.tex", paper.latex(fits))
    return page


def write_figure(figure: Figure, *paths: Path) -> None:
    """Write a figure to .svg or .png files, by the ending of each path."""
    svg = vl_convert.vegalite_to_svg(spec(figure, static=True), vl_version=VL_VERSION)
    for path in paths:
        path.write_bytes(vl_convert.svg_to_png(svg, scale=2) if path.suffix == ".png" else svg.encode())


def html(
    views: Sequence[StudyView],
    figures: Sequence[Figure],
    evaluations: Sequence[TtcRecord] = (),
    answers: StudyAnswers | None = None,
) -> str:
    """The whole page as text, from the template `assets/page.html`, which escapes all texts."""
    single = len(views) == 1
    ttc_findings = ttc_sentences.findings(evaluations, answers) if single else []
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=" and ".join(view.name for view in views),
            style=_asset("page.css"),
            studies=[_sections(view, ttc_findings) for view in views],
            comparison=None if single else tables.comparison(views),
            figures=[f for f in figures if f.spec is not None],
            absent=_absent(figures),
            evaluations=ttc_accuracy.cells(evaluations) if evaluations else None,
            not_shown=[line for line in NOT_SHOWN if not (evaluations and line == ABILITIES)],
            version=__version__,
            vega=_vega(),
            charts={f.key: spec(f, static=False) for f in figures if f.spec is not None},
            script=_asset("page.js"),
        )
    )


def _sections(view: StudyView, ttc_findings: Sequence[str]) -> dict[str, Any]:
    """What the page shows of one study; the findings of its evaluations come first."""
    headline, *rest = [*ttc_findings, *findings(view)]
    corpora = ", ".join(sorted({str(record.corpus.get("corpus_id")) for record in view.records})) or "none"
    devices = ", ".join(sorted({str(record.provenance.get("device")) for record in view.records})) or "none"
    counts = f"{len(view.records):,} runs, {len(view.table):,} points in the fits"
    return {
        "name": view.name,
        "facts": f"{counts} · corpus {corpora} · device {devices}",
        "headline": headline,
        "findings": rest,
        "warnings": warnings(view),
        "tables": tables.tables(view),
        "fit_warnings": fit_warnings(view, all_of_them=True),
        "not_measured": not_measured(view),
    }


def _absent(figures: Sequence[Figure]) -> dict[str, list[str]]:
    """Reason -> titles of the figures that have nothing to draw for it."""
    titles: dict[str, list[str]] = {}
    for f in figures:
        if f.spec is None:
            titles.setdefault((f.reason or "no data").rstrip("."), []).append(f.title)
    return titles
