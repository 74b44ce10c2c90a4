"""`--law compare`, and the two laws that also take raw data, through the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from harness import laws
from harness.analysis import tables
from harness.analysis.table_compare import compare_table
from harness.analysis.table_fit import fit_table
from harness.cli import main as cli
from harness.errors import FitError
from harness.records import fits as fit_files

TRUTH = {"A": 477.826, "B": 2143.417, "E": 1.817218, "alpha": 0.3473105, "beta": 0.3671724}
EXPONENT = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])


def runs(budgets: int = 6, noise: float = 0.0005) -> dict[str, np.ndarray]:
    """isoFLOP runs of the exact law with a little noise, D/N from 0.5 to 2000."""
    c, n = (m.ravel() for m in np.meshgrid(np.geomspace(1e18, 1e21, budgets), np.geomspace(2e7, 2e10, 25)))
    d = c / (6 * n)
    keep = (d / n > 0.5) & (d / n < 2000)
    c, n, d = c[keep], n[keep], d[keep]
    loss = TRUTH["E"] + TRUTH["A"] / n ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]
    return {"C": c, "N": n, "D": d, "loss": loss * np.exp(noise * np.random.default_rng(0).normal(size=len(n)))}


def write(path: Path, table: dict[str, np.ndarray]) -> Path:
    with path.open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(table)
        out.writerows(zip(*(v.tolist() for v in table.values()), strict=True))
    return path


def in_memory(table: dict[str, np.ndarray]) -> tables.TableFile:
    return tables.TableFile("t.csv", "", table)


def test_compare_prints_three_approaches_and_the_roll_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, md = write(tmp_path / "t.csv", runs()), tmp_path / "f.json", tmp_path / "f.md"
    arguments = ["fit", str(source), "--law", "compare", "--bootstrap", "100", "--filter", "C < 9e20"]
    assert cli.main([*arguments, "--out", str(out), "--markdown", str(md)]) == 0
    text = capsys.readouterr().out
    fits = fit_files.load_file(out)
    assert list(fits) == ["envelope", "isoflop_parabola", "isoflop_akima", "chinchilla"]
    for name, fit in fits.items():
        assert fit.derived.get("a", fit.params.get("a")) == pytest.approx(EXPONENT, abs=0.03)
        assert fit.columns["table"].startswith("t.csv (sha256 ")
        assert fit.excluded["failing the filter C < 9e20"] > 0
        assert "ROWS_NOT_JUDGED" in [w.code for w in fit.warnings]
        assert f"\n{name}\n{fit.law}: {fit.formula} on " in text
    for page in (text, md.read_text()):
        assert "| approach | a (95 %) |" in page
        assert "Largest difference of a: 0.0" in page
        assert "| rungs dropped | C up to |" in page
        assert "times 6 N D" not in page
    assert "### Reporting checklist: chinchilla" in md.read_text()


def test_compare_on_published_runs(published: Path) -> None:
    """Long warm-up: approach 2 says 0.69, approach 3 0.56, on the same rows.

    The held-out top budget, -8.4 % against the line's -0.4 %.
    """
    table = tables.read_table(published / "porian" / "isoflop_points.csv")
    named = {"N": "n", "D": "tokens", "C": "flops"}
    compared = compare_table(table, named, keep="experiment == 'rw/base/long/kaplan/standard/val'", bootstrap=100)
    by_name = {r.name: r.a for r in compared.comparison.rows}
    assert by_name["2 parabola"] == pytest.approx(0.692, abs=1e-3)
    assert by_name["3 L(N, D)"] == pytest.approx(0.5609, abs=1e-3)
    assert compared.rollout[1].top_error == pytest.approx(-0.0842, abs=1e-3)
    assert compared.rollout[1].naive_top_error == pytest.approx(-0.0040, abs=1e-4)


def test_approaches_that_disagree_warn_in_their_fits(published: Path) -> None:
    table = tables.read_table(published / "porian" / "isoflop_points.csv")
    named = {"N": "n", "D": "tokens", "C": "flops"}
    compared = compare_table(table, named, keep="experiment == 'rw/base/short/chinchilla/standard/val'", bootstrap=100)
    messages = {n: [w.message for w in f.warnings if w.code == "APPROACHES_DISAGREE"] for n, f in compared.fits.items()}
    assert any(m.startswith("beyond their intervals: 1 envelope and 2 parabola: a 0.58") for m in messages["envelope"])
    assert {m for ms in messages.values() for m in ms} == {
        f"beyond their intervals: {d}." for d in compared.comparison.disagree
    }


def test_an_approach_that_refuses_is_absent_and_says_why() -> None:
    table = runs(budgets=3)
    compared = compare_table(in_memory(table | {"D": 1.3 * table["D"]}), {}, bootstrap=0)
    assert "chinchilla" in compared.fits
    assert "isoflop_parabola" not in compared.fits
    assert "| 2 parabola | refused: column 'C' holds 3 budgets" in compared.text()
    assert "C is 0.769 times 6 N D (median)" in compared.text()


def test_a_table_that_no_approach_reads_is_refused_with_every_reason() -> None:
    n = np.geomspace(1e7, 1e9, 8)
    ladder = {"N": n, "D": 20 * n, "loss": 1.8 + 400 / n**0.35}
    with pytest.raises(
        FitError, match=r"no approach can read(.|\n)*approach 1 envelope: (.|\n)*approach 3 .*fixed-ratio"
    ):
        compare_table(in_memory(ladder), {}, bootstrap=0)


def test_isoflop_takes_runs_or_optima(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "t.csv", {**runs(), "bar": 0.001 * runs()["loss"]}), tmp_path / "f.json"
    arguments = ["fit", str(source), "--law", "isoflop", "--sigma", "bar", "--bootstrap", "40", "--out", str(out)]
    assert cli.main(arguments) == 0
    fit = fit_files.load_file(out)["isoflop"]
    assert fit.params["a"] == pytest.approx(EXPONENT, abs=0.01)
    assert fit.columns == {"C": "C", "N": "N", "loss": "loss", "sigma": "bar", "table": fit.columns["table"]}
    assert "ROWS_NOT_JUDGED" in capsys.readouterr().out
    c = np.geomspace(1e18, 1e21, 5)
    optima = fit_table(in_memory({"C": c, "best": 0.1 * c**0.5}), "isoflop", {"n_star": "best"}, bootstrap=0)
    assert optima.params["a"] == pytest.approx(0.5, rel=1e-6)


def test_pass_at_k_takes_counts_or_a_curve(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    solved = rng.binomial(64, rng.beta(0.5, 2.0, 200))
    source = write(tmp_path / "t.csv", {"hits": solved, "n": np.full(200, 64)})
    out, md = tmp_path / "f.json", tmp_path / "f.md"
    arguments = ["fit", str(source), "--law", "pass_at_k", "--column", "correct=hits", "--column", "samples=n"]
    assert cli.main([*arguments, "--bootstrap", "100", "--out", str(out), "--markdown", str(md)]) == 0
    fit = fit_files.load_file(out)["pass_at_k"]
    assert fit.derived["pass_at_1"] == pytest.approx(solved.mean() / 64, abs=0.01)
    assert fit.interval["a"][0] < 0.5 < fit.interval["a"][1]
    assert fit.columns["correct"] == "hits"
    assert "negative log posterior of the counts" in md.read_text()
    k = np.array([1.0, 2, 4, 8, 16, 32])
    curve = laws.predict(fit, {"k": k})
    again = fit_table(in_memory({"k": k, "coverage": curve}), "pass_at_k", {}, bootstrap=0)
    assert again.params["a"] == pytest.approx(fit.params["a"], rel=1e-4)


@pytest.mark.parametrize(
    ("law", "table", "more", "words"),
    [
        ("compare", runs(), ["--hold-out", "C > 5e20"], ["--hold-out means nothing to --law compare"]),
        ("compare", runs(), ["--delta", "0.1", "--fix", "E=1"], ["--fix, --delta means nothing"]),
        ("compare", {k: v for k, v in runs().items() if k != "loss"}, [], ["law compare needs loss", "--loss COLUMN"]),
        (
            "compare",
            runs() | {"annealed": runs()["C"] > 0, "state": np.full(len(runs()["C"]), "failed")},
            [],
            ["failed"],
        ),
        ("isoflop", runs(), ["--fix", "a=0.5"], ["--fix means nothing to --law isoflop from C, N, loss"]),
        ("isoflop", runs(), ["--sigma", "D"], ["error bar", "1/sigma^2"]),
        ("isoflop", runs() | {"bar": np.zeros(len(runs()["C"]))}, ["--sigma", "bar"], ["holds 0", "not an error bar"]),
        ("compare", runs() | {"bar": -np.ones(len(runs()["C"]))}, ["--sigma", "bar"], ["holds -1", "not an error bar"]),
        ("compare", runs(), ["--seed", "-1"], ["seed=-1"]),
        ("isoflop", {k: v for k, v in runs().items() if k in ("C", "loss")}, [], ["N* = k C^a", "needs N"]),
        ("isoflop", runs(budgets=3), [], ["holds 3 budgets", "needs 4"]),
        ("isoflop", runs() | {"annealed": runs()["C"] < 9e20}, [], ["'annealed' is false"]),
        ("pass_at_k", {"correct": np.full(9, 5), "samples": np.full(9, 4)}, [], ["problem 0: 5 correct of 4"]),
        (
            "pass_at_k",
            {"correct": np.r_[np.nan, 0, 0, np.full(6, 2)], "samples": np.full(9, 4)},
            [],
            ["row 1 of 9 (1 such rows)", '--filter "[correct] >= 0"'],
        ),
        ("pass_at_k", {"correct": np.full(9, 3)}, [], ["needs samples", "--column samples="]),
        ("pass_at_k", {"correct": np.full(9, 3), "samples": np.full(9, 4)}, ["--sigma", "correct"], ["--sigma means"]),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else "",
)
def test_refusals(
    law: str,
    table: dict[str, np.ndarray],
    more: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.csv", table)
    assert cli.main(["fit", "t.csv", "--law", law, "--bootstrap", "0", "--out", "f.json", *more]) == 2
    text = capsys.readouterr().err
    assert text.startswith("harness fit: ")
    assert all(w in text for w in words), text
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"], "nothing is written"
