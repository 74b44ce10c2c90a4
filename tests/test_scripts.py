"""The set-up scripts fail in one line with a non-zero exit code, and run what they promise.

Nothing is installed here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "env", "dirname", "basename", "df", "awk", "grep", "sed", "tail", "rm", "cat", "sh", "mkdir")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout with the scripts and what they read, without .venv."""
    clone = tmp_path / "a clone"  # a path with a space, because users have them
    (clone / "scripts").mkdir(parents=True)
    for name in (
        "scripts/_env",
        "scripts/quickstart",
        "scripts/test",
        "scripts/docs",
        "constraints.txt",
        "pyproject.toml",
        "scripts/oldest.txt",
    ):
        shutil.copy(ROOT / name, clone / name)
    return clone


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A PATH of its own: the few tools that the scripts use, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def stub(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def start(clone: Path, bin_dir: Path, script: str = "quickstart", *arguments: str, **extra: str):
    """Run a script from a foreign working directory, with this PATH and no settings of pip's."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    environment |= {"PATH": str(bin_dir), "PIP_CONFIG_FILE": os.devnull, **extra}
    return subprocess.run(
        [str(clone / "scripts" / script), *arguments],
        cwd=bin_dir,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("scripts/")
    for word in words:
        assert word in lines[0]


def test_without_python(clone: Path, bin_dir: Path) -> None:
    refused(start(clone, bin_dir), "no Python 3.11 or newer", "apt install")


def test_old_python(clone: Path, bin_dir: Path) -> None:
    # what `sys.exit(sys.version_info < (3, 11))` does on an older one
    stub(bin_dir / "python3", "exit 1")
    refused(start(clone, bin_dir), "no Python 3.11 or newer")


def test_without_venv_module(clone: Path, bin_dir: Path) -> None:
    stub(bin_dir / "python3", f'case "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"')
    refused(start(clone, bin_dir), "venv module is missing", "python3-venv")


def test_falls_back_to_another_python_that_has_venv(clone: Path, bin_dir: Path) -> None:
    stub(bin_dir / "python3", f'case "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"')
    stub(bin_dir / "python3.12", 'case "$*" in *"-m venv"*) echo chosen >&2; exit 1;; esac')
    refused(start(clone, bin_dir), "python3.12 could not make .venv: chosen")


def test_venv_fails_and_leaves_nothing_behind(clone: Path, bin_dir: Path) -> None:
    stub(
        bin_dir / "python3",
        f'case "$*" in *"-m venv"*) {shutil.which("mkdir")} -p "$3/bin"; echo; echo "no way"; exit 1;; esac\n'
        f'exec {sys.executable} "$@"',
    )
    refused(start(clone, bin_dir), "could not make .venv: no way")
    assert not (clone / ".venv").exists()


def test_folder_that_is_no_environment_is_not_deleted(clone: Path, bin_dir: Path) -> None:
    (bin_dir / "python3").symlink_to(sys.executable)
    (clone / ".venv").mkdir()
    (clone / ".venv" / "mine").touch()
    refused(start(clone, bin_dir), "no virtual environment")
    assert (clone / ".venv" / "mine").exists()


def test_full_disk(clone: Path, bin_dir: Path) -> None:
    (bin_dir / "python3").symlink_to(sys.executable)
    stub(bin_dir / "df", "echo Filesystem\necho /dev/x 9000000 8000000 1000000 89% /")
    refused(start(clone, bin_dir), "only 1000 MB free", "4000 MB are needed")
    assert not (clone / ".venv").exists()


def test_no_network(clone: Path, bin_dir: Path) -> None:
    """A real environment and the real pip, which is allowed no index."""
    stub(bin_dir / "python3", f'exec {sys.executable} "$@"')
    done = start(clone, bin_dir, PIP_NO_INDEX="1")
    refused(done, "pip finds no ", "==", "check the network")
    assert not (clone / ".venv" / ".installed").exists()


def ready(clone: Path, harness: str, venv: str = ".venv") -> None:
    """An environment that is up to date: a Python that is this one, its pip answered for, and a
    stand-in for `harness`.
    """
    stub(
        clone / venv / "bin/python",
        f'case "$*" in "-m pip --version") exit 0;; "-m pip"*) echo "pip $*" >> {clone.parent}/pip; exit 0;; '
        f'"-m ruff"*|"-m pyright"*|"-m pytest"*|"-m sphinx"*|"-m harness"*) echo "$@"; exit ${{CODE:-0}};; esac\nexec {sys.executable} "$@"',
    )
    stub(clone / venv / "bin/harness", harness)


def test_installs_once(clone: Path, bin_dir: Path) -> None:
    ready(clone, "exit 0")
    pip_log = clone.parent / "pip"
    assert start(clone, bin_dir).returncode == 0
    first = pip_log.read_text().splitlines()
    assert len(first) == 2
    assert all(f"--constraint {clone}/constraints.txt" in line for line in first)
    assert start(clone, bin_dir).returncode == 0
    assert pip_log.read_text().splitlines() == first, "nothing changed, so nothing is installed again"
    assert start(clone, bin_dir, "test").returncode == 0
    *_, dev, oldest = pip_log.read_text().splitlines()
    assert "[dev,slurm]" in dev, "the tests need more than the run does"
    assert f"-r {clone}/scripts/oldest.txt" in oldest
    assert start(clone, bin_dir).returncode == 0
    assert len(pip_log.read_text().splitlines()) == 5, "and the run needs no more than the tests"
    with (clone / "constraints.txt").open("a") as f:
        f.write("# changed\n")
    assert start(clone, bin_dir).returncode == 0
    assert len(pip_log.read_text().splitlines()) == 7


def test_pip_failure_is_told_in_one_line(clone: Path, bin_dir: Path) -> None:
    ready(clone, "exit 0")
    body = (clone / ".venv/bin/python").read_text()
    said = {
        "No space left on device": "disk ran full",
        "NewConnectionError": "cannot reach a package index",
        "ERROR: no such pin": "no such pin",
    }
    for error, told in said.items():
        stub(
            clone / ".venv/bin/python",
            body.replace("#!/bin/sh\n", "").replace('exit 0;; "-m ruff', f'echo "{error}" >&2; exit 1;; "-m ruff'),
        )
        refused(start(clone, bin_dir), told)


def test_quickstart_runs_fits_reports(clone: Path, bin_dir: Path) -> None:
    ready(clone, 'echo "$PWD: $*"')
    done = start(clone, bin_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        f"{clone}: run +ladder=cpu",
        f"{clone}: fit cpu",
        f"{clone}: report {clone}/runs/cpu",
    ]
    refused(start(clone, bin_dir, "quickstart", "seed=3"), "takes no arguments", "harness --help")


def test_quickstart_stops_at_the_first_failure(clone: Path, bin_dir: Path) -> None:
    ready(clone, 'echo "$1"; exit 1')
    done = start(clone, bin_dir)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "run"


def test_test_script_checks_everything_and_ends_with_pytest(clone: Path, bin_dir: Path) -> None:
    ready(clone, "exit 0")
    done = start(clone, bin_dir, "test", "--full")
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("-m")]
    assert commands == ["-m ruff format --check .", "-m ruff check .", "-m pyright", "-m pytest -n auto --full"]
    failing = start(clone, bin_dir, "test", CODE="1")
    assert failing.returncode == 1
    assert failing.stderr.count("FAILED") == 3
    assert failing.stdout.splitlines()[-1].startswith("-m pytest"), (
        "a failed check does not keep the tests from running"
    )


def test_docs_have_an_environment_of_their_own(clone: Path, bin_dir: Path) -> None:
    ready(clone, "exit 0", "build/docs-env")
    done = start(clone, bin_dir, "docs")
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("-m")]
    assert commands == [
        "-m harness.records.schemas docs/schema",
        "-m sphinx --fail-on-warning --keep-going --fresh-env --quiet -b html docs build/docs",
    ]
    assert f"--group {clone}/pyproject.toml:docs" in (clone.parent / "pip").read_text()
    assert not (clone / ".venv").exists()
    assert start(clone, bin_dir, "docs", CODE="1").returncode == 1
    refused(start(clone, bin_dir, "docs", "html"), "takes no arguments")
