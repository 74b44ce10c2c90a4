"""The W&B mirror, with the real client against the loopback server: what arrives, and what happens
when it cannot.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from doubles.wandb_server import API_KEY, WandbServer

from harness.config.schema import TrackerConfig, WandbMode
from harness.errors import HarnessError
from harness.track.wandb import Mirror, fetch_records, login_state, mirror_fit, public, wandb_id

ROOT = Path(__file__).resolve().parents[2]
WANDB = Path(sys.executable).with_name("wandb")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A healthy server that the environment points to, and a home of its own for W&B's caches and
    settings.
    """
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with WandbServer() as server:
        point_to(server, monkeypatch)
        yield server


def point_to(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in server.env().items():
        monkeypatch.setenv(key, value)


def config(mode: WandbMode = WandbMode.online, init_timeout_s: float = 10.0, finish_timeout_s: float = 10.0):
    """Generous limits, which a healthy server never needs; tests with faults pass short ones."""
    return TrackerConfig(mode=mode, project="test", init_timeout_s=init_timeout_s, finish_timeout_s=finish_timeout_s)


def mirror(folder: Path, tracker: TrackerConfig | None = None, **changes: Any) -> Mirror:
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "run_id": "a1b2c3",
        "study": "cpu",
        "job_type": "train",
        "name": "width 64",
        "run_config": {"model": {"width": 64}},
        "tags": ["fit"],
        "folder": folder,
    }
    return Mirror(tracker or config(), **{**settings, **changes})


def row(i: int) -> dict[str, Any]:
    return {"train/loss_nat": 4.0 / (i + 1), "train_flop": 1e9 * (i + 0.5), "tokens": 1000 * i, "energy_j": 0.25 * i}


