"""The additions of docs/extending.md, kept as patches: each is applied to a copy of the tree,
passes its family's tests there, and is used from the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.records import Json

ROOT = Path(__file__).resolve().parents[1]
PATCHES = sorted((ROOT / "tests" / "extensions").glob("*.patch"))
# Patch -> the tests of its family, and the words by which its own cases are chosen
TESTS = {
    "corpus": ("tests/data/test_corpus_contract.py", "markov or every or ids"),
    "figure": ("tests/report/test_report.py", "every or titles or spread"),
    "law": ("tests/laws/test_laws_curves.py", "data_saturation"),
    "model": ("tests/models/test_model_contract.py", "qwen2"),
    "power_source": ("tests/power/test_source_contract.py", "hwmon or every"),
    "strategy": ("tests/ttc/test_strategy_contract.py", "shortest"),
    "task": ("tests/tasks/test_task_contract.py", "reverse or every"),
}
TINY = [
    *(
        "device.kind=cpu",
        "device.threads=1",
        "model.width=16",
        "model.depth=1",
        "optim.lr=0.01",
        "optim.batch_tokens=630",
    ),
    *("schedule.warmup_tokens=1000", "budget.tokens=20_000", "budget.cooldowns=[]", "study=new"),
]
TESTED = ["power=unmetered", "ttc.problems=16", "ttc.samples=4", "ttc.meter_s=0.01"]
S3 = [
    "corpus=group",
    "corpus.group=S3",
    "corpus.operators=[]",
    "corpus.steps=6",
    "corpus.strides=[1]",
    "corpus.val_tokens=128",
]


def below_the_loss_of_a_guess(study: Path) -> None:
    (record,) = records(study)
    assert record["corpus"]["floor_nat"] < record["points"][0]["loss_nat"] < 2.77


def labelled_hwmon(study: Path) -> None:
    (record,) = records(study)
    (energy,) = (p["energy"] for p in record["points"])
    assert energy["source"] == "hwmon", "what an hwmon sensor measures is never booked as another source"
    assert energy["power_w"] == pytest.approx(65)
    assert "NO_COUNTER" in energy["codes"]


def evaluated_qwen2(study: Path) -> None:
    (record,) = records(study)
    assert record["shape"]["qkv_bias"] is True
    assert [c["task"]["name"] for c in cells(study)] == ["group"]


def evaluated_reverse(study: Path) -> None:
    assert [c["task"]["name"] for c in cells(study)] == ["reverse"]


def scored_shortest(study: Path) -> None:
    (cell,) = cells(study)
    assert {r["n"] for r in cell["rows"] if r["strategy"] == "shortest"} == {1, 2, 4}


# Patch -> a command line that uses it in the copy, and what is then in the study's folder
USES: dict[str, tuple[list[str], Callable[[Path], None]]] = {
    "corpus": (
        ["run", *TINY, "power=unmetered", "corpus=markov", "corpus.vocab=16", "corpus.val_tokens=630"],
        below_the_loss_of_a_guess,
    ),
    "model": (["ttc", *TINY, *TESTED, *S3, "model=qwen2"], evaluated_qwen2),
    "power_source": (
        ["run", *TINY, "corpus.val_tokens=630", "power=hwmon", "power.path=power1_average"],
        labelled_hwmon,
    ),
    "strategy": (["ttc", *TINY, *TESTED, *S3], scored_shortest),
    "task": (["ttc", *TINY, *TESTED, "corpus=reverse", "corpus.val_tokens=300"], evaluated_reverse),
}


def records(study: Path) -> list[Json]:
    return [json.loads(p.read_text()) for p in study.glob("*/record.json")]


def cells(study: Path) -> list[Json]:
    return [json.loads(p.read_text()) for p in study.glob("*/ttc/*/record.json")]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    for name in ("harness", "conf", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def python(copy: Path, cwd: Path, *arguments: Any) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: p.stem)
def test_an_extension_works_where_the_guide_says(patch: Path, copy: Path) -> None:
    subprocess.run(["git", "apply", str(patch)], cwd=copy, check=True)
    file, words = TESTS[patch.stem]
    pytest_options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", words)
    assert " passed" in python(copy, copy, "-m", "pytest", *pytest_options, file)
    if patch.stem not in USES:
        return
    command, check = USES[patch.stem]
    work = copy.parent / "work"
    work.mkdir()
    (work / "power1_average").write_text("65000000\n")  # microwatts, for the hwmon source
    python(copy, work, "-m", "harness", *command)
    check(work / "runs" / "new")
