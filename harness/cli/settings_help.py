"""`--help` of the verbs that compose a config: every setting that applies to the verb.

No torch, no composition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from enum import Enum
from typing import Any

from harness.config.schema import FAMILIES, PretrainedConfig, QaConfig, RunConfig, TaskConfig
from harness.config.setting import REQUIRED, default_of
from harness.console import TextTable, show
from harness.sweep.compose_sweep import CONF

INTRODUCTION = """\
usage: harness {verb} [+ladder=NAME] [key=value …] [--config-dir DIR] [-m]

{description}

Settings are key=value; a list of values (seed=0,1,2) sweeps. Ladders (+ladder=…): {ladders}
Choices: {choices}
Your own ladders: DIR/ladder/NAME.yaml with --config-dir DIR, or conf/ladder/NAME.yaml in the working directory.

Settings with their default, meaning and [unit or choices]:"""
# Verb -> sections that change nothing for it. It accepts their settings, so that one command line
# serves all verbs
UNUSED_SECTIONS = {"plan": ("tracker", "attempt", "ttc"), "run": ("ttc",), "ttc": ()}

NEVER_TRAINED = (PretrainedConfig, QaConfig)  # choices that `run` refuses


def print_help(verb: str, description: str) -> None:
    """Print the help of `plan`, `run` or `ttc`."""
    ladders = ", ".join(sorted(p.stem for p in (CONF / "ladder").glob("*.yaml")))
    choices = "; ".join(f"{family}={'|'.join(_choices(family, verb))}" for family in FAMILIES)
    introduction = INTRODUCTION.format(verb=verb, description=description, ladders=ladders, choices=choices)
    show(introduction, TextTable(list(_rows(verb))))


def _rows(verb: str) -> Iterator[tuple[str, str]]:
    """(setting=default, meaning [unit or choices]) in the order of the schema, each section under a
    row of its own.
    """
    for section in fields(RunConfig):
        if section.name in UNUSED_SECTIONS[verb]:
            continue
        if section.default_factory is MISSING:
            yield _row("", section)
        elif section.name in FAMILIES:
            for choice, cls in _choices(section.name, verb).items():
                yield f"{section.name}={choice}", _summary(cls)
                # The format of a task decides its context
                chosen = [f for f in fields(cls) if not (issubclass(cls, TaskConfig) and f.name == "context")]
                yield from (_row(f"  {section.name}.", f) for f in chosen)
        else:
            cls = type(section.default_factory())
            yield section.name, _summary(cls)
            yield from (_row(f"  {section.name}.", f) for f in fields(cls))


def _choices(family: str, verb: str) -> dict[str, type]:
    left_out = NEVER_TRAINED if verb == "run" else ()
    return {choice: cls for choice, cls in FAMILIES[family].items() if cls not in left_out}


def _summary(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split())


def _row(prefix: str, setting: Field[Any]) -> tuple[str, str]:
    value, meaning, unit = default_of(setting), setting.metadata["meaning"], setting.metadata["unit"]
    if isinstance(value, Enum):
        unit = " | ".join(member.value for member in type(value))
        value = value.value
    elif value == REQUIRED:
        value, meaning = "VALUE", f"required: {meaning}"
    elif value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    return f"{prefix}{setting.name}={value}", f"{meaning} [{unit}]" if unit else meaning
