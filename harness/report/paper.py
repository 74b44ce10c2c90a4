"""The fits of a paper as Markdown or LaTeX: a table with intervals, and the reporting checklist.

All numbers and names come from the Fit objects. Items that a fit file cannot contain, such as the
schedule or the hardware, are listed as not stated, because a gap in a checklist is information.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from harness import __version__
from harness.laws.catalogue import is_from_counts, law_of
from harness.laws.result import Fit
from harness.report.sentences import number, percent

MATH = {"alpha": r"\alpha", "beta": r"\beta", "gamma": r"\gamma", "eta": r"\eta", "P_idle": r"P_\mathrm{idle}"}
NOT_STATED = ("schedule and hyperparameter rule", "seeds", "tokenizer and validation set", "hardware")
_LATEX = {c: "\\" + c for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}
_LATEX |= {
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
}


def checklist(fit: Fit) -> list[tuple[str, str]]:
    """The reporting checklist of one fit, as (item, text): data, method, certainty and gaps."""
    c, columns = fit.certificate, dict(fit.columns)
    table = columns.pop("table", None)
    free = [p for p in fit.params if p not in fit.fixed]
    fixed = "".join(f"; {name} = {number(value, 6)} given" for name, value in fit.fixed.items())
    removed = ", ".join(f"{reason}: {n}" for reason, n in fit.excluded.items()) or "none"
    held_out = "none: nothing shows how the law extrapolates"
    if fit.held_out is not None:
        rows = fit.held_out
        held_out = f"{rows.label}: {len(rows.measured)} rows, error at most {percent(max(abs(e) for e in rows.relative_error))}"
        pairs = [abs(e) for e in rows.naive_relative_error if e is not None]
        held_out += f" (naive line through the last two rungs: {percent(max(pairs))})" if pairs else ""
        held_out += "" if rows.inside is None else f"; {rows.inside} inside their 95 % interval"
    span = ", ".join(f"{s} {number(low)} to {number(high)}" for s, (low, high) in fit.span.items())
    b = fit.bootstrap
    intervals = "none: no bootstrap"
    if b:
        intervals = (
            f"95 %, percentiles of {b['draws']} bootstrap draws{f' ({fit.resampled})' if fit.resampled else ''} "
            f"over {fit.n_clusters} independent units "
            f"(seed {b['seed']}, {b['failed']} failed)"
        )
        if "cold_starts" in b:
            intervals += f"; {b['cold_starts']} of them also from a cold start, of which {b['cold_better']} ended lower"
        intervals += "; they contain the noise of the rows, not the error of the law's form"
    unchecked = not fit.columns or any(w.code == "ROWS_NOT_JUDGED" for w in fit.warnings)
    plain = law_of(fit).residual == "linear"
    objective = f"sum of Huber terms of log residuals, delta {fit.delta:g}"
    residuals = f"{number(fit.residual_rms, 4)} rms" if plain else f"{percent(fit.residual_rms)} rms of the log"
    if is_from_counts(fit):  # from counts
        objective = "negative log posterior of the counts"
    elif plain:
        objective = f"sum of Huber terms of the residuals, delta {fit.delta:g}"
    lines = [
        ("Law", f"{fit.law}: {fit.formula}; free: {', '.join(free)}{fixed}"),
        ("Columns, conventions", ", ".join(f"{s} = {c}" for s, c in columns.items()) or "not stated"),
        ("Data", table or ("records of a study" if columns else "arrays given in Python")),
        ("Rows", f"{fit.n_points} fitted in {fit.n_clusters} independent units; {span}"),
        ("Rows left out", removed),
        ("States, annealing", "not in the table: not checked" if unchecked else "only finished, annealed points"),
        ("Held out", held_out),
        ("Objective", f"{objective}: {number(fit.objective, 8)}"),
        ("Residuals", residuals),
        ("Starts", f"{c.starts}, of which {c.starts_agreeing} agree with the best; {c.solver}"),
        ("Certificate", "passed" if c.passed else f"FAILED: {c.reason}"),
        ("Newton decrement, condition", f"{number(c.newton_decrement, 2)}, {number(c.condition, 2)}"),
        ("Weights", f"error bars from {columns['sigma']}" if "sigma" in columns else "equal"),
        ("Intervals", intervals),
        ("Not pinned by the data", ", ".join(n for n, pinned in fit.identified.items() if not pinned) or "nothing"),
        ("Warnings", "; ".join(dict.fromkeys(w.code for w in fit.warnings)) or "none"),
        ("Data hash, code", f"{fit.data_hash}; scaling-harness {__version__}"),
    ]  # fmt: skip
    if table:
        lines.append(("Not stated in the table", ", ".join(NOT_STATED)))
    return lines


def markdown(fits: Mapping[str, Fit]) -> str:
    """Table of all fits and a checklist for each, in Markdown."""
    lines = ["| fit | law | parameter | value | 95 % interval |", "|---|---|---|---|---|"]
    for name, fit in fits.items():
        for i, (symbol, value, interval) in enumerate(_rows(fit)):
            first = f"{_table_text(name)}{_failed(fit)} | {_table_text(fit.formula)}" if i == 0 else " | "
            lines.append(f"| {first} | {symbol} | {value} | {interval} |")
    for name, fit in fits.items():
        lines += ["", f"### Reporting checklist: {name}", "", "| item | |", "|---|---|"]
        lines += [f"| {item} | {_table_text(text)} |" for item, text in checklist(fit)]
        lines += ["", *(f"- {w.code}: {w.message}" for w in fit.warnings)]
    return "\n".join(lines).rstrip() + "\n"


def latex(fits: Mapping[str, Fit]) -> str:
    """The same in LaTeX: a table for \\usepackage{booktabs}, and a description list per fit."""
    lines = [r"\begin{tabular}{llll}", r"\toprule", r"fit & parameter & value & 95\,\% interval \\"]
    for name, fit in fits.items():
        lines.append(r"\midrule")
        for i, (symbol, value, interval) in enumerate(_rows(fit)):
            first = escape(name + _failed(fit)) if i == 0 else ""
            lines.append(rf"{first} & ${_symbol(symbol)}$ & {escape(value)} & {escape(interval)} \\")
        lines.append(rf"\multicolumn{{4}}{{p{{0.9\linewidth}}}}{{\small {_formula(fit)}}} \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for name, fit in fits.items():
        lines += ["", rf"\paragraph{{Reporting checklist: {escape(name)}}}", r"\begin{description}"]
        lines += [rf"\item[{escape(item)}] {escape(text)}" for item, text in checklist(fit)]
        lines.append(r"\end{description}")
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text for LaTeX."""
    return "".join(_LATEX.get(c, c) for c in text)


