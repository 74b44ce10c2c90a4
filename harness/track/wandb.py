"""The W&B mirror of a run: same run id, same keys, never the truth and never in the way.

`Mirror` writes each operation as a line to `<folder>/wandb/mirror.jsonl` (a few microseconds,
cannot block on a network) and a separate process (`wandb_client`) hands the lines to W&B. Whatever
happens to the server, to wandb-core or to that process, training goes on, and at the end the lines
that did not arrive are written to an offline run for `wandb sync`.

W&B receives a copy: nothing is fitted from its history; records are fetched back as artifacts
(`fetch_records`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import re
import shlex
from pathlib import Path
from typing import IO, Any

from harness.config.schema import TrackerConfig, WandbMode
from harness.track.wandb_process import STARTUP_GRACE_S, Client, fetch_records, login_state

__all__ = ["Mirror", "fetch_records", "login_state", "mirror_fit"]

Row = dict[str, float | int | str | None]
Table = tuple[list[str], list[list[Any]]]  # columns, rows

OFFLINE_GRACE_S = 60.0  # writing a whole run to disk, no network


class Mirror:
    """Mirror of one run. Use: `start`, then `log`, `summary`, `table`, `artifact` in any order,
    then `finish` in a `finally`.

    No method raises and none waits for the network, but `start` (up to `init_timeout_s` and the
    start of a process) and `finish` (up to about twice `finish_timeout_s`, and a few seconds more
    where an offline copy has to be written): keep these two outside energy and timing windows.
    `status` is one of "disabled", "online", "offline: <how to sync>", "failed: <reason>; <how to
    sync>"; `events` has one line per failure.
    """

    def __init__(
        self,
        config: TrackerConfig,
        *,
        run_id: str,
        study: str,
        job_type: str,
        name: str,
        run_config: dict[str, Any],
        tags: list[str],
        folder: Path,
    ) -> None:
        """Nothing is started yet. Its 8 parameters are what W&B knows a run by."""
        self.config = config
        self.folder = folder.absolute() / "wandb"
        self.run_id = wandb_id(run_id)
        self.status = "disabled"
        self.events: list[str] = []
        self._init = {
            "op": "init",
            "project": config.project,
            "entity": config.entity,
            "run_id": self.run_id,
            "study": study,
            "job_type": job_type,
            "name": name,
            "tags": [tag[:64] for tag in tags],  # W&B refuses longer ones
            "config": public(run_config),
            "init_timeout_s": config.init_timeout_s,
            "finish_timeout_s": config.finish_timeout_s,
            "folder": str(self.folder.parent),
        }
        self._spool: IO[bytes] | None = None
        self._client: Client | None = None
        self._reason: str | None = None  # why the mirror has failed
        self._left_out: set[str] = set()  # keys whose non-finite values were noted

    def start(self) -> None:
        """Open the run. Where the server does not answer or refuses, the same run goes on
        offline."""
        if self.config.mode is WandbMode.disabled:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # a client whose parent was killed may still be reading the old one: a new file
            self._discard_spool()
            self._spool = (self.folder / "mirror.jsonl").open("wb")
        except OSError as e:
            self._fail(f"cannot write {self.folder.name}/mirror.jsonl: {e.strerror}")
            return
        self._write(self._init)
        for mode in ("online", "offline") if self.config.mode is WandbMode.online else ("offline",):
            reason = self._open(mode)
            if reason is None:
                self.status = "online" if mode == "online" else f"offline: {self._sync_command()}"
                return
            if mode == "online" and "No module named 'wandb'" not in reason:
                self.events.append(f"W&B: going offline, could not start online: {reason}")
                continue
            self._fail(reason)
            return

    def log(self, row: Row) -> None:
        """Mirror one row of history. None is left out, and so is what is not finite (noted once per
        key)."""
        finite = {}
        for key, value in row.items():
            if value is None:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                if key not in self._left_out:
                    self._left_out.add(key)
                    self.events.append(f"W&B: {key}={value} left out, here and wherever it is not finite")
                continue
            finite[key] = value
        if finite:
            self._send({"op": "log", "row": finite})

    def summary(self, values: dict[str, Any]) -> None:
        self._send({"op": "summary", "values": {k: v for k, v in values.items() if v is not None}})

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A W&B table. W&B keeps an artifact of its own beside each, whose manifest names its
        staging file by full path."""
        self._send({"op": "table", "name": name, "columns": columns, "rows": rows})

    def chart(
        self, name: str, kind: str, columns: list[str], rows: list[list[Any]], x: str, y: str, title: str
    ) -> None:
        """A W&B chart over two columns of a table; `kind` is "line" or "scatter"."""
        op = {"op": "chart", "name": name, "kind": kind, "columns": columns, "rows": rows, "x": x, "y": y}
        self._send(op | {"title": title})

    def artifact(self, name: str, type: str, files: list[Path]) -> None:
        """Upload files as one artifact. They must stay as they are until `finish` (and, offline,
        until synced).

        Inside the artifact a file has its base name; where two share it, also the name of its
        folder.
        """
        bases = [file.name for file in files]
        named = {
            # Relative to the run's folder, where the client works and where `wandb sync` is to be
            # called: W&B sends the paths along, and a run copied to another machine can be synced
            # there
            f"{file.parent.name}/{file.name}" if bases.count(file.name) > 1 else file.name: os.path.relpath(
                file, self.folder.parent
            )
            for file in files
        }
        self._send({"op": "artifact", "name": wandb_id(name), "type": type, "files": named})

    def finish(self, exit_code: int = 0) -> str:
        """Close the run and return the final status, which tells how to sync where W&B does not
        have everything."""
        if self._spool is None:
            return self.status
        self._send({"op": "finish", "exit_code": exit_code})
        timeout_s = self.config.finish_timeout_s
        if self._client is not None and self._reason is None:
            limit_s = 2 * timeout_s + 5 if self.status == "online" else OFFLINE_GRACE_S
            message = self._client.wait(limit_s)
            if message is None:
                self._fail(f"W&B did not finish within {limit_s:g} s")
            elif message["event"] == "failed":
                self._fail(message["reason"])
            elif self.status == "online" and (complaints := self._client.complaints()):
                self.events.append(f"W&B: not everything was uploaded: {complaints[0]}")
                self.status = f"offline: {self._sync_command(self._client.folder)}"
            else:
                self._discard_spool()
        # an orderly end takes wandb-core along; otherwise it follows by itself
        if self._client is not None:
            self._client.close(grace_s=timeout_s if self._reason is None else 0.0)
        if self._reason is not None:
            self.status = f"failed: {self._reason}; {self._rescue()}"
        self._spool.close()
        self._spool = None
        return self.status

    # --- the process and its spool
    def _open(self, mode: str) -> str | None:
        """Start a client and wait until its run is open; the reason where it is not."""
        client = Client(self.folder, mode)
        timeout_s = STARTUP_GRACE_S + (self.config.init_timeout_s if mode == "online" else 0)
        message = client.wait(timeout_s)
        if message is not None and message["event"] == "ready":
            client.folder = Path(message["folder"])
            self._client = client
            return None
        client.close()
        return message["reason"] if message else f"W&B did not answer within {timeout_s:g} s"

    def _send(self, op: dict[str, Any]) -> None:
        """Append to the spool and wake the client; look, without waiting, whether it has reported a
        failure."""
        self._write(op)
        if self._client is None or self._reason is not None:
            return
        self._client.wake()
        message = self._client.wait(0.0) if op["op"] != "finish" else None
        if message is not None:
            self._fail(message["reason"])

    def _write(self, op: dict[str, Any]) -> None:
        if self._spool is None:
            return
        try:
            self._spool.write(json.dumps(op, default=float).encode() + b"\n")
            self._spool.flush()
        except (OSError, TypeError, ValueError) as e:
            self._fail(f"cannot write the mirror's {op['op']}: {e}")

    def _fail(self, reason: str) -> None:
        if self._reason is not None:
            return
        self._reason = reason
        self.events.append(f"W&B mirror failed: {reason}")
        self.status = f"failed: {reason}; the run's own files are complete, finish() says how to sync"

    def _rescue(self) -> str:
        """After a failure write the whole spool to an offline run of the same id; returns how to
        sync it.

        `wandb sync` appends: rows that had arrived before the failure are there twice afterwards,
        with equal values.
        """
        client = Client(self.folder, "offline")
        ready = client.wait(STARTUP_GRACE_S)
        done = client.wait(OFFLINE_GRACE_S) if ready and ready["event"] == "ready" else ready
        client.close(grace_s=STARTUP_GRACE_S if done and done["event"] == "finished" else 0.0)
        if ready and done and done["event"] == "finished":
            self._discard_spool()
            return self._sync_command(Path(ready["folder"]))
        why = done["reason"] if done else "no answer"
        if "No module named 'wandb'" in why:
            return "install wandb (pip install wandb) and run again to mirror; the run's own files are complete"
        return f"no offline copy could be written either ({why}); the run's own files are complete"

    def _discard_spool(self) -> None:
        (self.folder / "mirror.jsonl").unlink(missing_ok=True)

    def _sync_command(self, folder: Path | None = None) -> str:
        """The command that uploads this run: the given folder, and offline folders of earlier
        attempts not yet synced."""
        folders = {folder} if folder else set()
        for path in self.folder.glob(f"offline-run-*-{glob.escape(self.run_id)}"):
            if not list(path.glob("*.synced")):
                folders.add(path)
        online = any(not path.name.startswith("offline-") for path in folders)
        # by start time
        names = sorted((path.name for path in folders), key=lambda name: name.split("run-")[-1])
        paths = [shlex.quote(f"wandb/{name}") for name in names]
        inside = f"cd {shlex.quote(os.path.relpath(self.folder.parent))} &&"
        return " ".join([inside, "wandb sync", *(["--include-online"] if online else []), *paths])


