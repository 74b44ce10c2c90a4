"""A field of a config with its default, meaning and unit.

Standard library only, so that help answers at once.
"""

from __future__ import annotations

from dataclasses import Field, field, fields
from typing import Any, TypeVar, cast

T = TypeVar("T")
REQUIRED: Any = "???"  # omegaconf's mark of a value that the user has to give


def setting(default: T, meaning: str, *, unit: str = "", path: bool = False) -> T:
    """A dataclass field. `meaning` and `unit` are printed by `harness VERB --help`.

    `path`: the field names a local file or folder, of which records hold only the base name.
    """
    metadata = {"meaning": meaning, "unit": unit, "path": path}
    if isinstance(default, list):
        items = cast(list[Any], default)
        return field(default_factory=lambda: cast(T, items.copy()), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(definition: Field[Any]) -> Any:
    """The value that a field takes when none is given."""
    factory = definition.default_factory
    return factory() if callable(factory) else definition.default


def local_paths(config: Any) -> dict[str, str]:
    """Path fields of a config (name -> value) that differ from their default, which is the same on
    every machine.
    """
    values = {f.name: (getattr(config, f.name), f.default) for f in fields(config) if f.metadata.get("path")}
    return {name: value for name, (value, default) in values.items() if value not in (None, default)}
