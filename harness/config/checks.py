"""Whether a resolved config can be run: ranges of single numbers, and contradictions between
settings. Pure and total: every problem is named, nothing is changed, nothing is read from disk.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator

from harness.config.schema import (
    Arm,
    CorpusConfig,
    CountdownConfig,
    FactsConfig,
    GroupConfig,
    GroupFormat,
    LlamaConfig,
    MultiplyConfig,
    PretrainedConfig,
    QaConfig,
    RunConfig,
    TaskConfig,
    TextConfig,
    UnmeteredConfig,
    WsdConfig,
)
from harness.errors import ConfigError
from harness.records import wrong_type


def _at_least(low: float) -> tuple[Callable[[float], bool], str]:
    return lambda v: v >= low, f"at least {low:g}"


_ABOVE_0: tuple[Callable[[float], bool], str] = (lambda v: v > 0, "above 0")
_SHARE: tuple[Callable[[float], bool], str] = (lambda v: 0 <= v < 1, "at least 0 and below 1")
# What one number alone can get wrong; None is never a problem. Contradictions between settings are
# in `check_run`.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "seed": (lambda v: 0 <= v < 2**63, "at least 0 and below 2^63"),
    "model.depth": _at_least(1),
    "model.head_dim": _at_least(2),
    "model.kv_heads": _at_least(1),
    "model.ffn": _at_least(1),
    "model.rope_theta": _ABOVE_0,
    "corpus.vocab": _at_least(2),
    "corpus.val_tokens": _at_least(1),
    "corpus.table_seed": (lambda v: 0 <= v < 2**63, "at least 0 and below 2^63"),
    "schedule.warmup_tokens": _at_least(0),
    "schedule.final": (lambda v: 0 <= v <= 1, "a share from 0 to 1"),
    "optim.beta1": _SHARE,
    "optim.beta2": _SHARE,
    "optim.eps": _ABOVE_0,
    "optim.momentum": _SHARE,
    "optim.adamw_lr_ratio": _ABOVE_0,
    "device.micro_batch_tokens": _at_least(1),
    "evaluation.every_tokens": _at_least(1),
    "evaluation.batch_tokens": _at_least(1),
    "budget.kwh": _ABOVE_0,
    "power.tolerance": _ABOVE_0,
    "power.period_s": (lambda v: 0.001 <= v <= 10, "from 0.001 to 10 seconds"),
    **{
        f"ttc.{k}": _at_least(1)
        for k in ("problems", "samples", "beam_keep", "max_new_tokens", "batch_rows", "meter_samples")
    },
    **{f"ttc.{k}": (lambda v: 0 <= v <= 1, "a share from 0 to 1") for k in ("verifier_tpr", "verifier_fpr")},
    "ttc.temperatures": _ABOVE_0,
    "ttc.beam_width": _at_least(0),
    "ttc.min_states": _at_least(0),
    "ttc.max_states": _at_least(0),
    "ttc.meter_s": _ABOVE_0,
    "ttc.seed": (lambda v: 0 <= v < 2**63, "at least 0 and below 2^63"),
    "tracker.init_timeout_s": _ABOVE_0,
    "tracker.finish_timeout_s": _ABOVE_0,
}


def _numbers(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a config by its key; None and booleans are left out, lists give their
    items.
    """
    for f in dataclasses.fields(typing.cast(typing.Any, value)):
        item, where = getattr(value, f.name), f"{path}{f.name}"
        if dataclasses.is_dataclass(item):
            yield from _numbers(item, f"{where}.")
        for number in typing.cast(list[object], item) if isinstance(item, list) else [item]:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                yield where, number


def _type_problems(run: object) -> list[str]:
    if not isinstance(run, RunConfig):
        return [f"a RunConfig is needed, not a {type(run).__name__}. Build one: RunConfig(model=…, budget=…)."]
    problems: list[str] = []
    for f in dataclasses.fields(run):
        value = getattr(run, f.name)
        if dataclasses.is_dataclass(value) and (problem := wrong_type(value)):
            problems.append(f"{f.name}.{problem}")
    if type(run.seed) is not int:
        problems.append(f"seed={run.seed!r} must be a whole number.")
    return problems


def evaluation_problems(run: RunConfig) -> list[str]:
    """Why a run cannot be evaluated: only a task has test problems."""
    if isinstance(run.corpus, TaskConfig):
        return []
    return [
        f"study={run.study}: its corpus is no task, so there is nothing to test. Use corpus=group, countdown or multiply, "
        "or corpus=qa with model=pretrained."
    ]


def _number_problems(run: RunConfig) -> list[str]:
    problems: list[str] = []
    for key, value in _numbers(run):
        if not math.isfinite(value):
            problems.append(f"{key}={value} must be a finite number: records hold no other.")
        elif key in _RANGES and not _RANGES[key][0](value):
            problems.append(f"{key}={value} must be {_RANGES[key][1]}.")
    return problems


