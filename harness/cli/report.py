"""`harness report`: one self-contained page for one study, or for several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness.cli import sources


def report(arguments: Sequence[str]) -> int:
    """Write report.html and its figures."""
    parser = argparse.ArgumentParser(
        prog="harness report",
        description="Write report.html and its figures. Several studies are laid side by side.",
    )
    parser.add_argument(
        "studies", nargs="+", metavar="STUDY", help="study folders, such as runs/cpu results/reference/cpu_full"
    )
    parser.add_argument("--out", type=Path, help="folder for the page (default: the study's folder, or runs/compare)")
    args = parser.parse_args(arguments)
    from harness.analysis.study import Study
    from harness.report.page import build_report

    studies = [Study.load(sources.find_study(source)) for source in args.studies]
    if len({study.name for study in studies}) < len(studies):
        for study in studies:
            study.name = str(study.folder)
    out = args.out or (studies[0].results if len(studies) == 1 else Path("runs/compare"))
    print(f"report: {build_report(studies, out)}")
    if len(studies) > 1 and (evaluated := [study.name for study in studies if study.evaluations]):
        print(f"left out: evaluations of {', '.join(evaluated)}; each study's own report shows them")
    return 0
