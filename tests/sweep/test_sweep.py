"""Sweeps through the real Hydra launchers: tables, exit codes, workers that fail or are stopped,
ladders of one's own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import records
from harness.cli import main as cli
from harness.errors import ConfigError
from harness.records import RunState
from harness.runtime import lock, signals
from harness.sweep import compose_sweep, status

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "model.depth=1",
    "corpus.vocab=32",
    "corpus.keys=200",
    "corpus.context=21",
    "corpus.val_tokens=630",
    "optim.batch_tokens=84",
    "optim.lr=0.01",
    "schedule.warmup_tokens=420",
    "device.kind=cpu",
    "device.threads=1",
    "study=tiny",
]
TWO = ["model.width=8,16", "budget.tokens=2520", *TINY]


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "run", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Launch in this process with Hydra's basic launcher: exit code and what was printed."""
    before = sys.argv
    try:
        code = cli.main(["run", *arguments, "hydra/launcher=basic"])
    finally:
        sys.argv = before
    return code, capsys.readouterr().out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- the joblib launcher --------------------------------------------------------------------------
def test_two_runs_side_by_side_one_of_which_fails(here: Path) -> None:
    good, bad = compose_sweep.enumerate_runs(TWO)[0]
    bad.run_dir.mkdir(parents=True)
    (bad.run_dir / "progress.json").write_text("{")
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start(*TWO, *parallel, cwd=here)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 1, text
    assert "Traceback" not in text
    table = text[text.index("run     id") :]
    assert re.search(rf"{good.name} +{good.run_id} +done +30/30 ", table)
    assert re.search(rf"{bad.name} +{bad.run_id} +failed .*progress\.json cannot be read", table)
    assert "1 of 2 runs done" in table
    assert "attempt.retry=failed" in table
    record = records.load_record(good.run_dir)
    assert record.provenance["threads"] == 1
    assert record.overrides == ["model.width=8", *TWO[1:]]

    (bad.run_dir / "progress.json").unlink()
    written = (good.run_dir / "record.json").stat().st_mtime_ns
    process = start(*TWO, *parallel, "attempt.retry=failed", cwd=here)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "2 of 2 runs done" in text
    assert (good.run_dir / "record.json").stat().st_mtime_ns == written, "a finished run is skipped"


@pytest.mark.slow
def test_ctrl_c_stops_a_sweep_and_a_new_launch_ends_it(here: Path) -> None:
    arguments = [
        "model.width=8,16,24",
        "budget.tokens=252_000",
        *TINY,
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]
    runs = compose_sweep.enumerate_runs(arguments)[0]
    process = start(*arguments, cwd=here)
    end = time.monotonic() + 120
    while not any((r.run_dir / "steps.jsonl").exists() for r in runs):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode in (1, 130), text
    states = [status.describe(r.run_dir)[0] for r in runs]
    assert set(states) <= {"interrupted", "not started"}, text
    assert "interrupted" in states
    process = start(*[a.replace("252_000", "25_200") for a in arguments], cwd=here)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text


@pytest.mark.slow
def test_chaos_bench() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench" / "chaos"), "--kills", "3", "--seed", "5"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost or counted twice" in done.stdout.splitlines()[-1]