def local_rows(folder: Path) -> list[dict[str, Any]]:
    """History rows of all W&B files below a run's folder, read back with W&B's own tool."""
    rows = []
    for path in sorted(folder.glob("wandb/*run-*/*.wandb")):
        done = subprocess.run([WANDB, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        rows += [
            r["history"]["item"] if "item" in r["history"] else r["history"] for r in records if r["type"] == "history"
        ]
    return rows


def sync(status: str) -> None:
    """Do what the status says, word by word."""
    command = status[status.index("cd ") :]
    folder, words = command.split(" && ")
    _, target = shlex.split(folder)
    subprocess.run([WANDB, *shlex.split(words)[1:]], cwd=target, check=True, capture_output=True)


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the server did not receive what it should"
        time.sleep(0.05)


# --- a healthy server -----------------------------------------------------------------------------
def test_everything_arrives_exactly_and_nothing_else(server: WandbServer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue")
    folder = tmp_path / "runs" / "cpu" / "a1b2c3"
    run_config = {
        "model": {"width": 64},
        "corpus": {"train": str(tmp_path / "corpus.txt"), "tokenizer": "hub:org/name", "val_tokens": 5},
        "paths": {"runs": str(tmp_path)},
        "note": "hf_verysecretvalue",
        "api_key": "sesame",
    }
    m = mirror(folder, run_config=run_config)
    (folder / "record.json").write_text('{"run_id": "a1b2c3"}')
    m.start()
    assert m.status == "online"
    rows = [row(i) for i in range(40)]
    for one in rows:
        m.log(one)
    m.log({"val/loss_nat": 3.25, "train_flop": 4.1e10, "energy_j": None})
    m.log({"val/loss_nat": float("nan"), "train/loss_nat": float("inf"), "tokens": None})
    m.log({"val/loss_nat": float("nan"), "tokens": 7})
    m.summary({"loss_nat": 3.2, "energy_j": None})
    m.artifact("record-a1b2c3", "record", [folder / "record.json"])
    assert m.finish(3) == "online"

    run = server.runs["a1b2c3"]
    assert (run.project, run.group, run.job_type, run.name, run.tags) == ("test", "cpu", "train", "width 64", ["fit"])
    assert run.rows[:40] == rows
    assert run.rows[40:] == [{"val/loss_nat": 3.25, "train_flop": 4.1e10}, {"tokens": 7}]
    assert (run.summary["loss_nat"], run.complete, run.exit_code) == (3.2, True, 3)
    ours = {k: v for k, v in run.config.items() if k != "_wandb"}
    corpus = {"train": "corpus.txt", "tokenizer": "hub:org/name", "val_tokens": 5}
    assert ours == {"model": {"width": 64}, "corpus": corpus, "note": "[removed: a secret]"}
    metrics = {m.get("1") or m.get("2"): m for m in run.config["_wandb"]["m"]}
    assert set(metrics) == {"train_flop", "train/*", "val/*"}
    # x-axis: the first metric, train_flop
    assert metrics["train/*"]["5"] == metrics["val/*"]["5"] == 1
    (artifact,) = server.artifacts
    assert (artifact.name, artifact.type, artifact.committed) == ("record-a1b2c3", "record", True)
    assert artifact.files == {"record.json": b'{"run_id": "a1b2c3"}'}

    noted = ["train/loss_nat=inf", "val/loss_nat=nan"]
    assert sorted(event.split()[1] for event in m.events) == noted
    sent = b"\n".join(server.bodies)
    for secret in (str(tmp_path), socket.gethostname() + '"', "verysecret", "sesame", API_KEY, str(ROOT)):
        assert secret.encode() not in sent
    assert not (folder / "wandb" / "mirror.jsonl").exists()


def test_two_runs_in_one_process_do_not_mix(server: WandbServer, tmp_path: Path) -> None:
    one, two = mirror(tmp_path / "1", run_id="one"), mirror(tmp_path / "2", run_id="two", job_type="ttc")
    one.start()
    two.start()
    for i in range(10):
        one.log(row(i))
        two.log(row(100 + i))
    assert [one.finish(), two.finish()] == ["online", "online"]
    assert server.runs["one"].rows == [row(i) for i in range(10)]
    assert server.runs["two"].rows == [row(100 + i) for i in range(10)]
    assert server.runs["two"].job_type == "ttc"


def test_a_killed_run_loses_nothing_and_resumes_by_appending(server: WandbServer, tmp_path: Path) -> None:
    script = """
import os, sys, pathlib
sys.path[:0] = sys.argv[2:]
from track.test_wandb import mirror, row
m = mirror(pathlib.Path(sys.argv[1]))
m.start()
for i in range(10): m.log(row(i))
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "run", ROOT, ROOT / "tests"], check=False)
    assert done.returncode == -signal.SIGKILL
    again = mirror(tmp_path / "run")  # waits for the orphaned client, which sends what it was given
    again.start()
    for i in range(10, 15):
        again.log(row(i))
    assert again.finish() == "online"
    assert server.runs["a1b2c3"].rows == [row(i) for i in range(15)]
    assert server.requests.count("POST /graphql RunResumeStatus") >= 2


def test_records_come_back_as_they_went(server: WandbServer, tmp_path: Path) -> None:
    for name in ("one", "two"):
        m = mirror(tmp_path / name, run_id=name)
        (tmp_path / name / "record.json").write_text(json.dumps({"run_id": name}))
        m.start()
        m.artifact(f"record-{name}", "record", [tmp_path / name / "record.json"])
        m.finish()
    files = fetch_records("someone/test", tmp_path / "fetched")
    assert [str(f.relative_to(tmp_path / "fetched")) for f in files] == ["one/record.json", "two/record.json"]
    assert [json.loads(f.read_text())["run_id"] for f in files] == ["one", "two"]


def test_a_fit_becomes_a_run_with_table_charts_and_artifacts(server: WandbServer, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(name)
    (tmp_path / "fits.json").write_text("{}")
    xy = [[1e9, 3.0], [2e9, 2.5]]
    curves = [
        {
            "name": "frontier",
            "title": "Frontier",
            "columns": ["flop", "loss_nat"],
            "rows": xy,
            "x": "flop",
            "y": "loss_nat",
        },
        {"name": "seen", "title": "Seen", "kind": "scatter", "columns": ["a", "b"], "rows": xy, "x": "a", "y": "b"},
    ]
    fits = {"loss": {"law": "chinchilla", "params": {"alpha": 0.34}, "derived": {"a": 0.45}}}
    files = [tmp_path / "one/record.json", tmp_path / "two/record.json", tmp_path / "fits.json"]
    status = mirror_fit(
        config(),
        study="cpu",
        folder=tmp_path,
        points=(["tokens", "energy_j"], [[1, None], [2, 3.5]]),
        curves=curves,
        fits=fits,
        files=files,
    )
    assert status == "online"
    run = server.runs["fit-cpu"]
    assert (run.group, run.job_type, run.config["laws"]) == ("cpu", "fit", {"loss": "chinchilla"})
    assert (run.summary["fit/loss/alpha"], run.summary["fit/loss/a"]) == (0.34, 0.45)
    panels = run.config["_wandb"]["visualize"]
    assert panels["frontier"]["panel_config"]["panelDefId"] == "wandb/line/v0"
    assert panels["seen"]["panel_config"]["panelDefId"] == "wandb/scatter/v0"
    (table,) = [json.loads(content) for name, content in run.files.items() if name.startswith("media/table/points_")]
    assert (table["columns"], table["data"]) == (["tokens", "energy_j"], [[1, None], [2, 3.5]])
    artifacts = {a.type: a.files for a in server.artifacts if a.type in ("records", "fits")}
    assert artifacts["records"] == {"one/record.json": b"one", "two/record.json": b"two"}
    assert artifacts["fits"] == {"fits.json": b"{}"}


# --- no server, or one that refuses ---------------------------------------------------------------
@pytest.mark.parametrize("fault", ["500", "401", "no key", pytest.param("absent", marks=pytest.mark.slow)])
def test_a_server_that_does_not_take_us_means_offline_with_the_same_id(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "absent":
        server.vanish()
    elif fault == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    else:
        server.fault = fault
    m = mirror(tmp_path / "run", config(init_timeout_s=1.0))
    m.start()
    assert m.status.startswith("offline: cd ")
    assert m.status.endswith("-a1b2c3")
    assert len(m.events) == 1
    assert "going offline" in m.events[0]
    m.log(row(1))
    assert m.finish() == m.status
    assert [r["tokens"] for r in local_rows(tmp_path / "run")] == [1000]


def test_offline_and_then_synced_from_a_copied_folder(server: WandbServer, tmp_path: Path) -> None:
    m = mirror(tmp_path / "box" / "run", config(WandbMode.offline))
    (tmp_path / "box" / "run" / "record.json").write_text("{}")
    m.start()
    for i in range(5):
        m.log(row(i))
    m.artifact("record-a1b2c3", "record", [tmp_path / "box" / "run" / "record.json"])
    status = m.finish()
    assert status.startswith("offline: cd ")
    assert m.events == server.requests == []
    (tmp_path / "box").rename(tmp_path / "laptop")
    sync(status.replace("box", "laptop"))
    assert server.runs["a1b2c3"].rows == [row(i) for i in range(5)]
    assert server.artifacts[0].files == {"record.json": b"{}"}


def test_disabled_touches_nothing(server: WandbServer, tmp_path: Path) -> None:
    m = mirror(tmp_path / "run", config(WandbMode.disabled))
    m.start()
    m.log(row(0))
    m.summary({"a": 1})
    assert m.finish() == m.status == "disabled"
    assert list((tmp_path / "run").iterdir()) == server.requests == []


def test_without_wandb_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path" / "wandb").mkdir(parents=True)
    (tmp_path / "path" / "wandb" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'wandb'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    m = mirror(tmp_path / "run")
    m.start()
    assert m.status.startswith("failed: ModuleNotFoundError: No module named 'wandb'")
    m.log(row(0))
    assert "pip install wandb" in m.finish()
    assert "pip install wandb" in login_state(config())["todo"]


# --- faults in the middle of a run ----------------------------------------------------------------
FAULTS = ["500", "401", "slow answers", "malformed", "vanish"]
CASES = [(fault, False) for fault in FAULTS] + [
    # W&B sends rows every 15 s: waiting for the first lot takes that long
    pytest.param("500", True, marks=pytest.mark.slow),
    pytest.param("malformed", True, marks=pytest.mark.slow),
    pytest.param("stopped client", True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fault", "some_arrive"), CASES)
def test_a_fault_in_the_middle_loses_nothing(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, some_arrive: bool
) -> None:
    folder = tmp_path / "run"
    m = mirror(folder, config(finish_timeout_s=1.0))
    (folder / "record.json").write_text("{}")
    m.start()
    assert m.status == "online"
    for i in range(20):
        m.log(row(i))
    if some_arrive:
        wait_for(lambda: len(server.runs["a1b2c3"].lines) == 20)
    if fault == "vanish":
        server.vanish()
    elif fault == "stopped client":
        assert m._client is not None
        os.kill(m._client._process.pid, signal.SIGSTOP)
    else:
        server.fault = fault.split()[0]
    for i in range(20, 60):
        m.log(row(i))
    with_artifact = fault in ("401", "malformed")  # a query of its own, which raises in the client
    if with_artifact:
        m.artifact("record-a1b2c3", "record", [folder / "record.json"])
    m.summary({"loss_nat": 1.5})
    status = m.finish()
    assert status.startswith(("offline: cd ", "failed: "))
    assert len(m.events) == 1
    assert m.status == status

    with WandbServer() as healthy:
        healthy.runs = server.runs  # the same data, mended
        point_to(healthy, monkeypatch)
        sync(status)
    run = server.runs["a1b2c3"]
    arrived = [row(i) for i in range(20)] if some_arrive else []
    # `wandb sync` appends: the same rows again, none lost
    assert run.rows == arrived + [row(i) for i in range(60)]
    assert (run.summary["loss_nat"], run.complete) == (1.5, True)
    if with_artifact:
        assert healthy.artifacts[-1].files == {"record.json": b"{}"}


def test_a_refusal_that_wandb_only_prints_is_noticed(server: WandbServer, tmp_path: Path) -> None:
    """After a 401 in the middle W&B stops uploading and `finish()` returns as if all were well."""
    m = mirror(tmp_path / "run", config(finish_timeout_s=1.0))
    m.start()
    server.fault = "401"
    m.log(row(0))
    assert "wandb sync --include-online wandb/run-" in m.finish()
    assert "not everything was uploaded" in m.events[0]


def test_a_dead_client_is_noticed_once_and_logging_never_blocks(server: WandbServer, tmp_path: Path) -> None:
    m = mirror(tmp_path / "run")
    m.start()
    assert m._client is not None
    assert not os.get_blocking(m._client._stdin.fileno())
    m._client._process.kill()
    m._client._process.wait()
    for i in range(5):
        m.log(row(i))
    assert m.status.startswith("failed: the W&B client process ended unexpectedly")
    assert len(m.events) == 1
    assert "wandb sync wandb/offline-run-" in m.finish()
    offline = [r for r in local_rows(tmp_path / "run") if "tokens" in r]
    assert [r["tokens"] for r in offline] == [row(i)["tokens"] for i in range(5)]


# --- small parts ----------------------------------------------------------------------------------
def test_fetch_and_login_say_what_to_do(server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = login_state(config())
    assert (state["mode"], state["host"], state["api_key"], state["todo"]) == ("online", "127.0.0.1", True, None)
    assert API_KEY not in str(state)
    with pytest.raises(HarnessError, match="'someone/test' has no artifacts of type record"):
        fetch_records("someone/test", tmp_path / "fetched")
    monkeypatch.delenv("WANDB_API_KEY")
    assert "wandb login" in login_state(config())["todo"]
    assert login_state(config(WandbMode.offline))["todo"] is None
    with pytest.raises(HarnessError, match=r"(?s)cannot fetch records of W&B project 'someone/test': .*wandb login"):
        fetch_records("someone/test", tmp_path / "fetched")


def test_public_keeps_what_is_ours_and_drops_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0123456789")
    assert public({"tokens": 3, "tokenizer": "bpe", "batch_tokens": 2, "hf_token": "x", "Password": "y"}) == {
        "tokens": 3,
        "tokenizer": "bpe",
        "batch_tokens": 2,
    }
    assert public(
        ["/a/b/c.txt", "../d/e.jsonl.gz", "~/f", "org/name", "x/y.parquet", "s3://b/c", "a b", 1.5, None]
    ) == [
        "c.txt",
        "e.jsonl.gz",
        "f",
        "org/name",
        "y.parquet",
        "c",
        "a b",
        1.5,
        None,
    ]
    assert public("url?key=0123456789&x") == "[removed: a secret]"


def test_ids_stay_readable_and_distinct() -> None:
    assert wandb_id("a1b2c3") == "a1b2c3"
    assert wandb_id("fit-my study/1").startswith("fit-my-study-1-")
    assert wandb_id("a/b") != wandb_id("a?b")
    assert len(wandb_id("x" * 300)) <= 128


def test_a_row_that_cannot_be_written_fails_the_mirror_not_the_run(tmp_path: Path) -> None:
    m = mirror(tmp_path / "run", config(WandbMode.offline))
    m.start()
    m.log({"loss": object()})  # type: ignore[dict-item]
    assert "cannot write the mirror's log" in m.status
    m.finish()
    assert len(m.events) == 1
