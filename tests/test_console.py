"""Text tables: plain and complete in a pipe, their last column wrapped on a terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest

from harness.console import TextTable, show

LONG = "a reason of many words that does not fit into one line of a terminal of forty columns [0]"
TABLE = TextTable([["w8", "1,024", LONG], ["w16 s0", "2", ""]], ["run", "steps", "reason"], "lr")


def test_plain_text_aligns_columns_and_cuts_nothing() -> None:
    assert TABLE.text().split("\n") == ["run     steps  reason", f"w8      1,024  {LONG}", "w16 s0      2"]
    assert TextTable([["a", "b"]]).text() == "a  b"


def test_a_pipe_gets_plain_text_without_rich() -> None:
    code = (
        "import sys; from harness.console import TextTable, show; show('head [bold]', TextTable([['a', 'b' * 300]])); "
        "assert 'rich' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"head [bold]\na  {'b' * 300}\n"


def forty_columns(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The standard output as a terminal of forty columns."""
    screen = io.StringIO()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    return screen


def test_a_terminal_wraps_the_last_column(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = forty_columns(monkeypatch)
    show(TABLE)
    lines = re.sub(r"\x1b\[[0-9]*m", "", terminal.getvalue()).rstrip("\n").split("\n")
    assert max(map(len, lines)) <= 40
    assert lines[0].split() == ["run", "steps", "reason"]
    assert " ".join(line[len("w16 s0  steps  ") :].strip() for line in lines[1:-1]) == LONG
    assert lines[-1].split() == ["w16", "s0", "2"]


def test_a_table_too_wide_for_a_terminal_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run id in two pieces could not be copied."""
    wide = TextTable([["0123456789ab", "x" * 30, LONG]], ["id", "name", "reason"])
    terminal = forty_columns(monkeypatch)
    show(wide, LONG)
    assert re.sub(r"\x1b\[[0-9]*m", "", terminal.getvalue()) == f"{wide.text()}\n{LONG}\n"
