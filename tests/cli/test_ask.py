"""`harness ask`: answers are minima found independently, intervals are the draws', joules come from
records or are unknown.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import synthetic

from harness import laws, records
from harness.analysis import costs, next_runs, optimal, study_laws
from harness.analysis import points as study_points
from harness.cli import main as cli
from harness.errors import FitError, RecordError
from harness.laws.catalogue import LAWS
from harness.laws.result import Fit
from harness.laws.solver.solve import minimise
from harness.records import fits as fit_files

TRUE = {"A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37, "E": 1.8}
PLAIN = costs.without_records("no records here")


def grid(noise: float, seed: int = 0, size: int = 6) -> dict[str, np.ndarray]:
    n, d = (m.ravel() for m in np.meshgrid(np.geomspace(1e7, 3e9, size), np.geomspace(2e8, 6e10, size)))
    loss = law(n, d) * np.exp(noise * np.random.default_rng(seed).normal(size=len(n)))
    return {"N": n, "D": d, "loss": loss}


def law(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]


@pytest.fixture(scope="module")
def fit() -> Fit:
    return laws.fit("chinchilla", grid(0.003), bootstrap=400, columns={"N": "N", "D": "D", "loss": "loss"})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A metered study on disk, whose narrow rungs are slow: joules per FLOP fall with N."""
    folder = tmp_path_factory.mktemp("runs") / "metered"
    found = synthetic.ladder(energy=True)
    for r in found:
        (folder / r.run_id).mkdir(parents=True)
        records.write_json(folder / r.run_id / "record.json", r)
    fit_files.write_fits(folder, study_laws.fit_study(found, bootstrap=100))
    return folder


# --- minima ---------------------------------------------------------------------------------------
def test_cheapest_run_is_the_frontier_read_backwards(fit: Fit) -> None:
    """In closed form L* = E + c C^-g at 6ND; and the budget found there has the same best run."""
    one = optimal.cheapest_for_loss(fit, PLAIN, 2.6)[0]
    assert one.flop is not None
    assert one.n is not None
    back = laws.frontier(fit, [one.flop])
    assert back.L[0] == pytest.approx(2.6, rel=1e-9)
    assert back.N[0] == pytest.approx(one.n, rel=1e-5)
    assert one.flop == pytest.approx(6 * one.n * (one.d or 0), rel=1e-12)


@pytest.mark.parametrize("slope", [0.0, -0.3, 0.4])
def test_cheapest_under_any_price(fit: Fit, slope: float) -> None:
    """Price per FLOP ~ N^slope: the optimum solves alpha A N^-alpha / (1 + slope) = beta B D^-beta
    on the contour.
    """
    params = {k: np.array([v]) for k, v in TRUE.items()}
    n, d = optimal.cheapest(fit, params, 2.5, lambda n, d: 6 * n * d * n**slope)
    assert law(n, d)[0] == pytest.approx(2.5, rel=1e-10)
    left = TRUE["alpha"] * TRUE["A"] * n ** -TRUE["alpha"] / (1 + slope)
    assert left[0] == pytest.approx((TRUE["beta"] * TRUE["B"] * d ** -TRUE["beta"])[0], rel=1e-4)


def test_cheapest_within_a_priced_range_ends_at_its_edge(fit: Fit) -> None:
    params = {k: np.array([v]) for k, v in TRUE.items()}
    free, _ = optimal.cheapest(fit, params, 2.5, lambda n, d: n * d)
    n, d = optimal.cheapest(fit, params, 2.5, lambda n, d: np.where(n <= free / 3, n * d, np.nan))
    assert n[0] == pytest.approx(free[0] / 3, rel=0.1)
    assert n[0] <= free[0] / 3
    assert law(n, d)[0] == pytest.approx(2.5, rel=1e-9)
    none, _ = optimal.cheapest(fit, params, 2.5, lambda n, d: np.full(np.shape(n), np.nan))
    assert np.isinf(none[0])


def test_a_loss_below_some_floors_has_an_unbounded_interval(fit: Fit) -> None:
    floors = np.array(fit.draws["E"])
    loss = float(np.quantile(floors, 0.9))
    one = optimal.cheapest_for_loss(fit, PLAIN, loss, extrapolate=True)[0]
    assert one.interval["flop"][1] is None
    assert one.interval["flop"][0] is not None
    assert "10.0% of the draws" in one.notes[0]
    with pytest.raises(FitError, match=r"not above the floor E = 1\.[78].*95 % 1"):
        optimal.cheapest_for_loss(fit, PLAIN, 1.5)


