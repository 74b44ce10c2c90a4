"""The process that talks to W&B, so that nothing W&B does can reach the training process.

    python -m harness.track.wandb_client mirror SPOOL MODE REPORT_FD

`MODE` is online or offline. `SPOOL` is a JSONL file that the parent appends to: the first line is
`init`, then operations in order (`log`, `summary`, `table`, `chart`, `artifact`), at last `finish`.
A byte on stdin means "there is more"; end of file on stdin without a `finish` means that the parent
died. Reports go to `REPORT_FD` as JSON lines: `ready`, `failed`, `finished`.

Why a process: after a malformed answer wandb-core dies and every later call raises, `finish()` and
the exit hook may wait without end, and a stop request from the W&B page interrupts the main thread.
Here each of these ends this process alone, and the spool still holds every row: the same program
run again in offline mode writes them all to a syncable folder.

`fetch` and `login` run in a process of their own for the same reasons. No other file of the program
imports wandb.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb import Run, Settings, Table

DEFAULT_X = "train_flop"
RECORD_TYPE = "record"  # artifact type of one run's record
REQUEST_TIMEOUT_S = 20
ORPHAN_LIMIT_S = 120  # for the last rows of a run whose training process vanished
PARENT_DIED = 255  # exit code of a run whose training process vanished


def settings(init: dict[str, Any]) -> Settings:
    """Only our own numbers travel: no console, code, git, packages, host name, or machine
    statistics.

    Energy comes from the harness's own meter; W&B's sampler (every 15 s) is too coarse for it and
    costs CPU.
    """
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        label_disable=True,
        symlink=False,
        host="",
        program="harness",
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        # Once a second instead of every 15 s: what a killed machine leaves behind is worth syncing
        x_transaction_log_flush_interval=1.0,
        init_timeout=init["init_timeout_s"],
        finish_timeout=init["finish_timeout_s"],
        # The mirror never steers the run: a stop asked for on the W&B page has no effect on
        # training
        stop_fn=_ignore_stop,
    )


def _ignore_stop() -> None:
    return


def start(init: dict[str, Any], mode: str) -> Run:
    """Open the run; raises whatever W&B raises."""
    import wandb

    run = wandb.init(
        mode="online" if mode == "online" else "offline",
        project=init["project"],
        entity=init["entity"],
        dir=".",  # the client works in the run's folder
        id=init["run_id"],
        name=init["name"],
        group=init["study"],
        job_type=init["job_type"],
        tags=init["tags"],
        config=init["config"],
        resume="allow",
        reinit="create_new",
        settings=settings(init),
    )
    run.define_metric(DEFAULT_X)
    for keys in ("train/*", "val/*"):
        run.define_metric(keys, step_metric=DEFAULT_X)
    return run


def apply(run: Run, op: dict[str, Any]) -> None:
    """Carry out one operation of the spool. Never passes `step=`: W&B drops rows below its current
    step."""
    import wandb

    match op["op"]:
        case "log":
            run.log(op["row"])
        case "summary":
            run.summary.update(op["values"])
        case "table":
            run.log({op["name"]: _table(op)})
        case "chart":
            draw = wandb.plot.line if op["kind"] == "line" else wandb.plot.scatter
            run.log({op["name"]: draw(_table(op), op["x"], op["y"], title=op["title"])})
        case "artifact":
            artifact = wandb.Artifact(op["name"], type=op["type"])
            for name, path in op["files"].items():
                # In place: the files of a run are written once, so W&B needs no second copy of them
                artifact.add_file(path, name=name, policy="immutable", skip_cache=True)
            run.log_artifact(artifact)
        case unknown:
            raise ValueError(f"unknown operation {unknown!r} in the spool")


def _table(op: dict[str, Any]) -> Table:
    import wandb

    # Mixed cells (a number here, None there) are normal in a table of points
    return wandb.Table(columns=op["columns"], data=op["rows"], allow_mixed_types=True)


def operations(spool: IO[bytes], wake: int) -> Iterator[dict[str, Any]]:
    """Operations as they arrive; ends after `finish`, or with a `finish` of our own when the parent
    has died."""
    tail, parent_alive = b"", True
    while True:
        chunk = spool.read()
        *lines, tail = (tail + chunk).split(b"\n")
        for line in lines:
            op = json.loads(line)
            yield op
            if op["op"] == "finish":
                return
        if not chunk:
            if not parent_alive:
                yield {"op": "finish", "exit_code": PARENT_DIED}
                return
            # After end of file one more read is due: the last rows may have come just before it
            parent_alive = bool(os.read(wake, 4096))
            if not parent_alive:  # nobody is left to end this process should W&B hang
                signal.alarm(ORPHAN_LIMIT_S)


def describe(error: BaseException) -> str:
    """One line: the class and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message; wandb-core has probably ended'}"


