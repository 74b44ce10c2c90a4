"""Laws that are a caller's function, and tables that are no dict of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import laws
from harness.errors import FitError
from harness.laws import LAWS, Law, Parameter
from harness.records import fits as fit_files

TRUTH = {"E": 1.7, "A": 2.3, "D0": 2.2e9}
D = np.geomspace(1e8, 1e10, 24)
SATURATING = {"E": Parameter(1.0, low=0), "A": Parameter(1.0, low=0), "D0": Parameter(1e9, low=0, kind="scale")}
Columns = Mapping[str, Any]


def saturating(x: Columns, E: Any, A: Any, D0: Any) -> Any:
    return E + A * np.exp(-x["D"] / D0)


def law(**changes: Any) -> Law:
    options: dict[str, Any] = {"symbols": ("D",), "parameters": SATURATING}
    return Law.from_function("saturating", changes.pop("function", saturating), **{**options, **changes})


def table(noise: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    scatter = np.exp(noise * np.random.default_rng(seed).normal(size=len(D)))
    return {"D": D, "loss": saturating({"D": D}, **TRUTH) * scatter}


def test_a_callers_law_recovers_its_truth() -> None:
    for residual in ("log", "linear"):
        f = laws.fit(law(residual=residual), table(), bootstrap=0)
        assert f.certificate.passed, f.certificate
        assert "central differences" in f.certificate.solver
        assert f.params == pytest.approx(TRUTH, rel=1e-6)


def test_intervals_of_a_callers_law_hold_the_truth() -> None:
    inside = 0
    for seed in range(5):
        f = laws.fit(law(), table(0.004, seed), bootstrap=100, method="residual")
        inside += sum(low <= TRUTH[n] <= high for n, (low, high) in f.interval.items())
        assert f.identified == dict.fromkeys(TRUTH, True)
    assert inside >= 12  # of 15 at 95 %


def test_a_callers_law_predicts_with_intervals() -> None:
    f = laws.fit(law(), table(0.004), bootstrap=100)
    low, high = laws.predict_interval(f, {"D": np.array([2e10])})
    assert low[0] < laws.predict(f, {"D": np.array([2e10])})[0] < high[0]
    assert "saturating: loss = saturating(D, E, A, D0) on 24 points" in laws.summary(f)


def test_chinchilla_as_a_function_is_chinchilla() -> None:
    n, d = (m.ravel() for m in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(2e8, 2e11, 6)))

    def function(x: Columns, E: Any, A: Any, alpha: Any, B: Any, beta: Any) -> Any:
        return E + A * x["N"] ** -alpha + B * x["D"] ** -beta

    share = Parameter(0.3, low=0, high=3, kind="exponent")
    mine = Law.from_function(
        "mine", function, symbols=("N", "D"), questions="run",
        parameters={"E": Parameter(1.0, low=0, kind="floor"), "A": Parameter(300.0, low=0), "alpha": share,
                    "B": Parameter(300.0, low=0), "beta": share},
    )  # fmt: skip
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=len(n)))
    loss = function({"N": n, "D": d}, 1.8, 480.0, 0.35, 2100.0, 0.37) * noise
    points = {"N": n, "D": d, "loss": loss}
    theirs, ours = laws.fit("chinchilla", points, bootstrap=60), laws.fit(mine, points, bootstrap=60)
    assert ours.params == pytest.approx(theirs.params, rel=1e-6)
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-9)
    for name, ends in theirs.interval.items():
        assert ours.interval[name] == pytest.approx(ends, rel=1e-4), name
    # N* by search and by its closed form
    best, closed = laws.frontier(ours, [1e21], extrapolate=True), laws.frontier(theirs, [1e21], extrapolate=True)
    assert pytest.approx(closed.N, rel=1e-4) == best.N
    assert pytest.approx(closed.L, rel=1e-6) == best.L


def test_a_function_of_numbers_alone_is_called_once_for_each_vector() -> None:
    def scalar(x: Columns, E: float, A: float, D0: float) -> Any:
        return E + A * np.exp(-x["D"] / D0) if E > 0 else math.inf * x["D"]

    assert laws.fit(law(function=scalar), table(), bootstrap=0).params == pytest.approx(TRUTH, rel=1e-6)


def test_a_stored_fit_predicts_once_it_has_its_law_again(tmp_path: Path) -> None:
    f = laws.fit(law(), table(0.004), bootstrap=60)
    fit_files.write_fit(tmp_path / "f.json", f)
    loaded = fit_files.load_file(tmp_path / "f.json")["saturating"]
    at = {"D": np.array([5e9])}
    for use in (lambda: laws.predict(loaded, at), lambda: laws.summary(loaded)):
        with pytest.raises(FitError, match=r"law 'saturating' is unknown here.*fit\.with_law\(law\)"):
            use()
    assert laws.predict(loaded.with_law(law()), at) == pytest.approx(laws.predict(f, at), rel=1e-15)
    with pytest.raises(FitError, match="is not the one fitted"):
        loaded.with_law(LAWS["chinchilla"])


def shapeless(x: Columns, E: Any, A: Any, D0: Any) -> Any:
    return np.zeros(3)


def forgetful(x: Columns, E: Any, A: Any, D0: Any) -> Any:
    return x["N"] * E


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"symbols": "D"}, r"symbols='D' must be the distinct columns that 'loss' depends on.*Give a"),
        ({"symbols": ("D", "loss")}, r"symbols=\('D', 'loss'\)"),
        ({"residual": "square"}, r"residual='square' is unknown. Choose 'log'"),
        ({"questions": "run"}, r"questions='run' are put to laws of N and D, and this one has D. Give None"),
        ({"parameters": {}}, "parameters is empty"),
        (
            {"parameters": {"E": Parameter(1.0)}},
            r"function cannot be called as function\(columns, E=...\): missing.*same names",
        ),
        (
            {"parameters": SATURATING | {"E": Parameter(1.0, low=2)}},
            "parameter E: start=1.0 is not inside the bounds 2 to inf",
        ),
        ({"parameters": SATURATING | {"E": Parameter(1.0, 3, 2)}}, "parameter E: low=3 is not below high=2"),
        (
            {"parameters": SATURATING | {"E": Parameter(math.nan)}},
            "parameter E: start=nan.*not all finite.*Give numbers",
        ),
        ({"parameters": SATURATING | {"E": Parameter(1.0, kind="slope")}}, "parameter E: kind='slope' is unknown"),  # type: ignore[arg-type]
        ({"parameters": SATURATING | {"E": Parameter(1.0, -1, kind="floor")}}, "parameter E: low=-1 lets a floor"),
        ({"function": shapeless}, r"its function gives the shape \(3,\) for 24 rows.*Return an"),
        ({"function": forgetful}, "its function asks for 'N', and its columns are D. Name it among the symbols"),
    ],
)
def test_definitions_that_cannot_serve(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FitError, match=message):
        laws.fit(law(**changes), table(), bootstrap=0)


def test_names_tell_laws_apart() -> None:
    with pytest.raises(FitError, match=r"law voting: the harness has another law of this name.*Give it another"):
        laws.fit(replace(law(), name="voting"), table(), bootstrap=0)
    with pytest.raises(FitError, match="name='' names no law"):
        Law.from_function("", saturating, symbols=("D",), parameters=SATURATING)


def test_columns_of_any_sign() -> None:
    x = np.linspace(-2, 2, 15)
    line = Law.from_function(
        "line", lambda x, a, b: a + b * x["x"], symbols=("x",), y="score", residual="linear", positive=False,
        parameters={"a": Parameter(0.0), "b": Parameter(1.0)},
    )  # fmt: skip
    f = laws.fit(line, {"x": x, "score": -0.7 - 1.3 * x}, bootstrap=0)
    assert f.params == pytest.approx({"a": -0.7, "b": -1.3}, rel=1e-6)
    assert laws.predict(f, {"x": np.array([0.0])}) == pytest.approx([-0.7], rel=1e-6)


def test_a_sum_of_terms_fits_the_loss_itself_as_a_choice_of_the_law() -> None:
    plain = replace(LAWS["loss_compute"], name="loss_compute_linear", residual="linear")
    c = np.geomspace(1e15, 1e20, 14)
    truth = {"E": 1.1, "A": 2500.0, "g": 0.2}
    exact = plain.value(truth, {"C": c})
    assert laws.fit(plain, {"C": c, "loss": exact}, bootstrap=0).params == pytest.approx(truth, rel=1e-6)
    noisy = exact + 0.01 * np.random.default_rng(0).normal(size=14)
    f = laws.fit(plain, {"C": c, "loss": noisy}, bootstrap=100)
    slopes = np.stack([np.ones(14), c ** -f.params["g"], -f.params["A"] * np.log(c) * c ** -f.params["g"]])
    # least squares of y: residuals without a slope
    assert slopes @ f.residuals == pytest.approx(np.zeros(3), abs=1e-8)
    assert all(low < f.params[n] < high for n, (low, high) in f.interval.items())
    assert "half the sum of squares" in laws.summary(f)


def test_a_data_frame_is_a_table() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table(0.004) | {"note": ["run"] * len(D), "state": ["done"] * len(D)})
    whole = laws.fit(law(), table(0.004), bootstrap=0)
    assert laws.fit(law(), frame, bootstrap=0).params == whole.params
    assert laws.predict(whole, frame) == pytest.approx(laws.predict(whole, table()), rel=1e-15)
    frame["loss"] = "high"
    with pytest.raises(FitError, match="column 'loss' holds entries that are no numbers"):
        laws.fit(law(), frame, bootstrap=0)
    with pytest.raises(FitError, match="needs the column 'loss'; the table has D, note, state"):
        laws.fit(law(), frame.drop(columns="loss"), bootstrap=0)