def test_intervals_are_those_of_the_draws(fit: Fit) -> None:
    one = optimal.cheapest_for_loss(fit, PLAIN, 2.6)[0]
    budgets = []
    for i in range(len(fit.draws["E"])):
        p = {k: np.array([v[i]]) for k, v in fit.draws.items()}
        n, d = optimal.cheapest(fit, p, 2.6, lambda n, d: 6 * n * d)
        budgets.append(6 * float(n[0]) * float(d[0]))
    low, high = one.interval["flop"]
    assert (low, high) == pytest.approx(tuple(np.quantile(budgets, [0.025, 0.975])), rel=1e-3)
    assert low is not None
    assert high is not None
    assert low < (one.flop or 0) < high


def test_far_answers_need_to_be_asked_for(fit: Fit) -> None:
    with pytest.raises(FitError, match="--extrapolate"):
        optimal.best_for_flop(fit, PLAIN, 1e26)
    with pytest.raises(FitError, match="--extrapolate"):
        optimal.cheapest_for_loss(fit, PLAIN, 1.83)
    far = optimal.best_for_flop(fit, PLAIN, 1e26, extrapolate=True)
    assert far.decades_outside == pytest.approx(np.log10(1e26 / fit.span["C"][1]), abs=1e-6)
    assert optimal.best_for_flop(fit, PLAIN, 1e20).decades_outside == 0


def test_an_unconverged_fit_answers_nothing(fit: Fit) -> None:
    bad = dataclasses.replace(
        fit, certificate=dataclasses.replace(fit.certificate, passed=False, reason="stopped early")
    )
    for ask in (lambda: optimal.best_for_flop(bad, PLAIN, 1e20), lambda: optimal.cheapest_for_loss(bad, PLAIN, 2.6)):
        with pytest.raises(FitError, match="no certificate: stopped early"):
            ask()


# --- costs ----------------------------------------------------------------------------------------
def test_costs_are_those_of_the_measured_rungs() -> None:
    found = synthetic.ladder(energy=True)
    p = costs.of_study(found, "n_total")
    for r in (found[0], found[3], found[-1]):
        point, n = r.points[2], np.array([float(r.counts.n_total)])
        d = np.array([float(point.tokens)])
        assert p.flop(n, d)[0] == pytest.approx(point.train_flop, rel=1e-9)
        assert p.joules(n, d)[0] == pytest.approx(point.energy.energy_j, rel=1e-9)
        assert p.seconds(n, d)[0] == pytest.approx(point.wall_s, rel=1e-9)
    top = np.array([float(found[-1].counts.n_total)])
    assert np.isfinite(p.joules(3.9 * top, d)).all()
    assert np.isnan(p.joules(4.1 * top, d)).all()
    assert np.isfinite(p.flop(4.1 * top, d)).all()


def test_what_was_not_measured_has_no_price() -> None:
    p = costs.of_study(synthetic.ladder(), "n_total")
    assert p.j_per_flop is None
    assert synthetic.NO_METER in str(p.joules_reason)
    assert p.s_per_flop is not None
    pooled = synthetic.ladder(energy=True)
    pooled[0].provenance["device"] = "another card"
    p = costs.of_study(pooled, "n_total")
    assert p.j_per_flop is None
    assert "not pooled: another card, synthetic" in str(p.joules_reason)


def test_cheapest_joules_are_not_cheapest_compute(study: Path) -> None:
    """Narrow rungs use more joules per FLOP here, so that the joules-optimal run is larger and
    costs more FLOP.
    """
    found, _ = records.load(study)
    fit = fit_files.load_fits(study)["loss_nd"]
    p = costs.of_study(found, "n_total")
    loss = float(np.median(study_points.points(found).loss_nat))
    by_flop, by_joule = optimal.cheapest_for_loss(fit, p, loss)
    assert by_joule.n is not None
    assert by_flop.n is not None
    assert by_joule.n > 1.05 * by_flop.n
    assert (by_joule.joules or 0) < (by_flop.joules or 0)
    assert (by_joule.flop or 0) > (by_flop.flop or 0)
    sizes = np.geomspace(by_flop.n / 20, by_flop.n * 20, 4001)
    e = fit.params
    left = loss - e["E"] - e["A"] * sizes ** -e["alpha"]
    sizes, left = sizes[left > 0], left[left > 0]
    joules = p.joules(sizes, (e["B"] / left) ** (1 / e["beta"]))
    assert by_joule.joules == pytest.approx(np.nanmin(joules), rel=1e-4), "a dense scan finds nothing cheaper"


