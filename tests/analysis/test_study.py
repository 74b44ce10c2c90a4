"""A study as one object, and that a committed reference is never written to."""

from __future__ import annotations

import hashlib
import lzma
import shutil
from pathlib import Path

import pytest

from harness import records
from harness.analysis.study import Study, results_folder
from harness.cli import main as cli
from harness.errors import RecordError
from harness.records import ttc as ttc_records
from tests import synthetic

CELLS = 8  # of the evaluations: each has laws of its own, and seconds go into fitting them
REFERENCES = Path(__file__).resolve().parents[2] / "results" / "reference"


def hashes(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with two references, one of them with evaluations, and without runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("cpu_text", "cpu_cot"):
        shutil.copytree(REFERENCES / name, tmp_path / "results" / "reference" / name)
    packed = tmp_path / "results" / "reference" / "cpu_cot" / ttc_records.PACKED
    cells = lzma.decompress(packed.read_bytes()).splitlines(keepends=True)
    packed.write_bytes(lzma.compress(b"".join(cells[:CELLS])))
    return tmp_path


@pytest.mark.parametrize("name", ["cpu_text", "cpu_cot"])
def test_a_reference_is_read_only(name: str, clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = hashes(clone / "results")
    assert cli.main(["fit", name, "--bootstrap", "40"]) == 0
    assert cli.main(["report", name]) == 0
    assert hashes(clone / "results") == before
    assert (clone / "runs" / name / "fits.json").exists()
    assert (clone / "runs" / name / "report.html").exists()
    assert f"runs/{name}/fits.json" in capsys.readouterr().out
    again = Study.load(clone / "results" / "reference" / name)
    assert next(iter(again.fits.values())).bootstrap["draws"] == 40, (
        "the new fits are the study's, not the committed ones"
    )
    assert cli.main(["fit", name, "--bootstrap", "0", "--out", "elsewhere"]) == 0
    assert (clone / "elsewhere" / "fits.json").exists()
    assert hashes(clone / "results") == before


def test_a_reference_never_takes_the_results_of_a_study_of_its_name(clone: Path) -> None:
    """`harness run +ladder=…` makes runs/NAME: its fits are of other records."""
    folder = clone / "runs" / "cpu_text"
    for record in synthetic.ladder():
        (folder / record.run_id).mkdir(parents=True)
        records.write_json(folder / record.run_id / "record.json", record)
    study = Study.load(folder)
    study.fit(bootstrap=0)
    before = study.save().read_bytes()
    reference = Study.load(clone / "results" / "reference" / "cpu_text")
    assert reference.fits["loss_nd"].n_points != study.fits["loss_nd"].n_points
    reference.save()
    assert (folder / "fits.json").read_bytes() == before
    assert (clone / "runs" / "cpu_text-reference" / "fits.json").exists()


def test_results_of_a_study_stay_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for record in synthetic.ladder():
        (folder / record.run_id).mkdir(parents=True)
        records.write_json(folder / record.run_id / "record.json", record)
    assert results_folder(folder) == folder
    study = Study.load(folder)
    study.fit(bootstrap=0)
    assert study.save() == folder / "fits.json"
    read = Study.load(folder)
    assert read.fits["loss_nd"].params == study.fits["loss_nd"].params
    assert (read.name, len(read.records)) == ("mine", len(study.records))


def test_points_and_parameters_are_frames(tmp_path: Path) -> None:
    study = Study("small", synthetic.ladder())
    study.fit(bootstrap=40)
    points, parameters = study.points(), study.parameters()
    assert len(points) == sum(len(r.points) for r in study.records)
    assert {"n_total", "tokens", "loss_nat", "energy_j"} <= set(points.columns)
    row = parameters[(parameters["fit"] == "loss_nd") & (parameters["parameter"] == "alpha")].iloc[0]
    assert row["value"] == study.fits["loss_nd"].params["alpha"]
    assert [row["low"], row["high"]] == study.fits["loss_nd"].interval["alpha"]


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is not a folder"):
        Study.load(tmp_path / "x")
