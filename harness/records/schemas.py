"""The JSON Schema of every kind of file that a study holds, made from the dataclasses that read
them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from harness.records.files import Json, write_text_atomic
from harness.records.fits import FitsFile
from harness.records.run import RunRecord, RunState, SpendRow, StepRow
from harness.records.ttc import TtcRecord

# Name of the schema -> the dataclass. `steps` and `spend` describe one line of their files.
KINDS: dict[str, type] = {
    "record": RunRecord,
    "state": RunState,
    "steps": StepRow,
    "spend": SpendRow,
    "ttc": TtcRecord,
    "fits": FitsFile,
}


def schema(kind: str) -> Json:
    """The JSON Schema (2020-12) of one of `KINDS`. Fields that it does not name are rejected, as in
    reading."""
    import msgspec

    value: Json = msgspec.json.schema(KINDS[kind])
    definitions: dict[str, dict[str, Any]] = value["$defs"]
    for definition in definitions.values():
        definition["additionalProperties"] = False
        if "description" in definition:  # a docstring, whose lines are those of its source
            definition["description"] = " ".join(definition["description"].split())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **value}


def write_schemas(folder: Path) -> None:
    """Write `<kind>.json` for every kind into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        write_text_atomic(folder / f"{kind}.json", json.dumps(schema(kind), indent=1) + "\n")


if __name__ == "__main__":  # as scripts/docs calls it, with the folder
    write_schemas(Path(sys.argv[1]))