def test_a_price_that_some_draws_lack_has_no_interval(study: Path) -> None:
    """At the edge of the measured rungs some draws ask for a size whose joules nobody measured."""
    found, _ = records.load(study)
    fit = fit_files.load_fits(study)["loss_nd"]
    p = costs.of_study(found, "n_total")
    one = optimal.cheapest_for_loss(fit, p, float(np.median(study_points.points(found).loss_nat)))[0]
    assert len(one.interval["joules"]) == len(one.interval["seconds"]) == 2
    n_one = one.n or 0.0
    rate = p.j_per_flop
    assert rate is not None
    cut = dataclasses.replace(p, j_per_flop=lambda n: np.where(n <= n_one * 1.001, rate(n), np.nan))
    edge = optimal.cheapest_for_loss(fit, cut, one.loss_nat)[0]
    assert edge.joules == pytest.approx(one.joules)
    assert "joules" not in edge.interval
    assert "no interval of joules" in edge.notes[0]
    # one.n is rounded once more
    assert edge.interval["seconds"] == pytest.approx(one.interval["seconds"], rel=1e-9)


# --- next runs ------------------------------------------------------------------------------------
def test_variance_is_that_of_the_guides_formula(fit: Fit) -> None:
    """With draws from a narrow normal, the shrunken variance is g'(H + h h'/sigma^2)^-1 g, computed
    from gradients.
    """
    names = list(TRUE)
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(5, 5)) * 1e-4
    cov = mixing @ mixing.T
    centre = np.array([np.log(TRUE[k]) for k in names])
    drawn = np.exp(rng.multivariate_normal(centre, cov, size=40_000))
    narrow = dataclasses.replace(
        fit, params=dict(TRUE), draws={k: drawn[:, i].tolist() for i, k in enumerate(names)}, residual_rms=2e-4
    )
    target = next_runs.target_at(narrow, PLAIN, 1e21)
    plan = next_runs.plan_next(narrow, PLAIN, target, 2, min_shrink=0.02)

    def gradient(n: float, d: float) -> np.ndarray:
        parts = {
            "A": TRUE["A"] * n ** -TRUE["alpha"],
            "B": TRUE["B"] * d ** -TRUE["beta"],
            "E": TRUE["E"],
        }
        parts["alpha"] = -parts["A"] * np.log(n) * TRUE["alpha"]
        parts["beta"] = -parts["B"] * np.log(d) * TRUE["beta"]
        return np.array([parts[k] for k in names]) / float(law(np.array([n]), np.array([d]))[0])

    noise = narrow.residual_rms**2 * narrow.n_points / (narrow.n_points - 5)
    information = np.linalg.inv(cov)
    g = gradient(target.n, target.d)
    assert target.width == pytest.approx(1.96 * np.sqrt(g @ cov @ g), rel=0.02)
    for r in plan.runs:
        h = gradient(r.n, r.d)
        information = information + np.outer(h, h) / noise
        assert r.width == pytest.approx(1.96 * np.sqrt(g @ np.linalg.inv(information) @ g), rel=0.03)


def spread(table: dict[str, np.ndarray], target: next_runs.Target, noise: float, replicates: int) -> float:
    """Standard deviation of ln L at the target over refits of replicated noise: what an interval
    should tell.
    """
    form = LAWS["chinchilla"]
    y = law(table["N"], table["D"])
    bound = form.bind(table, y, np.ones(len(y)), {})
    start = np.repeat(bound.internal(TRUE)[None], replicates, axis=0)
    lny = bound.target + noise * np.random.default_rng(4).normal(size=(replicates, len(y)))
    theta = minimise(bound, start, lny, bound.weight, 0.1).theta
    params = {k: v[:, None] for k, v in bound.external(theta).items()}
    at = {"N": np.array([target.n]), "D": np.array([target.d])}
    return float(np.log(form.value(params, at)).std(ddof=1))