# --- in this process ------------------------------------------------------------------------------
def test_a_list_of_values_sweeps_and_launching_again_skips(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["seed=0,1", "model.width=8", "budget.tokens=2520", *TINY]
    code, text = launch(capsys, *arguments)
    assert code == 0, text
    assert "2 of 2 runs done" in text
    assert len(list(here.glob("runs/tiny/*/record.json"))) == 2
    code, text = launch(capsys, *arguments, "tracker.project=other")
    assert code == 0
    assert text.count(" done  ") == 2, "the tracker is not identity"
    assert "30/30" in text, "a skipped run keeps its numbers"


def test_one_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = launch(capsys, "model.width=8", "budget.tokens=2520", *TINY)
    assert code == 0
    assert "1 of 1 runs done" in text
    assert {p.name for p in here.iterdir()} == {"runs"}, "nothing is written but runs"


def test_a_failed_run_stays_failed_and_says_what_to_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = launch(capsys, "model.width=8", "budget.tokens=2520", *TINY, "power=replay", "power.path=nowhere.csv")
    assert code == 1
    assert "nowhere.csv" in text
    assert "0 of 1 runs done" in text
    assert "attempt.retry=failed" in text


def test_an_interrupted_run_keeps_those_behind_it_from_starting(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "reason", lambda: "SIGTERM" if any(here.rglob("steps.jsonl")) else None)
    code, text = launch(capsys, "seed=0,1", "model.width=8", "budget.tokens=2520", *TINY)
    assert code == 1
    assert "interrupted" in text
    assert "not started" in text
    assert "launch again" in text


# --- ladders of one's own -------------------------------------------------------------------------
LADDER = """\
# @package _global_
study: mine
budget: {tokens: 2520}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      model.width: 8,16
"""


@pytest.mark.parametrize("where", ["conf", "elsewhere/my_conf"])
def test_a_ladder_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    (here / where / "ladder").mkdir(parents=True)
    (here / where / "ladder" / "mine.yaml").write_text(LADDER)
    flags = [] if where == "conf" else ["--config-dir", where]
    plain = [a for a in TINY if not a.startswith("study")]
    arguments = ["+ladder=mine", *plain, *flags]
    planned = compose_sweep.enumerate_runs(arguments)[0]
    assert [p.name for p in planned] == ["w8 s0", "w16 s0"]
    assert {p.config.study for p in planned} == {"mine"}
    assert len(compose_sweep.enumerate_runs(["+ladder=cpu", *flags])[0]) > 1, "the shipped ones are still there"
    code, text = launch(capsys, *arguments)
    assert code == 0, text
    assert "2 of 2 runs done" in text


def test_a_mistake_in_a_ladder_names_the_file(here: Path) -> None:
    (here / "conf" / "ladder").mkdir(parents=True)
    (here / "conf" / "ladder" / "mine.yaml").write_text(LADDER.replace("tokens", "tokns"))
    with pytest.raises(ConfigError) as e:
        compose_sweep.enumerate_runs(["+ladder=mine"])
    assert "tokns" in str(e.value)
    assert "budget.tokens" in str(e.value)


def test_broken_yaml_is_said_so(here: Path) -> None:
    (here / "conf" / "ladder").mkdir(parents=True)
    (here / "conf" / "ladder" / "mine.yaml").write_text("study: [\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        compose_sweep.enumerate_runs(["+ladder=mine"])


# --- progress -------------------------------------------------------------------------------------
class Screen:
    def __init__(self, tty: bool) -> None:
        self.tty, self.text = tty, ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self.tty

    def last(self) -> str:
        """What a terminal shows after the last redraw."""
        text = re.split(r"\x1b\[2K|\x1b\[1A|\x1b\[\?25l", self.text)[-1].replace("\r", "")
        return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_plain_lines_say_each_change_once(here: Path) -> None:
    planned = compose_sweep.enumerate_runs(TWO)[0]
    now = [0.0]
    out = Screen(tty=False)
    progress = status.SweepProgress([(p.name, p.run_dir) for p in planned], [1.0, 1.0], out, clock=lambda: now[0])  # type: ignore[arg-type]
    progress.show()
    assert out.text == ""
    for p in planned:
        p.run_dir.mkdir(parents=True)
    records.write_json(planned[0].run_dir / "state.json", RunState("failed", "no room", name="w8 s0"))
    progress.show()
    progress.show()
    assert out.text == "w8 s0: failed (no room)\n"
    assert "\x1b" not in out.text
    state = RunState(
        "running", name="w16 s0", step=5, steps=30, loss_nat=3.25, tokens_per_s=1200.0, power_w=65.0, remaining_s=61.0
    )
    with lock.hold(planned[1].run_dir):
        records.write_json(planned[1].run_dir / "state.json", state)
        for seconds in (0.0, 10.0, 29.0, 31.0, 32.0):
            now[0] = seconds
            progress.show()
    lines = out.text.splitlines()[1:]
    assert len(lines) == 2, "a line per change and every half minute"
    assert all(w in lines[0] for w in ("w16 s0", "5/30", "3.2500 nat", "1.2 k tokens/s", "65 W", "1 min 01 s left"))


def test_a_terminal_is_redrawn_in_place(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(status, "REDRAW_S", 1e9)
    planned = compose_sweep.enumerate_runs(TWO)[0]
    out, now = Screen(tty=True), [0.0]
    progress = status.SweepProgress([(p.name, p.run_dir) for p in planned], [1.0, 3.0], out, clock=lambda: now[0])  # type: ignore[arg-type]
    with progress:
        progress.show()
        assert out.last() == "0 of 2 runs done, 0 running, unknown left"
        planned[0].run_dir.mkdir(parents=True)
        for seconds, step, name in ((4.0, 10, "interrupted"), (10.0, 30, "done")):
            now[0] = seconds
            records.write_json(planned[0].run_dir / "state.json", RunState(name, name="w8 s0", step=step, steps=30))
            progress.show()
        # from a twelfth to a quarter of the FLOP in six seconds; the four before it were the start
        assert out.last() == "1 of 2 runs done, 0 running, 27.0 s left"
        state = RunState("running", name="w16 s0", step=5, steps=30, loss_nat=3.25, remaining_s=61.0)
        planned[1].run_dir.mkdir(parents=True)
        with lock.hold(planned[1].run_dir):
            records.write_json(planned[1].run_dir / "state.json", state)
            progress.show()
        head, columns, row = out.last().split("\n")
        assert head == "1 of 2 runs done, 1 running, 12.9 s left"
        assert columns.split() == ["run", "step", "loss/nat", "tokens/s", "W", "left"]
        assert row.split() == ["w16", "s0", "5/30", "3.2500", "-", "-", "1", "min", "01", "s"]
    assert out.text.endswith("\x1b[?25h"), "the cursor is back"


def test_a_damaged_state_is_shown_and_force_starts_afresh(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ["model.width=8", "budget.tokens=2520", *TINY]
    assert launch(capsys, *one)[0] == 0
    (path,) = Path("runs/tiny").glob("*/state.json")
    path.write_text('{"state": "do')
    assert cli.main(["status", "tiny"]) == 1
    assert re.search(r"damaged .*state\.json cannot be read", capsys.readouterr().out)
    assert cli.main(["run", *one]) == 2
    assert "attempt.force=true" in capsys.readouterr().err
    code, text = launch(capsys, *one, "attempt.force=true")
    assert code == 0
    assert "1 of 1 runs done" in text


def test_a_record_that_was_lost_is_written_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ["model.width=8", "budget.tokens=2520", *TINY]
    launch(capsys, *one)
    (path,) = Path("runs/tiny").glob("*/record.json")
    before = records.load_record(path.parent)
    path.unlink()
    assert records.load(Path("runs/tiny"))[1] == {"done without record.json": 1}
    assert launch(capsys, *one)[0] == 0
    assert records.load_record(path.parent).points == before.points


def test_a_folder_with_odd_characters_and_a_conf_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my dir, ü=(1) 'x'"
    (folder / "conf/ladder").mkdir(parents=True)
    (folder / "conf/ladder/mine.yaml").write_text("# @package _global_\nstudy: mine\nmodel:\n  width: 8\n")
    monkeypatch.chdir(folder)
    planned, _ = compose_sweep.enumerate_runs(
        ["+ladder=mine", "budget.tokens=2520", f"paths.runs={compose_sweep.quoted(str(folder))}"]
    )
    assert planned[0].run_dir.parent == folder / "mine"


TEXT = [
    *("corpus=text", "corpus.train=a.txt", "corpus.cache_dir=cache", "corpus.context=21", "corpus.val_tokens=210"),
    *("model.width=8", "model.depth=1", "optim.batch_tokens=84", "optim.lr=0.01", "schedule.warmup_tokens=420"),
    *("device.kind=cpu", "device.threads=1", "study=tiny"),
]


def text_file(path: Path, word: str, lines: int) -> None:
    path.write_text("".join(f"{word} number {i} of the text\n" for i in range(lines)))


def test_a_text_is_as_long_as_the_real_vocabulary_needs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """257 embedding rows, not the 4096 that a BPE would be asked for: 8 tokens per parameter are
    24,000 tokens.
    """
    text_file(here / "a.txt", "line", 1500)
    code, text = launch(capsys, *TEXT, "budget.tokens_per_param=8")
    assert code == 0, text
    (run_dir,) = Path("runs/tiny").glob("*/")
    record = records.load_record(run_dir)
    assert record.counts.n_head * 8 == pytest.approx(record.points[0].tokens, rel=0.01)
    assert cli.main(["plan", *TEXT, "budget.tokens_per_param=80"]) == 2
    assert "training tokens, and the run trains on" in capsys.readouterr().err


def test_another_text_of_the_same_name_is_no_finished_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text_file(here / "a.txt", "line", 1000)
    (here / "other").mkdir()
    text_file(here / "other" / "a.txt", "row", 1000)
    assert launch(capsys, *TEXT, "budget.tokens=2520")[0] == 0
    assert launch(capsys, *TEXT, "budget.tokens=2520")[0] == 0
    assert cli.main(["run", *TEXT, "budget.tokens=2520", "corpus.train=other/a.txt"]) == 2
    assert "was trained on corpus text-a-bytes-" in capsys.readouterr().err
