"""Published JSON Schemas are current, accept what is committed and reject what reading rejects."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import jsonschema
import pytest

from harness import records
from harness.records import schemas
from harness.records.ttc import TtcRecord
from tests import synthetic

ROOT = Path(__file__).resolve().parents[2]


def test_published_schemas_are_current(tmp_path: Path) -> None:
    schemas.write_schemas(tmp_path)
    published = {p.name: p.read_text() for p in sorted((ROOT / "docs" / "schema").iterdir())}
    assert published == {p.name: p.read_text() for p in sorted(tmp_path.iterdir())}, "run scripts/docs"


@pytest.mark.parametrize(
    ("kind", "file"), [("record", "records.jsonl.xz"), ("ttc", "ttc.jsonl.xz"), ("fits", "fits.json")]
)
def test_committed_files_satisfy_their_schema(kind: str, file: str) -> None:
    schema = schemas.schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    path = ROOT / "results" / "reference" / "cpu_cot" / file
    text = lzma.decompress(path.read_bytes()).decode() if path.suffix == ".xz" else path.read_text()
    lines = text.splitlines()[:3] if path.suffix == ".xz" else [text]
    for line in lines:
        value = json.loads(line)
        # A field that has another name now is read, though the published schema has the new name
        # alone
        validator.validate(TtcRecord.upgraded(value) if kind == "ttc" else value)


def test_a_schema_rejects_what_reading_rejects() -> None:
    validator = jsonschema.Draft202012Validator(schemas.schema("record"))
    value = records.to_json(synthetic.record(16))
    assert validator.is_valid(value)
    for wrong in ({"surplus": 1}, {"seed": "0"}, {"points": None}):
        assert not validator.is_valid({**value, **wrong})
    del value["counts"]["n_total"]
    assert not validator.is_valid(value)
