"""What a run leaves on disk, as dataclasses. The files are the truth; everything else mirrors them.

<runs>/<study>/<run_id>/
  state.json    RunState, rewritten by rename
  record.json   RunRecord, written once, whole, by rename, when the run is done
  steps.jsonl   StepRow, appended and flushed
  spend.jsonl   SpendRow, append-only, every attempt
  power/        raw sensor segments
  checkpoints/  safetensors and state
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harness.records.files import SCHEMA_VERSION, Json, load_json


@dataclass
class Measured:
    """Energy of a window or of a sum of windows; `energy_j` is None exactly when `reason` says
    why."""

    energy_j: float | None = None
    energy_se_j: float | None = None  # one standard error, sensor gain excluded
    # what it is expected to read low where power steps at its edges; not added to energy_j
    energy_edge_j: float | None = None
    # minus the idle (context resident) power named in `idle_power_w`
    energy_net_j: float | None = None
    idle_power_w: float | None = None
    power_w: float | None = None  # mean over the window
    # what the meter calls it (`power.source.Card`): nvml-counter, nvml-average, rapl, replay …
    source: str | None = None
    verdict: str = "unmeasured"  # valid | suspect | invalid | unmeasured
    codes: list[str] = field(default_factory=list[str])  # reason codes, e.g. COUNTER_RESET
    reason: str | None = None  # why energy_j is None, in words
    # evidence behind codes: when, how often, what was seen
    notes: list[str] = field(default_factory=list[str])


@dataclass
class StepRow:
    """One logged optimiser step. Cumulative columns count from the start of this trunk (and
    branch)."""

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
    """What one window of one attempt used: nothing spent is forgotten, whether or not it ended in a
    point."""

    attempt: int
    # train | eval | checkpoint | warmup (older records: compile) | lost (thrown away by a kill or a
    # failure)
    phase: str
    branch: str
    step_from: int
    step_to: int
    tokens: int
    flop: float  # train: causal count; eval: forward only
    wall_s: float
    t_a_ns: int = 0  # monotonic edges on the attempt's host: they join the raw power segments
    t_b_ns: int = 0
    energy: Measured = field(default_factory=Measured)
    # enforced power limit of the metered cards: what bounds a window without joules
    limit_w: float | None = None


@dataclass
class Counts:
    """Parameter and FLOP-per-token conventions (`flops`), stored beside one another; reports name
    theirs."""

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
    """One annealed end point: loss, FLOP and joules over the same steps, as if it had been trained
    on its own."""

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
    """What happened. Written once, whole, when the run is done; rewritten only when a branch is
    added."""

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
    # corpus id, tokenizer, vocabulary, floor_nat, unique tokens, file names and hashes
    corpus: Json
    points: list[Point]
    spent: Json  # phase -> {tokens, flop, wall_s, energy_j, energy_reason}
    provenance: Json  # commit, versions, device, driver, host class, times
    meter: Json  # source, sampler statistics, sensor card
    # out-of-memory halvings, resumes, mirror failures
    events: list[str] = field(default_factory=list[str])
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


def load_record(run_dir: Path) -> RunRecord:
    """The record of a finished run. RecordError where it is missing or damaged."""
    return load_json(run_dir / "record.json", RunRecord)


def load_state(run_dir: Path) -> RunState | None:
    """The state of a run, or None where it was never started."""
    path = run_dir / "state.json"
    return load_json(path, RunState) if path.exists() else None
