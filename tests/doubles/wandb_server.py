"""A W&B server on the loopback interface that the real client talks to, with faults on demand.

It keeps what it received (`runs`, `artifacts`, `requests`), so a test asserts exact rows and file
contents. Answers have the shapes that the client of wandb 0.31 insists on; everything else is
answered `{"data": {}}`.

    with WandbServer() as server:
        server.env()            # WANDB_BASE_URL, WANDB_API_KEY
        server.fault = "500"    # ok | 500 | 401 | slow | malformed; `vanish()` closes the port for
                                # good
        server.runs["id"].rows  # list of dicts

    python tests/doubles/wandb_server.py --port 8080
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import socket
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

if __name__ == "__main__":  # started as a script: find the package beside this file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from doubles import wandb_artifacts

ENTITY = "someone"
API_KEY = "0123456789abcdef0123456789abcdef01234567"
FAULTS = ("ok", "500", "401", "slow", "malformed")


@dataclass
class Run:
    """What the server knows of a run.

    `rows` are history lines by offset, as the real server keeps them.
    """

    run_id: str
    project: str = ""
    group: str | None = None
    job_type: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    upserts: list[dict[str, Any]] = field(default_factory=list)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    complete: bool = False
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """History in order, without W&B's own columns (`_step`, `_timestamp`, `_runtime`)."""
        return [{k: v for k, v in self.lines[i].items() if not k.startswith("_")} for i in sorted(self.lines)]


