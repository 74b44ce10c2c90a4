"""Where a study is: a folder, the name of one, or a W&B project whose records are fetched first."""

from __future__ import annotations

import re
from pathlib import Path

from harness import records
from harness.errors import FitError, RecordError

WANDB = "wandb:"
PLACES = (Path(), Path("runs"), Path("results/reference"))


def find_study(source: str) -> Path:
    """The folder of a study by its path, or by its name below ./runs or results/reference.

    A folder that holds only results (fits of a committed reference in runs/<name>) gives way to one
    that holds runs. Raises RecordError if there is no such folder.
    """
    folders = [place / source for place in PLACES if (place / source).is_dir()]
    if not folders:
        places = ", ".join(str(place / source) for place in PLACES)
        raise RecordError(
            f"study {source!r} is not a folder (looked for {places}). Run a ladder first: harness run +ladder=cpu."
        )
    return next((f for f in folders if records.holds_runs(f)), folders[0])


def is_wandb(source: str) -> bool:
    """Whether a source names a W&B project."""
    return source.startswith(WANDB)


def find_or_fetch_study(source: str) -> Path:
    """The folder of a study, or that of a W&B project (wandb:ENTITY/PROJECT), whose records are
    fetched into it.
    """
    return fetch_study(source) if is_wandb(source) else find_study(source)


def fetch_study(source: str) -> Path:
    """Fetch the records of a W&B project (wandb:ENTITY/PROJECT) into a study folder of their own
    below ./runs.
    """
    project = source.removeprefix(WANDB)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", project):
        raise RecordError(f"study {source!r}: give wandb:ENTITY/PROJECT or wandb:PROJECT.")
    from harness.track.wandb import fetch_records

    folder = Path("runs") / f"wandb-{project.replace('/', '-')}"
    print(f"{len(fetch_records(project, folder))} records fetched into {folder}")
    return folder


def refuse_place(flag: str, path: Path) -> None:
    """Raise FitError if `path` is a folder or lies in none, so that no file can be written
    there.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise FitError(f"{flag} {path}: there is no folder {path.parent}, or it is one itself. Choose another place.")
