"""The additions of docs/extending.md, kept as patches: each is applied to a copy of the tree and passes its family's tests there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Patch -> the tests of its family, and the words by which its own cases are chosen
TESTS = {
    "law": ("tests/laws/test_laws_curves.py", "data_saturation"),
    "power_source": ("tests/power/test_source_contract.py", "hwmon or every"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("harness", "conf", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "tests" / "extensions").glob("*.patch")))
def test_an_extension_works_where_the_guide_says(name: str, copy: Path) -> None:
    patch = ROOT / "tests" / "extensions" / f"{name}.patch"
    subprocess.run(["git", "apply", str(patch)], cwd=copy, check=True)
    file, words = TESTS[name]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file, "-k", words],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
