"""Sections of a run's config that have no choices: budget, device, evaluation, tracker, test-time
compute, attempt, paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from harness.config.setting import setting


@dataclass
class BudgetConfig:
    """How long to train: exactly one of tokens, flop and tokens_per_param; and where else to branch
    a cooldown.
    """

    tokens: int | None = setting(None, "training tokens of the longest point", unit="tokens")
    flop: float | None = setting(None, "training FLOP (causal count) of the longest point", unit="FLOP")
    tokens_per_param: float | None = setting(None, "D / N of the longest point, where N is n_head", unit="tokens")
    cooldowns: list[float] = setting(
        [], "further points of a wsd trunk, as shares of the budget between 0 and 1; each is one cooldown branch"
    )
    kwh: float | None = setting(
        None,
        "energy that the whole study may spend: the sweep stops cleanly when it is spent; not part of a run's identity",
        unit="kWh",
    )
    drop_short: bool = setting(
        False, "leave out points that are too short for their rung instead of refusing them (isoFLOP grids)"
    )


# --- where and how a run trains -------------------------------------------------------------------
class DeviceKind(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Toggle(Enum):
    """Not called on/off: YAML reads those as booleans."""

    auto = "auto"
    always = "always"
    never = "never"


@dataclass
class DeviceConfig:
    """Where a run trains, and with which arithmetic."""

    kind: DeviceKind = setting(DeviceKind.auto, "device; auto: a GPU where there is one")
    precision: Precision = setting(
        Precision.auto, "bf16 is autocast with fp32 weights; auto: bf16 on CUDA, fp32 on a CPU"
    )
    compile: Toggle = setting(Toggle.auto, "torch.compile; auto: on CUDA only")
    threads: int | None = setting(None, "CPU threads of one run; null: cores / parallel runs")
    micro_batch_tokens: int | None = setting(
        None, "size of a forward pass; null: the whole batch, halved on out-of-memory", unit="tokens"
    )
    tf32: bool = setting(
        False,
        "fp32 matrix products on CUDA round their factors to TF32 (10 bits of mantissa); bf16 runs have no such products",
    )
    cudnn_attention: bool = setting(
        False,
        "torch may choose cuDNN's attention on CUDA; scripts/gpu_campaign measures whether it is fast and sound on a card",
    )
    deterministic: bool = setting(
        False,
        "kernels that give the same bits each time, so that a resumed CUDA run equals an undisturbed one bitwise; slower",
    )


@dataclass
class EvalConfig:
    """When and how the validation loss is measured."""

    every_tokens: int | None = setting(
        None, "interval of trunk evaluations besides those at the points; null: none", unit="tokens"
    )
    batch_tokens: int | None = setting(
        None,
        "size of a forward pass; null: 16,384 on a CPU, on a GPU as many as its memory allows, up to 131,072",
        unit="tokens",
    )


class WandbMode(Enum):
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class TrackerConfig:
    """The W&B mirror of the ledger. The files in the run's folder stay the truth."""

    mode: WandbMode = setting(WandbMode.disabled, "offline: the run's record tells how to sync it later")
    project: str = setting("scaling-harness", "W&B project")
    entity: str | None = setting(None, "W&B user or team; null: the default of the login")
    init_timeout_s: float = setting(15.0, "wait for W&B to start; then training goes on without it", unit="s")
    finish_timeout_s: float = setting(30.0, "wait for W&B to take the last rows at the end of a run", unit="s")


# --- test-time compute ----------------------------------------------------------------------------
class TtcPoints(Enum):
    all = "all"
    longest = "longest"


@dataclass
class TtcConfig:
    """How `harness ttc` evaluates a task at the end points of a run. Not part of a run's
    identity.
    """

    problems: int = setting(256, "distinct held-out problems")
    samples: int = setting(16, "samples drawn per problem, once; every smaller n is derived from them")
    temperatures: list[float] = setting([1.0], "sampling temperatures; each is a control of its own")
    strides: list[int] = setting([], "group task, stride format: strides to evaluate; []: all trained ones")
    max_states: list[int] = setting(
        [], "budgets of thought that are forced; []: the model ends its thought by itself", unit="states"
    )
    min_states: int | None = setting(None, "shortest thought allowed; null: no limit", unit="states")
    points: TtcPoints = setting(TtcPoints.all, "which end points of a run are evaluated")
    beam_width: int = setting(4, "continuations of each path in the step search; 0: no step search")
    beam_keep: int = setting(1, "paths that the step search keeps after each step")
    verifier_tpr: float = setting(0.95, "share of right answers that the noisy verifier accepts")
    verifier_fpr: float = setting(0.05, "share of wrong answers that the noisy verifier accepts")
    max_new_tokens: int = setting(512, "text tasks: longest answer", unit="tokens")
    batch_rows: int = setting(4096, "sequences decoded side by side")
    meter_samples: list[int] = setting(
        [1, 4, 16], "n at which joules and seconds are metered; those of every other n are modelled from them"
    )
    meter_s: float = setting(20.0, "length of a metered window", unit="s")
    seed: int = setting(0, "seed of the problems and samples")


# --- attempts and folders -------------------------------------------------------------------------
class Retry(Enum):
    nothing = "nothing"
    failed = "failed"


@dataclass
class AttemptConfig:
    """How a launch treats earlier attempts, and when a run stops or is saved."""

    retry: Retry = setting(
        Retry.nothing,
        "earlier runs to take up again besides interrupted and killed ones; failed: failed runs go on from their last "
        "checkpoint",
    )
    force: bool = setting(False, "discard an earlier result and start afresh, also after a diverged run")
    checkpoint_every_s: float = setting(60.0, "interval of checkpoints", unit="s")
    diverged_above: float = setting(
        3.0, "a run has diverged when its training loss exceeds this multiple of ln(vocabulary)"
    )


@dataclass
class PathsConfig:
    """Where runs are written."""

    runs: str = setting("runs", "folder of all studies, relative to the working directory")


class Role(Enum):
    fit = "fit"
    probe = "probe"