def require(run: RunConfig) -> None:
    """ConfigError that lists every contradiction within a config."""
    if problems := check_run(run):
        raise ConfigError(problems)


def check_run(run: RunConfig) -> list[str]:
    """Every contradiction within a config, at once. Pure: changes nothing, touches no disk.

    Values of a wrong type come first and alone: the other checks compare numbers.
    """
    if problems := _type_problems(run):
        return problems
    return [
        *_number_problems(run),
        *_budget_problems(run),
        *_recipe_problems(run),
        *_corpus_problems(run.corpus),
        *_machine_problems(run),
    ]


def _budget_problems(run: RunConfig) -> list[str]:
    """What the budget can get wrong, with the schedule and the meter that it needs."""
    problems: list[str] = []

    def need(ok: bool, message: str) -> None:
        if not ok:
            problems.append(message)

    b = run.budget
    chosen = [k for k in ("tokens", "flop", "tokens_per_param") if getattr(b, k) is not None]
    need(
        len(chosen) == 1 or (not chosen and isinstance(run.model, PretrainedConfig)),
        f"budget: {' and '.join(chosen) or 'none'} set, exactly one is needed. Use one of budget.tokens=2_000_000, budget.flop=1e12, "
        "budget.tokens_per_param=20 (unset the others with =null).",
    )
    for key in chosen:
        need(getattr(b, key) > 0, f"budget.{key}={getattr(b, key)} must be above 0.")
    need(
        b.kwh is None or not isinstance(run.power, UnmeteredConfig),
        f"budget.kwh={b.kwh} cannot be kept with power=unmetered: nothing would be counted. Choose power=nvml or power=rapl.",
    )
    for share in b.cooldowns:
        need(
            0 < share < 1,
            f"budget.cooldowns has {share}: cooldowns are shares of the budget between 0 and 1, such as 0.25. The budget itself is always a point.",
        )
    wsd = isinstance(run.schedule, WsdConfig)
    need(
        wsd or not b.cooldowns,
        f"budget.cooldowns={b.cooldowns} needs schedule=wsd: only a constant-rate trunk can be branched. Use schedule=wsd or budget.cooldowns=[].",
    )
    if isinstance(run.schedule, WsdConfig):
        need(
            0 < run.schedule.decay_fraction < 1,
            f"schedule.decay_fraction={run.schedule.decay_fraction} must lie between 0 and 1; 0.1 to 0.2 is usual.",
        )
    return problems


def _recipe_problems(run: RunConfig) -> list[str]:
    """What the optimiser and the test-time settings can get wrong."""
    problems: list[str] = []

    def need(ok: bool, message: str) -> None:
        if not ok:
            problems.append(message)

    o = run.optim
    need(o.lr is None or o.lr > 0, f"optim.lr={o.lr} must be above 0, or null for the rule.")
    need(o.lr_scale > 0, f"optim.lr_scale={o.lr_scale} must be above 0.")
    need(
        o.batch_tokens is None or o.batch_tokens >= run.corpus.context,
        f"optim.batch_tokens={o.batch_tokens} is below corpus.context={run.corpus.context}: a batch holds at least one sequence.",
    )
    need(o.weight_decay >= 0, f"optim.weight_decay={o.weight_decay} must not be negative.")
    need(o.grad_clip > 0, f"optim.grad_clip={o.grad_clip} must be above 0.")
    need(run.ttc.temperatures != [], "ttc.temperatures=[] asks for nothing. Name at least one, such as [1.0].")
    for name in ("temperatures", "strides", "max_states", "meter_samples"):
        values = getattr(run.ttc, name)
        need(len(set(values)) == len(values), f"ttc.{name}={values} names a value twice. Name each once.")
    return problems


def _corpus_problems(c: CorpusConfig) -> list[str]:
    """What a corpus can get wrong before it is opened."""
    problems: list[str] = []

    def need(ok: bool, message: str) -> None:
        if not ok:
            problems.append(message)

    if isinstance(c, TaskConfig):
        problems += _task_problems(c)
    else:
        need(c.context >= 3, f"corpus.context={c.context} must be at least 3.")
    if isinstance(c, (FactsConfig, TextConfig)):
        need(
            c.unique_tokens is None or c.unique_tokens >= c.context,
            f"corpus.unique_tokens={c.unique_tokens} is below corpus.context={c.context}: at least one sequence is needed.",
        )
    need(c.val_tokens >= c.context, f"corpus.val_tokens={c.val_tokens} is below corpus.context={c.context}.")
    if isinstance(c, FactsConfig):
        need(
            c.context % 3 == 0,
            f"corpus.context={c.context} is not a multiple of 3: windows must hold whole triplets for the entropy to be exact. "
            f"Use {max(3, c.context // 3 * 3)}.",
        )
        need(
            2 <= c.keys <= c.vocab**2,
            f"corpus.keys={c.keys} does not fit: {c.vocab} tokens make {c.vocab**2:,} pairs. Use fewer keys or a larger corpus.vocab.",
        )
        need(c.zipf_a > 0, f"corpus.zipf_a={c.zipf_a} must be above 0.")
    if isinstance(c, TextConfig):
        need(0 < c.val_fraction < 0.5, f"corpus.val_fraction={c.val_fraction} must lie between 0 and 0.5.")
        need(
            c.tokenizer in ("bytes", "bpe") or c.tokenizer.startswith("hub:") or "/" in c.tokenizer,
            f"corpus.tokenizer={c.tokenizer!r} is unknown. Use bytes, bpe, hub:NAME, or the path of a tokenizer's folder (./NAME).",
        )
    return problems