@dataclass
class Artifact:
    id: str
    name: str
    type: str
    run_id: str
    digest: str = ""
    committed: bool = False
    version: int = 0
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class WandbServer:
    """The double. Threaded, 127.0.0.1, any free port; a context manager."""

    def __init__(self, port: int = 0) -> None:
        self.fault = "ok"
        self.slow_s = 8.0
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.requests: list[str] = []  # "POST /graphql UpsertBucket" ...
        self.bodies: list[bytes] = []  # of all requests, to look for what must not be sent
        self.stopping = threading.Event()
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"double": self})
        self._http = _Server(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()

    def env(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}

    def vanish(self) -> None:
        """Close the port and all open connections; later requests are refused."""
        if not self.stopping.is_set():
            self.stopping.set()
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()

    def run(self, run_id: str) -> Run:
        return self.runs.setdefault(run_id, Run(run_id))

    # --- GraphQL ----------------------------------------------------------------------------------
    def graphql(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        """The `data` of an answer to one operation with variables `v`."""
        v = v.get("input") or v
        match operation:
            case "Viewer" | "GetDefaultEntity":
                viewer = {"id": "user", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
                return {"viewer": viewer | {"teams": {"edges": []}}}
            case "UpsertBucket":
                return {"upsertBucket": self._upsert(v)}
            case "RunResumeStatus":
                return {"model": self._resume(v)}
            case "CreateRunFiles":
                files = [{"name": n, "uploadUrl": f"{self.url}/upload/{v['run']}/{n}"} for n in v["files"]]
                return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}
            case _:
                return self._artifact_call(operation, v)

    def _upsert(self, v: dict[str, Any]) -> dict[str, Any]:
        run_id = v.get("name") or v.get("id") or ""
        inserted = run_id not in self.runs
        run = self.run(run_id)
        run.upserts.append(v)
        run.project = v.get("project") or run.project
        run.group = v.get("groupName") or run.group
        run.job_type = v.get("jobType") or run.job_type
        run.name = v.get("displayName") or run.name
        run.tags = v.get("tags") or run.tags
        if v.get("config"):
            run.config = {k: e["value"] for k, e in json.loads(v["config"]).items()}
        project = {"id": "project", "name": run.project, "entity": {"id": "entity", "name": ENTITY}}
        bucket = {"id": run_id, "name": run_id, "displayName": run.name, "project": project, "description": None}
        bucket |= {"config": v.get("config"), "sweepName": None, "historyLineCount": len(run.lines)}
        return {"bucket": bucket, "inserted": inserted}

    def _resume(self, v: dict[str, Any]) -> dict[str, Any] | None:
        run = self.runs.get(v.get("name", ""))
        if run is None:
            return None
        tail = [json.dumps(run.lines[i]) for i in sorted(run.lines)][-1:]
        config = json.dumps({k: {"value": value} for k, value in run.config.items()})
        bucket = {"id": run.run_id, "name": run.run_id, "historyLineCount": len(run.lines), "eventsLineCount": 0}
        bucket |= {"logLineCount": 0, "summaryMetrics": json.dumps(run.summary), "historyTail": json.dumps(tail)}
        bucket |= {"eventsTail": "[]", "config": config, "wandbConfig": '{"t": 1}', "tags": run.tags}
        return {"id": "project", "name": run.project, "entity": {"id": "entity", "name": ENTITY}, "bucket": bucket}

    def _artifact_call(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateArtifact":
                return {"createArtifact": {"artifact": self._create_artifact(v)}}
            case "CreateArtifactManifest":
                self._by_id(v["artifactID"]).digest = v.get("digest") or ""
                file = {"id": "file", "name": v.get("name"), "displayName": v.get("name"), "uploadHeaders": []}
                file |= {"uploadUrl": f"{self.url}/manifest/{v['artifactID']}"}
                return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}
            case "CreateArtifactFiles":
                edges = []
                for spec in v["artifactFiles"]:
                    url = f"{self.url}/artifact/{spec['artifactID']}/{spec['name']}"
                    node = {"id": "file", "name": spec["name"], "displayName": spec["name"], "uploadHeaders": []}
                    node |= {"uploadUrl": url, "storagePath": spec["name"], "uploadMultipartUrls": None}
                    edges.append({"node": node | {"artifact": {"id": spec["artifactID"]}}})
                return {"createArtifactFiles": {"files": {"edges": edges}}}
            case "CommitArtifact":
                self._by_id(v["artifactID"]).committed = True
                return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": ""}}}
            case _:
                return self._artifact_query(operation, v)

    def _artifact_query(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "ArtifactTypeArtifactCollections":
                names = sorted({a.name for a in self.artifacts if a.type == v["type"] and a.committed})
                return wandb_artifacts.collections(v["entity"], v["project"], v["type"], names)
            case "ArtifactMembershipByName":
                return wandb_artifacts.membership(v["entity"], v["project"], self._by_name(v["name"]))
            case "FetchArtifactManifest":
                return wandb_artifacts.manifest(self.url, self._by_id(v["id"]))
            case "GetArtifactMembershipFileUrls":
                return wandb_artifacts.file_urls(self.url, self._by_name(v["collection"]))
            case _:
                return {}

    def _create_artifact(self, v: dict[str, Any]) -> dict[str, Any]:
        name = v["artifactCollectionName"]
        version = sum(a.name == name for a in self.artifacts)
        key = f"artifact-{hashlib.sha256(f'{name}:{version}'.encode()).hexdigest()[:8]}"
        artifact = Artifact(
            key, name, v["artifactTypeName"], v.get("runName", ""), v.get("digest", ""), version=version
        )
        self.artifacts.append(artifact)
        sequence = {"id": f"sequence-{name}", "latestArtifact": None}
        return {"id": key, "state": "PENDING", "artifactSequence": sequence}

    def _by_id(self, key: str) -> Artifact:
        return next(a for a in self.artifacts if a.id == key)

    def _by_name(self, name: str) -> Artifact:
        """The newest version of a collection, given as `name` or `name:alias`."""
        return [a for a in self.artifacts if a.name == name.split(":")[0] and a.committed][-1]

    def download(self, path: str) -> bytes:
        kind, key, *name = path.strip("/").split("/", 2)
        artifact = self._by_id(key)
        return json.dumps(artifact.manifest).encode() if kind == "manifest" else artifact.files[name[0]]

    # --- file stream and uploads ------------------------------------------------------------------
    def file_stream(self, run_id: str, body: dict[str, Any]) -> None:
        run = self.run(run_id)
        files = body.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            for i, line in enumerate(history["content"]):
                run.lines[history["offset"] + i] = json.loads(line)
        if summary := files.get("wandb-summary.json"):
            run.summary = json.loads(summary["content"][-1])
        if body.get("complete"):
            run.complete, run.exit_code = True, body.get("exitcode")

    def upload(self, path: str, body: bytes) -> None:
        kind, key, *name = path.strip("/").split("/", 2)
        if kind == "upload":
            self.run(key).files[name[0]] = body
        elif kind == "manifest":
            self._by_id(key).manifest = json.loads(body)
        elif kind == "artifact":
            self._by_id(key).files[name[0]] = body


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *args: Any) -> None:
        self.open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for request in list(self.open):
            # kept-alive connections would answer on after the port is closed
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:  # the client closed it first
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was cut off is part of the tests; anything else shows as a traceback."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, ValueError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: WandbServer

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the double keeps `requests` instead."""

    def _answer(self, code: int, body: bytes = b"{}") -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _handle(self) -> None:
        double = self.double
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        path = unquote(urlsplit(self.path).path)
        call = json.loads(body) if path == "/graphql" else {}
        operation = call.get("operationName") or _operation(call.get("query", ""))
        with double.lock:
            double.requests.append(f"{self.command} {path} {operation}".strip())
            double.bodies.append(body)
            fault = double.fault
        if fault == "slow" and double.stopping.wait(double.slow_s):
            return
        if fault == "500":
            self._answer(500, b'{"errors": [{"message": "scripted fault"}]}')
        elif fault == "401":
            self._answer(401, b'{"errors": [{"message": "user is not logged in"}]}')
        elif fault == "malformed":
            self._answer(200, b"{}" if operation == "CreateRunFiles" else b'{"data": {"createRunFiles": {}}}')
        else:
            with double.lock:
                self._answer(200, self._serve(path, operation, call.get("variables") or {}, body))

    def _serve(self, path: str, operation: str, variables: dict[str, Any], body: bytes) -> bytes:
        if path == "/graphql":
            return json.dumps({"data": self.double.graphql(operation, variables)}).encode()
        if path.endswith("/file_stream"):
            self.double.file_stream(path.split("/")[-2], json.loads(body))
        elif self.command == "GET" and path.startswith(("/manifest/", "/artifact/")):
            return self.double.download(path)
        elif self.command == "PUT":
            self.double.upload(path, body)
        return b"{}"

    do_GET = do_POST = do_PUT = _handle


def _operation(query: str) -> str:
    found = re.search(r"(?:query|mutation)\s+(\w+)", query)
    return found[1] if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="A W&B server for tests, on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0)
    with WandbServer(parser.parse_args().port) as server:
        print(" ".join(f"{k}={v}" for k, v in server.env().items()), flush=True)
        server.stopping.wait()


if __name__ == "__main__":
    main()
