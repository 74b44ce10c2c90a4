"""`harness export`: an end point as a Hugging Face checkpoint, or a study as a table of points."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from harness import records
from harness.analysis import points as study_points
from harness.analysis.study import Study
from harness.errors import RecordError
from harness.records import Point, RunRecord


def to_parquet(study: Study, out: Path) -> int:
    """Write one row per point of every finished run; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = study_points.study_table(study.records)
    if not rows:
        raise RecordError(
            f"{study.folder} has no finished run, so there is no point to export. See harness status {study.folder}."
        )
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
        temporary.replace(out)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RecordError(f"cannot write {out}: {e.strerror}. Choose another place with --out.") from e
    return len(rows)


def choose_point(record: RunRecord, tokens: int | None) -> Point:
    """The point with this many tokens; the longest when None."""
    if tokens is None:
        return max(record.points, key=lambda p: p.tokens)
    chosen = next((p for p in record.points if p.tokens == tokens), None)
    if chosen is None:
        available = ", ".join(str(p.tokens) for p in record.points)
        raise RecordError(f"--tokens {tokens}: run {record.run_id} has no such point. Choose one of: {available}.")
    return chosen


def to_hf(run_dir: Path, out: Path, tokens: int | None = None) -> Point:
    """Write config, weights and tokenizer of a run's end point.

    `AutoModelForCausalLM.from_pretrained(out)` gives the same logits. Raises RecordError where the
    point has no weights, or `out` cannot be written.
    """
    from safetensors.torch import load_file
    from transformers.utils import logging as transformers_logging

    from harness import models
    from harness.models.flops import Shape

    transformers_logging.disable_progress_bar()

    record = records.load_record(run_dir)
    point = choose_point(record, tokens)
    weights = run_dir / "checkpoints" / (point.hf_checkpoint or "") / "model.safetensors"
    if point.hf_checkpoint is None or not weights.exists():
        raise RecordError(
            f"{run_dir} has no weights of its point at {point.tokens} tokens (reference records come without). Train it with harness run first."
        )
    if out.exists() and any(out.iterdir()):
        raise RecordError(f"--out {out} exists and is not empty. Choose a new folder.")
    shape = Shape.of_record(record.shape)
    model = models.build(
        record.config["model"]["kind"], shape, record.seed, rope_theta=record.config["model"]["rope_theta"]
    )
    missing, unexpected = model.load_state_dict(load_file(weights), strict=False)
    if unexpected or [k for k in missing if k != "lm_head.weight"]:
        raise RecordError(f"{weights.name} does not fit the recorded shape: missing {missing}, unexpected {unexpected}")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.config.use_cache = True  # a reader of the checkpoint decodes; training did not
        model.save_pretrained(temporary)
        shutil.copytree(run_dir / "tokenizer", temporary, dirs_exist_ok=True)
        if out.exists():
            out.rmdir()
        temporary.replace(out)
    except OSError as e:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RecordError(f"cannot write {out}: {e}. Choose another place with --out.") from e
    return point
