"""Sentences of a report on test-time compute: what thought and votes gain, and at what cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.analysis.ttc import curves as ttc_curves
from harness.analysis.ttc.answers import StudyAnswers, forecast_lines
from harness.analysis.ttc.votes import greedy
from harness.records.ttc import TtcRecord, TtcRow
from harness.report.sentences import number, sentence

ARMS = {
    "cot": "with a written chain of thought",
    "filler": "with fillers in its place",
    "direct": "with the answer alone",
}


def findings(records: Sequence[TtcRecord], answers: StudyAnswers | None) -> list[str]:
    """One sentence per result; the first is the headline. Empty without evaluations."""
    if not records:
        return []
    out = [_accuracies(records)]
    if answers is None:
        return out
    for rate in answers.exchange:
        if rate.g is not None:
            interval = "" if rate.low is None else f" [{number(rate.low)}, {number(rate.high)}]"
            note = f" ({rate.note})" if rate.note else ""
            out.append(
                f"At equal accuracy, test compute falls as (training compute)^−g with g = {number(rate.g)}{interval}: {rate.of}, {rate.basis}{note}."
            )
    for name in dict.fromkeys(e.cost for e in answers.equal_costs):
        gains = [e.gain for e in answers.equal_costs if e.cost == name]
        wins = sum(g.low is not None and g.low > 0 for g in gains)
        losses = sum(g.high is not None and g.high < 0 for g in gains)
        unit = {"test_flop": "FLOP", "wall_s": "seconds", "energy_j": "joules"}.get(name, name)
        out.append(
            f"Of {len(gains)} votes over samples, {wins} beat one longer thought of no more {unit}, {losses} lose to it (95 %)."
        )
    for answer in answers.break_evens:
        q = answer.result
        if q.queries is not None:
            interval = (
                "" if q.low is None else f" [{number(q.low)}, {'unbounded' if q.high is None else number(q.high)}]"
            )
            pays = f"{answer.cheap_to_ask} pays against {answer.cheap_to_train} from {number(q.queries)}{interval} queries on"
            out.append(f"In {answer.unit}, at accuracy {answer.accuracy:g} ({answer.task}): {pays}.")
    verdicts = Counter(a.verdict for a in answers.emergence.values())
    if verdicts:
        counts = ", ".join(f"{v} at {n} of {len(answers.emergence)} controls" for v, n in verdicts.most_common())
        out.append(f"Is the jump of exact match an ability or the metric? {sentence(counts)}")
    out += [sentence(line) for line in forecast_lines(answers.forecasts)]
    if reasons := {row.energy_reason for record in records for row in record.rows if row.energy_reason}:
        out.append(f"Joules per answer: not measured ({'; '.join(sorted(reasons))}).")
    return out


def _accuracies(records: Sequence[TtcRecord]) -> str:
    """Greedy accuracy of the widest model at its last end points: the best control of each arm.

    Accuracies are means over seeds.
    """
    greedy_rows = [
        (record, row) for record in ttc_curves.last_end_points(records) if (row := greedy(record)) is not None
    ]
    if not greedy_rows:
        return "No evaluation has a greedy answer."
    width = max(r.width or 0 for r, _ in greedy_rows)
    parts = []
    for arm, phrase in ARMS.items():
        by_control: dict[str, list[tuple[TtcRecord, TtcRow]]] = {}
        for r, row in greedy_rows:
            if (r.width or 0) == width and r.task.get("arm", "cot") == arm:
                by_control.setdefault(r.label, []).append((r, row))
        if not by_control:
            continue
        mean = {k: sum(row.accuracy or 0.0 for _, row in v) / len(v) for k, v in by_control.items()}
        best = max(mean, key=lambda k: mean[k])
        tokens = sum(row.tokens for _, row in by_control[best]) / len(by_control[best])
        parts.append(f"{mean[best]:.3f} {phrase} ({best}, {tokens:.1f} tokens)")
    size = f"width {width}" if width else f"N = {max(r.n_total for r, _ in greedy_rows):,}"
    seeds = len({r.seed for r, _ in greedy_rows})
    chance = number(greedy_rows[0][0].chance)
    mean_of = f", mean of {seeds} seeds" if seeds > 1 else ""
    return f"Greedy accuracy of {size}{mean_of}: {', '.join(parts)}; chance is {chance}."
