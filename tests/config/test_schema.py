"""Every setting says what it means, and its class says what the section is for."""

from __future__ import annotations

import dataclasses

import pytest

from harness.config.schema import FAMILIES, RunConfig
from harness.config.setting import setting

SECTIONS = [f.default_factory for f in dataclasses.fields(RunConfig) if f.name not in FAMILIES]
CLASSES = [
    RunConfig,
    *(cls for cls in SECTIONS if isinstance(cls, type)),
    *(cls for choices in FAMILIES.values() for cls in choices.values()),
]
UNITS = {"tokens": "tokens", "s": "s", "kwh": "kWh", "flop": "FLOP", "states": "states"}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_has_a_meaning_and_the_unit_of_its_name(cls: type) -> None:
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "the docstring is the one that dataclass makes up"
    for field in dataclasses.fields(cls):
        if cls is RunConfig and field.default_factory is not dataclasses.MISSING:
            continue  # a section, whose class has the meaning
        assert field.metadata["meaning"], field.name
        for ending, unit in UNITS.items():
            if field.name.split("_")[-1] == ending:
                assert field.metadata["unit"] == unit, field.name


def test_lists_are_not_shared_between_configs() -> None:
    @dataclasses.dataclass
    class Section:
        shares: list[float] = setting([0.5], "shares")

    Section().shares.append(0.25)
    assert Section().shares == [0.5]
