"""The table and checklist for a paper: every number from the fit, LaTeX that is closed and escaped,
what is unknown is listed.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from harness import laws
from harness.laws.result import Certificate, Fit
from harness.report import paper


@pytest.fixture(scope="module")
def fit() -> Fit:
    n, d = (m.ravel() for m in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(2e8, 2e10, 5)))
    noise = np.exp(0.002 * np.random.default_rng(0).normal(size=25))
    loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * noise
    return laws.fit(
        "chinchilla",
        {"N": n, "D": d, "loss": loss},
        bootstrap=60,
        hold_out=n > 9e8,
        hold_out_label="N > 9e8",
        columns={"N": "n_total & co", "D": "tokens", "loss": "val_50%", "table": "t_1.csv (sha256 0)"},
        excluded={"failing the filter loss < 4 | x": 3},
    )


def test_checklist_holds_what_a_referee_asks(fit: Fit) -> None:
    items = dict(paper.checklist(fit))
    assert "20 fitted in 20 independent units" in items["Rows"]
    assert items["Rows left out"] == "failing the filter loss < 4 | x: 3"
    assert "N > 9e8: 5 rows, error at most" in items["Held out"]
    assert "naive line" in items["Held out"]
    assert "delta 0.001" in items["Objective"]
    assert items["Starts"].startswith(f"{fit.certificate.starts}, of which {fit.certificate.starts_agreeing} agree")
    assert f"60 bootstrap draws ({fit.resampled}) over 20" in items["Intervals"]
    assert fit.resampled in ("cases", "residual")
    assert fit.data_hash in items["Data hash, code"]
    assert "hardware" in items["Not stated in the table"]
    assert items["Certificate"] == "passed"
    bare = dict(paper.checklist(dataclasses.replace(fit, held_out=None, bootstrap={}, columns={})))
    assert bare["Held out"].startswith("none")
    assert bare["Intervals"].startswith("none")
    assert "Not stated in the table" not in bare
    assert bare["Data"] == "arrays given in Python"
    # Nobody asked which of them were annealed
    assert bare["States, annealing"].endswith("not checked")


def test_a_fit_that_failed_says_so_in_its_first_cell(fit: Fit) -> None:
    failed = Certificate(False, 1.0, 1.0, 3, 1, 1.0, reason="stopped early")
    fits = {"x": dataclasses.replace(fit, certificate=failed)}
    assert "| x (NOT CONVERGED) |" in paper.markdown(fits)
    assert "x (NOT CONVERGED) &" in paper.latex(fits)
    assert "FAILED: stopped early" in paper.latex(fits)


def test_markdown_tables_are_rectangular(fit: Fit) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", paper.markdown({"a|b": fit}), re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_latex_is_escaped_and_closed(fit: Fit) -> None:
    text = paper.latex({"my_fit #1": fit})
    assert r"my\_fit \#1" in text
    assert r"n\_total \& co" in text
    assert r"val\_50\%" in text
    assert r"L = E + A/N^{\alpha} + B/D^{\beta}" in text
    assert text.isascii(), "compiles without packages for fonts"
    for line in text.splitlines():
        bare = (
            re.sub(r"\$[^$]*\$", "", line).replace(r"\&", "").replace(r"\%", "").replace(r"\#", "").replace(r"\_", "")
        )
        if not line.startswith(("\\begin", "\\end")):
            assert not re.search(r"[#%_^~]", bare), line
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert bare.count("&") == 3, line
    stripped = re.sub(r"\\[{}]", "", text)
    assert stripped.count("{") == stripped.count("}")
    assert text.count("$") % 2 == 0
    for name in ("tabular", "description"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}")


@pytest.mark.parametrize(
    ("law", "table", "expected"),
    [
        ("energy_power", ("C", "energy"), r"$\mathrm{energy} = k C^{b}$"),
        ("loss_compute", ("C", "loss"), r"$L = E + A C^{-g}$"),
    ],
)
def test_formulas_in_math_mode(law: str, table: tuple[str, str], expected: str) -> None:
    x = np.geomspace(1e12, 1e16, 9)
    y = 3e-9 * x**0.9 if law == "energy_power" else 1.5 + 900 * x**-0.2
    fit = laws.fit(law, {table[0]: x, table[1]: y}, bootstrap=0)
    assert expected in paper.latex({"f": fit})


def test_numbers_keep_the_digits_that_their_interval_allows(fit: Fit) -> None:
    skewed = dataclasses.replace(
        fit,
        derived=fit.derived | {"G": 0.0123456},
        derived_interval=fit.derived_interval | {"G": [0.000321, 1.2345]},
        fixed={"E": 1.034},
        identified={"alpha": False},
    )
    text = paper.markdown({"f": skewed})
    assert "| G | 0.0123 | 0.000321, 1.23 |" in text
    assert re.search(r"\| E \| 1\.\d+ \| given \|", text)
    assert re.search(r"\| alpha \| 0\.3\d+ \| 0\.3\d+, 0\.3\d+ \(not pinned\) \|", text)


def test_a_formula_with_functions_stays_text(fit: Fit) -> None:
    text = paper.latex({"f": dataclasses.replace(fit, formula="L = E + A/N'^alpha, N' = max(N_U, 50 % of N)")})
    assert r"{\small L = E + A/N'\textasciicircum{}alpha, N' = max(N\_U, 50 \% of N)} \\" in text
