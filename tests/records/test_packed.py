"""Files of a committed reference: packed rows, and draws beside the fits they belong to."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from harness import records
from harness.analysis import study_laws
from harness.errors import RecordError
from harness.laws.result import Fit
from harness.records import RunRecord, read_packed, ttc, write_packed
from harness.records import fits as fit_files
from tests import synthetic


@pytest.fixture(scope="module")
def fits() -> dict[str, Fit]:
    return study_laws.fit_study(synthetic.ladder(), bootstrap=60)


def test_packed_rows_are_those_that_were_written(tmp_path: Path) -> None:
    runs = synthetic.ladder(widths=(16, 32))
    records.pack_records(tmp_path, runs[::-1])
    first = (tmp_path / records.PACKED_RECORDS).read_bytes()
    loaded, excluded = records.load(tmp_path)
    assert (loaded, excluded) == (sorted(runs, key=lambda r: r.run_id), {})
    assert records.is_reference(tmp_path)
    records.pack_records(tmp_path, runs)
    assert (tmp_path / records.PACKED_RECORDS).read_bytes() == first, "equal records give equal bytes"


def test_a_gzip_file_of_an_older_reference_is_read(tmp_path: Path) -> None:
    runs = synthetic.ladder(widths=(16,))
    lines = "".join(json.dumps(records.to_json(r)) + "\n" for r in runs)
    (tmp_path / "old.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert read_packed(tmp_path / "old.jsonl.gz", RunRecord) == runs


@pytest.mark.parametrize("name", ["x.jsonl.xz", "x.jsonl.gz"])
def test_a_damaged_packed_file_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_packed(tmp_path / "x.jsonl.xz", synthetic.ladder(widths=(16,)))
    whole = path.read_bytes() if path.exists() else gzip.compress(b'{"run_id": "a"}\n')
    for damaged in (b"", whole[: len(whole) // 2], b"no archive", whole[:-3] + b"abc"):
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match=name):
            read_packed(path, RunRecord)


def test_draws_lie_beside_the_fits(fits: dict[str, Fit], tmp_path: Path) -> None:
    fit_files.write_fits(tmp_path, fits)
    text = (tmp_path / "fits.json").read_text()
    assert max(map(len, text.splitlines())) < 20_000, "a list of numbers is on one line"
    assert not any(fit["draws"] for fit in json.loads(text)["fits"].values())
    loaded = fit_files.load_fits(tmp_path)
    assert loaded["loss_nd"].draws["alpha"] == [float(f"{x:.9g}") for x in fits["loss_nd"].draws["alpha"]]
    assert loaded["loss_nd"].params == fits["loss_nd"].params
    before = [(p.name, p.read_bytes()) for p in sorted(tmp_path.iterdir())]
    fit_files.write_fits(tmp_path, fits)
    assert [(p.name, p.read_bytes()) for p in sorted(tmp_path.iterdir())] == before


def test_draws_within_an_older_file_are_read(fits: dict[str, Fit], tmp_path: Path) -> None:
    value = {"schema_version": 1, "fits": {name: records.to_json(fit) for name, fit in fits.items()}}
    (tmp_path / "fits.json").write_text(json.dumps(value))
    assert fit_files.load_fits(tmp_path) == fits


def test_draws_of_other_fits_are_refused(fits: dict[str, Fit], tmp_path: Path) -> None:
    fit_files.write_fits(tmp_path, fits)
    side_file = tmp_path / "fits.draws.npz"
    whole = side_file.read_bytes()
    for damaged in (b"", whole[:-1], whole[::-1]):
        side_file.write_bytes(damaged)
        with pytest.raises(RecordError, match=r"fits\.draws\.npz does not belong to the fits beside it"):
            fit_files.load_fits(tmp_path)
    side_file.unlink()
    with pytest.raises(RecordError, match=r"fits\.draws\.npz cannot be read"):
        fit_files.load_fits(tmp_path)


def test_fits_without_draws_leave_no_stale_side_file(fits: dict[str, Fit], tmp_path: Path) -> None:
    fit_files.write_fits(tmp_path, fits)
    fit_files.write_fits(tmp_path, study_laws.fit_study(synthetic.ladder(), bootstrap=0))
    assert [p.name for p in tmp_path.iterdir()] == ["fits.json"]
    assert fit_files.load_fits(tmp_path)["loss_nd"].draws == {}


def test_rows_of_evaluations_whose_order_was_called_arm_are_read() -> None:
    (record, *_) = ttc.load(Path(__file__).resolve().parents[2] / "results/reference/cpu_cot")
    assert {row.order for row in record.rows} == {"batched", "sequential"}


def test_a_fit_says_what_it_is_of_and_older_files_are_read_by_their_names() -> None:
    reference = Path(__file__).resolve().parents[2] / "results/reference/cpu_cot"
    scopes = {name: fit.scope for name, fit in fit_files.load_fits(reference).items()}
    assert {scopes[name] for name in scopes if name.startswith("ttc/voting/")} == {"cell"}
    assert {scopes[name] for name in scopes if name.startswith("ttc/accuracy_loss/")} == {"control"}
    assert {scopes[name] for name in scopes if not name.startswith("ttc/")} <= {"study"}
