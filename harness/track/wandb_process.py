"""Starting the client process (`wandb_client`) and talking to it; fetching records and the login
state through it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.config.schema import TrackerConfig, WandbMode
from harness.errors import HarnessError

# importing wandb and starting wandb-core on a busy machine, on top of the W&B timeouts
STARTUP_GRACE_S = 20.0
# -P: files in the working directory do not shadow modules
CLIENT = [sys.executable, "-P", "-m", "harness.track.wandb_client"]


def _client_env() -> dict[str, str]:
    """Our environment, with this package found from any working directory, and no W&B service or
    mode inherited.

    W&B's own telemetry is switched off: it leaves the machine in offline mode too, and a slow
    server then delays the end.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("WANDB_SERVICE", "WANDB_MODE")}
    env["WANDB_ERROR_REPORTING"] = "false"
    inherited = [str(Path(p).absolute()) for p in env.get("PYTHONPATH", "").split(os.pathsep) if p]
    env["PYTHONPATH"] = os.pathsep.join([*inherited, str(Path(__file__).resolve().parents[2])])
    return env


class Client:
    """The client process: woken by a byte on its stdin, reporting through a pipe of its own."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.log_folder = folder
        self.folder = folder  # of W&B's own files, once the run is open
        self._buffer = b""
        self._reports, report_fd = os.pipe()
        env = _client_env()
        # Tables wait here until they are sent: in the run's folder, not at home; relative, since
        # W&B sends the path along
        env.setdefault("WANDB_DATA_DIR", f"{folder.name}/staging")
        try:
            with (folder / "client.log").open("wb") as log:
                self._process = subprocess.Popen(
                    [*CLIENT, "mirror", str(folder / "mirror.jsonl"), mode, str(report_fd)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[report_fd],
                    env=env,
                    cwd=folder.parent,
                    # Ctrl-C is for training to handle; the mirror ends when told to
                    start_new_session=True,
                )
        finally:
            os.close(report_fd)
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        os.set_blocking(self._stdin.fileno(), False)

    def wake(self) -> None:
        """Tell the client that the spool has grown. Where the pipe is full it has not read yet and
        will see it all."""
        try:
            os.write(self._stdin.fileno(), b"\n")
        # broken: the next `wait` sees that the client has ended
        except (BlockingIOError, BrokenPipeError):
            return

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        """The next report, or None after `timeout_s`. A client that ended without one is a
        failure."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([self._reports], [], [], left_s)[0]:
                return None
            chunk = os.read(self._reports, 4096)
            if not chunk:
                return {"event": "failed", "reason": "the W&B client process ended unexpectedly (see wandb/client.log)"}
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def complaints(self) -> list[str]:
        """Warnings and errors that W&B has printed so far.

        After a refusal in the middle of a run (401, say) W&B stops uploading, prints so, and
        `finish()` returns as if all were well; the printed line is the only sign.
        """
        text = (self.log_folder / "client.log").read_text(encoding="utf-8", errors="replace")
        return [line for line in text.splitlines() if line.startswith(("wandb: WARNING", "wandb: ERROR"))]

    def close(self, grace_s: float = 0.0) -> None:
        """End the process, after `grace_s` whatever it is doing. wandb-core ends when its parent
        has."""
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdin.close()
        os.close(self._reports)


def _ask(arguments: list[str], timeout_s: float) -> dict[str, Any]:
    """Run one command of the client: {"answer": …} or {"error": reason}."""
    try:
        done = subprocess.run(
            [*CLIENT, *arguments],
            env=_client_env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            start_new_session=True,
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout_s:g} s"}
    except (IndexError, json.JSONDecodeError):
        return {"error": "the W&B client process ended unexpectedly"}


def fetch_records(project: str, folder: Path, timeout_s: float = 600.0) -> list[Path]:
    """Fetch the record artifacts of a W&B project ("name" or "entity/name") to
    `folder`/<run_id>/record.json.

    Returns the files, sorted; the folder then reads like a study's. HarnessError where W&B cannot
    be reached, does not know us, or has no records there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reply = _ask(["fetch", project, str(folder.absolute())], timeout_s)
    if "error" in reply:
        raise HarnessError(
            f"cannot fetch records of W&B project {project!r}: {reply['error']}. Check the name (entity/project), the network, "
            "WANDB_BASE_URL, and `wandb login`; `harness doctor` shows the login state."
        )
    if not reply["answer"]:
        raise HarnessError(
            f"W&B project {project!r} has no artifacts of type record. Runs mirrored with tracker.mode=online upload them when done; "
            "offline runs after `wandb sync`."
        )
    return [Path(path) for path in reply["answer"]]


def login_state(config: TrackerConfig) -> dict[str, Any]:
    """For `doctor`: mode, wandb version, server host, whether a key is stored (never the key), and
    what to do (or None)."""
    reply = _ask(["login"], STARTUP_GRACE_S)
    state: dict[str, Any] = {"mode": config.mode.value, "version": None, "host": None, "api_key": None, "todo": None}
    if "error" in reply:
        state["todo"] = f"wandb does not work here ({reply['error']}): pip install wandb, or tracker.mode=disabled"
        return state
    account = reply["answer"]
    state |= {"version": account["version"], "host": urlsplit(account["url"]).hostname, "api_key": account["key"]}
    if config.mode is WandbMode.online and not account["key"]:
        state["todo"] = (
            f"no API key for {state['host']}: run `wandb login`, set WANDB_API_KEY, or use tracker.mode=offline"
        )
    return state