def test_the_strongest_run_narrows_as_much_as_said() -> None:
    """Refits of 400 replicates with and without the proposed run: the spread of the prediction
    falls as announced.
    """
    table = grid(0.003)
    smooth = laws.fit("chinchilla", table, bootstrap=1000, delta=0.1)
    target = next_runs.target_at(smooth, PLAIN, 1e22)
    strongest = next_runs.plan_next(smooth, PLAIN, target, 1).strongest
    assert strongest.shrink > 0.05
    before = spread(table, target, 0.003, 400)
    added = {"N": np.append(table["N"], strongest.n), "D": np.append(table["D"], strongest.d)}
    found = 1 - spread(added, target, 0.003, 400) / before
    assert found == pytest.approx(strongest.shrink, abs=0.04)
    # the middle of the grid
    poor = {"N": np.append(table["N"], 2e8), "D": np.append(table["D"], 3e9)}
    assert 1 - spread(poor, target, 0.003, 400) / before < found / 2


def test_runs_are_chosen_per_cost_and_never_above_the_limit(fit: Fit) -> None:
    target = next_runs.target_at(fit, PLAIN, None)
    assert target.flop == pytest.approx(10 * fit.span["C"][1])
    plan = next_runs.plan_next(fit, PLAIN, target, 3)
    for r in plan.runs:
        assert r.flop <= 2 * fit.span["C"][1] * 1.0001
        assert r.shrink >= 0.05 or r.note
        assert r.joules is None
    assert plan.strongest.shrink >= plan.runs[0].shrink
    assert plan.strongest.shrink / plan.strongest.flop <= plan.runs[0].shrink / plan.runs[0].flop


def test_planning_needs_draws_and_a_law_of_n_and_d(fit: Fit) -> None:
    with pytest.raises(FitError, match="--bootstrap"):
        next_runs.target_at(dataclasses.replace(fit, draws={}), PLAIN, 1e20)
    c = np.geomspace(1e15, 1e20, 12)
    other = laws.fit("loss_compute", {"C": c, "loss": 2 + 300 * c**-0.2}, bootstrap=0)
    with pytest.raises(FitError, match="needs law chinchilla"):
        next_runs.target_at(other, PLAIN, 1e20)


