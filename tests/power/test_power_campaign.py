"""The GPU campaign end to end on the scripted NVML: interrupted by its own limit, resumed, packed, restored elsewhere."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
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
    assert set(found) == {"card", *(f"q{k:02d}" for k in range(1, 13))}
    assert not {k: v["failed"] for k, v in found.items() if "failed" in v}
    assert json.loads((out / "sensor_card.json").read_text())["uuid"] == card.uuid
    files = [p for p in out.rglob("*") if p.is_file()]
    assert len(files) <= 8
    assert all(p.stat().st_size < 16 * 2**20 and p.parent == out for p in files)
    records = list((work / "runs" / "smoke").glob("*/record.json"))
    assert len(records) == 2
    assert all(json.loads(p.read_text())["meter"]["sensor_cards"][0] for p in records)
    again = call("--work", str(tmp_path / "elsewhere"), "--previous", str(out), "--minutes", "0.5")
    assert again.rstrip().endswith("complete"), again


def test_answers_of_a_smoke_run_are_not_a_card_s(tmp_path: Path) -> None:
    loader = importlib.machinery.SourceFileLoader("gpu_campaign", str(SCRIPT))
    spec = importlib.util.spec_from_loader("gpu_campaign", loader)
    assert spec is not None
    campaign = importlib.util.module_from_spec(spec)
    loader.exec_module(campaign)
    (tmp_path / "q01.json").write_text(json.dumps({"failed": "x", "smoke": True}))
    assert [campaign.answered(tmp_path, "q01", smoke) for smoke in (True, False)] == [True, False]
    assert not campaign.answered(tmp_path, "q02", True)
