"""The files of a study: `run` (records of training), `ttc` (of evaluations), `fits`; `study_folder`
reads all records.

The names of `files`, `run`, `packed` and `study_folder` are imported from here.
"""

from harness.records.files import (
    SCHEMA_VERSION,
    Json,
    append_row,
    from_json,
    load_json,
    make_folder,
    parse,
    read_json,
    read_rows,
    to_json,
    write_bytes_atomic,
    write_json,
    write_text_atomic,
    wrong_type,
)
from harness.records.packed import read_packed, write_packed
from harness.records.run import (
    Counts,
    Measured,
    Point,
    RunRecord,
    RunState,
    SpendRow,
    StepRow,
    load_record,
    load_state,
)
from harness.records.study_folder import PACKED_RECORDS, holds_runs, is_reference, load, pack_records

__all__ = [
    "PACKED_RECORDS",
    "SCHEMA_VERSION",
    "Counts",
    "Json",
    "Measured",
    "Point",
    "RunRecord",
    "RunState",
    "SpendRow",
    "StepRow",
    "append_row",
    "from_json",
    "holds_runs",
    "is_reference",
    "load",
    "load_json",
    "load_record",
    "load_state",
    "make_folder",
    "pack_records",
    "parse",
    "read_json",
    "read_packed",
    "read_rows",
    "to_json",
    "write_bytes_atomic",
    "write_json",
    "write_packed",
    "write_text_atomic",
    "wrong_type",
]
