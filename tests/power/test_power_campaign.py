"""The GPU campaign end to end on the scripted NVML: interrupted by its own limit, resumed, packed, restored elsewhere."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from doubles.nvml import Card, Script, square

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_campaign"


@pytest.mark.slow
def test_the_campaign_answers_trains_packs_and_goes_on(nvml_library: Path, tmp_path: Path) -> None:
    card = Card(square(90, 500, 0.737, 0.4, 2000, -5))
    environment = {**os.environ, **Script([card]).environment(nvml_library, tmp_path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    work, out = tmp_path / "work", tmp_path / "out"

    def call(*arguments: str) -> str:
        command = [sys.executable, str(SCRIPT), "--smoke", "--out", str(out), *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = call("--work", str(work), "--minutes", "0.6")
    assert "left for the next call" in first
    said = call("--work", str(work), "--minutes", "6")
    assert said.rstrip().endswith("complete"), said
    found = json.loads((out / "questions.json").read_text())
    assert set(found) == {"card", "anchor", "anchor_after", "anchor_drift", *(f"q{k:02d}" for k in range(1, 13))}
    assert not {k: v["failed"] for k, v in found.items() if "failed" in v}
    assert json.loads((out / "sensor_card.json").read_text())["uuid"] == card.uuid
    assert found["q02"]["answer"] == {
        "spacing_s": None,
        "reason": "Function Not Found",
    }  # the double has no such buffer
    assert set(found["q11"]["answer"]) >= {"p_w", "j_per_flop", "j_per_byte", "residual, matmul 4096"}
    assert found["q11"]["answer"]["rows"]["copy"]["bytes_per_s"] > 0
    assert found["anchor_drift"]["answer"]["code"] in (None, "ANCHOR_DRIFT")
    with tarfile.open(out / "results.tar.gz") as tar:
        packed = set(tar.getnames())
    assert {"runs/smoke/fits.json", "runs/smoke/figures/loss_compute.svg"} <= packed
    with tarfile.open(out / "power.tar.gz") as tar:
        assert len([n for n in tar.getnames() if n.endswith(".parquet")]) == 2
    files = [p for p in out.rglob("*") if p.is_file()]
    assert len(files) <= 8
    assert all(p.stat().st_size < 16 * 2**20 and p.parent == out for p in files)
    records = list((work / "runs" / "smoke").glob("*/record.json"))
    assert len(records) == 2
    assert all(json.loads(p.read_text())["meter"]["sensor_cards"][0] for p in records)
    again = call("--work", str(tmp_path / "elsewhere"), "--previous", str(out), "--minutes", "0.5")
    assert again.rstrip().endswith("complete"), again


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The functions of the script, and an interpreter's search path that is put back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "first")
    return runpy.run_path(str(SCRIPT), run_name="gpu_campaign")


def wheel(folder: Path, name: str, body: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-99.0-py3-none-any.whl", "w") as out:
        out.writestr(f"{name}.py", body)
        out.writestr(f"{name}-99.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        out.writestr(f"{name}-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{name}-99.0.dist-info/RECORD", "")


def test_wheels_bring_only_what_the_box_lacks(script: dict[str, object], tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "packages"
    wheels.mkdir()
    wheel(wheels, "carried", "VALUE = 7")
    wheel(wheels, "numpy", "raise RuntimeError('the box has its own')")
    script["install"](wheels, target)  # type: ignore[operator]
    assert sys.path[-1] == str(target)
    command = [sys.executable, "-c", "import carried, numpy; print(carried.VALUE, numpy.__version__)"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # a step is a process of its own
    assert said.startswith("7 "), said


@pytest.mark.parametrize(
    ("second", "code"), [(0.8e-12, None), (0.815e-12, None), (0.817e-12, "ANCHOR_DRIFT"), (0.78e-12, "ANCHOR_DRIFT")]
)
def test_an_anchor_that_moved_over_two_percent_is_named(
    script: dict[str, object], second: float, code: str | None
) -> None:
    found = {"anchor": {"answer": {"j_per_flop": 0.8e-12}}, "anchor_after": {"answer": {"j_per_flop": second}}}
    out = script["drift"](found)["anchor_drift"]["answer"]  # type: ignore[operator]
    assert out["code"] == code
    assert out["change"] == pytest.approx(second / 0.8e-12 - 1)


def test_no_drift_is_claimed_without_both_anchors(script: dict[str, object]) -> None:
    assert script["drift"]({"anchor": {"answer": {"j_per_flop": 1e-12}}}) == {}  # type: ignore[operator]
    assert script["drift"]({"anchor": {"failed": "x"}, "anchor_after": {"answer": {"j_per_flop": 1.0}}}) == {}  # type: ignore[operator]


def test_answers_of_a_smoke_run_are_not_a_card_s(script: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "q01.json").write_text(json.dumps({"failed": "x", "smoke": True}))
    assert [script["answered"](tmp_path, "q01", smoke) for smoke in (True, False)] == [True, False]  # type: ignore[operator]
    assert not script["answered"](tmp_path, "q02", True)  # type: ignore[operator]
