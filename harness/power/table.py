"""All raw segments of a run as one parquet table. The raw files stay: any estimate can be made
again from either."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.power import segment_file
from harness.power.segment_file import Row

NAME = "power.parquet"
_KINDS = {
    "energy": pa.float64(),
    "instant": pa.float64(),
    "average": pa.float64(),
    "rc_energy": pa.int32(),
    "rc_instant": pa.int32(),
}
_SCHEMA = pa.schema(
    [
        ("attempt", pa.int32()),
        ("index", pa.int32()),
        ("uuid", pa.string()),
        *((name, _KINDS.get(name, pa.int32() if name == "rc_average" else pa.int64())) for name in Row._fields),
    ]
)


def write(folder: Path) -> Path:
    """Gather the segments in `folder` into `power.parquet`, whole or not at all; headers are kept
    as its metadata.

    Values stay in the units of each segment's header (floats hold integer millijoules exactly up to
    2^53). Raises OSError.
    """
    columns: dict[str, list[object]] = {name: [] for name in _SCHEMA.names}
    headers = []
    for path in segment_file.find(folder):
        reader = segment_file.SegmentReader(path)
        rows = reader.poll()
        if reader.header is None:
            continue
        headers.append(reader.header)
        for row in rows:
            columns["attempt"].append(reader.header["attempt"])
            columns["index"].append(reader.header["index"])
            columns["uuid"].append(reader.header["cards"][row.card]["uuid"])
            for name, value in zip(Row._fields, row, strict=True):
                columns[name].append(value)
    table = pa.table(columns, schema=_SCHEMA).replace_schema_metadata({"segments": json.dumps(headers)})
    temporary, target = folder / f".{NAME}.{os.getpid()}.tmp", folder / NAME
    try:
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
