"""Evaluations on disk: packed for a reference, and read again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.errors import RecordError
from harness.records import ttc as ttc_records
from tests import synthetic_ttc


def test_a_packed_reference_holds_the_same_evaluations_in_the_same_bytes(tmp_path: Path) -> None:
    found = synthetic_ttc.exchange_ladder(1.7, seeds=1, problems=20)
    ttc_records.pack(tmp_path, found)
    first = (tmp_path / ttc_records.PACKED).read_bytes()
    assert [dataclasses.asdict(e) for e in ttc_records.load(tmp_path)] == [dataclasses.asdict(e) for e in found]
    ttc_records.pack(tmp_path, found)
    assert (tmp_path / ttc_records.PACKED).read_bytes() == first


def test_a_torn_reference_is_told_in_words(tmp_path: Path) -> None:
    ttc_records.pack(tmp_path, synthetic_ttc.exchange_ladder(1.7, seeds=1, problems=20))
    path = tmp_path / ttc_records.PACKED
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecordError, match=r"ttc\.jsonl\.xz cannot be read"):
        ttc_records.load(tmp_path)
