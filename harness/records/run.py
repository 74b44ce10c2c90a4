"""What a run leaves on disk, its types, and how it is written and read. The files are the truth; everything else mirrors them.

<runs>/<study>/<run_id>/
  state.json    RunState, rewritten by rename        record.json   RunRecord, once, whole, by rename, when done
  steps.jsonl   StepRow, appended and flushed        spend.jsonl   SpendRow, append-only, every attempt
  power/        raw sensor segments                  checkpoints/  safetensors + state
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import DeviceError, RecordError

SCHEMA_VERSION = 1
T = TypeVar("T")
_NUMBERS = re.compile(r'\[([^\[\]{}"]+)\](?=,?\n)')  # a list of numbers, over several lines
Json = dict[str, Any]


@dataclass
class Measured:
    """Energy of a window or of a sum of windows; `energy_j` is None exactly when `reason` says why."""

    energy_j: float | None = None
    energy_se_j: float | None = None  # one standard error, sensor gain excluded
    energy_edge_j: float | None = (
        None  # what it is expected to read low where power steps at its edges; not added to energy_j
    )
    energy_net_j: float | None = None  # minus the idle (context resident) power named in `idle_power_w`
    idle_power_w: float | None = None
    power_w: float | None = None  # mean over the window
    source: str | None = (
        None  # what the meter calls it (`power.source.Card`): nvml-counter, nvml-average, rapl, replay …
    )
    verdict: str = "unmeasured"  # valid | suspect | invalid | unmeasured
    codes: list[str] = field(default_factory=list)  # reason codes, e.g. COUNTER_RESET
    reason: str | None = None  # why energy_j is None, in words
    notes: list[str] = field(default_factory=list)  # evidence behind codes: when, how often, what was seen


@dataclass
class StepRow:
    """One logged optimiser step. Cumulative columns count from the start of this trunk (and branch)."""

    step: int  # 1 = after the first update
    branch: str  # "trunk", or "d<tokens>" for a cooldown
    tokens: int  # trained so far along this path
    train_flop: float  # causal count so far along this path
    loss_nat: float  # mean over the scored tokens of this step's batch
    grad_norm: float
    lr: float
    wall_s: float  # training seconds so far along this path (steps only)
    tokens_per_s: float
    energy_j: float | None = None  # provisional, cumulative; the judged value stands in record.json
    val_loss_nat: float | None = None  # where this step was evaluated


@dataclass
class SpendRow:
    """What one window of one attempt used: nothing spent is forgotten, whether or not it ended in a point."""

    attempt: int
    phase: (
        str  # train | eval | checkpoint | warmup (older records: compile) | lost (thrown away by a kill or a failure)
    )
    branch: str
    step_from: int
    step_to: int
    tokens: int
    flop: float  # train: causal count; eval: forward only
    wall_s: float
    t_a_ns: int = 0  # monotonic edges on the attempt's host: they join the raw power segments
    t_b_ns: int = 0
    energy: Measured = field(default_factory=Measured)
    limit_w: float | None = None  # enforced power limit of the metered cards: what bounds a window without joules


@dataclass
class Counts:
    """Parameter and FLOP-per-token conventions (`flops`), stored beside one another; reports name theirs."""

    n_total: int
    n_nonemb: int
    n_head: int
    n_matmul: int
    n_eff: float
    fpt_matmul: int
    fpt_causal: int
    fpt_full: int
    fpt_full_emb: int


@dataclass
class Point:
    """One annealed end point: loss, FLOP and joules over the same steps, as if it had been trained on its own."""

    branch: str
    tokens: int
    unique_tokens: int
    epochs: float
    steps: int
    train_flop: float  # causal count x tokens
    train_flop_full: float
    train_flop_6nd: float  # 6 n_total tokens
    loss_nat: float  # validation, nat per scored token
    loss_se_nat: float  # from the evaluation sample
    bits_per_byte: float | None
    val_tokens: int
    oracle_nat: float | None  # best possible loss on the same validation tokens, where known
    annealed: bool
    wall_s: float
    tokens_per_s: float
    flop_per_s: float
    mfu: float | None
    mfu_reason: str | None
    energy: Measured
    train_loss_nat: float | None = None  # mean training loss over the last 5 % of steps
    hf_checkpoint: str | None = None  # checkpoint name inside the run's folder


@dataclass
class RunRecord:
    """What happened. Written once, whole, when the run is done; rewritten only when a branch is added."""

    run_id: str
    study: str
    name: str
    role: str
    state: str
    seed: int
    config: Json  # resolved RunConfig with `kind` beside each family
    overrides: list[str]
    counts: Counts
    shape: Json  # width, depth, heads, head_dim, kv_heads, ffn, vocab, context
    hyper: Json  # lr, batch_tokens, beta2, warmup_tokens, weight_decay, and the rule they come from
    corpus: Json  # corpus id, tokenizer, vocabulary, floor_nat, unique tokens, file names and hashes
    points: list[Point]
    spent: Json  # phase -> {tokens, flop, wall_s, energy_j, energy_reason}
    provenance: Json  # commit, versions, device, driver, host class, times
    meter: Json  # source, sampler statistics, sensor card
    events: list[str] = field(default_factory=list)  # out-of-memory halvings, resumes, mirror failures
    mirror: str = "disabled"  # W&B: synced | offline: <how to sync> | failed: <reason>
    schema_version: int = SCHEMA_VERSION


@dataclass
class RunState:
    """Where a run stands. `running` with a dead `pid` on this host means the process died."""

    state: str  # running | done | failed | diverged | interrupted
    reason: str | None = None
    name: str = ""
    attempt: int = 1
    step: int = 0
    steps: int = 0
    loss_nat: float | None = None
    tokens_per_s: float | None = None
    power_w: float | None = None
    remaining_s: float | None = None
    pid: int | None = None
    host: str | None = None
    updated_unix_s: float = 0.0
    schema_version: int = SCHEMA_VERSION


# --- JSON <-> dataclass ------------------------------------------------------------------------------------------------
def to_json(value: Any) -> Any:
    """Dataclasses, lists, dicts, enums and numbers as JSON values; a non-finite float is refused (missing is None)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"refusing to write the non-finite number {value}: a missing value is None with a reason")
    if isinstance(value, Enum):
        return value.value
    return value


