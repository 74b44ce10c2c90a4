"""DictConfig to RunConfig: the one door. Beyond it nobody sees a DictConfig.

The guard exists because Hydra accepts `+typo=1` silently and hangs it on the object. All problems are reported in one message.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import typing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import records
from harness.config import schema
from harness.config.checks import check_run
from harness.config.schema import (
    GroupConfig,
    LlamaConfig,
    PretrainedConfig,
    QaConfig,
    RaplConfig,
    RunConfig,
    TaskConfig,
    TextConfig,
    WsdConfig,
)
from harness.errors import ConfigError
from harness.records import Json

# What a run is called and where it writes, not what it is
_NOT_IDENTITY = ("tracker", "paths", "run", "ttc")
# Settings that are younger than runs on disk: section, field, default, and what is hashed in place of the default. A new setting
# must not rename an old run, which would be trained again and stand twice in a fit.
_LATER_FIELDS: tuple[tuple[str, str, Any, Json], ...] = (
    ("device", "tf32", False, {}),
    ("device", "cudnn_attention", False, {}),
    ("device", "deterministic", False, {}),
    ("evaluation", "batch_tokens", None, {"batch_tokens": 16_384}),
)


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


def resolved(run: RunConfig) -> Json:
    """The config as JSON, with `kind` beside each family's fields and paths cut to base names: records hold no local path."""
    value = records.to_json(run)
    for family in schema.FAMILIES:
        config = getattr(run, family)
        cut = {name: Path(path).name for name, path in schema.local_paths(config).items()}
        value[family] = {"kind": schema.choice(family, config), **value[family], **cut}
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
    return [key + equals + (Path(value).name if _names_path(key) else base_name(value)) for key, equals, value in pairs]


def _names_path(key: str) -> bool:
    """Whether a key is a field with the metadata `PATH` in some choice of its family."""
    family, _, name = key.lstrip("+").partition(".")
    choices = schema.FAMILIES.get(family, {}).values()
    return any(f.name == name and "path" in f.metadata for cls in choices for f in dataclasses.fields(cls))


def run_id(run: RunConfig) -> str:
    """Hash of the resolved config minus tracker, paths and run control; minus the budget where a trunk can be branched."""
    value = {k: v for k, v in resolved(run).items() if k not in _NOT_IDENTITY}
    value["budget"].pop("kwh")  # what all runs together may spend says nothing about one of them
    for section, name, default, hashed_as in _LATER_FIELDS:
        if value[section][name] == default:
            value[section].pop(name)
            value[section].update(hashed_as)
    if isinstance(run.power, RaplConfig):
        value["power"]["root"] = run.power.root  # was not cut when its first runs were named
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
