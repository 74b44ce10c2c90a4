"""Files of fits: {schema_version, fits: {name: Fit}}, as a study's `fits.json`, and a file that holds one Fit."""

from __future__ import annotations

from pathlib import Path

from harness import records
from harness.errors import RecordError
from harness.laws.catalogue import LAWS
from harness.laws.result import Fit

STUDY_FILE = "fits.json"


def write_fits(folder: Path, fits: dict[str, Fit]) -> None:
    """Write a study's fits.json."""
    write_all(folder / STUDY_FILE, fits)


def write_all(path: Path, fits: dict[str, Fit]) -> None:
    """Write several Fits by name, as a study's fits.json has them."""
    value = {name: _json(one) for name, one in fits.items()}
    records.write_json(path, {"schema_version": records.SCHEMA_VERSION, "fits": value})


def write_fit(path: Path, fit: Fit) -> None:
    """Write one Fit, with `schema_version` beside its fields."""
    records.write_json(path, {"schema_version": records.SCHEMA_VERSION, **_json(fit)})


def _json(fit: Fit) -> records.Json:
    """Bootstrap draws keep 9 digits; everything else keeps all of them."""
    value = records.to_json(fit)
    value["draws"] = {k: [float(f"{x:.9g}") for x in v] for k, v in value["draws"].items()}
    return value


def load_fits(folder: Path) -> dict[str, Fit]:
    """The fits of a study folder; empty where `harness fit` has not run."""
    path = folder / STUDY_FILE
    return load_file(path) if path.exists() else {}


def load_file(path: Path) -> dict[str, Fit]:
    """Every Fit of a file of either kind, by name; a single Fit goes by its law. RecordError where the file is neither."""
    value = records.read_json(path)
    if "fits" in value or path.name == STUDY_FILE:
        fits = value.get("fits")
        if not isinstance(fits, dict):
            raise RecordError(f"{path}: expected an object `fits`, found {type(fits).__name__}. Run harness fit again.")
        return {
            name: _whole(records.from_json(Fit, one, f"{path}: {name}"), f"{path}: {name}")
            for name, one in fits.items()
        }
    value.pop("schema_version", None)
    if "law" not in value:
        raise RecordError(f"{path} holds no fit. Files of fits come from harness fit, as fits.json or with --out.")
    fit = _whole(records.from_json(Fit, value, str(path)), str(path))
    return {fit.law: fit}


def _whole(fit: Fit, where: str) -> Fit:
    """The fit itself; RecordError where its parts do not belong together, so that no prediction comes out of half a fit.
    A law that is a caller's function is in no file: its parameters are taken as they are."""
    if fit.law in LAWS and (missing := [p for p in LAWS[fit.law].params if p not in fit.params]):
        raise RecordError(f"{where}: {fit.law} lacks {', '.join(missing)}; the file is damaged. Run harness fit again.")
    if len(lengths := {len(v) for v in fit.draws.values()}) > 1:
        raise RecordError(
            f"{where}: draws of {min(lengths)} to {max(lengths)} entries; the file is damaged. Run harness fit again."
        )
    return fit
