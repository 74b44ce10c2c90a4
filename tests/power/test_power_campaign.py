"""The GPU campaign on a CPU: both stages end to end on the scripted NVML, cut short and killed, on
a box that lacks packages.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from doubles.nvml import Card, Script, square

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_campaign"
# What a box for torch and transformers does not have, besides the wheels that are brought along
NOT_ON_THE_BOX = """
import sys
from importlib.machinery import PathFinder
class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in {"altair", "vl_convert", "datasets", "wandb", "submitit"} or name == "hydra_plugins.hydra_joblib_launcher":
            return None
        return super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Absent
"""


@pytest.fixture
def box(nvml_library: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a GPU box: a card that ticks every 100 ms under a load that comes and
    goes, and few packages.
    """
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "sitecustomize.py").write_text(NOT_ON_THE_BOX)
    card = Card(square(90, 500, 0.737, 0.4, 2000, -5))
    environment = {**os.environ, **Script([card]).environment(nvml_library, tmp_path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return {**environment, "PYTHONPATH": str(tmp_path / "box"), "CARD": card.uuid}


def call(box: dict[str, str], folder: Path, *arguments: str) -> str:
    command = [
        sys.executable,
        str(SCRIPT),
        *arguments,
        "--rehearse",
        "--work",
        str(folder / "work"),
        "--out",
        str(folder / "out"),
    ]
    done = subprocess.run(command, env=box, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stopped(box: dict[str, str], folder: Path, stage: str, number: signal.Signals, when: str) -> None:
    """Start a stage and signal the whole group of it as soon as there is such a file."""
    command = [
        sys.executable,
        str(SCRIPT),
        stage,
        "--rehearse",
        "--work",
        str(folder / "work"),
        "--out",
        str(folder / "out"),
    ]
    process = subprocess.Popen(
        command, env=box, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 300
    while not any(p.stat().st_size for p in folder.glob(when)):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as `timeout` does
    process.wait(100)


def answers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "answers.json").read_text())


def table(output: str) -> dict[str, tuple[float, float]]:
    """Part -> seconds on a card and here, as printed."""
    rows = re.findall(r"^(\w[\w ]*?) +(\d+) +([\d.]+|nan)", output, re.M)
    return {name: (float(card), float(here)) for name, card, here in rows}


def test_the_check_answers_part_by_part_and_a_kill_leaves_what_was_known(box: dict[str, str], tmp_path: Path) -> None:
    stopped(box, tmp_path, "check", signal.SIGKILL, "work/answers/attention.json")
    before = answers(tmp_path)
    assert {"versions", "ticks", "rotary", "attention"} <= set(before)

    said = call(box, tmp_path, "check")
    found = {k: v["answer"] for k, v in answers(tmp_path).items()}
    assert {k: v for k, v in answers(tmp_path).items() if k in before} == before, "answered once"
    assert set(found) == set(runpy.run_path(str(SCRIPT), run_name="script")["CHECK_S"])
    assert found["ticks"]["median_period_s"] == pytest.approx(0.1, rel=0.05)
    assert found["versions"]["gpu"] is None
    for name, how in found["attention"].items():
        assert how["max_error"] is not None, name
        if "steep" not in name:  # there bf16 cancels large terms: finite is all that is asked
            assert how["max_error"] < 0.05, name
    assert max(found["same_losses"]["difference_nat"].values()) < 1e-4
    assert found["same_losses"]["last_nat"] < found["same_losses"]["first_nat"]
    for part in ("speed_narrow", "speed_wide"):
        assert (found[part]["recompilations"], found[part]["graph_skips"]) == (0, 0)
        assert found[part]["step_ms"] > 0
        assert 0 <= found[part]["last_row_before_host_s"] < 5
    assert found["determinism"]["first_difference, deterministic"] is None
    assert found["determinism"]["time_over_as_is"] > 0
    assert found["transformers_forward"]["difference_nat"] < 1e-4
    assert found["rotary"]["ours, tf32 on"] < 1e-4
    assert found["out_of_memory"] == {"micro_sequences": None, "reason": "this machine has no CUDA device"}
    rows = table(said)
    assert rows["same_losses"][0] == 45
    assert rows["in all"][0] < 265


def test_the_ladder_is_cut_short_goes_on_and_is_fitted_elsewhere(box: dict[str, str], tmp_path: Path) -> None:
    stopped(box, tmp_path, "ladder", signal.SIGTERM, "work/runs/rehearsal/*/steps.jsonl")
    with tarfile.open(tmp_path / "out" / "archive.tar.gz") as tar:
        early = tar.getnames()
    assert any(re.fullmatch(r"runs/rehearsal/\w+/steps\.jsonl", n) for n in early)
    assert any(re.fullmatch(r"runs/rehearsal/\w+/power/a001\.s0\.jsonl", n) for n in early), (
        "raw power, whatever the run's state"
    )
    said = call(box, tmp_path, "ladder", "--seconds", "300")
    found = answers(tmp_path)
    assert not {k: v["failed"] for k, v in found.items() if "failed" in v}
    assert found["card"]["answer"]["uuid"] == box["CARD"]
    assert found["ladder"]["answer"]["states"] == ["done"] * 3
    assert found["anchor_drift"]["answer"]["code"] in (None, "ANCHOR_DRIFT")
    assert set(table(said)) >= {"card", "anchor_before", "ladder", "anchor_after", "in all"}
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(files) <= 8
    assert all(p.stat().st_size < 16 * 2**20 and p.parent == tmp_path / "out" for p in files)

    elsewhere = tmp_path / "elsewhere"
    with tarfile.open(tmp_path / "out" / "archive.tar.gz") as tar:
        assert not [n for n in tar.getnames() if "checkpoints" in n or "inductor" in n]
        tar.extractall(elsewhere, filter="data")
    study = elsewhere / "runs" / "rehearsal"
    for verb in (["fit", str(study), "--bootstrap", "40"], ["report", str(study)]):
        subprocess.run([sys.executable, "-m", "harness", *verb], cwd=elsewhere, check=True, capture_output=True)
    assert (study / "report.html").stat().st_size > 10_000
    points = [p for r in study.glob("*/record.json") for p in json.loads(r.read_text())["points"]]
    metered = [p for p in points if p["energy"]["verdict"] == "valid"]
    assert len(points) == 9
    # A fast machine trains the shortest budget in a window of less than three ticks of the counter
    assert all("WINDOW_TOO_SHORT" in p["energy"]["codes"] for p in points if p not in metered)
    assert len(metered) >= 6
    fits = json.loads((study / "fits.json").read_text())["fits"]
    assert fits["energy_compute"]["n_points"] == len(metered)


# --- one call and its parts -----------------------------------------------------------------------
FAKE_CHECK = """
import os, time
def set_up(rehearse): return "a box"
def fine(s): return {"seen": os.getpid()}
def died(s): os._exit(9)
def hung(s): time.sleep(1000)
def broken(s): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def wrong(s): return 1 / 0
PARTS = {"versions": fine, "ticks": died, "rotary": fine, "attention": hung, "same_losses": broken, "speed_narrow": fine,
    "speed_wide": wrong, "cudnn_attention": fine, "determinism": fine, "out_of_memory": fine, "transformers_forward": fine}
"""


def test_a_part_that_hangs_or_dies_costs_its_own_answer_alone(
    box: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "scripts" / "_check.py").write_text(FAKE_CHECK)
    monkeypatch.setattr(os, "environ", dict(box))
    script = runpy.run_path(str(tmp_path / "scripts" / "gpu_campaign"), run_name="script")
    campaign = script["Campaign"]
    globals_ = campaign.ask.__globals__
    globals_["OVERDUE"], globals_["OVERDUE_S"] = 0.0, 6.0
    (tmp_path / "work" / "answers").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    one = campaign("check", tmp_path / "out", tmp_path / "work", time.monotonic() + 100, True)
    one.run([])
    found = answers(tmp_path)
    assert {k for k, v in found.items() if "failed" in v} == {"ticks", "attention", "same_losses", "speed_wide"}
    assert "illegal memory access" in found["same_losses"]["failed"]
    assert "ZeroDivisionError" in found["speed_wide"]["failed"]
    seen = [found[k]["answer"]["seen"] for k in ("versions", "rotary", "speed_narrow", "cudnn_attention")]
    assert len(set(seen)) == 4 - 1, (
        "a fresh process after a death, a hang and an error of CUDA; none after a plain error"
    )
    assert "ticks: failed" in capsys.readouterr().out

    late = campaign("check", tmp_path / "out", tmp_path / "late", time.monotonic() + 2, True)
    (tmp_path / "late" / "answers").mkdir(parents=True)
    late.run([])
    assert "left_out" in answers(tmp_path)["transformers_forward"]
    again = campaign("check", tmp_path / "out", tmp_path / "late", time.monotonic() + 60, True)
    again.run([])
    assert "answer" in answers(tmp_path)["transformers_forward"], "what was left out is asked in the next call"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The functions of the script, and an interpreter's search path that is put back."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    monkeypatch.setenv("PYTHONPATH", "first")
    return runpy.run_path(str(SCRIPT), run_name="gpu_campaign")


def test_what_is_planned_fits_into_the_calls(script: dict[str, Any]) -> None:
    import _check  # type: ignore[import-not-found]

    assert set(script["CHECK_S"]) == set(_check.PARTS)
    seconds = script["SECONDS"]
    assert sum(script["planned_seconds"]("check").values()) <= seconds["check"] <= 270
    ladder = script["planned_seconds"]("ladder")
    room = seconds["ladder"] - script["STOP_S"] - script["AFTER_S"] - ladder["card"] - ladder["anchor_before"]
    assert ladder["ladder"] <= room
    assert seconds["check"] + seconds["ladder"] <= 700


@pytest.mark.parametrize(
    ("losses", "skips", "settings"),
    [
        ({"graphs": 1e-4, "graphs, accumulated": 2e-4}, 0, []),
        ({"graphs": 0.03, "graphs, accumulated": 2e-4}, 0, ["device.compile=never"]),
        ({"graphs": 1e-4, "graphs, accumulated": None}, 0, ["device.compile=never"]),
        ({"graphs": 1e-4}, 2, ["device.compile=never"]),
    ],
)
def test_a_card_on_which_compiled_graphs_go_wrong_trains_without_them(
    script: dict[str, Any], tmp_path: Path, losses: dict[str, float | None], skips: int, settings: list[str]
) -> None:
    (tmp_path / "answers").mkdir()
    one = script["Campaign"]("ladder", tmp_path, tmp_path, 0.0, True)
    assert one.precautions() == []
    one.write("same_losses", {"answer": {"difference_nat": losses}})
    one.write("speed_narrow", {"answer": {"graph_skips": skips, "graph_replays_per_step": 2.0}})
    assert one.precautions() == settings
    other = script["Campaign"]("ladder", tmp_path, tmp_path, 0.0, False)
    assert other.precautions() == [], "a rehearsal says nothing of a card"


def test_graphs_that_are_not_replayed_and_failed_parts_are_known_in_the_next_call(
    script: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "answers").mkdir()
    check, ladder = (script["Campaign"](stage, tmp_path, tmp_path, 0.0, True) for stage in ("check", "ladder"))
    check.write("speed_narrow", {"answer": {"graph_skips": 0, "graph_replays_per_step": 0.0}})
    assert ladder.precautions() == ["device.compile=never"]
    check.write("speed_narrow", {"failed": "x"})
    assert ladder.precautions() == []
    check.write("same_losses", {"failed": "hung or died: x"})
    check.write("ticks", {"answer": {}})
    ladder.write("anchor_before", {"answer": {}})
    ladder.forget_unanswered()
    assert ladder.precautions() == ["device.compile=never"]
    assert ladder.result("anchor_before") is None
    check.forget_unanswered()
    assert ladder.result("same_losses") is None
    assert ladder.result("ticks") is not None


def test_a_loss_that_is_not_a_number_is_no_small_difference(script: dict[str, Any]) -> None:
    import _check  # type: ignore[import-not-found]

    assert _check.difference([1.0, 2.0], [1.0, 2.5]) == 0.5
    assert _check.difference([1.0, 2.0, 3.0], [1.0001, float("nan"), float("nan")]) is None
    assert _check.difference([1.0], [float("inf")]) is None


def test_without_a_card_one_message_and_exit_code_2(tmp_path: Path) -> None:
    for stage, why in (("check", "torch sees no CUDA device"), ("ladder", "driver")):
        command = [sys.executable, str(SCRIPT), stage, "--work", str(tmp_path / "w"), "--out", str(tmp_path / "o")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stdout + done.stderr
        assert why in done.stderr
        assert "--rehearse takes the same path without one" in done.stderr


# --- packages -------------------------------------------------------------------------------------
def wheel(folder: Path, name: str, body: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-99.0-py3-none-any.whl", "w") as out:
        out.writestr(f"{name}.py", body)
        out.writestr(f"{name}-99.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        out.writestr(f"{name}-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{name}-99.0.dist-info/RECORD", "")


def test_wheels_bring_only_what_the_box_lacks(script: dict[str, Any], tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "packages"
    wheels.mkdir()
    wheel(wheels, "carried", "VALUE = 7")
    wheel(wheels, "numpy", "raise RuntimeError('the box has its own')")
    script["install"](wheels, target)
    assert sys.path[-1] == str(target)
    command = [sys.executable, "-c", "import carried, numpy; print(carried.VALUE, numpy.__version__)"]
    said = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout  # a part runs in a process of its own
    assert said.startswith("7 "), said


def test_the_check_needs_no_wheel_and_the_ladder_names_its_three(box: dict[str, str], tmp_path: Path) -> None:
    hide = "import importlib.util as u\nfind = u.find_spec\nu.find_spec = lambda n, *a: None if n in {'hydra', 'omegaconf', 'antlr4'} else find(n, *a)\n"
    (tmp_path / "box" / "sitecustomize.py").write_text(hide)
    command = [
        sys.executable,
        str(SCRIPT),
        "ladder",
        "--rehearse",
        "--work",
        str(tmp_path / "w"),
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, env=box, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "missing here: hydra, omegaconf, antlr4." in done.stderr
    assert "pip wheel --no-deps -c constraints.txt -w WHEELS hydra-core omegaconf antlr4-python3-runtime" in done.stderr
    pins = (ROOT / "constraints.txt").read_text()
    assert all(re.search(rf"^{name}==", pins, re.M) for name in ("hydra-core", "omegaconf", "antlr4-python3-runtime"))
    code = "import runpy, sys; s = runpy.run_path(sys.argv[1]); print(s['missing']('check'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT)], env=box, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None"


@pytest.mark.parametrize(
    ("second", "code"), [(0.8e-12, None), (0.815e-12, None), (0.817e-12, "ANCHOR_DRIFT"), (0.78e-12, "ANCHOR_DRIFT")]
)
def test_an_anchor_that_moved_over_two_percent_is_named(
    script: dict[str, Any], second: float, code: str | None
) -> None:
    found = script["drift"](0.8e-12, second)
    assert found["code"] == code
    assert found["change"] == pytest.approx(second / 0.8e-12 - 1)
