"""The tables of a report: rows of text from views. The page's template draws and escapes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from harness.analysis import energy as study_energy
from harness.analysis.study_laws import FIT_NAMES
from harness.report.sentences import checklist, greek, number, percent, sentence, verdict, with_interval
from harness.report.view import StudyView
from harness.units import duration, si

MAX_ROWS = 200  # of a table on the page; the whole is exported as parquet


@dataclass(frozen=True)
class PageTable:
    """A captioned table; the columns after the first are numbers, unless `text` is true."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    text: bool = False

    @property
    def shown_rows(self) -> list[list[str]]:
        """The rows that the page shows: the first `MAX_ROWS`."""
        return self.rows[:MAX_ROWS]

    @property
    def remark(self) -> str:
        """The note, and how many rows the page leaves out."""
        cut = len(self.rows) > MAX_ROWS
        more = f"{MAX_ROWS} of {len(self.rows):,} rows; all are in the parquet export." if cut else ""
        return " ".join(text for text in (self.note, more) if text)


def laws(view: StudyView) -> PageTable | None:
    """Every fit with its parameters and intervals; the first column names a failed certificate."""
    if not view.fits:
        return None
    rows = []
    for name, fit in view.fits.items():
        failed = "" if fit.certificate.passed else " — NOT CONVERGED"
        values = "; ".join(f"{greek(p)} = {with_interval(fit, p)}" for p in fit.params)
        title = FIT_NAMES.get(name, name) + failed
        rows.append(
            [title, greek(fit.formula), values, percent(fit.residual_rms), f"{fit.n_points} / {fit.n_clusters}"]
        )
    note = "95 % intervals by bootstrap over independent units (trunks, or rungs where seeds repeat them). A and B move with "
    note += "their exponents: quote predictions, not them."
    return PageTable(
        "Fitted laws", ["fit", "law", "parameters", "rms residual", "points / units"], rows, note, text=True
    )


def exponents(view: StudyView) -> PageTable | None:
    """Exponents and their theory, with the floor free and with it fixed."""
    if view.theory is None:
        return None
    rows = []
    for name in ("loss_nd", "loss_nd_floor_fixed"):
        if fit := view.trusted(name):
            for p, symbol in (("alpha", "α, parameters"), ("beta", "β, data")):
                expected = view.theory[p]
                rows.append(
                    [
                        f"{symbol} ({FIT_NAMES[name]})",
                        with_interval(fit, p),
                        number(expected),
                        verdict(fit, p, expected),
                    ]
                )
    note = "Theory: a for parameters (arXiv:2303.13506), a/(1 + a) for data (arXiv:2102.04074). A miss is a finding."
    return (
        PageTable("Exponents beside theory", ["exponent", "fitted", "theory", "verdict"], rows, note, text=True)
        if rows
        else None
    )


def conventions(view: StudyView) -> PageTable | None:
    """Fits of the same points under three counts of N, whose exponents are not comparable."""
    rows = []
    for name, convention in (("loss_nd", "n_total"), ("loss_nd_nonemb", "n_nonemb"), ("loss_nd_head", "n_head")):
        if fit := view.trusted(name):
            rows.append(
                [convention, *(with_interval(fit, p) for p in ("alpha", "beta", "E", "a")), percent(fit.residual_rms)]
            )
    note = "a is the exponent of the compute-optimal N under the same convention. Predictions use n_total."
    if len(view.table) and (view.table.n_total == view.table.n_head).all():
        note += " With tied embeddings n_head equals n_total."
    head = ["N", "α", "β", "E (nat)", "a", "rms residual"]
    return PageTable("Conventions of N", head, rows, note) if rows else None


def compute_conventions(view: StudyView) -> PageTable | None:
    """The frontier under three counts of the same training FLOP."""
    rows = []
    for name, count in (
        ("loss_compute", "causal attention (train_flop)"),
        ("loss_compute_matmul", "no attention (fpt_matmul)"),
        ("loss_compute_full_emb", "dense attention and embedding (fpt_full_emb)"),
    ):
        if fit := view.trusted(name):
            rows.append(
                [count, *(with_interval(fit, p) for p in ("g", "E")), percent(fit.residual_rms), str(fit.n_points)]
            )
    note = "The count moves C differently at each size, so the points on the frontier can differ too. Everything else uses the causal count."
    return (
        PageTable("Conventions of C", ["C", "g", "E (nat)", "rms residual", "points"], rows, note)
        if len(rows) > 1
        else None
    )