# --- what may leave the machine
_SECRET_NAME = re.compile(r"(^|_)(key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_FILE_SUFFIX = re.compile(
    r"\.(txt|json|jsonl|parquet|csv|tsv|arrow|bin|pt|safetensors|model)(\.gz|\.zst)?$", re.IGNORECASE
)


def public(value: Any, secrets: frozenset[str] | None = None) -> Any:
    """A copy without secrets or local paths, for the W&B config.

    Dropped: entries named as secrets (`api_key`, `hf_token` …) and `paths`. Replaced: a text that
    contains the value of an environment variable named as a secret. Local paths become base names;
    Hub names (`org/name`) stay.
    """
    if secrets is None:
        named = {v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= 8}
        secrets = frozenset(named)
    match value:
        case dict():
            return {k: public(v, secrets) for k, v in value.items() if k != "paths" and not _SECRET_NAME.search(str(k))}
        case list() | tuple():
            return [public(v, secrets) for v in value]
        case str() if any(secret in value for secret in secrets):
            return "[removed: a secret]"
        case str() if "/" in value and (value[0] in "/~." or "://" in value or _FILE_SUFFIX.search(value)):
            return value.rstrip("/").rsplit("/", 1)[-1]
    return value


def wandb_id(text: str) -> str:
    """A name that W&B accepts as run id or artifact name; a changed or cut name ends in a hash of
    the original."""
    clean = re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:110]
    return clean if clean == text else f"{clean}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# --- the run of a fit
