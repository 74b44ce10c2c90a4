"""The training records of a study: those of its runs' folders, or those that a committed reference
holds packed in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.errors import RecordError
from harness.records.files import load_json
from harness.records.packed import read_packed, write_packed
from harness.records.run import RunRecord, load_record, load_state

PACKED_RECORDS = "records.jsonl.xz"


def is_reference(folder: Path) -> bool:
    """Whether a folder is a committed reference, whose records are packed (in older ones:
    `records/`). References are read-only."""
    return (folder / PACKED_RECORDS).exists() or (folder / "records").is_dir()


def holds_runs(folder: Path) -> bool:
    """Whether a folder holds records of runs or is the folder of a run, and not only fits and
    pages."""
    return is_reference(folder) or any(
        next(folder.glob(p), None) for p in ("record.json", "*/state.json", "*/record.json")
    )


def pack_records(folder: Path, records: Sequence[RunRecord]) -> None:
    """Write the training records of a reference into one file, ordered by run id."""
    write_packed(folder / PACKED_RECORDS, sorted(records, key=lambda r: r.run_id))


def load(folder: Path) -> tuple[list[RunRecord], dict[str, int]]:
    """All finished records of a study folder or a committed reference, and the number of runs in
    each other state.

    RecordError where `folder` is no folder or a file in it is damaged.
    """
    if not folder.is_dir():
        raise RecordError(
            f"{folder} is not a folder. Give a study folder such as runs/cpu, or results/reference/cpu_full."
        )
    packed = folder / PACKED_RECORDS
    records = read_packed(packed, RunRecord) if packed.exists() else []
    excluded: dict[str, int] = {}
    for path in sorted(folder.glob("records/*.json")):
        records.append(load_json(path, RunRecord))
    for run_dir in sorted(p for p in folder.iterdir() if (p / "state.json").exists() or (p / "record.json").exists()):
        state = load_state(run_dir)
        if (run_dir / "record.json").exists() and (state is None or state.state == "done"):
            records.append(load_record(run_dir))
        else:
            key = state.state if state else "unknown"
            key += " without record.json" if key == "done" else ""
            excluded[key] = excluded.get(key, 0) + 1
    return records, excluded
