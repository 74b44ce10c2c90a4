"""DictConfig to RunConfig: the one door. Beyond it nobody sees a DictConfig.

The guard exists because Hydra accepts `+typo=1` silently and hangs it on the object. All problems
are reported in one message.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from harness.config import schema
from harness.config.checks import require
from harness.config.schema import Retry, RunConfig
from harness.errors import ConfigError

FORMER_NAME = "run"  # the former name of the section `attempt`


@dataclass
class FormerRunSection:
    """Settings of `attempt` by their former names; None where not set."""

    retry: Retry | None = None
    force: bool | None = None
    checkpoint_every_s: float | None = None
    diverged_above: float | None = None


def register() -> None:
    """Store every schema with Hydra under `_schema/…`, so that 'available options' lists only real
    choices.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    root = OmegaConf.structured(RunConfig)
    with open_dict(root):
        root[FORMER_NAME] = FormerRunSection
    for family in schema.FAMILIES:
        # the group decides; a default of one choice would refuse the fields of another
        root[family] = "???"
    store.store(group="_schema", name="run", node=root)
    for family, choices in schema.FAMILIES.items():
        for name, cls in choices.items():
            store.store(group=f"_schema/{family}", name=name, node=cls)


def load_run(config: DictConfig) -> RunConfig:
    """The typed config of one run.

    ConfigError lists unknown keys, wrong types, missing values and contradictions together.
    """
    if problems := _unknown_keys(config, ""):
        raise ConfigError(problems)
    config = config.copy()
    former = renamed_settings(config)
    with open_dict(config):
        config.pop(FORMER_NAME, None)
    for key, value in former.items():
        config.attempt[key] = value
    try:
        run = OmegaConf.to_object(config)
    except OmegaConfBaseException as e:
        raise ConfigError(_missing(config) or str(e).splitlines()[0]) from e
    assert isinstance(run, RunConfig)
    require(run)
    return run


def renamed_settings(config: DictConfig) -> dict[str, Any]:
    """Settings of `attempt` that a command line or a ladder sets by the section's former name,
    `run`.
    """
    section = typing.cast("dict[str, Any]", config.get(FORMER_NAME) or {})
    return {key: section[key] for key in section if section[key] is not None}


def _unknown_keys(node: DictConfig | ListConfig, path: str) -> list[str]:
    """Keys that are no field of the node's dataclass, with the nearest real one; descends into
    lists, skips missing values.
    """
    problems: list[str] = []
    if isinstance(node, ListConfig):
        for i in range(len(node)):
            problems += _unknown_below(node, i, f"{path}.{i}")
        return problems
    cls = OmegaConf.get_type(node)
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else None
    if fields is not None and not path:
        fields.add(FORMER_NAME)
    for key in node:
        where = f"{path}.{key}" if path else str(key)
        if fields is not None and key not in fields:
            near = difflib.get_close_matches(str(key), sorted(fields), n=1)
            prefix = f"{path}." if path else ""
            hint = f"did you mean {prefix}{near[0]}?" if near else f"its fields are {', '.join(sorted(fields))}."
            problems.append(f"{where} is not a field of {typing.cast(type, cls).__name__}; {hint}")
            continue
        problems += _unknown_below(node, key, where)
    return problems


def _unknown_below(node: DictConfig | ListConfig, key: Any, where: str) -> list[str]:
    child: Any = None if OmegaConf.is_missing(node, key) else node[key]
    return _unknown_keys(child, where) if isinstance(child, (DictConfig, ListConfig)) else []


def _missing(config: DictConfig) -> list[str]:
    return [f"{key} is required and was not given. Use {key}=VALUE." for key in sorted(OmegaConf.missing_keys(config))]
