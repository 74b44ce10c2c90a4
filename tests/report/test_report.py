"""The page, its figures and its tables, from synthetic studies."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analysis import study_laws
from harness.analysis.study import Study
from harness.report import axes, build_report, charts, layers, sentences, tables, view
from harness.report.layers import Figure
from harness.report.page import html
from tests import synthetic, synthetic_ttc


def make(name: str, **kw: Any) -> Study:
    records = synthetic.ladder(study=name, **kw)
    excluded = {"failed": 1}
    return Study(name, records, excluded, study_laws.fit_study(records, excluded, bootstrap=60))


@pytest.fixture(scope="module")
def measured() -> Study:
    return make("measured", seeds=2, rates=True, energy=True)


@pytest.fixture(scope="module")
def plain() -> Study:
    return make("plain", corpus="text", widths=(24, 32, 48, 64, 96))


@pytest.fixture(scope="module")
def page(measured: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report([measured], tmp_path_factory.mktemp("report"))


class Tags(HTMLParser):
    """Names of all tags of a page (scripts are opaque) and every attribute that would load
    something.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sources: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.sources += [f"{tag} {k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "data", "style")]


# --- page -----------------------------------------------------------------------------------------
def test_page_needs_nothing_from_outside(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert len(html) < 2_500_000
    tags = Tags(html)
    assert not {"link", "img", "iframe", "object", "base"} & set(tags.names)
    assert tags.sources == []
    style = html.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style
    assert "default-src 'none'" in html
    # The bundle once, for all charts
    assert len(re.findall(r"globalThis\.vegaEmbed\s*=", html)) == 1
    specs = json.loads(html.split('<script id="specs" type="application/json">')[1].split("</script>")[0])
    assert set(specs) == {p.stem for p in (page.parent / "figures").glob("*.png")}


def test_first_screen_states_the_findings_and_warnings(page: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8").split("<h2>Figures")[0])
    assert "measured" in text
    assert re.search(r"α = 0\.\d+ \[0\.\d+, 0\.\d+\]", text)
    assert "true floor of 1.034 nat" in text
    assert "The largest rung (width 128), never fitted, is predicted within" in text
    assert "1 run is failed and left out" in text


def test_page_has_light_dark_phone_and_print(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 600px", "width=device-width"):
        assert rule in html


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_every_figure_is_written_and_not_blank(page: Path, suffix: str) -> None:
    files = sorted((page.parent / "figures").glob(f"*.{suffix}"))
    assert {f.stem for f in files} == {b.key for b in charts.BUILDERS}
    for f in files:
        if suffix == "png":
            width, height, colors = png_colors(f.read_bytes())
            assert width > 1000
            assert height > 600
            assert colors > 20, f"{f.name} looks blank"
        else:
            assert f.read_text(encoding="utf-8").count("<path") > 10


def png_colors(data: bytes) -> tuple[int, int, int]:
    """Width, height and the number of distinct byte quadruples of the unfiltered scanlines' raw
    stream.
    """
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    raw, offset = b"", 8
    while offset < len(data):
        (size,) = struct.unpack(">I", data[offset : offset + 4])
        if data[offset + 4 : offset + 8] == b"IDAT":
            raw += data[offset + 8 : offset + 8 + size]
        offset += 12 + size
    pixels = zlib.decompress(raw)
    return width, height, len({pixels[i : i + 4] for i in range(0, len(pixels) - 4, 4)})


def test_names_and_events_are_escaped(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    records = synthetic.ladder(widths=(24, 32, 48, 64))
    for r in records:
        r.name = evil
        r.events = [evil]
    fits = study_laws.fit_study(records, bootstrap=0)
    html = build_report([Study(evil, records, {evil: 1}, fits)], tmp_path).read_text(encoding="utf-8")
    assert "img" not in Tags(html).names
    assert html.count("</script>") == 3  # vega, specs, script
    assert "&lt;/script&gt;&lt;img src=x" in html


def test_text_of_a_figure_and_of_a_table_is_escaped_once(measured: Study) -> None:
    label = 'a <b>&"c'
    figure = Figure("key", label, label, spec=None, reason=label)
    drawn = Figure("other", label, label, spec={"mark": label})
    study = dataclasses.replace(view.view_of(measured), name=label, theory=None, unfitted={"loss_nd": label})
    text = html(views=[study, study], figures=[figure, drawn])
    assert "<b>" not in text.split("<script>")[0]
    assert (
        text.count("a &lt;b&gt;&amp;&#34;c") >= 8
    )  # title, headings, figure with its label and caption, reason, table head
    assert "&amp;lt;" not in text
    specs = Tags(text).scripts[1]
    assert "<" not in specs
    assert json.loads(specs)["other"]["mark"] == label


def test_unmeasured_energy_has_its_line(plain: Study, tmp_path: Path) -> None:
    html = build_report([plain], tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "Training energy against compute; Loss against energy.</strong> Not drawn: energy of 0 of 25 points: no meter"
        in html
    )
    assert "Energy of 25 points: no meter: power=unmetered" in html
    assert "True floor: the entropy of this corpus is not known" in html
    assert not (tmp_path / "figures" / "energy_compute.png").exists()


def test_studies_side_by_side(measured: Study, plain: Study, tmp_path: Path) -> None:
    html = build_report([measured, plain], tmp_path).read_text(encoding="utf-8")
    assert "<h1>measured and plain</h1>" in html
    table = html.split("Studies side by side")[1].split("</table>")[0]
    assert re.search(r'<th scope="col">measured</th>\s*<th scope="col">plain</th>', table)
    specs = json.loads(html.split('<script id="specs" type="application/json">')[1].split("</script>")[0])
    assert '"domain":["measured","plain"]' in json.dumps(specs["loss_compute"], separators=(",", ":"))


@pytest.mark.parametrize("records", [[], [synthetic.record(16, budgets=(262_144,))]], ids=["empty", "one point"])
def test_studies_with_nothing_to_fit_say_so(records: list, tmp_path: Path) -> None:
    html = build_report([Study("small", records, {"failed": 3}, {})], tmp_path).read_text(encoding="utf-8")
    assert "No law could be fitted" in html
    assert "3 runs are failed and left out" in html


# --- charts ---------------------------------------------------------------------------------------
def drawn(*studies: Study) -> list[Figure]:
    return [f for f in charts.figures([view.view_of(s) for s in studies]) if f.spec is not None]


def test_every_mark_lies_inside_its_domain(measured: Study, plain: Study) -> None:
    checked = 0
    for figure in [*drawn(measured), *drawn(plain), *drawn(measured, plain)]:
        assert figure.spec is not None
        body = figure.spec
        for layer in body["layer"]:
            for channel in ("x", "y"):
                encoding = layer["encoding"].get(channel)
                if encoding is None:
                    continue
                low, high = encoding["scale"]["domain"]
                fields = [encoding["field"]] + (
                    [layer["encoding"]["y2"]["field"]] if channel == "y" and "y2" in layer["encoding"] else []
                )
                rows = body["datasets"][layer.get("data", body.get("data"))["name"]]
                for row in rows:
                    for f in fields:
                        assert low * (1 - 1e-5) - 1e-9 <= row[f] <= high * (1 + 1e-5), (
                            figure.key,
                            f,
                            row[f],
                            low,
                            high,
                        )
                        checked += 1
                assert encoding["axis"]["title"]
                assert 3 <= len(encoding["axis"]["values"]) <= 10, (figure.key, channel, encoding["axis"]["values"])
    assert checked > 1000


def test_axis_titles_carry_units(measured: Study) -> None:
    titles = {
        layer["encoding"][c]["axis"]["title"]
        for f in drawn(measured)
        if f.spec is not None
        for layer in f.spec["layer"]
        for c in ("x", "y")
        if c in layer["encoding"]
    }
    assert {"training compute, causal count (FLOP)", "validation loss (nat per token)", "MFU (%)"} <= titles
    assert any(t.endswith("(J)") for t in titles)


def test_an_unconverged_fit_is_named_first_and_never_drawn(plain: Study) -> None:
    name, records, excluded = plain.name, plain.records, plain.excluded
    fits = study_laws.fit_study(records, excluded, bootstrap=0)
    for fit in fits.values():
        fit.certificate.passed = False
        fit.certificate.reason = "the starts disagree"
    v = view.view_of(Study(name, records, excluded, fits))
    assert sentences.warnings(v)[0].startswith("L(N, D), all rungs did not converge: the starts disagree")
    assert sentences.findings(v)[0].startswith("No law could be fitted")
    by_key = {f.key: f for f in charts.figures([v])}
    assert by_key["residuals"].spec is None
    assert by_key["loss_tokens"].spec is not None
    assert len(by_key["loss_tokens"].spec["layer"]) == 1  # points, no lines
    table = tables.laws(v)
    assert table is not None
    assert "NOT CONVERGED" in table.rows[0][0]


def test_losses_of_several_corpora_are_not_drawn_on_one_scale(plain: Study) -> None:
    name, records, excluded, fits = plain.name, plain.records, plain.excluded, plain.fits
    foreign = [replace(r, corpus={**r.corpus, "corpus_id": "another"}) for r in records[:2]]
    figures = {f.key: f for f in charts.figures([view.view_of(Study(name, [*foreign, *records[2:]], excluded, fits))])}
    assert figures["loss_compute"].spec is None
    assert "different scales" in (figures["loss_compute"].reason or "")
    assert figures["throughput"].spec is not None


def test_rates_at_the_edge_are_a_warning() -> None:
    records = [synthetic.record(16), synthetic.record(16, role="probe", lr_scale=0.5, loss_factor=0.9)]
    v = view.view_of(Study("edge", records, {}, {}))
    assert any("the best of the rates tried is ×0.5, at the edge" in w for w in sentences.warnings(v))


def test_fits_of_other_points_and_repeated_tokens_are_warnings(plain: Study) -> None:
    name, runs, excluded, fits = plain.name, plain.records, plain.excluded, plain.fits
    assert not any(
        "now:" in w or "more than once" in w
        for w in sentences.warnings(view.view_of(Study(name, runs, excluded, fits)))
    )
    fewer = [replace(runs[0], points=[replace(p, epochs=2.5) for p in runs[0].points]), *runs[2:]]
    lines = sentences.warnings(view.view_of(Study(name, fewer, excluded, fits)))
    assert any("run harness fit again" in w for w in lines)
    assert any(f"{len(runs[0].points)} points saw tokens more than once (up to 2.5 times)" in w for w in lines)


def test_many_points_are_thinned_with_their_extremes_and_the_caption_says_so(measured: Study) -> None:
    records = synthetic.many(400)
    v = view.view_of(Study("many", records, {}, measured.fits))
    figure = charts.loss_tokens([v])
    assert figure.spec is not None
    drawn_rows = figure.spec["datasets"]["d1"]
    assert len(drawn_rows) <= layers.MAX_ROWS + 4
    assert "of 2,000 points are drawn" in figure.caption
    assert {r["y"] for r in drawn_rows} >= {float(f"{f(v.table.loss_nat):.6g}") for f in (min, max)}


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(1e10, 1e14, True), (2e5, 5e6, True), (1.0, 4.0, True), (1.71, 1.79, True), (-0.4, 0.3, False)],
)
def test_ticks_are_few_and_inside(low: float, high: float, log: bool) -> None:
    values = axes.ticks(low, high, log)
    assert 4 <= len(values) <= 9
    assert all(low <= v <= high for v in values)
    assert values == sorted(set(values))


@pytest.mark.parametrize("log", [True, False])
def test_values_that_differ_by_rounding_are_one_value(log: bool) -> None:
    axis = axes.axis("x", [2.28686822197, 2.28686822197 * (1 + 3e-16)], log=log)
    assert axis.high / axis.low > 1.1
    assert axes.axis("x", [0.0, 0.0], log=False).high == 1.0


def test_labels() -> None:
    assert axes.label(1e12, True) == "1e12"
    assert axes.label(3e-5, True) == "3e−5"
    assert axes.label(2.5e6, False) == "2.5M"
    assert axes.label(-0.25, False) == "−0.25"


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", axes.PAGE_BACKGROUNDS)
def test_colours_stand_out_on_both_backgrounds(background: str) -> None:
    for color in (*axes.ramp(9), *axes.CATEGORIES):
        light, dark = sorted((luminance(color), luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, (color, background)


# --- words and tables -----------------------------------------------------------------------------
def test_numbers_are_rounded_to_their_interval(measured: Study) -> None:
    fit = measured.fits["loss_nd"]
    fit.params["E"], fit.interval["E"] = 1.03412, [0.9951, 1.0662]
    assert sentences.with_interval(fit, "E") == "1.034 [0.995, 1.066]"
    assert sentences.number(None) == "–"
    assert sentences.number(-1.5e-9) == "−1.5e−9"
    assert sentences.percent(-0.0123) == "−1.23 %"


def test_verdict_beside_theory_is_honest(measured: Study) -> None:
    fit = measured.fits["loss_nd_nonemb"]
    fit.interval["alpha"], fit.identified["alpha"] = [0.4, 0.6], True
    assert sentences.verdict(fit, "alpha", 0.5) == "agrees"
    assert sentences.verdict(fit, "alpha", 0.7) == "misses"
    fit.identified["alpha"] = False
    assert sentences.verdict(fit, "alpha", 0.5) == "is not pinned by these data"


def test_spend_is_apart_from_as_if(measured: Study) -> None:
    rows = {r[0]: r for r in tables.spend(view.view_of(measured)).rows}
    assert set(rows) == {"spent: train", "spent: eval", "as if each point were a run"}
    assert rows["spent: eval"][4] == "not measured"
    assert rows["spent: train"][4].endswith("J")


def test_long_tables_are_cut_and_say_so() -> None:
    table = tables.PageTable("long", ["a"], [[str(i)] for i in range(5000)])
    assert table.shown_rows == [[str(i)] for i in range(200)]
    assert "200 of 5,000 rows" in table.remark


def test_evaluations_add_figures_and_a_table(measured: Study, tmp_path: Path) -> None:
    evaluations = synthetic_ttc.emergent(12)
    sizes, ok = [k for k in range(1, 9) for _ in range(10)], [k < 5 for k in range(1, 9) for _ in range(10)]
    evaluations += [
        synthetic_ttc.record(
            np.full(80, 0.5), budget=b, size=sizes, greedy=ok, rows=[synthetic_ttc.row("greedy", 1, 0.5)]
        )
        for b in (0, 2)
    ]
    page = build_report([dataclasses.replace(measured, evaluations=evaluations)], tmp_path)
    text = page.read_text(encoding="utf-8")
    drawn = {f.stem for f in (tmp_path / "figures").glob("ttc_*.png")}
    accuracy = {f"ttc_accuracy_{c}" for c in ("test_flop", "tokens")}
    curves = {f"ttc_{law}" for law in ("voting", "coverage")}
    assert drawn == {
        *accuracy,
        *curves,
        "ttc_serial_parallel_test_flop",
        "ttc_emergence",
        "ttc_silent_depth",
        "ttc_budget",
    }
    assert (
        text.count("Not drawn: no meter: power=unmetered") == 1
    )  # one reason, said once for all figures that it stops
    assert "Test-time compute, per problem" in text
