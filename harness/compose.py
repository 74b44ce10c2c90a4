"""DictConfig to RunConfig: the one door. Beyond it nobody sees a DictConfig.

The guard exists because Hydra accepts `+typo=1` silently and hangs it on the object. All problems are reported in one message.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import records, schema
from harness.errors import ConfigError
from harness.records import Json
from harness.schema import (
    Arm,
    CountdownConfig,
    FactsConfig,
    GroupConfig,
    GroupFormat,
    LlamaConfig,
    MultiplyConfig,
    NvmlConfig,
    PretrainedConfig,
    QaConfig,
    RaplConfig,
    ReplayConfig,
    RunConfig,
    TaskConfig,
    TextConfig,
    UnmeteredConfig,
    WsdConfig,
)

# What a run is called and where it writes, not what it is
_NOT_IDENTITY = ("tracker", "paths", "run", "ttc")


def register() -> None:
    """Store every schema with Hydra under `_schema/…`, so that 'available options' lists only real choices."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    root = OmegaConf.structured(RunConfig)
    for family in schema.FAMILIES:
        root[family] = "???"  # the group decides; a default of one choice would refuse the fields of another
    store.store(group="_schema", name="run", node=root)
    for family, choices in schema.FAMILIES.items():
        for name, cls in choices.items():
            store.store(group=f"_schema/{family}", name=name, node=cls)


def load_run(config: DictConfig) -> RunConfig:
    """The typed config of one run. ConfigError lists unknown keys, wrong types, missing values and contradictions together."""
    if problems := _unknown_keys(config, ""):
        raise ConfigError(problems)
    try:
        run = OmegaConf.to_object(config)
    except OmegaConfBaseException as e:
        raise ConfigError(_missing(config) or str(e).splitlines()[0]) from e
    assert isinstance(run, RunConfig)
    if problems := check_run(run):
        raise ConfigError(problems)
    return run


def _unknown_keys(node: DictConfig | ListConfig, path: str) -> list[str]:
    """Keys that are no field of the node's dataclass, with the nearest real one; descends into lists, skips missing values."""
    problems: list[str] = []
    if isinstance(node, ListConfig):
        for i in range(len(node)):
            child = node._get_node(i)
            if isinstance(child, (DictConfig, ListConfig)) and not child._is_none() and not child._is_missing():
                problems += _unknown_keys(child, f"{path}.{i}")
        return problems
    cls = OmegaConf.get_type(node)
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else None
    for key in node:
        where = f"{path}.{key}" if path else str(key)
        if fields is not None and key not in fields:
            near = difflib.get_close_matches(str(key), sorted(fields), n=1)
            prefix = f"{path}." if path else ""
            hint = f"did you mean {prefix}{near[0]}?" if near else f"its fields are {', '.join(sorted(fields))}."
            problems.append(f"{where} is not a field of {typing.cast(type, cls).__name__}; {hint}")
            continue
        child = node._get_node(key)
        if isinstance(child, (DictConfig, ListConfig)) and not child._is_none() and not child._is_missing():
            problems += _unknown_keys(child, where)
    return problems


def _missing(config: DictConfig) -> list[str]:
    return [f"{key} is required and was not given. Use {key}=VALUE." for key in sorted(OmegaConf.missing_keys(config))]


def _at_least(low: float) -> tuple[Callable[[float], bool], str]:
    return lambda v: v >= low, f"at least {low:g}"


_ABOVE_0: tuple[Callable[[float], bool], str] = (lambda v: v > 0, "above 0")
_SHARE: tuple[Callable[[float], bool], str] = (lambda v: 0 <= v < 1, "at least 0 and below 1")
# What one number alone can get wrong; None is never a problem. Contradictions between settings are in `check_run`.
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
    """Every number of a config by its key; None and booleans are left out, lists give their items."""
    for f in dataclasses.fields(typing.cast(typing.Any, value)):
        item, where = getattr(value, f.name), f"{path}{f.name}"
        if dataclasses.is_dataclass(item):
            yield from _numbers(item, f"{where}.")
        for number in item if isinstance(item, list) else [item]:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                yield where, number


def _number_problems(run: RunConfig) -> list[str]:
    problems = []
    for key, value in _numbers(run):
        if not math.isfinite(value):
            problems.append(f"{key}={value} must be a finite number: records hold no other.")
        elif key in _RANGES and not _RANGES[key][0](value):
            problems.append(f"{key}={value} must be {_RANGES[key][1]}.")
    return problems


