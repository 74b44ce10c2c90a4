"""`harness export`: a run's end point as a Hugging Face checkpoint, or a study as a parquet
table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness import records
from harness.cli import sources
from harness.errors import RecordError


def export(arguments: Sequence[str]) -> int:
    """Write the checkpoint or the table."""
    parser = argparse.ArgumentParser(
        prog="harness export",
        description="hf: a standard checkpoint with tokenizer from a run's folder. parquet: one row per point of a study.",
    )
    parser.add_argument("source", metavar="RUN|STUDY", help="a run's folder (hf) or a study's folder (parquet)")
    parser.add_argument("--format", choices=["hf", "parquet"], required=True)
    parser.add_argument("--tokens", type=int, help="hf: which point, by its tokens (default: the longest)")
    parser.add_argument(
        "--out",
        type=Path,
        help="where to write (default: hf/ in the run's folder, points.parquet where the study's results are)",
    )
    args = parser.parse_args(arguments)
    from harness.analysis.export import to_hf, to_parquet
    from harness.analysis.study import Study

    folder = sources.find_study(args.source)
    if args.format == "parquet":
        study = Study.load(folder)
        if args.out is None:
            records.make_folder(study.results)
        out = args.out or study.results / "points.parquet"
        print(f"{to_parquet(study, out)} points: {out}")
        return 0
    if not (folder / "record.json").exists():
        raise RecordError(
            f"{folder} is not a finished run: it has no record.json. Give a run's folder, such as runs/cpu/0123456789ab."
        )
    out = args.out or folder / "hf"
    point = to_hf(folder, out, args.tokens)
    print(f"{out}: point of {point.tokens:,} tokens, validation loss {point.loss_nat:.4f} nat")
    return 0
