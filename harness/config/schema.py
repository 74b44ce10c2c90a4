"""Every setting of a run, with its unit, default and meaning. Standard library only, so help answers at once.

YAML files hold named choices; types, defaults and documentation live here and only here. A *family* (corpus, schedule,
power …) is a base class with one subclass per choice; the choice is made by a config group (`corpus=facts`). Names that end
in a unit carry it (`_s`, `_w`); counts of tokens and steps are `int`; FLOP and kWh budgets are `float`. `None` means "decided by
the documented rule", and what was decided is stored in the record.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Role(Enum):
    """What a run is for: `fit` enters the laws, `probe` (a learning-rate check, a trial) never does."""

    fit = "fit"
    probe = "probe"


PATH = {"path": True}  # metadata of a field that names a local file or folder: records hold its base name


# --- model -----------------------------------------------------------------------------------------------------------
@dataclass
class ModelConfig:
    """Base of the model family."""


@dataclass
class LlamaConfig(ModelConfig):
    """A Llama decoder (RMSNorm, RoPE, SwiGLU) built from config by `transformers`. Shape rule: `ladder.shape`."""

    width: int = 64  # residual width d; the one size dial
    depth: int | None = None  # layers; None: max(2, round(width / 64))
    head_dim: int | None = None  # None: 64, or for narrow models the largest of 32, 16, 8 that leaves two heads
    kv_heads: int | None = None  # None: as many as query heads
    ffn: int | None = None  # SwiGLU hidden size; None: 8/3 width, rounded up to a multiple of 16
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0


@dataclass
class PretrainedConfig(ModelConfig):
    """A causal LM loaded from a folder or the Hub, for evaluation and test-time compute; never trained from scratch."""

    path: str = "???"


# --- corpus ----------------------------------------------------------------------------------------------------------
@dataclass
class CorpusConfig:
    """Base of the corpus family. `context` is the number of positions that are fed and scored per sequence."""

    context: int = 63
    val_tokens: int = 129_024  # scored validation tokens


@dataclass
class FactsConfig(CorpusConfig):
    """Key-key-value triplets with Zipf keys and a fixed random value per key; the entropy is known in closed form."""

    vocab: int = 256
    keys: int = 65_536  # at most vocab squared
    zipf_a: float = 0.5  # key rank ~ rank^-(1 + a)
    table_seed: int = 20_240  # fixes which key has which value; not the run's seed
    # Caps the fresh tokens a run may see; None: never repeats
    unique_tokens: int | None = None


@dataclass
class TextConfig(CorpusConfig):
    """Real text through `datasets`: a Hub name (streamed) or local .txt, .jsonl, .parquet files."""

    train: str = "???"  # Hub name or path of a local file
    val: str | None = None  # path; None: the Hub's validation split, or the last `val_fraction` of a local file
    val_fraction: float = 0.05
    hub_config: str | None = None  # the Hub dataset's configuration, e.g. sample-10BT
    text_field: str = "text"
    tokenizer: str = "bytes"  # bytes | bpe | hub:NAME | path of a folder
    vocab: int = 4096  # asked vocabulary of a trained BPE; the model takes what the tokenizer really has
    unique_tokens: int | None = None  # cap on distinct training tokens; more tokens than that are repeated
    allow_repetition: bool = False  # without it, asking for more tokens than there are is an error
    context: int = 256
    cache_dir: str | None = None  # shards; None: ~/.cache/scaling-harness, or $XDG_CACHE_HOME


# --- tasks: corpora to train on that are also tests -------------------------------------------------------------------
class Arm(Enum):
    """What stands between a problem and its answer: a chain of thought, nothing, or as many filler tokens (the control)."""

    cot = "cot"
    direct = "direct"
    filler = "filler"


@dataclass
class TaskConfig(CorpusConfig):
    """Base of the tasks: fresh problems without end to train on, distinct test problems held out by a hash."""

    context: int = 0  # not to be set: the task's format decides how many positions a row has
    val_tokens: int = 16_384
    arm: Arm = Arm.cot


class GroupFormat(Enum):
    stride = "stride"  # every s-th running product is written; rows draw s from `strides`
    budget = "budget"  # all products are written up to a budget, then an answer mark and the answer


@dataclass
class GroupConfig(TaskConfig):
    """Word problem of a finite group: the product of `steps` operators; the chain of thought is the running products."""

    group: str = "A5"  # S3, S4, S5, A4, A5, or Z<n>
    # Element indices that serve as operators; [] : all. The default are four generators of A5
    operators: list[int] = field(default_factory=lambda: [16, 30, 36, 48])
    steps: int = 12  # operators of a problem; in the budget format the largest number, each row draws its own
    format: GroupFormat = GroupFormat.stride
    strides: list[int] = field(default_factory=lambda: [1, 2, 3, 12])  # stride format only


@dataclass
class CountdownConfig(TaskConfig):
    """Reach a target from a few numbers with + - *; many answers are right, and a verifier knows all of them."""

    numbers: int = 3
    low: int = 1
    high: int = 12
    ceiling: int = 99  # every intermediate value lies in 0 .. ceiling


@dataclass
class MultiplyConfig(TaskConfig):
    """Product of two numbers of `digits` digits; the chain of thought is the partial products and their running sums."""

    digits: int = 4


@dataclass
class QaConfig(TaskConfig):
    """Questions in text with a final answer, for pretrained checkpoints: GSM8K by its Hub name or local .jsonl files."""

    test: str = (
        "openai/gsm8k"  # Hub name, or path of a .jsonl with `question` and `answer`; "countdown": generated in words
    )
    shots_from: str | None = None  # file or split that exemplars are drawn from; None: the train split
    hub_config: str | None = "main"
    revision: str | None = None  # of the Hub dataset; recorded
    shots: int = 8  # exemplars before the question; 0: the chat template, where the tokenizer has one
    shots_seed: int = 0


# --- budget, schedule, optimiser -------------------------------------------------------------------------------------
@dataclass
class BudgetConfig:
    """How long to train: exactly one of tokens, flop, tokens_per_param; and where else to branch a cooldown."""

    tokens: int | None = None
    flop: float | None = None  # training FLOP (causal count) of the longest point
    tokens_per_param: float | None = None  # D / N, with N = n_head
    # Further points of a wsd trunk, as fractions of the budget in (0, 1); each is a cooldown branch
    cooldowns: list[float] = field(default_factory=list)
    # Energy that the whole study may spend, kWh: the sweep stops cleanly when its spent joules reach it. Not part of a run's identity
    kwh: float | None = None
    drop_short: bool = False  # leave out points too short for this rung instead of refusing (isoFLOP grids)


@dataclass
class ScheduleConfig:
    """Base of the schedule family."""

    # Warm-up in tokens; None: n_head tokens (arXiv:2406.19146). Never a function of the budget: a trunk serves all its budgets
    warmup_tokens: int | None = None


@dataclass
class WsdConfig(ScheduleConfig):
    """Warm-up, stable trunk, cooldown branches. One trunk run gives a point per token budget (arXiv:2405.18392)."""

    decay_fraction: float = 0.2  # share of a point's tokens spent in its cooldown; shape 1 - sqrt(progress)


@dataclass
class CosineConfig(ScheduleConfig):
    """Cosine to `final` of the peak over the whole budget; one point per run."""

    final: float = 0.1


@dataclass
class ConstantConfig(ScheduleConfig):
    """Constant rate after the warm-up; its points are marked un-annealed and never enter a fit of L(N, D)."""


@dataclass
class OptimConfig:
    """Base of the optimiser family. Rule for what is None: `ladder.hyperparameters`."""

    lr: float | None = None  # peak rate; None: rule
    lr_scale: float = 1.0  # multiplies the rate; the rate check runs 0.5, 1, 2
    batch_tokens: int | None = None  # None: rule
    weight_decay: float = 0.1  # decoupled; none on embeddings, norms
    grad_clip: float = 1.0


@dataclass
class AdamwConfig(OptimConfig):
    """AdamW, fused where torch has it."""

    beta1: float = 0.9
    beta2: float | None = None  # None: 0.95 from 524,288 tokens per batch up, else 0.99 (arXiv:2406.19146)
    eps: float = 1e-8


@dataclass
class MuonConfig(OptimConfig):
    """torch's Muon on the hidden matrices, AdamW at `adamw_lr_ratio` of the rate on everything else."""

    momentum: float = 0.95
    adamw_lr_ratio: float = 1.0