def mirror_fit(
    config: TrackerConfig,
    *,
    study: str,
    folder: Path,
    points: Table,
    curves: list[dict[str, Any]],
    fits: dict[str, Any],
    files: list[Path],
) -> str:
    """The summary run of a study (job type "fit"): table of points, fitted curves as charts, record
    and fit files.

    `curves`: each {name, title, kind ("line" or "scatter"), columns, rows, x, y}. `fits`:
    name -> Fit as JSON; parameters and derived figures go to the run's summary as
    `fit/<name>/<symbol>`. Returns the final status of the mirror.
    """
    mirror = Mirror(
        config,
        run_id=f"fit-{study}",
        study=study,
        job_type="fit",
        name=f"fit {study}",
        run_config={"study": study, "laws": {name: fit.get("law") for name, fit in fits.items()}},
        tags=[],
        folder=folder,
    )
    mirror.start()
    columns, rows = points
    mirror.table("points", columns, rows)
    for curve in curves:
        mirror.chart(**{"kind": "line", **curve})
    figures = {}
    for name, fit in fits.items():
        for symbol, value in {**fit.get("params", {}), **fit.get("derived", {})}.items():
            figures[f"fit/{name}/{symbol}"] = value
    mirror.summary(figures)
    by_type: dict[str, list[Path]] = {}
    for file in files:
        by_type.setdefault("fits" if "fit" in file.name else "records", []).append(file)
    for type, group in by_type.items():
        mirror.artifact(f"{type}-{study}", type, group)
    return mirror.finish()
