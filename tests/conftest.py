"""Options and fixtures that several test folders share.

Published data and corpora are read where they lie, never copied.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# No example is judged by the time it takes: other work on the machine would fail it
settings.register_profile("project", deadline=None)
settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--published",
        default=str(ROOT.parent / "shared" / "published"),
        help="folder with published tables and truth.json",
    )
    parser.addoption("--corpora", default=str(ROOT.parent / "shared" / "corpora"), help="folder with real text corpora")
    parser.addoption("--full", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="slow; run scripts/test --full")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


def _folder(config: pytest.Config, option: str) -> Path:
    folder = Path(str(config.getoption(option)))
    if not folder.is_dir():
        pytest.skip(f"{option}: no folder {folder.name} beside the repository")
    return folder


@pytest.fixture(scope="session")
def published(pytestconfig: pytest.Config) -> Path:
    return _folder(pytestconfig, "--published")


@pytest.fixture(scope="session")
def corpora(pytestconfig: pytest.Config) -> Path:
    return _folder(pytestconfig, "--corpora")
