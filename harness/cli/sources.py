"""Where a study is: a folder, the name of one, or a W&B project whose records are fetched first."""

from __future__ import annotations

import re
from pathlib import Path

from harness import records
from harness.errors import RecordError

WANDB = "wandb:"
PLACES = (Path(), Path("runs"), Path("results/reference"))


def find_study(source: str) -> Path:
    """The folder of a study by its path, or by its name below ./runs or results/reference.

    A folder of results alone (fits of a committed reference in runs/<name>) is passed over for one that holds runs. RecordError where
    there is none.
    """
    folders = [place / source for place in PLACES if (place / source).is_dir()]
    if not folders:
        places = ", ".join(str(place / source) for place in PLACES)
        raise RecordError(
            f"study {source!r} is not a folder (looked for {places}). Run a ladder first: harness run +ladder=cpu."
        )
    return next((f for f in folders if records.holds_runs(f)), folders[0])


def fetch_study(source: str) -> Path:
    """The records of a W&B project (wandb:ENTITY/PROJECT), fetched into a study folder of their own below ./runs."""
    project = source.removeprefix(WANDB)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", project):
        raise RecordError(f"study {source!r}: give wandb:ENTITY/PROJECT or wandb:PROJECT.")
    from harness.track.wandb import fetch_records

    folder = Path("runs") / f"wandb-{project.replace('/', '-')}"
    print(f"{len(fetch_records(project, folder))} records fetched into {folder}")
    return folder
