"""What a run is called: ids of runs on disk never change, whatever settings the harness gains,
renames or gives another default.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness import records
from harness.config import identity, schema
from harness.config.schema import RunConfig
from harness.records import RunRecord
from harness.sweep.compose_sweep import enumerate_runs

REFERENCES = Path(__file__).resolve().parents[2] / "results" / "reference"


def by_study() -> dict[str, list[RunRecord]]:
    return {path.parent.name: records.load(path.parent)[0] for path in REFERENCES.glob(f"*/{records.PACKED_RECORDS}")}


@pytest.mark.parametrize("study", sorted(by_study()))
def test_committed_records_keep_their_ids(study: str) -> None:
    """A run with another id would be trained again, and stand twice in a fit."""
    for record in by_study()[study]:
        assert identity.id_of(record.config) == record.run_id


def test_a_shipped_ladder_still_means_its_committed_runs() -> None:
    assert {p.run_id for p in enumerate_runs(["+ladder=cpu_full"])[0]} == {r.run_id for r in by_study()["cpu_full"]}


@dataclasses.dataclass
class LaterDevice(schema.DeviceConfig):
    window: int = 8


@dataclasses.dataclass
class LaterLlama(schema.LlamaConfig):
    dropout: float = 0.0
    experts: list[int] = dataclasses.field(default_factory=list)


def later(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> RunConfig:
    """A run of a harness that has gained settings."""
    monkeypatch.setitem(schema.FAMILIES["model"], "llama", LaterLlama)
    monkeypatch.setitem(identity._SECTIONS, "device", LaterDevice)
    window = settings.pop("window", 8)
    return RunConfig(model=LaterLlama(width=32, **settings), device=LaterDevice(window=window))


def test_a_new_setting_at_its_default_renames_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity.run_id(RunConfig(model=schema.LlamaConfig(width=32)))
    assert identity.run_id(later(monkeypatch)) == before
    others = [later(monkeypatch, dropout=0.1), later(monkeypatch, experts=[2]), later(monkeypatch, window=9)]
    assert len({before, *(identity.run_id(r) for r in others)}) == 4


def test_a_renamed_setting_keeps_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    config = identity.resolved(RunConfig(model=schema.LlamaConfig(width=32, ffn=64)))
    before = identity.id_of(config)

    @dataclasses.dataclass
    class Renamed(schema.ModelConfig):
        width: int = 64
        depth: int | None = None
        head_dim: int | None = None
        kv_heads: int | None = None
        ffn_width: int | None = None
        tie_embeddings: bool = False
        rope_theta: float = 10_000.0

    monkeypatch.setitem(schema.FAMILIES["model"], "llama", Renamed)
    monkeypatch.setitem(identity._RENAMED, ("model", "ffn_width"), "ffn")
    config["model"]["ffn_width"] = config["model"].pop("ffn")
    assert identity.id_of(config) == before


def test_threads_and_what_all_runs_together_may_spend_are_no_part_of_an_id() -> None:
    base = RunConfig(model=schema.LlamaConfig(width=32), schedule=schema.CosineConfig())
    same = dataclasses.replace(
        base, device=schema.DeviceConfig(threads=3), budget=dataclasses.replace(base.budget, kwh=1.0)
    )
    assert identity.run_id(same) == identity.run_id(base)
    assert identity.run_id(dataclasses.replace(base, budget=schema.BudgetConfig(tokens=5))) != identity.run_id(base)