# --- the verb -------------------------------------------------------------------------------------
def test_ask_a_metered_study(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.json"
    assert cli.main(["ask", str(study), "--flop", "1e13", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for words in (
        "loss_nd: L = E",
        "N = n_total",
        "causal count",
        "best loss for 1e+13 FLOP",
        "energy",
        "time",
        "95 %",
    ):
        assert words in text
    assert "unknown" not in text
    (one,) = json.loads(out.read_text())["answers"]
    assert one["joules"] > 0
    assert one["interval"]["n"][0] < one["n"] < one["interval"]["n"][1]
    loss = 1.05 * one["loss_nat"]
    assert cli.main(["ask", str(study), "--loss", str(loss)]) == 0
    text = capsys.readouterr().out
    assert "cheapest compute for" in text
    assert "cheapest joules for" in text
    assert cli.main(["ask", str(study), "--next", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "most per joule" in text
    plan = json.loads(out.read_text())
    assert len(plan["runs"]) == 2
    assert all(r["joules"] > 0 for r in plan["runs"])


def test_ask_files_of_fits(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without records joules are unknown, and said to be; a file with an energy law gives them
    through FLOP.
    """
    fit_files.write_fit(tmp_path / "f.json", fit)
    assert cli.main(["ask", str(tmp_path / "f.json"), "--flop", "1e20"]) == 0
    text = capsys.readouterr().out
    assert "C = 6 N D" in text
    assert "energy   unknown: a file of fits knows no runs" in text
    flop = np.geomspace(1e18, 1e21, 12)
    table = {"C": flop, "energy": 1e-11 * flop**1.01 * np.exp(0.01 * np.random.default_rng(2).normal(size=12))}
    fit_files.write_fit(tmp_path / "e.json", laws.fit("energy_power", table, bootstrap=60))
    assert cli.main(["ask", str(tmp_path / "f.json"), str(tmp_path / "e.json"), "--flop", "1e20"]) == 0
    text = capsys.readouterr().out
    assert "energy   " in text
    assert "law energy = k C^b" in text
    assert "time     unknown" in text


def test_ask_says_how_far_it_goes(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit_files.write_fit(tmp_path / "f.json", fit)
    far = ["ask", str(tmp_path / "f.json"), "--flop", "1e26"]
    assert cli.main(far) == 2
    assert "--extrapolate" in capsys.readouterr().err
    assert cli.main([*far, "--extrapolate", "--out", str(tmp_path / "a.json")]) == 0
    assert "extrapolated: 5.0 decades" in capsys.readouterr().out
    answer = json.loads((tmp_path / "a.json").read_text())
    assert answer["extrapolate"] is True
    assert answer["answers"][0]["decades_outside"] == pytest.approx(4.97, abs=0.05)


def test_ask_refuses_what_is_ambiguous(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        fit_files.write_fit(tmp_path / f"{name}.json", fit)
    both = ["ask", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--flop", "1e20"]
    assert cli.main(both) == 2
    assert "2 fits of a law of N and D: a, b. Choose one with --fit." in capsys.readouterr().err
    assert cli.main([*both, "--fit", "c"]) == 2
    assert "Choose one of: a, b." in capsys.readouterr().err
    assert cli.main([*both, "--fit", "b"]) == 0


def test_ask_a_law_of_compute_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = np.geomspace(1e15, 1e20, 14)
    loss = (2 + 3000 * c**-0.2) * np.exp(0.001 * np.random.default_rng(3).normal(size=14))
    fit_files.write_fit(tmp_path / "c.json", laws.fit("loss_compute", {"C": c, "loss": loss}, bootstrap=100))
    assert cli.main(["ask", str(tmp_path / "c.json"), "--loss", "2.5"]) == 0
    text = capsys.readouterr().out
    exact = (0.5 / 3000) ** -5
    assert f"{exact:.1e}"[:3] in text or "7." in text
    assert cli.main(["ask", str(tmp_path / "c.json"), "--flop", "1e19"]) == 0
    assert "says nothing about N and D" in capsys.readouterr().out


# --- files and places that cannot serve -----------------------------------------------------------
def test_half_a_fit_answers_nothing(fit: Fit, tmp_path: Path) -> None:
    whole = records.to_json(fit)
    cut = {k: v[: 7 if k == "A" else None] for k, v in whole["draws"].items()}
    for change, said in (
        ({"params": {k: v for k, v in whole["params"].items() if k != "E"}}, "chinchilla lacks E; the file is damaged"),
        ({"draws": cut}, "draws of 7 to 400 entries"),
    ):
        records.write_json(tmp_path / "f.json", whole | change)
        with pytest.raises(RecordError, match=said):
            fit_files.load_file(tmp_path / "f.json")
    records.write_json(tmp_path / "f.json", whole | {"law": "other"})
    with pytest.raises(FitError, match=r"law 'other' is unknown here.*fit\.with_law\(law\)"):
        laws.predict(fit_files.load_file(tmp_path / "f.json")["other"], {"N": np.array([1e8]), "D": np.array([1e9])})
    assert cli.main(["ask", str(tmp_path / "f.json"), "--flop", "1e20"]) == 2
    with pytest.raises(FitError, match="does not say over which C it was made"):
        optimal.best_for_flop(dataclasses.replace(fit, span={}), PLAIN, 1e20)


def test_a_flat_curve_names_no_compute_for_a_loss() -> None:
    c = np.geomspace(1e15, 1e20, 10)
    rising = laws.fit("loss_compute", {"C": c, "loss": np.linspace(2, 3, 10)}, bootstrap=0)
    with pytest.raises(FitError, match=r"--loss 2.6: .*The fitted curve is flat"):
        optimal.cheapest_for_loss(rising, PLAIN, 2.6)


def test_a_place_that_cannot_be_written_is_refused_before_the_answer(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_files.write_fit(tmp_path / "f.json", fit)
    for out in (tmp_path, tmp_path / "no" / "a.json"):
        assert cli.main(["ask", str(tmp_path / "f.json"), "--flop", "1e20", "--out", str(out)]) == 2
        text = capsys.readouterr()
        assert text.out == ""
        assert "Choose another place" in text.err
