"""The table that `plan` prints, and the check of every rung before a sweep starts."""

from __future__ import annotations

from pathlib import Path

from harness.analysis import forecast
from harness.analysis.forecast import Forecast
from harness.config import ladder
from harness.config.checks import evaluation_problems
from harness.config.ladder import Rung
from harness.config.schema import DeviceKind, PretrainedConfig, QaConfig, TaskConfig, TextConfig
from harness.console import TextTable
from harness.data.corpora import open_corpus, sizes
from harness.errors import ConfigError
from harness.hardware import cpu_model
from harness.records import load_record
from harness.sweep.compose_sweep import Planned
from harness.tasks import open_task
from harness.tasks.qa import check_controls
from harness.units import J_PER_KWH, counted, duration, sci, si

HEADERS = (
    *("run", "id", "N total", "N nonemb", "layers", "lr", "batch", "points (tokens)", "steps", "FLOP"),
    *("time", "energy", "disk"),
)
ALIGN = "llrrrrrlrrrlr"


def check_rungs(planned: list[Planned]) -> list[Rung]:
    """The rungs of a sweep.

    ConfigError lists every budget, shape or text that cannot be trained, before anything is spent.
    """
    rungs, problems = [], []
    for p in planned:
        try:
            rungs.append(ladder.resolve(p.config, *sizes(p.config.corpus)))
            _check_text(p, rungs[-1])
        except ConfigError as e:
            problems += [x for x in e.problems if x not in problems]
    if problems:
        raise ConfigError(problems)
    return rungs


def check_tests(planned: list[Planned]) -> list[Rung]:
    """The rungs of a sweep that `harness ttc` trains, none where the models are pretrained.

    ConfigError lists all that cannot be tested.
    """
    problems = []
    for p in planned:
        corpus, ttc = p.config.corpus, p.config.ttc
        problems += (untestable := evaluation_problems(p.config))
        if not untestable:
            assert isinstance(corpus, TaskConfig)
            try:
                if isinstance(corpus, QaConfig):
                    # its tokenizer comes with the model, which is not loaded here
                    check_controls(corpus, ttc, ttc.max_new_tokens)
                else:
                    open_task(corpus).controls(ttc)
            except ConfigError as e:
                problems += e.problems
    pretrained = {isinstance(p.config.model, PretrainedConfig) for p in planned}
    if len(pretrained) == 2:
        problems.append("model: a sweep tests pretrained models or trains its own, not both. Launch two sweeps.")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return [] if pretrained == {True} else check_rungs(planned)


def _check_text(planned: Planned, rung: Rung) -> None:
    """That a local text is long enough, and that a finished run was trained on it: an id knows a
    file by its base name only.
    """
    config = planned.config.corpus
    if not isinstance(config, TextConfig) or not Path(config.train).expanduser().exists():
        # the embedded corpus has no end, and a dataset of the Hub is not read ahead for this
        return
    corpus = open_corpus(config, tokens_needed=max(p.tokens for p in rung.points))
    path = planned.run_dir / "record.json"
    if planned.config.attempt.force or not path.exists():
        return
    trained_on = load_record(planned.run_dir).corpus.get("corpus_id")
    if trained_on != corpus.info["corpus_id"]:
        raise ConfigError(
            f"run {planned.run_id} was trained on corpus {trained_on} and this is {corpus.info['corpus_id']}: the text of {config.train} is "
            "another one. Restore the file, give a study of its own with study=NAME, or train afresh with attempt.force=true."
        )


def device_name(kind: DeviceKind) -> str:
    """The device that a run would use, named as records name it, without importing torch."""
    if kind is not DeviceKind.cpu:
        from harness.power.nvml import probe

        cards = probe()["cards"]
        if cards:
            return str(cards[0]["name"])
    return cpu_model()


def plan_table(planned: list[Planned]) -> list[TextTable | str]:
    """A table with one row per run, then lines of totals.

    Costs come from earlier runs on this device, else "unknown".
    """
    rungs = check_rungs(planned)
    config = planned[0].config
    device = device_name(config.device.kind)
    rates = forecast.measured_rates(Path(config.paths.runs), device)
    costs = [forecast.estimate_cost(rung, rates) for rung in rungs]
    rows = [_row(p, rung, cost) for p, rung, cost in zip(planned, rungs, costs, strict=True)]
    total = _sum(costs)
    time_text = (
        "unknown (no run measured on this device yet)"
        if total.seconds is None
        else f"{duration(total.seconds)} of run time one after another"
    )
    flop = [point.tokens * float(rung.counts.fpt_causal) for rung in rungs for point in rung.points]
    lines = [
        "",
        f"{counted(len(planned), 'run')}, {counted(len(flop), 'point')} of {sci(min(flop))} to {sci(max(flop))} FLOP "
        f"(causal count); total {sci(sum(r.spent_flop for r in rungs))} FLOP, "
        f"{si(sum(r.spent_tokens for r in rungs))} tokens, disk {si(sum(r.disk_bytes for r in rungs), 'B')}",
        f"time: {time_text}; energy: {_joules(total, why=True)}; device: {device}",
        f"hyperparameters: {rungs[0].hyper.rule}",
    ]
    if config.budget.kwh is not None:
        lines.append(_against_budget(config.budget.kwh * J_PER_KWH, total))
    return [TextTable(rows, HEADERS, ALIGN), *lines]


def _row(planned: Planned, rung: Rung, cost: Forecast) -> list[str]:
    tokens = [point.tokens for point in rung.points]
    return [
        planned.name,
        planned.run_id,
        si(rung.counts.n_total),
        si(rung.counts.n_nonemb),
        str(rung.shape.depth),
        f"{rung.hyper.lr:.3g}",
        si(rung.hyper.batch_tokens),
        f"{len(tokens)}: {si(tokens[0])} to {si(tokens[-1])}" if len(tokens) > 1 else si(tokens[0]),
        f"{rung.spent_tokens // rung.hyper.batch_tokens:,}",
        sci(rung.spent_flop),
        duration(cost.seconds),
        _joules(cost),
        si(rung.disk_bytes, "B"),
    ]


def _sum(costs: list[Forecast]) -> Forecast:
    """A whole sweep; ends of intervals add up, because the runs share a card and a meter."""

    def added(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) if len(known) == len(values) else None

    columns = ("seconds", "energy_j", "low_j", "high_j")
    return Forecast(*(added([getattr(c, name) for c in costs]) for name in columns))


def _joules(cost: Forecast, why: bool = False) -> str:
    if cost.energy_j is None:
        return "unknown" + (" (no metered run of this size on this device yet)" if why else "")
    if cost.low_j is None or cost.high_j is None:
        return f"{si(cost.energy_j, 'J')}" + (" (without interval: one size measured)" if why else "")
    return f"{si(cost.energy_j, 'J')} [{si(cost.low_j, 'J')}, {si(cost.high_j, 'J')}]"


def _against_budget(budget_j: float, total: Forecast) -> str:
    """One line: whether the forecast fits into the study's budget of energy."""
    budget = f"budget.kwh: {si(budget_j, 'J')} for the whole study"
    if total.energy_j is None or total.high_j is None or total.low_j is None:
        return f"{budget}; whether this sweep fits is unknown. It stops cleanly where it does not."
    verdict = (
        "this sweep fits"
        if total.high_j <= budget_j
        else "this sweep will be stopped before its end"
        if total.low_j > budget_j
        else "this sweep may be stopped before its end"
    )
    return f"{budget}; {verdict}"
