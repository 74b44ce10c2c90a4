"""The figure of a table fit: every kind of law, held-out marks, no law without a certificate, files
that are not blank.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analysis import tables
from harness.analysis.table_fit import Fitted, fit_points
from harness.cli import main as cli
from harness.report import fit_figure, page

N, D = (m.ravel() for m in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(2e8, 2e10, 5)))
RNG = np.random.default_rng(0)
NOISE = np.exp(0.002 * RNG.normal(size=25))
RUNS = {"N": N, "D": D, "loss": (1.8 + 480 / N**0.35 + 2100 / D**0.37) * NOISE}
C = np.geomspace(1e13, 1e17, 9)
T = C / 1e11 * np.linspace(0.5, 2, 9)
SOLVED = {"correct": RNG.binomial(64, RNG.beta(0.5, 2.0, 100)), "samples": np.full(100, 64)}
TABLES: dict[str, dict[str, np.ndarray]] = {
    "chinchilla": RUNS,
    "loss_compute": {"C": C, "loss": 1.5 + 60 * C**-0.12 * np.exp(0.001 * RNG.normal(size=9))},
    "energy_idle": {"C": C, "t": T, "energy": (70 * T + 2e-10 * C) * np.exp(0.02 * RNG.normal(size=9))},
    "pass_at_k": SOLVED,
    "accuracy_loss": {
        "loss": np.linspace(4, 2, 9),
        "accuracy": 0.25 + 0.5 / (1 + np.exp(-3 * (3 - np.linspace(4, 2, 9)))),
    },
}


def done(law: str, **options: Any) -> Fitted:
    return fit_points(tables.TableFile("t.csv", "", TABLES[law]), law, {}, bootstrap=100, **options)


def drawn(fitted: Fitted) -> tuple[dict[str, Any], list[tuple[dict[str, Any], list[dict[str, Any]]]]]:
    """The spec, and each layer of marks with its rows."""
    spec = fit_figure.draw(fitted.fit, fitted.points, fitted.held_out).spec
    assert spec is not None
    layers = []
    for part in spec["vconcat"]:
        for layer in part["layer"]:  # Altair lifts what all layers share to the outside
            source = layer.get("data") or part.get("data") or spec["data"]
            layers.append((layer, spec["datasets"][source["name"]]))
    return spec, layers


@pytest.mark.parametrize("law", TABLES)
def test_every_kind_of_law_is_drawn_inside_its_axes(law: str, tmp_path: Path) -> None:
    fitted = done(law)
    spec, layers = drawn(fitted)
    kinds = [layer["mark"]["type"] for layer, _ in layers]
    assert kinds == ["area", "line", "point", "rule", "point"]
    for layer, rows in layers:
        for channel in ("x", "y"):
            if channel not in layer["encoding"]:
                continue
            field, (low, high) = layer["encoding"][channel]["field"], layer["encoding"][channel]["scale"]["domain"]
            assert all(low <= r[field] <= high for r in rows), (law, field)
    points = [rows for layer, rows in layers if layer["mark"]["type"] == "point"]
    assert [len(rows) for rows in points] == [len(next(iter(fitted.points.values())))] * 2
    assert all(r["low"] <= r["y"] <= r["high"] for r in layers[0][1])
    assert spec["vconcat"][1]["layer"][-1]["encoding"]["x"]["axis"]["title"]
    page.write_figure(
        fit_figure.draw(fitted.fit, fitted.points, fitted.held_out), tmp_path / "f.png", tmp_path / "f.svg"
    )
    assert (tmp_path / "f.png").stat().st_size > 10_000
    assert (tmp_path / "f.svg").read_text().count("<path") > 20


def test_residuals_are_those_of_the_fit_and_held_out_points_are_hollow() -> None:
    fitted = done("chinchilla", hold_out="N > 9e8")
    _, layers = drawn(fitted)
    marks = [(layer["mark"]["filled"], rows) for layer, rows in layers if layer["mark"]["type"] == "point"]
    assert [(filled, len(rows)) for filled, rows in marks] == [(True, 20), (False, 5)] * 2
    residuals = [-np.log1p(r["y"] / 100) for r in marks[2][1]]
    assert residuals == pytest.approx(fitted.fit.residuals, abs=1e-7)
    assert fitted.fit.held_out is not None
    errors = [1 / (1 + r["y"] / 100) - 1 for r in marks[3][1]]
    assert errors == pytest.approx(fitted.fit.held_out.relative_error, abs=1e-7)


def test_many_sizes_are_grouped_and_each_line_has_its_own_points_span() -> None:
    n, d = (m.ravel() for m in np.meshgrid(np.geomspace(1e7, 1e9, 13), np.geomspace(2e8, 2e10, 4)))
    table = tables.TableFile("t.csv", "", {"N": n, "D": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37})
    _, layers = drawn(fit_points(table, "chinchilla", {}, bootstrap=0))
    assert [layer["mark"]["type"] for layer, _ in layers] == ["line", "point", "rule", "point"], "no draws, no band"
    assert len({r["series"] for r in layers[0][1]}) == fit_figure.MAX_GROUPS
    assert {r["series"] for r in layers[1][1]} == {r["series"] for r in layers[0][1]}
    assert layers[1][0]["encoding"]["color"]["title"].startswith("N of the line")


@pytest.mark.parametrize("law", TABLES)
def test_a_fit_without_a_certificate_shows_its_data_alone(law: str) -> None:
    fitted = done(law)
    failed = replace(fitted.fit, certificate=replace(fitted.fit.certificate, passed=False, reason="not converged"))
    spec, layers = drawn(replace(fitted, fit=failed))
    assert [layer["mark"]["type"] for layer, _ in layers] == ["point"]
    assert "NOT CONVERGED" in spec["title"]["subtitle"][0]


def test_the_command_line_writes_it_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = zip(*(v.tolist() for v in RUNS.values()), strict=True)
    Path("t.csv").write_text("N,D,loss\n" + "\n".join(",".join(map(str, r)) for r in rows))
    arguments = ["fit", "t.csv", "--law", "chinchilla", "--bootstrap", "40", "--out", "f.json"]
    for bad in ("f.pdf", "nowhere/f.png"):
        assert cli.main([*arguments, "--figure", bad]) == 2
        assert f"--figure {bad}: give a file that ends in .png or .svg" in capsys.readouterr().err
        assert not Path("f.json").exists()
    assert cli.main([*arguments, "--figure", "f.svg"]) == 0
    assert "written: f.svg" in capsys.readouterr().out
    assert "L = E + A/N^alpha + B/D^beta" in Path("f.svg").read_text()