def held_out(view: StudyView) -> PageTable | None:
    """The largest rung: predicted, measured, error, and the error of the naive line."""
    fit = view.trusted("loss_nd_heldout")
    if fit is None or fit.held_out is None:
        return None
    held_out = fit.held_out
    target = view.table.where(view.table.rung == held_out.label)
    labels = [
        f"{held_out.label}, {si(d)} tokens, seed {s:.0f}" for d, s in zip(target.tokens, target.seed, strict=True)
    ]
    if len(labels) != len(held_out.predicted):  # the fit is of other rows than these records
        labels = [held_out.label] * len(held_out.predicted)
    rows = []
    for i, (p, m, e, n) in enumerate(
        zip(held_out.predicted, held_out.measured, held_out.relative_error, held_out.naive_relative_error, strict=True)
    ):
        interval = (
            f"[{number(held_out.interval[i][0], 5)}, {number(held_out.interval[i][1], 5)}]"
            if held_out.interval
            else "–"
        )
        rows.append([labels[i], number(p, 5), interval, number(m, 5), percent(e), percent(n)])
    head = ["held out", "predicted (nat)", "95 % interval", "measured (nat)", "error", "naive line"]
    return PageTable(
        "Held-out rung",
        head,
        rows,
        "Naive: the log-log line through the two next smaller rungs. The interval is that of one new run.",
    )


def rates(view: StudyView) -> PageTable | None:
    if not view.rates:
        return None
    scales = sorted({s for c in view.rates for s in c.relative})
    rows = []
    for c in view.rates:
        best = f"×{c.best:g}" + (" (edge)" if c.at_edge else "")
        rows.append([c.rung, str(c.seed), si(c.tokens), *(percent(c.relative.get(s)) for s in scales), best])
    return PageTable(
        "Learning-rate check: loss against the rule's rate",
        ["rung", "seed", "tokens", *(f"×{s:g}" for s in scales), "best"],
        rows,
    )


def points(view: StudyView) -> PageTable:
    """One row per fit point."""
    table = view.table
    head = [
        "run",
        "seed",
        "N total",
        "N non-emb",
        "N + head",
        "tokens",
        "epochs",
        "FLOP",
        "loss (nat)",
        "± eval",
        "bits/byte",
    ]
    head += ["energy (J)", "± (J)", "seconds", "tokens/s", "MFU"]
    rows = []
    for i in range(min(len(table), MAX_ROWS + 1)):
        sizes = [si(float(a[i])) for a in (table.n_total, table.n_nonemb, table.n_head, table.tokens)]
        cells = [
            str(table.name[i]),
            f"{table.seed[i]:.0f}",
            *sizes,
            f"{table.epochs[i]:.2f}",
            number(float(table.train_flop[i])),
        ]
        cells += [
            _measured(table.loss_nat[i], 5),
            _measured(table.loss_se_nat[i], 2),
            _measured(table.bits_per_byte[i], 4),
        ]
        cells += [
            _measured(table.energy_j[i], 4),
            _measured(table.energy_se_j[i], 2),
            _measured(table.wall_s[i], 3),
            si(float(table.tokens_per_s[i])),
        ]
        rows.append([*cells, percent(None if table.mfu[i] != table.mfu[i] else float(table.mfu[i]), 1)])
    # Rows that are counted, and never shown
    filler = [["" for _ in head]] * max(0, len(table) - len(rows))
    return PageTable(
        "Points",
        head,
        rows + filler,
        "One row per annealed point of the fits, as if it had been trained alone.",
    )


def rung_joules(view: StudyView) -> PageTable | None:
    """Joules per token and per FLOP of each rung, their idle share, and the card's floor."""
    rows = study_energy.by_rung(view.table)
    if not rows:
        return None
    context = "; ".join(study_energy.context(view.table, rows, view.fits))
    note = f"Gross, all measured points of a rung. {sentence(context)}"
    return PageTable("Joules by rung", study_energy.HEAD, [study_energy.row_texts(r) for r in rows], note, text=True)


def _measured(value: float, digits: int) -> str:
    return number(None if value != value else float(value), digits)


def spend(view: StudyView) -> PageTable:
    """What the study used, by phase, and what its points would have cost one by one."""
    phases: dict[str, dict[str, float]] = {}
    unmetered: dict[str, int] = {}
    for record in view.records:
        for phase, amounts in record.spent.items():
            total = phases.setdefault(phase, {"tokens": 0, "flop": 0, "wall_s": 0, "energy_j": 0, "metered": 0})
            for k in ("tokens", "flop", "wall_s"):
                total[k] += amounts.get(k) or 0
            if amounts.get("energy_j") is None:
                unmetered[phase] = unmetered.get(phase, 0) + 1
            else:
                total["energy_j"] += amounts["energy_j"]
                total["metered"] += 1
    rows = []
    for phase, total in phases.items():
        joules = si(total["energy_j"], "J") if total["metered"] else "not measured"
        if total["metered"] and phase in unmetered:
            joules += f" (+ {unmetered[phase]} unmetered)"
        rows.append([f"spent: {phase}", si(total["tokens"]), number(total["flop"]), duration(total["wall_s"]), joules])
    table = view.table
    measured = table.energy_j[table.energy_j == table.energy_j]
    joules = (
        si(float(measured.sum()), "J") + f" ({len(measured)} of {len(table)} points)"
        if len(measured)
        else "not measured"
    )
    tokens, flop, wall = (float(a.sum()) for a in (table.tokens, table.train_flop, table.wall_s))
    rows.append(["as if each point were a run", si(tokens), number(flop), duration(wall), joules])
    note = "A trunk shared by several points is spent once, but counted in each point's as-if cost."
    return PageTable("Spent, and as if", ["phase", "tokens", "FLOP", "time", "energy"], rows, note)