def _rows(fit: Fit) -> list[tuple[str, str, str]]:
    """(symbol, value, interval) of every parameter and derived quantity."""
    out = []
    for symbol in (*fit.params, *(d for d in fit.derived if not d.endswith("_at_robust_delta"))):
        value = fit.params.get(symbol, fit.derived.get(symbol))
        interval = fit.interval.get(symbol, fit.derived_interval.get(symbol))
        if symbol in fit.fixed:
            out.append((symbol, number(value, 6), "given"))
        elif value is None or interval is None:
            out.append((symbol, number(value, 4), "–"))
        else:
            text, *band = _same_digits(value, *interval)
            note = " (not pinned)" if fit.identified.get(symbol) is False else ""
            out.append((symbol, text, ", ".join(band) + note))
    return out


def _same_digits(value: float, low: float, high: float) -> list[str]:
    """Three numbers to two digits of the interval's width; to three digits if it is wide."""
    if low <= 0 or high > 3 * low or not 1e-6 < high - low < 1e4:
        return [number(v) for v in (value, low, high)]
    places = max(0, 1 - math.floor(math.log10(high - low)))
    return [f"{v:.{places}f}" for v in (value, low, high)]


def _failed(fit: Fit) -> str:
    return "" if fit.certificate.passed else " (NOT CONVERGED)"


def _table_text(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _symbol(name: str) -> str:
    """A parameter's name in math mode."""
    if name in MATH:
        return MATH[name]
    head, _, tail = name.partition("_")
    head = MATH.get(head, head if len(head) == 1 else rf"\mathrm{{{head}}}")
    return head + (rf"_\mathrm{{{escape(tail)}}}" if tail else "")


def _formula(fit: Fit) -> str:
    """The law's formula in math mode; as text if it contains functions or primes."""
    names = sorted({*fit.params}, key=len, reverse=True)
    text = re.sub(r"\^(-?)(\w+)", lambda m: "^{" + m[1] + m[2] + "}", fit.formula)
    if not re.fullmatch(r"[\w\s=+\-/^{}*.()]*", text):
        return escape(fit.formula)
    pattern = r"(?<![A-Za-z\\])(" + "|".join(map(re.escape, names)) + r")(?![A-Za-z_])"
    return "$" + re.sub(pattern, lambda m: _symbol(m[1]), text).replace("energy", r"\mathrm{energy}") + "$"
