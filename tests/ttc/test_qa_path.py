"""A pretrained checkpoint on text, the whole path: `harness ttc model=pretrained corpus=qa`,
killed, resumed, extended, reported.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main as cli
from harness.config import checks, identity
from harness.config.schema import (
    Arm,
    BudgetConfig,
    DeviceConfig,
    DeviceKind,
    PretrainedConfig,
    QaConfig,
    RunConfig,
    TtcConfig,
    UnmeteredConfig,
)
from harness.errors import ConfigError
from harness.records import ttc as ttc_records
from harness.sweep.compose_sweep import enumerate_runs
from harness.sweep.launch import launch_tests
from harness.sweep.plan import check_tests
from tests.tasks import qa_small
from tests.ttc import small
from tests.ttc.test_runs import KILLED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qa_small.checkpoint(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qa_small.write(tmp_path_factory.mktemp("rows") / "fixture.jsonl", range(100))


def arguments(model: Path, rows: Path | str, *more: str) -> list[str]:
    settings = ("ttc.problems=66", "ttc.samples=4", "ttc.max_new_tokens=24", "ttc.meter_s=0.01", "ttc.beam_width=2")
    place = ("device.kind=cpu", "device.threads=1", "study=texts", "corpus.shots=2")
    return ["model=pretrained", f"model.path={model}", "corpus=qa", f"corpus.test={rows}", *place, *settings, *more]


def launched(given: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", sys.argv)
    return cli.main(["ttc", *given])


def study_files(study: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in study.glob("*/ttc/*/blocks/*.npz")}


def test_the_verb_tests_reports_and_extends(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments(model, rows, "ttc.max_states=[8]")
    assert launched(given, monkeypatch) == 0
    assert "1 of 1 runs and evaluations done" in capsys.readouterr().out
    study = tmp_path / "runs" / "texts"
    found = ttc_records.load(study)
    assert [r.control["max_states"] for r in found] == [8]
    for r in found:
        assert (r.name, r.problems, r.samples) == ("tiny cot s0", 66, 4)
        assert (r.task["test"], r.task["shots"], r.task["records"]) == ("fixture.jsonl", 2, 98)
        assert (r.seen_greedy, r.smooth, r.train_flop, r.chance) == (None, None, None, 0.0)
        assert r.extracted_strict is not None
        assert r.extracted_strict <= r.extracted
        assert (r.sample_strict or 0) <= next(x.accuracy or 0 for x in r.rows if x.strategy == "sample")
        assert {x.strategy for x in r.rows} >= {"greedy", "sample", "majority", "pass", "step_search"}
        mark = len("\n####")
        assert all(x.forced_tokens >= 0.9 * mark * x.n for x in r.rows if x.strategy == "sample")
    for path in study.rglob("*"):
        if path.suffix in (".json", ".jsonl"):
            assert str(tmp_path) not in path.read_text(), f"{path.name} names a local path"
            assert str(model) not in path.read_text(), f"{path.name} names a local path"
    assert (study / "report.html").exists()
    before = study_files(study)
    assert launch_tests(given, enumerate_runs(given)[0], []) == 0
    assert study_files(study) == before, "nothing is drawn twice"
    (larger,) = enumerate_runs([*given, "ttc.samples=32"])[0]
    assert small.evaluated(larger.config).state == "done"
    assert {r.samples for r in ttc_records.load(study)} == {32}
    whole = [p for p in before if "sample" not in p.name]
    assert {p: study_files(study)[p] for p in whole} == {p: before[p] for p in whole}


def config(model: Path, runs: Path, test: Path | str, **corpus: Any) -> RunConfig:
    run = RunConfig(
        model=PretrainedConfig(path=str(model)),
        corpus=QaConfig(**{"test": str(test), "shots": 2, **corpus}),
        budget=BudgetConfig(),
        device=DeviceConfig(kind=DeviceKind.cpu, threads=1),
        power=UnmeteredConfig(),
        study="texts",
        ttc=TtcConfig(
            problems=70, samples=2, max_new_tokens=16, meter_s=0.01, meter_samples=[1, 2], beam_width=0, strides=[]
        ),
    )
    run.paths.runs = str(runs)
    assert checks.check_run(run) == []
    return run


def test_killed_and_resumed_is_one_pass(model: Path, rows: Path, tmp_path: Path) -> None:
    calm = config(model, tmp_path / "calm", rows)
    assert small.evaluated(calm).state == "done"
    run = config(model, tmp_path / "killed", rows)
    (tmp_path / "run").write_bytes(pickle.dumps(run))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), "2"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    before = small.block_files(run)
    assert len(before) == 2
    assert not small.found(run)
    assert small.evaluated(run).state == "done"
    assert {k: small.block_files(run)[k] for k in before} == before, "what was drawn stays"
    assert small.outcome(run) == small.outcome(calm)


@pytest.mark.parametrize("arm", [Arm.direct, Arm.filler])
def test_the_other_arms_and_a_chat_template(arm: Arm, rows: Path, tmp_path: Path) -> None:
    run = config(qa_small.checkpoint(tmp_path / "chat", chat=True), tmp_path / "runs", rows, arm=arm, shots=0)
    run.ttc.max_states = [4] if arm is Arm.filler else []
    assert small.evaluated(run).state == "done"
    (record,) = small.found(run)
    assert record.task["chat_template"]
    greedy = next(r for r in record.rows if r.strategy == "greedy")
    assert greedy.forced_tokens == pytest.approx(4 + len("\n####") if arm is Arm.filler else 0, abs=1)


def test_countdown_in_words_and_a_forced_minimum(model: Path, tmp_path: Path) -> None:
    run = config(model, tmp_path / "runs", "countdown")
    run.ttc.min_states = 8
    assert small.evaluated(run).state == "done"
    (record,) = small.found(run)
    assert record.task["problems_of"]["distinct_problems"] == 4_165
    assert record.accuracy_of == "trace"
    assert record.mean_tokens > 8


def test_a_model_without_a_fitting_tokenizer_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    for path in bare.glob("*token*"):
        path.unlink()
    state = small.evaluated(config(bare, tmp_path / "runs", rows))
    assert state.state == "failed"
    assert "tokenizer" in (state.reason or "")
    short = qa_small.checkpoint(tmp_path / "short", context=128)
    state = small.evaluated(config(short, tmp_path / "runs", rows))
    assert "exceed the 128 positions of this model" in (state.reason or "")


def test_where_every_question_is_an_exemplar_nothing_is_left_to_ask(model: Path, tmp_path: Path) -> None:
    few = qa_small.write(tmp_path / "few.jsonl", range(3))
    state = small.evaluated(config(model, tmp_path / "runs", few, shots=3))
    assert state.state == "failed"
    assert "corpus=qa has no test problem left" in (state.reason or "")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["ttc.strides=[2]"], r"corpus=qa has no strides"),
        (["corpus.arm=direct", "ttc.max_states=[4]"], r"corpus\.arm=direct has no thought to cut"),
        (["model=llama", "budget.tokens=1000"], r"corpus=qa is not trained on"),
    ],
)
def test_mistakes_are_told_before_anything_runs(more: list[str], said: str, rows: Path, tmp_path: Path) -> None:
    given = [a for a in arguments(tmp_path, rows) if not (more[0] == "model=llama" and a.startswith("model"))]
    with pytest.raises(ConfigError, match=said):
        check_tests(enumerate_runs([*given, *more])[0])


def test_names_of_models_in_records() -> None:
    def run(path: str, test: str = "openai/gsm8k") -> RunConfig:
        return RunConfig(model=PretrainedConfig(path=path), corpus=QaConfig(test=test, shots_from="~/y.jsonl"))

    for name in ("Qwen/Qwen2.5-0.5B", "gpt2"):
        assert identity.resolved(run(name))["model"]["path"] == name
        assert identity.run_name(run(name)) == f"{name} cot s0"
    for path in ("/data/models/tiny", "./tiny", "a/b/tiny"):
        value = identity.resolved(run(path, "/data/x.jsonl"))
        assert value["model"]["path"].startswith("tiny#")
        assert value["corpus"]["test"].startswith("x.jsonl#")
        assert value["corpus"]["shots_from"].startswith("y.jsonl#")
        assert identity.run_name(run(path)) == "tiny cot s0"
    assert identity.resolved(run("gpt2"))["corpus"]["test"] == "openai/gsm8k"
    ids = {identity.run_id(run(p, t)) for p in ("/a/hf", "/b/hf") for t in ("/a/test.jsonl", "/b/test.jsonl")}
    assert len(ids) == 4, "folders and files of one name are told apart"
