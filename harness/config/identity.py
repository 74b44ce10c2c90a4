"""What a run is: the hash of its settings that names its folder, its records and its W&B run.

Two runs with one id are one run: the second resumes or skips the first. So an id must not change
when the harness gains a setting. A setting that no run on disk was named with enters the hash only
where it differs from its default.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from harness.config.schema import (
    FAMILIES,
    BudgetConfig,
    DeviceConfig,
    EvalConfig,
    GroupConfig,
    LlamaConfig,
    PretrainedConfig,
    QaConfig,
    RunConfig,
    TaskConfig,
    TextConfig,
    choice,
)
from harness.config.setting import default_of, local_paths
from harness.records import Json, to_json

_SECTIONS: dict[str, type] = {"budget": BudgetConfig, "device": DeviceConfig, "evaluation": EvalConfig}
# What a run is called, where it writes and how it is run, not what it is
# run: the name of `attempt` in older records
_OUTSIDE_SECTIONS = ("tracker", "paths", "attempt", "ttc", "run")
# What all runs together may spend says nothing about one of them; the number of threads, devices or
# shares of one changes no result
_OUTSIDE_FIELDS = {"budget": ("kwh",), "device": ("threads",)}
# Settings that are hashed at their defaults too, because runs on disk were named so. Closed: a new
# setting does not belong here
_ALWAYS: dict[str, str] = {
    "model.llama": "width depth head_dim kv_heads ffn tie_embeddings rope_theta",
    "model.pretrained": "path",
    "corpus.facts": "context val_tokens vocab keys zipf_a table_seed unique_tokens",
    "corpus.text": "context val_tokens train val val_fraction hub_config text_field tokenizer vocab unique_tokens allow_repetition "
    "cache_dir",
    "corpus.group": "context val_tokens arm group operators steps format strides",
    "corpus.countdown": "context val_tokens arm numbers low high ceiling",
    "corpus.multiply": "context val_tokens arm digits",
    "corpus.qa": "context val_tokens arm test shots_from hub_config revision shots shots_seed",
    "budget": "tokens flop tokens_per_param cooldowns drop_short",
    "schedule.wsd": "warmup_tokens decay_fraction",
    "schedule.cosine": "warmup_tokens final",
    "schedule.constant": "warmup_tokens",
    "optim.adamw": "lr lr_scale batch_tokens weight_decay grad_clip beta1 beta2 eps",
    "optim.muon": "lr lr_scale batch_tokens weight_decay grad_clip momentum adamw_lr_ratio",
    "device": "kind precision compile micro_batch_tokens",
    "evaluation": "every_tokens batch_tokens",
    "power.nvml": "period_s tolerance mig_whole_card",
    "power.rapl": "root period_s",
    "power.replay": "path",
    "power.unmetered": "reason",
}
# Values (now, then) that are hashed as what stood in their place when runs on disk were named, such
# as a changed default
_HASHED_AS: dict[tuple[str, str], list[tuple[Any, Any]]] = {("evaluation", "batch_tokens"): [(None, 16_384)]}
# New name of a field -> the name that it is hashed under
_RENAMED: dict[tuple[str, str], str] = {}


def run_id(run: RunConfig) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the settings that say what the run is; without
    the budget where a trunk can be branched.
    """
    return id_of(resolved(run))


def run_dir(run: RunConfig) -> Path:
    """The folder of a run: <runs>/<study>/<run_id>."""
    return Path(run.paths.runs) / run.study / run_id(run)


def id_of(config: Json) -> str:
    """The id of a run by its resolved config, such as a record holds."""
    value = {k: v for k, v in config.items() if k not in _OUTSIDE_SECTIONS}
    for section in ("budget", "device", "evaluation", *FAMILIES):
        value[section] = _hashed(section, value[section])
    value["device"]["threads"] = None  # older ids hold it, at this value
    if value["schedule"]["kind"] == "wsd":
        value.pop("budget")
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _hashed(section: str, settings: Json) -> Json:
    """The settings of one section that are hashed, by the names and values that they are hashed
    under.
    """
    if section in FAMILIES:
        cls, key = FAMILIES[section][settings["kind"]], f"{section}.{settings['kind']}"
    else:
        cls, key = _SECTIONS[section], section
    always = {"kind", *_ALWAYS.get(key, "").split()}
    defaults = {f.name: to_json(default_of(f)) for f in dataclasses.fields(cls)}
    out: Json = {}
    for name, item in settings.items():
        if name in _OUTSIDE_FIELDS.get(section, ()):
            continue
        if name in always or item != defaults[name]:
            old_name = _RENAMED.get((section, name), name)
            out[old_name] = next((b for a, b in _HASHED_AS.get((section, name), []) if a == item), item)
    return out


def resolved(run: RunConfig) -> Json:
    """The config as JSON, with `kind` beside each family's fields and paths cut to base names:
    records hold no local path.
    """
    value = to_json(run)
    for family in FAMILIES:
        config = getattr(run, family)
        cut = {name: Path(path).name for name, path in local_paths(config).items()}
        value[family] = {"kind": choice(family, config), **value[family], **cut}
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
    value["paths"] = {}
    return value


def model_name(path: str) -> str:
    """A model as a record names it: a folder by its base name; a Hub name (`owner/name`, dots and
    all) as it is.
    """
    return Path(path).name if path.startswith(("/", "~", ".")) or path.count("/") > 1 else path


def _told_apart(path: str, name: str) -> str:
    """A name with a hash of the path that it was cut from: two folders called `hf` are two models,
    and no path is told.
    """
    return name if name == path else f"{name}#{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def base_name(value: str) -> str:
    """The last part of a local path; other text, such as a Hub name, as it is.

    Records hold no local path.
    """
    local = value.startswith(("/", "~", "./", "../")) or ("/" in value and bool(Path(value).suffix))
    return Path(value).name if local else value


def public_overrides(overrides: list[str]) -> list[str]:
    """Overrides as a record keeps them: local paths cut to base names."""
    pairs = (o.partition("=") for o in overrides)
    return [key + equals + (Path(value).name if _names_path(key) else base_name(value)) for key, equals, value in pairs]


def _names_path(key: str) -> bool:
    """Whether a key is a field with `path=True` in some choice of its family."""
    family, _, name = key.lstrip("+").partition(".")
    choices = FAMILIES.get(family, {}).values()
    return any(f.name == name and f.metadata.get("path") for cls in choices for f in dataclasses.fields(cls))


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
