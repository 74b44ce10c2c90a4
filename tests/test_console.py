"""Text tables: plain and complete in a pipe, wrapped inside their columns on a terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.console import Table, show

LONG = "a reason of many words that does not fit into one line of a terminal of forty columns [0]"
TABLE = Table([["w8", "1,024", LONG], ["w16 s0", "2", ""]], ["run", "steps", "reason"], "lr")


def test_plain_text_aligns_columns_and_cuts_nothing() -> None:
    assert TABLE.text().split("\n") == ["run     steps  reason", f"w8      1,024  {LONG}", "w16 s0      2"]
    assert Table([["a", "b"]]).text() == "a  b"


def test_a_pipe_gets_plain_text_without_rich() -> None:
    code = (
        "import sys; from harness.console import Table, show; show('head [bold]', Table([['a', 'b' * 300]])); "
        "assert 'rich' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"head [bold]\na  {'b' * 300}\n"


def test_a_terminal_wraps_cells(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show(TABLE)
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert max(map(len, lines)) <= 40
    assert " ".join(line[len("w16 s0  steps  ") :].strip() for line in lines[1:-1]) == LONG
    assert lines[-1].split() == ["w16", "s0", "2"]