def check_run(run: RunConfig) -> list[str]:
    """Every contradiction within a config, at once. Pure: changes nothing, touches no disk."""
    problems = _number_problems(run)

    def need(ok: bool, message: str) -> None:
        if not ok:
            problems.append(message)

    b = run.budget
    given = [k for k in ("tokens", "flop", "tokens_per_param") if getattr(b, k) is not None]
    need(
        len(given) == 1 or (not given and isinstance(run.model, PretrainedConfig)),
        f"budget: {' and '.join(given) or 'none'} set, exactly one is needed. Use one of budget.tokens=2_000_000, budget.flop=1e12, "
        "budget.tokens_per_param=20 (unset the others with =null).",
    )
    for key in given:
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
    c = run.corpus
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
    if isinstance(run.model, LlamaConfig):
        need(run.model.width >= 8, f"model.width={run.model.width} must be at least 8.")
    if isinstance(run.power, (NvmlConfig, RaplConfig)):
        need(
            0.001 <= run.power.period_s <= 10,
            f"power.period_s={run.power.period_s} must lie between 0.001 and 10 seconds.",
        )
    need(
        run.device.threads is None or run.device.threads > 0,
        f"device.threads={run.device.threads} must be above 0, or null.",
    )
    need(run.run.checkpoint_every_s > 0, f"run.checkpoint_every_s={run.run.checkpoint_every_s} must be above 0.")
    need(run.run.diverged_above > 1, f"run.diverged_above={run.run.diverged_above} must be above 1 (times ln vocab).")
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


def resolved(run: RunConfig) -> Json:
    """The config as JSON, with `kind` beside each family's fields and paths cut to base names: records hold no local path."""
    value = records.to_json(run)
    for family, choices in schema.FAMILIES.items():
        kind = next(k for k, cls in choices.items() if type(getattr(run, family)) is cls)
        value[family] = {"kind": kind, **value[family]}
    if isinstance(run.model, PretrainedConfig):
        value["model"]["path"] = _told_apart(run.model.path, model_name(run.model.path))
    if isinstance(run.corpus, QaConfig):
        for key in ("test", "shots_from"):
            if (path := value["corpus"][key]) is not None:
                value["corpus"][key] = _told_apart(path, base_name(path))
    if isinstance(run.corpus, TextConfig):
        for key in ("train", "val"):
            value["corpus"][key] = value["corpus"][key] and base_name(value["corpus"][key])
        value["corpus"]["cache_dir"] = None
    if isinstance(run.power, ReplayConfig):
        value["power"]["path"] = Path(run.power.path).name
    value["paths"] = {}
    return value


def model_name(path: str) -> str:
    """A model as a record names it: a folder by its base name; a Hub name (`owner/name`, dots and all) as it is."""
    return Path(path).name if path.startswith(("/", "~", ".")) or path.count("/") > 1 else path


def _told_apart(path: str, name: str) -> str:
    """A name with a hash of the path that it was cut from: two folders called `hf` are two models, and no path is told."""
    return name if name == path else f"{name}#{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def base_name(value: str) -> str:
    """The last part of a local path; other text, such as a Hub name, as it is. Records hold no local path."""
    local = value.startswith(("/", "~", "./", "../")) or ("/" in value and bool(Path(value).suffix))
    return Path(value).name if local else value


def public_overrides(overrides: list[str]) -> list[str]:
    """Overrides as a record keeps them: local paths cut to base names."""
    pairs = (o.partition("=") for o in overrides)
    return [key + equals + base_name(value) for key, equals, value in pairs]


def run_id(run: RunConfig) -> str:
    """Hash of the resolved config minus tracker, paths and run control; minus the budget where a trunk can be branched."""
    value = {k: v for k, v in resolved(run).items() if k not in _NOT_IDENTITY}
    value["budget"].pop("kwh")  # what all runs together may spend says nothing about one of them
    if isinstance(run.schedule, WsdConfig):
        value.pop("budget")
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def run_name(run: RunConfig) -> str:
    """A readable name for tables and W&B; never parsed for meaning."""
    match run.model:
        case LlamaConfig(width=width):
            size = f"w{width}"
        case PretrainedConfig(path=path):
            size = model_name(path)
        case _:
            raise TypeError(f"no name for {type(run.model).__name__}")
    parts = [size, f"s{run.seed}"]
    if isinstance(run.corpus, GroupConfig):
        parts.insert(1, run.corpus.format.value)
    if isinstance(run.corpus, TaskConfig):
        parts.insert(1, run.corpus.arm.value)
    if run.optim.lr_scale != 1.0:
        parts.append(f"lr×{run.optim.lr_scale:g}")
    return " ".join(parts)
