"""`scripts/same_numbers`: two checkouts with equal numbers pass, and any number that differs is
found and named.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts/same_numbers"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_loader("same_numbers", SourceFileLoader("same_numbers", str(SCRIPT)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder: Path, **changes: Any) -> Path:
    """The files of one run, of its evaluation and of the study's fits, with a few columns each."""
    values = {"loss": 1.5, "wall_s": 2.0, "weights": b"w", "step": 0.25, "accuracy": 0.5, "alpha": 0.3} | changes
    run = folder / "runs/study/run"
    (run / "checkpoints/end").mkdir(parents=True)
    (run / "ttc/cell").mkdir(parents=True)
    (run / "checkpoints/end/model.safetensors").write_bytes(values["weights"])
    points = [{"loss_nat": values["loss"], "wall_s": values["wall_s"]} | values.get("more", {})]
    record = {"study": "study", "name": "run", "points": points, "provenance": {"commit": str(folder)}}
    (run / "record.json").write_text(json.dumps(record))
    (run / "steps.jsonl").write_text(json.dumps({"loss_nat": values["step"], "tokens_per_s": values["wall_s"]}) + "\n")
    evaluation = {"branch": "trunk", "label": "free", "temperature": 1.0, "rows": [{"accuracy": values["accuracy"]}]}
    (run / "ttc/cell/record.json").write_text(json.dumps(evaluation))
    (folder / "runs/study/fits.json").write_text(json.dumps({"fits": {"law": {"params": {"alpha": values["alpha"]}}}}))
    return folder


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, None),
        ({"wall_s": 9.0}, None),
        ({"alpha": 0.3 * (1 + 1e-13)}, None),
        ({"more": {"new_column": 1}}, None),
        ({"weights": b"v"}, "weights"),
        ({"loss": 1.5000000000000002}, "points"),
        ({"step": 0.26}, "steps"),
        ({"accuracy": None}, "evaluations"),
        ({"alpha": 0.3 * (1 + 1e-11)}, "fits"),
    ],
)
def test_what_differs(script: ModuleType, tmp_path: Path, changes: dict[str, Any], kind: str | None) -> None:
    new = write(tmp_path / "new", **changes)
    comparisons = script.compare(write(tmp_path / "old"), new, new)
    assert [c.kind for c in comparisons if c.differences] == ([kind] if kind else [])
    assert all(c.compared for c in comparisons)
    assert ("DIFFERENT" in script.table(comparisons)) == (kind is not None)
    assert ("new_column" in script.table(comparisons)) == ("more" in changes)


def test_missing_column_is_a_difference(script: ModuleType, tmp_path: Path) -> None:
    new = write(tmp_path / "new")
    comparisons = script.compare(write(tmp_path / "old", more={"column": 1}), new, new)
    assert [c.differences for c in comparisons if c.differences] == [["study/run.points[0].column: missing from NEW"]]


def test_a_checkout_agrees_with_itself(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(ROOT), str(ROOT), "--quick", "--only", "facts"]
    done = subprocess.run([*command, "--keep", str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "the same numbers"
    assert (tmp_path / "refit/runs/facts/fits.json").is_file()


def test_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(ROOT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "is not a checkout" in done.stderr