# --- where and how it runs -------------------------------------------------------------------------------------------
class DeviceKind(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """bf16 is autocast with fp32 weights; auto: bf16 on CUDA, fp32 on CPU."""

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
    kind: DeviceKind = DeviceKind.auto
    precision: Precision = Precision.auto
    compile: Toggle = Toggle.auto  # auto: on CUDA only
    threads: int | None = None  # CPU threads of this run; None: cores / parallel runs
    micro_batch_tokens: int | None = None  # tokens per forward pass; None: the whole batch, halved on out-of-memory
    # fp32 matrix products on CUDA round their factors to TF32 (10 bits of mantissa). bf16 runs have no such products
    tf32: bool = False
    # Lets torch choose cuDNN's attention on CUDA; scripts/gpu_campaign measures whether it is faster and sound on a card
    cudnn_attention: bool = False
    # Kernels that give the same bits each time, so that a resumed run is bitwise the undisturbed one on CUDA too; slower
    deterministic: bool = False


@dataclass
class EvalConfig:
    every_tokens: int | None = None  # trunk evaluations besides the points; None: none
    # Tokens per forward pass of an evaluation; None: 16,384 on a CPU, up to 131,072 on a GPU, whose memory bounds them
    batch_tokens: int | None = None


@dataclass
class PowerConfig:
    """Base of the power family. A field that names a local file or folder says so: `field(default=…, metadata=PATH)`."""


@dataclass
class NvmlConfig(PowerConfig):
    """NVIDIA GPUs through NVML: energy counter as the value, instant and average power as cross-checks."""

    period_s: float = 0.01  # polling period of the sampler process
    tolerance: float = 0.03  # a window whose 95 % interval is wider than this share is refused
    mig_whole_card: bool = False  # label a MIG slice's energy as the whole card's instead of refusing


@dataclass
class RaplConfig(PowerConfig):
    """CPU package and DRAM by the kernel's powercap tree."""

    root: str = field(default="/sys/class/powercap", metadata=PATH)
    period_s: float = 1.0


@dataclass
class ReplayConfig(PowerConfig):
    """A recorded power trace played back as if it were a sensor: CSV with columns t_s, power_w."""

    path: str = field(default="???", metadata=PATH)


@dataclass
class UnmeteredConfig(PowerConfig):
    """No meter: energy is None with this reason."""

    reason: str = "no meter: power=unmetered"


class WandbMode(Enum):
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class TrackerConfig:
    """W&B mirror of the ledger. The files in the run's folder stay the truth."""

    mode: WandbMode = WandbMode.disabled
    project: str = "scaling-harness"
    entity: str | None = None
    init_timeout_s: float = 15.0
    finish_timeout_s: float = 30.0


class TtcPoints(Enum):
    """Which end points of a run are evaluated."""

    all = "all"
    longest = "longest"


@dataclass
class TtcConfig:
    """How `harness ttc` evaluates a task at the end points of a run. No part of a run's identity."""

    problems: int = 256  # distinct held-out problems
    samples: int = 16  # drawn per problem, once; every smaller n is derived from them
    temperatures: list[float] = field(default_factory=lambda: [1.0])
    strides: list[int] = field(default_factory=list)  # group task, stride format; []: all that it was trained on
    max_states: list[int] = field(
        default_factory=list
    )  # budgets of thought that are forced; []: the model ends by itself
    min_states: int | None = None  # thought may not end before so many states
    points: TtcPoints = TtcPoints.all
    beam_width: int = 4  # continuations per kept path of the step search; 0: no step search
    beam_keep: int = 1
    verifier_tpr: float = 0.95  # of the noisy verifier: the share of right answers that it accepts
    verifier_fpr: float = 0.05  # and of wrong ones
    max_new_tokens: int = 512  # text tasks
    batch_rows: int = 4096  # sequences decoded side by side
    # Joules and seconds are metered at these n, over windows of `meter_s`; every other n is modelled from them
    meter_samples: list[int] = field(default_factory=lambda: [1, 4, 16])
    meter_s: float = 20.0
    seed: int = 0


class Retry(Enum):
    """Which earlier runs a new launch takes up again, besides interrupted and killed ones; diverged ones need `force`."""

    nothing = "nothing"
    failed = "failed"  # failed runs go on from their last checkpoint


@dataclass
class RunControl:
    retry: Retry = Retry.nothing
    force: bool = False  # discard an earlier result and start afresh
    checkpoint_every_s: float = 60.0
    diverged_above: float = 3.0  # diverged when the training loss exceeds this multiple of ln(vocab)


@dataclass
class PathsConfig:
    runs: str = "runs"  # relative to the working directory


@dataclass
class RunConfig:
    """What to do: one run, that is one trunk of one rung with its cooldown branches."""

    model: ModelConfig = field(default_factory=LlamaConfig)
    corpus: CorpusConfig = field(default_factory=FactsConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    schedule: ScheduleConfig = field(default_factory=WsdConfig)
    optim: OptimConfig = field(default_factory=AdamwConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    power: PowerConfig = field(default_factory=UnmeteredConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    run: RunControl = field(default_factory=RunControl)
    ttc: TtcConfig = field(default_factory=TtcConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    study: str = "default"  # runs of one study are fitted together; also the W&B group
    role: Role = Role.fit
    seed: int = 0  # initialisation and data order


FAMILIES: dict[str, dict[str, type]] = {
    "model": {"llama": LlamaConfig, "pretrained": PretrainedConfig},
    "corpus": {
        "facts": FactsConfig,
        "text": TextConfig,
        "group": GroupConfig,
        "countdown": CountdownConfig,
        "multiply": MultiplyConfig,
        "qa": QaConfig,
    },
    "schedule": {"wsd": WsdConfig, "cosine": CosineConfig, "constant": ConstantConfig},
    "optim": {"adamw": AdamwConfig, "muon": MuonConfig},
    "power": {"nvml": NvmlConfig, "rapl": RaplConfig, "replay": ReplayConfig, "unmetered": UnmeteredConfig},
}
"""Config group -> choice -> dataclass. The names are those of the YAML files."""


def choice(family: str, config: object) -> str:
    """The name of a config among the choices of its family; raises TypeError where it is none of them."""
    for name, cls in FAMILIES[family].items():
        if type(config) is cls:
            return name
    raise TypeError(f"{type(config).__name__} is no choice of FAMILIES[{family!r}]")


def local_paths(config: Any) -> dict[str, str]:
    """Fields of a config that name a file or folder of this machine, and what they name. A default names that of every machine."""
    marked = [f for f in dataclasses.fields(config) if f.metadata.get("path")]
    return {f.name: getattr(config, f.name) for f in marked if getattr(config, f.name) not in (None, f.default)}
