"""The command line as a stranger meets it: help without torch, and one message, exit code 2 and no
traceback for every mistake.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness import records
from harness.cli import main as cli
from harness.errors import HarnessError
from tests import synthetic

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "wandb", "datasets", "pynvml", "altair", "pandas", "pyarrow")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def imported(statement: str, cwd: Path) -> set[str]:
    """Heavy packages that are loaded after a statement in a fresh interpreter."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.strip().splitlines()[-1])) & set(HEAVY)


def test_help_and_plan_import_nothing_heavy(tmp_path: Path) -> None:
    lines = ["from harness.cli.main import main"]
    lines += [f"assert main({a!r}) == 0" for a in (["--help"], ["--version"], ["run", "--help"], ["plan", "-h"])]
    assert imported("\n".join(lines), tmp_path) == set()
    plan = ["plan", "+ladder=cpu", "device.kind=cpu"]
    assert imported(f"from harness.cli.main import main\nassert main({plan!r}) == 0", tmp_path) == set()
    assert list(tmp_path.iterdir()) == [], "help and plan write nothing"


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"harness {harness.__version__}\n"
    for arguments in ([], ["-h"], ["--help"], ["help"]):
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        for verb in ("plan", "run", "status", "fit", "ask", "report", "reproduce", "export", "doctor"):
            assert f"\n  {verb}" in text


