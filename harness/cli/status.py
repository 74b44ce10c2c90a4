"""`harness status`: the runs of a study and their states."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from harness.cli import sources


def status(arguments: Sequence[str]) -> int:
    """Print the state of each run of a study folder; exit code 1 if one of them is not done."""
    parser = argparse.ArgumentParser(prog="harness status", description="The runs of a study folder and their states.")
    parser.add_argument("study", help="a study folder, such as runs/cpu")
    folder = sources.find_study(parser.parse_args(arguments).study)
    from harness.console import show
    from harness.sweep.status import folder_table

    runs, all_done = folder_table(folder)
    show(runs)
    return 0 if all_done else 1