def mirror(spool_path: str, mode: str, report_fd: int) -> int:
    """Mirror the spool until it ends. Exit code 0 when everything was handed over, 1 after a report
    of failure."""

    def report(**message: Any) -> None:
        try:
            os.write(report_fd, json.dumps(message).encode() + b"\n")
        # the parent died; what it left in the spool is mirrored all the same
        except BrokenPipeError:
            return

    run = None
    with Path(spool_path).open("rb") as spool, Path(spool_path).with_name("client.lock").open("w") as lock:
        # A client whose parent was killed may still be sending the rows of this run id that come
        # before ours
        fcntl.flock(lock, fcntl.LOCK_EX)
        ops = operations(spool, sys.stdin.fileno())
        try:
            for op in ops:
                if op["op"] == "init":
                    run = start(op, mode)
                    report(event="ready", folder=str(Path(run.dir).parent))
                elif run is None:
                    raise ValueError("the spool does not begin with init")
                elif op["op"] == "finish":
                    run.finish(exit_code=op["exit_code"])
                    report(event="finished")
                else:
                    apply(run, op)
        # W&B's errors (CommError, UsageError, ConnectionResetError, ValidationError ...) share no
        # narrower base
        except Exception as e:
            report(event="failed", reason=describe(e))
            return 1
    return 0


def fetch(project: str, folder: str) -> list[str]:
    """Download the newest version of every artifact of type "record" to `folder`/<name>/; the
    record files, sorted."""
    import wandb

    api = wandb.Api(timeout=REQUEST_TIMEOUT_S)
    paths = []
    for collection in api.artifact_collections(project, RECORD_TYPE):
        artifact = api.artifact(f"{project}/{collection.name}:latest", type=RECORD_TYPE)
        name = collection.name.removeprefix(f"{RECORD_TYPE}-")
        artifact.download(root=str(Path(folder, name)), skip_cache=True)
        paths += [str(path) for path in Path(folder, name).glob("*.json")]
    return sorted(paths)


def login() -> dict[str, Any]:
    """Version, server and whether credentials are stored for it (never the credentials); asks
    nobody anything."""
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    host = wandb_setup.singleton().settings.base_url
    stored = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    return {"version": wandb.__version__, "url": host, "key": bool(stored or wbauth.read_netrc_auth(host=host))}


def run_command(arguments: list[str]) -> int:
    """`mirror SPOOL MODE FD`, or `fetch PROJECT FOLDER` and `login`, which print {"answer"} or
    {"error"} as their last line."""
    if arguments[0] == "mirror":
        return mirror(arguments[1], arguments[2], int(arguments[3]))
    try:
        answer = {"answer": fetch(*arguments[1:]) if arguments[0] == "fetch" else login()}
    except Exception as e:  # as in `mirror`; the caller turns it into an error of ours
        answer = {"error": describe(e)}
    print(json.dumps(answer))
    return 1


if __name__ == "__main__":
    code = run_command(sys.argv[1:])
    if code:  # W&B's exit hook would wait for uploads without end; the spool is on disk
        sys.stdout.flush()
        os._exit(code)