def runs(view: StudyView) -> PageTable:
    rows = [
        [
            record.name,
            record.role,
            record.state,
            str(record.seed),
            si(record.counts.n_total),
            str(len(record.points)),
            "; ".join(record.events) or "–",
        ]
        for record in view.records
    ]
    note = "Without a record: " + ", ".join(f"{n} {s}" for s, n in view.excluded.items()) + "." if view.excluded else ""
    return PageTable("Runs", ["run", "role", "state", "seed", "N total", "points", "events"], rows, note, text=True)


def reporting(view: StudyView) -> PageTable:
    return PageTable("Reporting checklist", ["item", "value"], [list(line) for line in checklist(view)], text=True)


def provenance(view: StudyView) -> PageTable:
    """Where the records come from; each distinct value once, times as a range."""
    values: dict[str, dict[str, None]] = {}
    times: dict[str, list[float]] = {}
    for record in view.records:
        for key, value in record.provenance.items():
            if key.endswith("_unix_s"):
                times.setdefault(key.removesuffix("_unix_s"), []).append(float(value))
            else:
                values.setdefault(key, {})[_text(value)] = None
    rows = [[key, _few(list(texts))] for key, texts in values.items()]
    for key, stamps in times.items():
        first, last = (datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M") for t in (min(stamps), max(stamps)))
        rows.append([key, first + ("" if first == last else f" to {last}") + " UTC"])
    sources = dict.fromkeys(_text(record.meter.get("source")) for record in view.records)
    return PageTable("Provenance", ["item", "value"], [*rows, ["meter", _few(list(sources))]], text=True)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {x}" for k, x in value.items())
    return number(value, 4) if isinstance(value, float) else str(value)


def _few(texts: list[str]) -> str:
    return "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")


def comparison(views: Sequence[StudyView]) -> PageTable:
    """Studies side by side: fitted numbers with intervals, one column per study."""
    lines: list[tuple[str, list[str]]] = [
        ("runs / points", [f"{len(view.records):,} / {len(view.table):,}" for view in views]),
        (
            "corpus",
            [
                ", ".join(sorted({str(record.corpus.get("corpus_id")) for record in view.records})) or "–"
                for view in views
            ],
        ),
        (
            "device",
            [
                ", ".join(sorted({str(record.provenance.get("device")) for record in view.records})) or "–"
                for view in views
            ],
        ),
        (
            "lowest loss (nat)",
            [number(float(view.table.loss_nat.min()), 4) if len(view.table) else "–" for view in views],
        ),
        ("true floor (nat)", [number(view.oracle_nat, 4) for view in views]),
    ]
    columns = [
        ("loss_nd", p, label)
        for p, label in (("alpha", "α, L(N, D)"), ("beta", "β, L(N, D)"), ("E", "E, L(N, D) (nat)"))
    ]
    columns += [("loss_compute", "g", "g, L(C)"), ("energy_compute", "b", "b, E(C)"), ("loss_energy", "g", "g, L(J)")]
    for name, p, label in columns:
        fits = [view.trusted(name) for view in views]
        lines.append((label, [with_interval(f, p) if f else "–" for f in fits]))
    errors = [
        f.held_out.relative_error if (f := view.trusted("loss_nd_heldout")) and f.held_out else None for view in views
    ]
    lines.append(("held-out error, worst", [percent(max(map(abs, e))) if e else "–" for e in errors]))
    rows = [[label, *cells] for label, cells in lines]
    return PageTable(
        "Studies side by side",
        ["", *(view.name for view in views)],
        rows,
        "Fitted values with 95 % intervals.",
        text=True,
    )


def tables(view: StudyView) -> list[PageTable]:
    """All tables of a study in reading order."""
    all_tables = [
        laws(view),
        exponents(view),
        conventions(view),
        compute_conventions(view),
        held_out(view),
        rates(view),
        rung_joules(view),
        spend(view),
        reporting(view),
        runs(view),
        provenance(view),
        points(view),
    ]
    return [t for t in all_tables if t is not None]
