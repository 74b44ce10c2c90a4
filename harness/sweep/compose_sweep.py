"""From a command line to the runs that it means: composed with Hydra, and all of them checked
before the first one starts.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.config import compose, identity
from harness.config.schema import RunConfig
from harness.errors import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf"
if not CONF.is_dir():
    # an installed wheel carries the YAML files inside the package
    CONF = Path(__file__).resolve().parents[1] / "conf"


@dataclass(frozen=True)
class Planned:
    """One run of a sweep, composed and checked."""

    config: RunConfig
    run_id: str
    name: str
    overrides: list[str]

    @property
    def run_dir(self) -> Path:
        return Path(self.config.paths.runs) / self.config.study / self.run_id


def enumerate_runs(arguments: list[str]) -> tuple[list[Planned], list[str]]:
    """All runs that a command line means, and Hydra flags among the arguments.

    ConfigError when any of them is wrong.
    """
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    flags, overrides = split_flags(arguments)
    compose.register()
    GlobalHydra.instance().clear()
    extra = user_conf_dir(flags)
    search = [f"hydra.searchpath=[{quoted(f'file://{extra}')}]"] if extra else []
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="harness"):
        try:
            parsed = OverridesParser.create().parse_overrides(overrides)
            sweeping = any(o.is_sweep_override() for o in parsed)
            single = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
            master = hydra_compose("train", overrides=[*single, *search], return_hydra_config=True)
            params = master.hydra.sweeper.params or {}
            multirun = sweeping or (master.hydra.mode is not None and master.hydra.mode.name == "MULTIRUN")
            on_line = {o.key_or_group for o in parsed}
            lines = [f"{k}={v}" for k, v in params.items() if str(k).lstrip("+~") not in on_line] if multirun else []
            jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([*lines, *overrides]), None)[0]
            planned, problems, former = [], [], set[str]()
            for job in jobs:
                composed = hydra_compose("train", overrides=[*job, *search])
                former |= compose.renamed_settings(composed).keys()
                try:
                    config = compose.load_run(composed)
                    planned.append(
                        Planned(
                            config,
                            identity.run_id(config),
                            identity.run_name(config),
                            [o for o in job if not o.startswith("hydra")],
                        )
                    )
                except ConfigError as e:
                    problems += [p for p in e.problems if p not in problems]
        except (HydraException, OmegaConfBaseException, ValueError) as e:
            # a group set to null is a bare ValueError
            raise ConfigError(_explain(e)) from e
        except yaml.YAMLError as e:
            raise ConfigError(f"a config file is not valid YAML: {' '.join(str(e).split())}. Mend it there.") from e
    if problems:
        raise ConfigError(problems)
    if former:
        names = ", ".join(f"{compose.FORMER_NAME}.{k} is attempt.{k}" for k in sorted(former))
        print(f"deprecated: {names} now. The old name is still read.", file=sys.stderr)
    return planned, flags


def quoted(value: str) -> str:
    """A value as Hydra reads it back unchanged, whatever characters a path holds."""
    return "'" + value.replace("'", r"\'") + "'"


def split_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's own flags (with the value of --config-dir) and the overrides."""
    flags, overrides, i = [], [], 0
    while i < len(arguments):
        argument = arguments[i]
        if argument in ("--config-dir", "-cd"):
            if i + 1 == len(arguments):
                raise ConfigError(
                    "--config-dir needs a folder, such as --config-dir my_conf (with my_conf/ladder/x.yaml in it)."
                )
            flags += ["--config-dir", arguments[i + 1]]
            i += 1
        elif argument in ("-m", "--multirun", "--help", "-h", "--hydra-help"):
            flags.append(argument)
        elif argument.startswith("-"):
            raise ConfigError(
                f"unknown flag {argument}. Settings are given as key=value; flags are --config-dir DIR, -m, --help."
            )
        else:
            overrides.append(argument)
        i += 1
    return flags, overrides


def user_conf_dir(flags: list[str]) -> Path | None:
    """The user's own configs: --config-dir DIR, else ./conf of the working directory where that is
    not ours.
    """
    if "--config-dir" in flags:
        folder = Path(flags[flags.index("--config-dir") + 1]).resolve()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder} is not a folder. Give the one that holds your ladder/*.yaml.")
        return folder
    folder = Path("conf").resolve()
    return folder if folder.is_dir() and folder != CONF else None


def _explain(error: Exception) -> str:
    """Hydra's message on one or two lines, without its advice to append unknown keys, and with the
    nearest real key.
    """
    cause: BaseException = error
    text = str(error)
    while cause.__cause__ is not None:
        cause = cause.__cause__
        text += "\n" + str(cause)
    lines = []
    for line in text.splitlines():
        line = line.strip()
        if (
            line
            and not line.startswith(
                (
                    "To append to your config",
                    "Config search path",
                    "provider=",
                    "full_key",
                    "object_type",
                    "See https",
                    "Set the environment",
                )
            )
            and line not in lines
        ):
            lines.append(line)
    message = " ".join(lines)
    if isinstance(error, ValueError) and "group override" in message:
        message += " A group such as optim or power takes the name of a choice."
    if override := getattr(error, "override", None):
        message = (
            f"{override} cannot be read: {message}. Settings are key=value; a value that holds more than plain letters, digits and / . _ - "
            f"is quoted twice, as in \"{override.partition('=')[0]}='…'\"."
        )
    if re.search(r"Key '(?:ladder|recipe)' not in 'RunConfig'", message):
        message += " A ladder's file begins with the line `# @package _global_`."
    elif match := re.search(r"(?:Could not override|Key) '([\w.]+)'", message):
        key = match.group(1)
        leaf = key.rsplit(".", 1)[-1]
        keys = _known_keys(RunConfig, "")
        known = sorted({*keys, *(k.partition(".")[0] for k in keys)})
        near = [
            k
            for k in known
            if k.rsplit(".", 1)[-1] in difflib.get_close_matches(leaf, [k.rsplit(".", 1)[-1] for k in known], n=2)
        ]
        if near := sorted(near, key=lambda k: -difflib.SequenceMatcher(None, k, key).ratio())[:2]:
            message += f" Did you mean {' or '.join(near)}?"
    return message


def _known_keys(cls: type, prefix: str) -> list[str]:
    """Every settable key, over all choices of every family."""
    import dataclasses
    import typing

    from harness.config.schema import FAMILIES

    keys = []
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            for choice in FAMILIES.get(name, {"": hint}).values() if not prefix else [hint]:
                keys += _known_keys(typing.cast(type, choice), f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
