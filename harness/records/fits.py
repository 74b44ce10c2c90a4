"""Files of fits: several by name (`FitsFile`), as a study's `fits.json`, or a single `Fit`.

A file of several fits keeps their bootstrap draws in a side file, `fits.draws.npz`: an array of 9
digits per fit and parameter ("loss_nd/alpha"). The file of fits holds the hash of its side file, so
that draws of other fits are never taken for these. A file of a single fit holds its own draws.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from harness import records
from harness.errors import RecordError
from harness.laws.catalogue import LAWS
from harness.laws.result import Fit

STUDY_FILE = "fits.json"
OLD_CELL_LAWS = ("voting", "coverage", "pass_at_k")  # whose names meant a single cell
DRAWS_SUFFIX = ".draws.npz"


@dataclass
class FitsFile:
    """Several fits by name. `draws_sha256`: hash of the side file of draws; None where the fits
    hold theirs, or have none."""

    fits: dict[str, Fit]
    draws_sha256: str | None = None
    schema_version: int = records.SCHEMA_VERSION

    @staticmethod
    def upgraded(value: Any) -> Any:
        """The JSON value with the scope of each fit; older files tell it by the fit's name
        alone.
        """
        fits = cast(records.Json, value).get("fits") if isinstance(value, dict) else None
        for name, fit in cast(records.Json, fits).items() if isinstance(fits, dict) else ():
            if isinstance(fit, dict) and name.startswith("ttc/"):
                cast(records.Json, fit).setdefault("scope", _old_scope(name))
        return cast(Any, value)


def _old_scope(name: str) -> str:
    return "cell" if name.split("/")[1] in OLD_CELL_LAWS else "control"


def write_fits(folder: Path, fits: dict[str, Fit]) -> None:
    """Write a study's fits.json and its draws."""
    write_all(folder / STUDY_FILE, fits)


def write_all(path: Path, fits: dict[str, Fit]) -> None:
    """Write several Fits by name, as a study's fits.json has them, and their draws beside it. Equal
    fits give equal bytes."""
    value: records.Json = {"schema_version": records.SCHEMA_VERSION}
    arrays = {
        f"{name}/{parameter}": np.array(_digits(values))
        for name, fit in fits.items()
        for parameter, values in fit.draws.items()
    }
    side_file = path.with_suffix(DRAWS_SUFFIX)
    if arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        records.write_bytes_atomic(side_file, buffer.getvalue())
        value["draws_sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    else:
        side_file.unlink(missing_ok=True)
    value["fits"] = {name: records.to_json(fit) | {"draws": {}} for name, fit in fits.items()}
    records.write_json(path, value)


def write_fit(path: Path, fit: Fit) -> None:
    """Write one Fit with its draws, and `schema_version` beside its fields."""
    value = records.to_json(fit)
    value["draws"] = {k: _digits(v) for k, v in value["draws"].items()}
    records.write_json(path, {"schema_version": records.SCHEMA_VERSION, **value})


def _digits(values: list[float]) -> list[float]:
    """Bootstrap draws keep 9 digits; everything else keeps all of them."""
    return [float(f"{x:.9g}") for x in values]


def load_fits(folder: Path) -> dict[str, Fit]:
    """The fits of a study folder; empty where `harness fit` has not run."""
    path = folder / STUDY_FILE
    return load_file(path) if path.exists() else {}


def load_file(path: Path) -> dict[str, Fit]:
    """Every Fit of a file of either kind, by name; a single Fit goes by its law. RecordError where
    the file is neither."""
    value = records.read_json(path)
    if "fits" in value or path.name == STUDY_FILE:
        file = records.from_json(FitsFile, value, str(path))
        if file.draws_sha256:
            _add_draws(file, path)
        return {name: _checked(fit, f"{path}: {name}") for name, fit in file.fits.items()}
    value.pop("schema_version", None)
    if "law" not in value:
        raise RecordError(f"{path} holds no fit. Files of fits come from harness fit, as fits.json or with --out.")
    fit = _checked(records.from_json(Fit, value, str(path)), str(path))
    return {fit.law: fit}


def _add_draws(file: FitsFile, path: Path) -> None:
    """Give the fits of `path` the draws of its side file."""
    for key, draws in _read_draws(path.with_suffix(DRAWS_SUFFIX), file.draws_sha256).items():
        name, _, parameter = key.rpartition("/")
        if name not in file.fits:
            raise RecordError(f"{path}: the fit {name} of the draws is missing. Run harness fit again.")
        file.fits[name].draws[parameter] = draws


def _read_draws(path: Path, sha256: str | None) -> dict[str, list[float]]:
    """The draws in a side file, by "fit/parameter". RecordError where it is missing or was written
    with other fits."""
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise RecordError(f"{path} does not belong to the fits beside it. Run harness fit again.")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {key: arrays[key].tolist() for key in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise RecordError(f"{path} cannot be read: {e}. Run harness fit again.") from e


def _checked(fit: Fit, where: str) -> Fit:
    """The fit itself. RecordError where its parts do not belong together, because half a fit must
    not predict. A law that is a caller's function is in no file: its parameters are taken as they
    are."""
    if fit.law in LAWS and (missing := [p for p in LAWS[fit.law].params if p not in fit.params]):
        raise RecordError(f"{where}: {fit.law} lacks {', '.join(missing)}; the file is damaged. Run harness fit again.")
    if len(lengths := {len(v) for v in fit.draws.values()}) > 1:
        raise RecordError(
            f"{where}: draws of {min(lengths)} to {max(lengths)} entries; the file is damaged. Run harness fit again."
        )
    return fit