def _machine_problems(run: RunConfig) -> list[str]:
    """What model, device, attempt, study and paths can get wrong."""
    problems: list[str] = []

    def need(ok: bool, message: str) -> None:
        if not ok:
            problems.append(message)

    if isinstance(run.model, LlamaConfig):
        need(run.model.width >= 8, f"model.width={run.model.width} must be at least 8.")
    need(
        run.device.threads is None or run.device.threads > 0,
        f"device.threads={run.device.threads} must be above 0, or null.",
    )
    need(
        not (run.device.tf32 and isinstance(run.model, PretrainedConfig)),
        "device.tf32=true with model=pretrained: some versions of transformers compute rotary angles as a matrix product, which "
        "TF32 rounds by up to 0.3 rad. Leave device.tf32 out.",
    )
    need(
        run.attempt.checkpoint_every_s > 0,
        f"attempt.checkpoint_every_s={run.attempt.checkpoint_every_s} must be above 0.",
    )
    need(
        run.attempt.diverged_above > 1,
        f"attempt.diverged_above={run.attempt.diverged_above} must be above 1 (times ln vocab).",
    )
    need(
        bool(run.study) and run.study[0].isalnum() and all(ch.isalnum() or ch in "._-" for ch in run.study),
        f"study={run.study!r} names a folder: letters, digits, dot, dash and underscore only, a letter or digit first.",
    )
    need(
        bool(run.paths.runs) and not run.paths.runs.startswith("~"),
        f"paths.runs={run.paths.runs!r} must name a folder; ~ is not expanded here. Use paths.runs=runs, or a whole path.",
    )
    return problems


def _task_problems(c: TaskConfig) -> list[str]:
    problems: list[str] = []

    def need(ok: bool, message: str) -> None:
        if not ok:
            problems.append(message)

    need(c.context == 0, f"corpus.context={c.context} cannot be set: the task's format decides it. Leave it out.")
    if isinstance(c, GroupConfig):
        order = _group_order(c.group)
        need(order is not None, f"corpus.group={c.group!r} is unknown. Use S3, S4, S5, A4, A5, or Z2 to Z120.")
        outside = [g for g in c.operators if order is not None and not 0 <= g < order]
        need(
            not outside,
            f"corpus.operators has {outside}: {c.group} has the elements 0 to {(order or 0) - 1}. [] takes them all.",
        )
        need(
            len(set(c.operators)) == len(c.operators) != 1,
            f"corpus.operators={c.operators} must be two or more different elements, or [] for all.",
        )
        need(2 <= c.steps <= 256, f"corpus.steps={c.steps} must lie between 2 and 256.")
        if c.format is GroupFormat.stride:
            long = [s for s in c.strides if not 1 <= s <= c.steps]
            need(not long, f"corpus.strides has {long}: a stride lies between 1 and corpus.steps={c.steps}.")
            need(
                0 < len(set(c.strides)) == len(c.strides),
                f"corpus.strides={c.strides} must be one or more different strides.",
            )
    if isinstance(c, CountdownConfig):
        need(2 <= c.numbers <= 6, f"corpus.numbers={c.numbers} must lie between 2 and 6.")
        need(1 <= c.ceiling <= 999, f"corpus.ceiling={c.ceiling} must lie between 1 and 999.")
        need(
            0 <= c.low < c.high <= c.ceiling,
            f"corpus.low={c.low}, corpus.high={c.high}: needed is 0 <= low < high <= corpus.ceiling={c.ceiling}.",
        )
        need(
            c.arm is not Arm.filler,
            "corpus.arm=filler does not exist for countdown: every token of its answer is the answer. Use cot or direct.",
        )
    if isinstance(c, QaConfig):
        need(0 <= c.shots <= 64, f"corpus.shots={c.shots} must lie between 0 and 64.")
    if isinstance(c, MultiplyConfig):
        need(2 <= c.digits <= 9, f"corpus.digits={c.digits} must lie between 2 and 9: products are 64-bit integers.")
    return problems


def _group_order(name: str) -> int | None:
    """Elements of a group, None for an unknown name."""
    if name[:1] == "Z" and name[1:].isdecimal() and 2 <= int(name[1:]) <= 120 and name[1] != "0":
        return int(name[1:])
    return {"S3": 6, "S4": 24, "S5": 120, "A4": 12, "A5": 60}.get(name)
