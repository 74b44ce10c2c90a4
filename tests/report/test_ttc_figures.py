"""Figures of a study's evaluations draw the right numbers, or give the reason why there are
none.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness import laws
from harness.analysis.ttc import answers as ttc_answers
from harness.analysis.ttc import curves as ttc_curves
from harness.analysis.ttc import exchange_rate
from harness.analysis.ttc.break_even import study_break_even
from harness.records.ttc import TtcRecord
from harness.report import ttc_costs as costs
from harness.report import ttc_figures
from harness.report import ttc_sentences as sentences
from harness.report.layers import Figure, Row
from tests import synthetic_ttc as synthetic


def rows_with(f: Figure, *keys: str) -> list[Row]:
    """All drawn rows that have `keys`, each once."""
    assert f.spec is not None, f.reason
    marks = [r for rows in f.spec["datasets"].values() for r in rows if all(k in r for k in keys)]
    return list({str(sorted(r.items())): r for r in marks}.values())


@pytest.fixture(scope="module")
def beta() -> TtcRecord:
    return synthetic.record(np.random.default_rng(5).beta(0.6, 4.0, 200))


def test_a_law_is_drawn_through_its_points_and_residuals_are_measured_minus_fitted(beta: TtcRecord) -> None:
    fits, _ = ttc_curves.fit_cells([beta], bootstrap=0)
    curve, residuals = ttc_figures.law_pair([beta], fits, "coverage")
    dots = {r["x"]: r["y"] for r in rows_with(curve, "tip")}
    k, right = ttc_curves.coverage_curve(beta)
    assert list(dots) == k.tolist()
    assert list(dots.values()) == pytest.approx(right.mean(0), rel=1e-5)
    fitted = {
        law: laws.predict(fits[ttc_curves.fit_name(law, ttc_curves.cell_name(beta))], {"k": k})
        for law in ("coverage", "pass_at_k")
    }  # the truth is a beta-binomial: its residuals are sampling noise, those of the curve are not
    drawn = sorted((r["x"], r["y"]) for r in rows_with(residuals, "tip"))
    expected = sorted((x, y) for v in fitted.values() for x, y in zip(k.tolist(), right.mean(0) - v, strict=True))
    assert np.allclose(drawn, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(right.mean(0) - fitted["pass_at_k"]).max() < 0.03
    votes, _ = ttc_figures.law_pair([beta], fits, "voting")
    single = next(r["y"] for r in rows_with(votes, "tip") if r["x"] == 1)
    assert single == pytest.approx(np.mean(beta.stats.correct) / beta.samples, rel=1e-5)


def test_laws_without_a_fit_and_cells_without_a_shape(beta: TtcRecord) -> None:
    curve, residuals = ttc_figures.law_pair([beta], {}, "coverage")
    assert curve.spec is not None
    assert "No trusted law" in curve.caption
    assert residuals.reason == "no trusted coverage law"
    chance = synthetic.record(np.full(50, 0.02))
    assert all(f.spec is None and "at chance" in (f.reason or "") for f in ttc_figures.law_pair([chance], {}, "voting"))


def test_forecast_errors_are_those_of_the_study_file(beta: TtcRecord) -> None:
    chance = synthetic.record(np.full(50, 0.02), tokens=7)
    cells = [beta, chance]
    answers = ttc_answers.answers(cells, ttc_curves.fit_cells(cells, bootstrap=0)[1], draws=40)
    f = ttc_figures.forecasts(answers)
    (forecast,) = [x for x in answers.forecasts if x.cell == ttc_curves.cell_name(beta)]
    errors = {r["series"]: r["y"] for r in rows_with(f, "tip")}
    assert errors["plug in"] == pytest.approx(forecast.plug_in - forecast.measured, rel=1e-4)
    assert errors["beta-binomial"] == pytest.approx((forecast.beta_binomial or 0) - forecast.measured, rel=1e-4)
    assert "From 16 samples per problem to the other 48" in f.caption
    assert "1 cells" in f.caption


def test_exchange_figure_has_a_mark_per_point_and_its_rate() -> None:
    e = exchange_rate.exchange(synthetic.exchange_ladder(0.5, seeds=1, problems=60), "decode", draws=40)
    drawn, absent = costs.exchanges([replace(e, of="group"), replace(e, g=None, points=[], reason="no meter")])
    assert len(rows_with(drawn, "tip")) == len(e.points)
    assert f"g = {e.g:.3g}" in drawn.caption
    assert "1 seed: the interval covers problems only" in drawn.caption
    assert absent.spec is None
    assert absent.reason == "no meter"


def test_break_even_line_crosses_one_at_the_break_even() -> None:
    cells = synthetic.lines_that_break_even(0.5)
    p = study_break_even("group", cells, "FLOP", draws=60)
    f = costs.break_even([p, study_break_even("group", cells, "J", draws=60)])
    (star,) = [r for r in rows_with(f, "left", "right") if r["y"] == 1]
    assert star["x"] == pytest.approx(p.result.queries, rel=1e-4)
    assert star["left"] == pytest.approx(p.result.low, rel=1e-4)
    line = sorted((r["x"], r["y"]) for r in rows_with(f, "line") if "left" not in r)
    x, y = np.array(line).T
    assert np.exp(np.interp(np.log(star["x"]), np.log(x), np.log(y))) == pytest.approx(1, abs=0.01)
    assert "group, J: no setting has both costs in joules; no meter" in f.caption
    alone = costs.break_even([study_break_even("group", cells, "J")])
    assert alone.spec is None
    assert "no setting has both costs in joules" in (alone.reason or "")


def contest() -> list[TtcRecord]:
    """Four operators' worth of thought answers 0.2, all of it 0.9 at three times the cost.

    Samples of the short one agree on the wrong.
    """
    out = []
    for budget, share, flop in ((4, 0.2, 1e6), (12, 0.9, 3e6)):
        right = [i < share * 100 for i in range(100)]
        rows = [synthetic.row("greedy", 1, share, decode=flop, joules=flop / 1e6)]
        rows += [synthetic.row("majority", n, share, decode=flop, joules=n * flop / 1e6) for n in (2, 4, 8)]
        out.append(synthetic.record(np.where(right, 0.999, 0.001), samples=8, budget=budget, greedy=right, rows=rows))
        out[-1].label, out[-1].mean_tokens = f"at most {budget} states", float(budget)
    return out


def test_serial_and_parallel_at_each_cost() -> None:
    cells = contest()
    for cost, unit in (("test_flop", 1e6), ("energy_j", 1.0)):
        f = costs.serial_parallel(cells, cost)
        serial = {r["x"] / unit: r["y"] for r in rows_with(f, "tip") if r["series"] == "one answer, longer thought"}
        assert serial == pytest.approx({1.0: 0.2, 3.0: 0.9})
        # Four or more short thoughts cost what the long one does
        assert "0 of 6 votes win and 2 lose" in f.caption
    assert costs.serial_parallel(cells, "wall_s").reason == "wall_s was not measured"
    assert "several controls" in (costs.serial_parallel(cells[:1], "test_flop").reason or "")
    for r in cells:
        r.rows = [replace(x, energy_j=None, energy_reason="no meter: power=unmetered") for x in r.rows]
    assert costs.serial_parallel(cells, "energy_j").reason == "no meter: power=unmetered"


def test_cost_per_correct_answer_is_cost_over_accuracy() -> None:
    f = costs.per_correct(contest(), "energy_j")
    greedy = sorted(r["y"] for r in rows_with(f, "tip") if r["strategy"] == "greedy")
    assert greedy == pytest.approx([3 / 0.9, 1 / 0.2])
    assert costs.per_correct(contest(), "wall_s").reason == "wall_s was not measured"


def test_without_the_study_file_the_reason_says_what_to_run(beta: TtcRecord) -> None:
    absent = {f.key: f.reason for f in ttc_figures.figures([beta], {}, None) if f.spec is None}
    assert absent["ttc_break_even"] == "ttc.json is missing: run harness fit on the study"
    assert ttc_figures.figures([], {}, None) == []


def test_a_page_leads_with_what_thinking_bought() -> None:
    """The widest model at the end of its training, an arm at a time.

    No law of loss is missed where the answers are the subject.
    """

    def cell(accuracy: float, tokens: int, **changes: object) -> TtcRecord:
        rows = [synthetic.row("greedy", 1, accuracy)]
        return replace(synthetic.record(np.full(40, 0.5), tokens=tokens, rows=rows), **changes)  # type: ignore[arg-type]

    thought, early, narrow = cell(0.9, 2), cell(0.1, 1), cell(1.0, 2, width=32, run_id="other")
    filler = cell(0.2, 2, task={"name": "group", "arm": "filler"}, run_id="third")
    (sentence,) = sentences.findings([early, thought, narrow, filler], None)
    assert sentence == (
        "Greedy accuracy of width 64: 0.900 with a written chain of thought (stride 1, 12.0 tokens), "
        "0.200 with fillers in its place (stride 1, 12.0 tokens); chance is 0."
    )
    assert sentences.findings([], None) == []


def test_findings_name_each_result_once() -> None:
    cells = synthetic.exchange_ladder(0.5, seeds=1, problems=60)
    findings = sentences.findings(cells, ttc_answers.answers(cells, {}, draws=40))
    # Decode, and with prefill; joules were not measured
    assert sum("g = " in line for line in findings) == 2
    assert any(line.startswith("Joules per answer: not measured (no meter") for line in findings)
    assert any("rms error" in line for line in findings)