def from_json(cls: type[T], value: Any, where: str) -> T:
    """Build the dataclass `cls` from a JSON object; `where` names the file in errors. Unknown keys are refused."""
    if not isinstance(value, dict):
        raise RecordError(f"{where}: expected an object for {cls.__name__}, found {type(value).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(value) - set(known)):
        raise RecordError(f"{where}: {cls.__name__} has no field {', '.join(unknown)}; the file is damaged or foreign")
    kwargs = {}
    for name, f in known.items():
        if name in value:
            kwargs[name] = _convert(hints[name], value[name], f"{where}: {name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise RecordError(f"{where}: {cls.__name__}.{name} is missing; the file is damaged or was cut off")
    return cls(**kwargs)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
        return _convert(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    if origin is list:
        if not isinstance(value, list):
            raise RecordError(f"{where}: expected a list, found {type(value).__name__}")
        (item,) = typing.get_args(hint)
        return [_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise RecordError(f"{where}: expected an object, found {type(value).__name__}")
        _, item = typing.get_args(hint)
        return {k: _convert(item, v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise RecordError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


# --- files ---------------------------------------------------------------------------------------------------------------
def write_text_atomic(path: Path, text: str) -> None:
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: a temporary sibling, flushed to disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise RecordError(
            f"cannot write {path}: {e.strerror}. Free space or choose another folder (paths.runs)."
        ) from e


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, a list of numbers on one line."""
    text = json.dumps(to_json(value), indent=1, allow_nan=False)
    write_text_atomic(path, _NUMBERS.sub(lambda m: f"[{' '.join(m[1].split())}]", text) + "\n")


def read_json(path: Path) -> Json:
    """The JSON object in `path`; RecordError when missing, torn, or of a newer schema."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise RecordError(f"{path} does not exist") from e
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise RecordError(f"{path} cannot be read: {e}. Remove it, or run again with run.force=true.") from e
    if not isinstance(value, dict):
        raise RecordError(f"{path}: expected a JSON object, found {type(value).__name__}")
    version = value.get("schema_version", 1)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise RecordError(
            f"{path}: schema_version={version!r} is newer than {SCHEMA_VERSION}, the newest known here. Update the harness."
        )
    return value


def load_record(run_dir: Path) -> RunRecord:
    path = run_dir / "record.json"
    return from_json(RunRecord, read_json(path), str(path))


def load_state(run_dir: Path) -> RunState | None:
    """The state of a run, or None where it was never started."""
    path = run_dir / "state.json"
    return from_json(RunState, read_json(path), str(path)) if path.exists() else None


def read_rows(path: Path, cls: type[T], offset: int = 0) -> Iterator[T]:
    """Rows of a JSONL file from byte `offset`. A torn last line (killed while writing) is dropped; a torn earlier one is an error."""
    if not path.exists():
        return
    lines = path.read_bytes()[offset:].split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            value = json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError) as e:
            if number == len(lines):  # no newline after it
                return
            raise RecordError(f"{path} line {number} is not JSON: {e}") from e
        yield from_json(cls, value, f"{path} line {number}")


def append_row(path: Path, row: StepRow | SpendRow) -> None:
    """Append one row to a JSONL file. DeviceError where it cannot be written, such as on a full disk."""
    try:
        with path.open("ab") as f:
            f.write(json.dumps(to_json(row)).encode() + b"\n")
    except OSError as e:
        raise DeviceError(
            f"cannot write {path.name}: {e.strerror}. Free disk space or choose another folder (paths.runs); the run resumes where it stood."
        ) from e
