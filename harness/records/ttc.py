"""What an evaluation leaves on disk: one TtcRecord per (end point, control, temperature), with the
counts that statistics start from.

<runs>/<study>/<run_id>/ttc/<cell>/
  record.json   TtcRecord, whole, by rename
  blocks/       samples, a file per block of problems x samples, by rename

FLOP and tokens of a row are exact for every n. Joules and seconds are metered at few n (`basis`
"metered") and modelled from these at all others ("modelled"); without a meter joules are None, with
the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from harness import records
from harness.records.files import SCHEMA_VERSION, Json
from harness.records.packed import read_packed, write_packed
from harness.records.run import Measured

FOLDER = "ttc"  # of an evaluation, inside its run's folder
QUESTION_FILE = "asked.json"
PACKED = "ttc.jsonl.xz"  # of all evaluations of a study, in a committed reference
PACKED_GZIP = "ttc.jsonl.gz"  # of references made before


@dataclass
class TtcRow:
    """One strategy at one number of samples; every cost is per query (problem), wrong answers
    included."""

    # greedy | sample | majority | best_verified | best_steps | best_logprob | best_noisy |
    # first_verified | pass | step_search
    strategy: str
    n: int  # samples per problem; for step_search continuations per step
    # for "pass": unbiased pass@n, by verified traces where answers are few (see `accuracy_of`)
    accuracy: float | None
    accuracy_low: float | None  # 95 %, bootstrap over clusters of problems
    accuracy_high: float | None
    reason: str | None  # why accuracy is None
    tokens: float  # generated tokens, forced ones included
    forced_tokens: float
    prefill_flop: float  # causal count, the prompt once however many samples
    decode_flop: float
    verify_flop: float
    executed_flop: float  # with padding and rows that waited for the longest
    passes: float  # forward passes that a batch of this cell's rows took, prefill not counted
    wall_s: float | None = None
    wall_basis: str | None = None  # metered | modelled
    energy_j: float | None = None
    energy_se_j: float | None = None
    energy_basis: str | None = None
    energy_reason: str | None = None
    order: str = "batched"  # batched | sequential: the n samples side by side, or one after another

    @property
    def test_flop(self) -> float:
        return self.prefill_flop + self.decode_flop + self.verify_flop


@dataclass
class ProblemStats:
    """Sufficient statistics per problem, lists of one length P. `wrong` holds the counts of each
    distinct wrong answer."""

    cluster: list[int]
    size: list[int]
    greedy: list[bool]
    correct: list[int]  # of n_max samples
    trace_ok: list[int]
    unread: list[int]  # samples without a readable answer
    wrong: list[list[int]]  # descending; an unread sample never votes


@dataclass
class Smooth:
    """Likelihoods of the reference trace on the same problems, teacher forced; nat and shares of
    1."""

    ce_nat: float  # mean cross-entropy per scored token
    p_token: float  # mean probability of the right token
    p_trace: float  # mean over problems of the product over its scored tokens
    brier: float
    trace_tokens: float  # T, mean number of scored tokens
    p_by_index: list[float]  # mean probability of the t-th scored token
    p_token_low: float  # 95 %, bootstrap over clusters
    p_token_high: float
    p_trace_low: float
    p_trace_high: float


@dataclass
class Window:
    """One metered window: `queries` queries of `n` samples each, repeated until the window was long
    enough."""

    phase: str  # prefill | decode | query
    n: int
    rows: int  # sequences side by side
    queries: int
    passes: int
    mean_context: float  # positions attended to, mean over passes
    wall_s: float
    energy: Measured
    held_out: bool = False  # left out of the cost model and predicted by it
    predicted_wall_s: float | None = None
    predicted_energy_j: float | None = None


@dataclass
class TtcRecord:
    cell: str
    study: str
    # of the run whose end point was evaluated; of the evaluation itself for a pretrained model
    run_id: str
    name: str
    seed: int
    branch: str
    width: int | None
    n_total: int
    n_matmul: int
    tokens: int | None  # trained
    train_flop: float | None
    train_wall_s: float | None
    train_energy: Measured
    train_source: str  # measured | reported (a model card's tokens x 6N) | unknown
    task: Json  # Task.info: name, version, arm, sizes, hashes
    control: Json  # Control as a dict
    label: str  # of the control, for people
    temperature: float
    problems: int  # distinct ones
    samples: int  # n_max
    chance: float
    accuracy_of: str  # "answer" or "trace": what counts as right in `pass` and coverage
    rows: list[TtcRow]
    stats: ProblemStats
    smooth: Smooth | None
    smooth_reason: str | None
    mean_tokens: float  # generated per sample
    extracted: float  # share of samples with a readable answer
    truncated: float
    windows: list[Window] = field(default_factory=list[Window])
    config: Json = field(default_factory=dict[str, Any])  # resolved RunConfig
    provenance: Json = field(default_factory=dict[str, Any])
    meter: Json = field(default_factory=dict[str, Any])
    # Text tasks: shares of samples whose answer stood after the mark, and was right there; None:
    # the task knows one way to read
    extracted_strict: float | None = None
    sample_strict: float | None = None
    # greedy accuracy on problems of the training side, beside the held-out one
    seen_greedy: float | None = None
    mirror: str = "disabled"
    schema_version: int = SCHEMA_VERSION

    @staticmethod
    def upgraded(value: Any) -> Any:
        """The JSON value with the names that fields have now: the order of a row was once its
        `arm`.
        """
        rows: Any = cast(Json, value).get("rows") if isinstance(value, dict) else None
        if isinstance(rows, list):
            value["rows"] = renamed(cast(list[Json], rows), "arm", "order")
        return cast(Any, value)


def renamed(rows: list[Json], old: str, new: str) -> list[Json]:
    """JSON objects with one key renamed; what is no object stays for the reader to reject."""
    return [{new if k == old else k: v for k, v in row.items()} if type(row) is dict else row for row in rows]


def load(folder: Path) -> list[TtcRecord]:
    """All evaluations of a study folder or a committed reference (`PACKED`), in a fixed order."""
    for packed in (folder / PACKED, folder / PACKED_GZIP):
        if packed.exists():
            return read_packed(packed, TtcRecord)
    paths = sorted(folder.glob("*/ttc/*/record.json"))
    return [records.load_json(p, TtcRecord) for p in paths]


def pack(folder: Path, evaluations: list[TtcRecord]) -> None:
    """Write all evaluations of a reference into one file: counts per problem make many lines, and
    shrink to a thirtieth."""
    write_packed(folder / PACKED, evaluations)


def question(resolved: Json, branches: list[str], scorer: Json) -> Json:
    """What an evaluation is asked and what scores it, as its QUESTION_FILE keeps it once all of it
    is done.

    An equal question is not asked again; with another scorer alone, stored samples are scored
    again.
    """
    settings = {name: resolved[name] for name in ("ttc", "corpus", "power")}
    return {**settings, "points": branches, "scorer": scorer}


def answered(run_dir: Path, question: Json) -> bool:
    """Whether the evaluation of a run has answered this question."""
    path = run_dir / FOLDER / QUESTION_FILE
    return path.exists() and records.read_json(path) == question
