"""Every script under scripts/bench, and make_reference, starts, does a small piece of its work, and
prints its figures.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "scripts" / "bench"
# Script -> arguments for a small piece of its work, and what one of its lines then looks like. The
# piece is too small for the script's own targets, so `meter` may end with exit code 1.
PIECES = {
    "chaos": ("--kills 1", r"^1 kills, 1 sweeps, seed 0: every run ended bitwise"),
    "coverage": ("--ladders 1 --draws 10", r"^independent points +[01]\.000 +[01]\.000"),
    "decode": ("--samples 2 --prompts 2 --pairs 2 --seconds 0.02", r"^ +2 +4 +[\d,]+ +[\d,]+ .*\d\.\d\d \["),
    "floor": ("results/reference/cpu_full --ladders 1 --draws 10", r"^ simulated +3\.00 +1 "),
    "laws": ("--data {published} --starts 2 --draws 1", r"^same, kinder +[\d.]+ +[\d.]+ +0\.0\d+ +\d+x, \d+x, \d+x"),
    "meter": ("--first --phases 4", r"^ +4\.74 s \( 20 steps\): +0\.\d+ %"),
    "meter_peers": ("--phases 1 1 1", r"^ours +[\d.]+ \(1; 0\) +[\d.]+ \(1; 0\) +[\d.]+ \(1; 0\)"),
    "sampler": ("--groups 1 --block-s 0.2", r"^step CPU time with the sampler against without: median [+-]\d"),
    "train_throughput": ("--widths 8 --pairs 2 --steps 2", r"^ +8 +[\d,]+ +[\d,]+ .*\d\.\d\d \("),
}


def test_every_benchmark_has_a_piece() -> None:
    assert set(PIECES) == {p.name for p in BENCH.iterdir() if p.is_file()}


@pytest.mark.parametrize("name", sorted(PIECES))
def test_a_benchmark_does_a_small_piece_of_its_work(name: str, request: pytest.FixtureRequest) -> None:
    arguments, line = PIECES[name]
    if "{published}" in arguments:
        arguments = arguments.format(published=request.getfixturevalue("published"))
    done = subprocess.run(
        [sys.executable, str(BENCH / name), *arguments.split()],
        cwd=ROOT,
        # meter_peers installs its peers: here it says that it cannot
        env={**os.environ, "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in ((0, 1) if name == "meter" else (0,)), done.stdout + done.stderr
    assert re.search(line, done.stdout, re.M), done.stdout + done.stderr


def test_a_reference_is_made_from_a_study(tmp_path: Path) -> None:
    source, out = ROOT / "results/reference/cpu_text", tmp_path / "cpu_text"
    command = [sys.executable, str(ROOT / "scripts/make_reference"), str(source), str(out)]
    done = subprocess.run(
        [*command, "--ladder", "cpu_text", "--bootstrap", "100"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert names == {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    assert (out / "records.jsonl.xz").read_bytes() == (source / "records.jsonl.xz").read_bytes()
    new, old = (json.loads((folder / "fits.json").read_text())["fits"] for folder in (out, source))
    assert new.keys() == old.keys()
    for name, fit in new.items():  # the last digits of a fit depend on the machine's linear algebra
        assert fit["params"] == pytest.approx(old[name]["params"], rel=1e-6), name