@pytest.mark.parametrize("verb", ["plan", "run", "ttc"])
def test_help_of_composing_verbs_names_every_setting_that_applies(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli.settings_help import UNUSED_SECTIONS
    from harness.config.schema import FAMILIES, RunConfig

    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    for words in ("+ladder=NAME", "--config-dir", "cpu", "seed=0", "\n  model.width=64 ", "\n  corpus.train=VALUE "):
        assert words in text
    for family, choices in FAMILIES.items():
        for choice in choices:
            applies = verb != "run" or choice not in ("pretrained", "qa")  # which are never trained
            assert (f"\n{family}={choice} " in text) == applies
    assert "corpus.context=0" not in text, "the format of a task decides its context"
    assert "\n  optim.batch_tokens=null" in text
    assert "batch size; null: the rule [tokens]\n" in text
    assert "auto: a GPU where there is one [auto | cpu | cuda]\n" in text
    for section in dataclasses.fields(RunConfig):
        used = section.name not in UNUSED_SECTIONS[verb]
        assert (f"\n  {section.name}." in text or f"\n{section.name}=" in text) == used
    assert "\x1b" not in text


@pytest.mark.parametrize("verb", ["status", "fit", "ask", "report", "reproduce", "export", "doctor"])
def test_help_of_reading_verbs(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main([verb, "--help"])
    assert e.value.code == 0
    assert f"usage: harness {verb}" in capsys.readouterr().out


# --- mistakes -------------------------------------------------------------------------------------
SMALL = ["budget.tokens=2_000_000"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["there is no such verb", "Verbs:", "plan"]),
        (["stats"], ["Did you mean status?"]),
        (["run"], ["budget", "exactly one is needed", "budget.tokens=2_000_000"]),
        (["plan", *SMALL, "optim.lrr=1"], ["optim.lrr", "optim.lr"]),
        (["plan", *SMALL, "+optim.lrr=1"], ["optim.lrr is not a field", "did you mean optim.lr?"]),
        (["run", *SMALL, "optim.lr=fast"], ["optim.lr", "fast"]),
        (["run", *SMALL, "+ladder=cpuu"], ["ladder/cpuu", "cpu"]),
        (["run", "budget.flop=3e6"], ["too small", "model.width=64", "shortest useful run", "budget.drop_short"]),
        (["plan", *SMALL, "model.width=65"], ["model.width=65", "model.head_dim"]),
        (["run", *SMALL, "corpus=text", "corpus.train=nowhere.txt"], ["nowhere.txt"]),
        (["plan", *SMALL, "study=.."], ["study='..'", "a letter or digit first"]),
        (["run", *SMALL, "paths.runs='~/runs'"], ["paths.runs='~/runs'", "~ is not expanded"]),
        (["plan", *SMALL, "corpus=text", "corpus.train=ümlaut.txt"], ["ümlaut.txt", "corpus.train='…'"]),
        (["plan", *SMALL, "--config-dir", "mine", "+ladder=typo"], ["budgt", "Did you mean budget"]),
        (["plan", *SMALL, "--config-dir", "mine", "+ladder=loose"], ["# @package _global_"]),
        (["fit", "broken", "--delta", "-1"], ["--delta -1"]),
        (["report", "odd"], ["fits.json", "expected object", "make it again"]),
        (["run", *SMALL, "--frobnicate"], ["--frobnicate", "key=value"]),
        (["run", *SMALL, "--config-dir"], ["--config-dir", "needs a folder"]),
        (["run", *SMALL, "--config-dir", "nowhere"], ["nowhere", "is not a folder"]),
        (["run", *SMALL, "paths.runs=a_file/x"], ["paths.runs", "a_file", "Choose"]),
        (["status", "nowhere"], ["'nowhere'", "runs/nowhere", "harness run"]),
        (["status", "."], ["holds no runs"]),
        (["fit", "nowhere"], ["'nowhere'"]),
        (["fit", "nowhere.csv", "--law", "chinchilla", "--out", "f.json"], ["nowhere.csv", "does not exist"]),
        (["fit", "wandb:a/b/c"], ["'wandb:a/b/c'", "wandb:ENTITY/PROJECT"]),
        (["ask", "nowhere", "--flop", "1e15"], ["'nowhere'"]),
        (["ask", "nowhere.json", "--flop", "1e15"], ["nowhere.json", "does not exist"]),
        (["report", "nowhere"], ["'nowhere'"]),
        (["reproduce", "nowhere"], ["'nowhere'", "has no committed reference"]),
        (["export", "nowhere", "--format", "hf"], ["'nowhere'"]),
        (["export", "broken/0123456789ab", "--format", "hf"], ["record.json", "cannot be read"]),
        (["fit", "broken"], ["record.json", "cannot be read"]),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else "",
)
def test_mistakes(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("x")
    folder = tmp_path / "broken" / "0123456789ab"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"run_id": "0123')
    (tmp_path / "mine/ladder").mkdir(parents=True)
    (tmp_path / "mine/ladder/typo.yaml").write_text("# @package _global_\nbudgt:\n  tokens: 3\n")
    (tmp_path / "mine/ladder/loose.yaml").write_text("study: x\n")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/fits.json").write_text('{"fits": []}')
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"harness {arguments[0]}: ")
    assert "Traceback" not in text
    assert all(w in text for w in words), text
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_a_mistake_through_the_shell(tmp_path: Path) -> None:
    done = run("run", "budget.tokens=2_000_000", "+optim.lrr=1", "model.widht=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "widht" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "x"],
        ["fit"],
        ["export", "x", "--format", "onnx"],
        ["fit", "x", "--nope"],
        ["fit", "x.csv", "--law", "chinchilla"],
        ["fit", "x.csv", "--out", "f.json"],
        ["ask", "x"],
        ["ask", "x", "--flop", "-1"],
        ["ask", "x", "--flop", "1e9", "--loss", "2"],
        ["ask", "x", "--next", "2", "--loss", "2"],
    ],
)
def test_argparse_mistakes_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(arguments)
    assert e.value.code == 2
    assert f"usage: harness {arguments[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "x", "--filter", "N > 1"], "argument --filter: it applies only with --law."),
        (["fit", "x", "--column", "N=n"], "argument --column: it applies only with --law."),
        (["fit", "x", "--hold-out", "N > 1"], "argument --hold-out: it applies only with --law."),
        (["fit", "x", "--law", "chinchilla", "--wandb", "online"], "argument --wandb: it applies only without --law."),
        (["fit", "x.csv"], "x.csv is a table: choose the law with --law LAW"),
        (["fit", "x", "--law", "chinchilla"], "--law LAW needs --out FILE"),
    ],
)
def test_fit_refuses_options_of_its_other_use(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(arguments)
    assert e.value.code == 2
    assert message in capsys.readouterr().err


def test_exit_codes_of_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(error: BaseException):
        def fail(arguments: list[str]) -> int:
            raise error

        return lambda name: fail

    monkeypatch.setattr(cli, "_verb", verb(KeyboardInterrupt()))
    assert cli.main(["run"]) == 130
    monkeypatch.setattr(cli, "_verb", verb(HarnessError("a=1 is wrong. Use a=2.")))
    assert cli.main(["run"]) == 2
    assert capsys.readouterr().err == "harness run: a=1 is wrong. Use a=2.\n"
    monkeypatch.setattr(cli, "_verb", verb(ZeroDivisionError("x")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["run"])


# --- plan -----------------------------------------------------------------------------------------
def test_plan_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.config import ladder
    from harness.data.corpora import sizes
    from harness.sweep.compose_sweep import enumerate_runs

    monkeypatch.chdir(tmp_path)
    arguments = ["model.width=16,32", "budget.tokens=2_000_000", "budget.cooldowns=[0.5]", "device.kind=cpu"]
    assert cli.main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["run", "id", "N"]
    runs = enumerate_runs(arguments)[0]
    rungs = [ladder.resolve(r.config, *sizes(r.config.corpus)) for r in runs]
    for line, one in zip(lines[1:3], runs, strict=True):
        assert one.run_id in line
        assert "unknown" in line, "nothing was measured on this machine below this folder"
    assert "2 runs, 4 points" in text
    assert "time: unknown" in text
    assert "energy: unknown" in text
    assert rungs[0].hyper.rule in text


def test_plan_predicts_from_what_was_measured_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tiny

    from harness.hardware import cpu_model

    done = tiny.config(tmp_path / "runs")
    tiny.train(done)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "model.width=8",
        "model.depth=1",
        "corpus.vocab=32",
        "corpus.keys=200",
        "budget.tokens=2_000_000",
        "device.kind=cpu",
    ]
    assert cli.main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    assert "time: unknown" not in text
    assert "energy: unknown" in text, "seconds were measured, joules were not"
    assert cpu_model() in text
    assert "\n1 run, 1 point of " in text


# --- status ---------------------------------------------------------------------------------------
def test_status_says_how_each_run_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tiny

    from harness.records import RunState, write_json

    monkeypatch.chdir(tmp_path)
    config = tiny.config(tmp_path / "runs", steps=24)
    tiny.train(config)
    assert cli.main(["status", "tiny"]) == 0, "found below ./runs by its name"
    assert "done" in capsys.readouterr().out
    for name, state in (
        ("b", RunState("running", name="w9 s0", pid=1)),
        ("c", RunState("failed", "no room", name="w10 s0")),
    ):
        (tmp_path / "runs/tiny" / name).mkdir()
        write_json(tmp_path / "runs/tiny" / name / "state.json", state)
    assert cli.main(["status", "runs/tiny"]) == 1
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 4
    assert "24/24" in text
    assert "w9 s0" in text
    assert "died" in text, "running, but nobody holds its lock"
    assert "no room" in text


def test_doctor_names_everything_a_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for topic in ("harness", "torch", "transformers", "CUDA", "NVML", "RAPL", "disk", "W&B", "corpus"):
        assert any(line.startswith(topic) for line in text.splitlines()), topic
    assert list(tmp_path.iterdir()) == []


def test_results_that_cannot_be_written_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is where the folder of results should be."""
    for r in synthetic.ladder(widths=(16, 32)):
        folder = tmp_path / "runs" / "ladder" / r.run_id
        folder.mkdir(parents=True)
        records.write_json(folder / "record.json", r)
    (tmp_path / "taken").write_text("")
    monkeypatch.chdir(tmp_path)
    for command in (["fit", "ladder"], ["report", "ladder"], ["export", "ladder", "--format", "parquet"]):
        out = "taken/points.parquet" if command[0] == "export" else "taken/results"
        assert cli.main([*command, "--out", out]) == 2, command
        error = capsys.readouterr().err
        assert error.startswith(f"harness {command[0]}: cannot "), error
        assert "taken" in error
        assert error.count("\n") == 1
