"""Every setting of a run, with its default, unit and meaning.

Standard library only, so help answers at once.

YAML files hold named choices; types, defaults and documentation live here and in `sections`, and
only there. A *family* (corpus, schedule, power …) is a base class with one subclass per choice; the
choice is made by a config group (`corpus=facts`). Names that end in a unit carry it (`_s`, `_w`);
counts of tokens and steps are `int`; FLOP and kWh budgets are `float`. `None` means "decided by the
documented rule", and what was decided is stored in the record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from harness.config.sections import (
    AttemptConfig,
    BudgetConfig,
    DeviceConfig,
    EvalConfig,
    PathsConfig,
    Role,
    TrackerConfig,
    TtcConfig,
)
from harness.config.sections import DeviceKind as DeviceKind
from harness.config.sections import Precision as Precision
from harness.config.sections import Retry as Retry
from harness.config.sections import Toggle as Toggle
from harness.config.sections import TtcPoints as TtcPoints
from harness.config.sections import WandbMode as WandbMode
from harness.config.setting import REQUIRED, setting


# --- model ----------------------------------------------------------------------------------------
@dataclass
class ModelConfig:
    """Base of the model family."""


@dataclass
class LlamaConfig(ModelConfig):
    """A Llama decoder (RMSNorm, RoPE, SwiGLU) built from config by `transformers`.

    Shape rule: `ladder.shape`.
    """

    width: int = setting(64, "residual width d; the one size dial")
    depth: int | None = setting(None, "layers; null: max(2, round(width / 64))")
    head_dim: int | None = setting(
        None,
        "width of an attention head; null: 64, or for narrow models the largest of 32, 16, 8 that leaves two heads",
    )
    kv_heads: int | None = setting(None, "key and value heads; null: as many as query heads")
    ffn: int | None = setting(None, "hidden size of SwiGLU; null: 8/3 width, rounded up to a multiple of 16")
    tie_embeddings: bool = setting(True, "the output layer shares the weights of the embedding")
    rope_theta: float = setting(10_000.0, "base of the rotary positions")


@dataclass
class PretrainedConfig(ModelConfig):
    """A causal LM loaded from a folder or the Hub, for evaluation and test-time compute; never
    trained from scratch.
    """

    path: str = setting(REQUIRED, "folder or Hub name")


# --- corpus ---------------------------------------------------------------------------------------
@dataclass
class CorpusConfig:
    """Base of the corpus family."""

    context: int = setting(63, "positions that are fed and scored per sequence", unit="tokens")
    val_tokens: int = setting(129_024, "scored validation tokens", unit="tokens")


@dataclass
class FactsConfig(CorpusConfig):
    """Key-key-value triplets with Zipf keys and a fixed random value per key; the entropy is known
    in closed form.
    """

    vocab: int = setting(256, "tokens of the vocabulary")
    keys: int = setting(65_536, "keys, at most vocab squared")
    zipf_a: float = setting(0.5, "exponent a of the key frequencies, rank^-(1 + a)")
    table_seed: int = setting(20_240, "fixes which key has which value; not the run's seed")
    unique_tokens: int | None = setting(None, "cap on distinct training tokens; null: no repetition", unit="tokens")


@dataclass
class TextConfig(CorpusConfig):
    """Real text through `datasets`: a Hub name (streamed) or local .txt, .jsonl, .parquet files."""

    train: str = setting(REQUIRED, "Hub name or path of a local file")
    val: str | None = setting(
        None, "path of the validation text; null: the Hub's validation split, or the end of a local file"
    )
    val_fraction: float = setting(0.05, "share of a local file that is its validation text where val is null")
    hub_config: str | None = setting(None, "configuration of the Hub dataset, such as sample-10BT")
    text_field: str = setting("text", "name of the text field or column")
    tokenizer: str = setting("bytes", "bytes | bpe | hub:NAME | path of a folder")
    vocab: int = setting(4096, "vocabulary asked of a trained BPE; the model takes what the tokenizer really has")
    unique_tokens: int | None = setting(
        None, "cap on distinct training tokens, beyond which they are repeated; null: no cap", unit="tokens"
    )
    allow_repetition: bool = setting(False, "repeat a text that is shorter than the budget instead of refusing it")
    context: int = setting(256, "positions that are fed and scored per sequence", unit="tokens")
    cache_dir: str | None = setting(
        None, "folder of the tokenised shards; null: ~/.cache/scaling-harness, or $XDG_CACHE_HOME"
    )


# --- tasks: corpora to train on that are also tests -----------------------------------------------
class Arm(Enum):
    """What stands between a problem and its answer."""

    cot = "cot"
    direct = "direct"
    filler = "filler"


@dataclass
class TaskConfig(CorpusConfig):
    """Base of the tasks: unlimited fresh problems to train on, distinct test problems held out by a
    hash.
    """

    context: int = setting(0, "not to be set: the task's format decides the positions of a row", unit="tokens")
    val_tokens: int = setting(16_384, "scored validation tokens", unit="tokens")
    arm: Arm = setting(
        Arm.cot,
        "between problem and answer: a chain of thought, nothing, or as many filler tokens as a control",
    )


class GroupFormat(Enum):
    stride = "stride"
    budget = "budget"


@dataclass
class GroupConfig(TaskConfig):
    """Word problem of a finite group: the product of `steps` operators; the chain of thought is the
    running products.
    """

    group: str = setting("A5", "S3, S4, S5, A4, A5, or Z<n>")
    operators: list[int] = setting(
        [16, 30, 36, 48], "indices of the elements that serve as operators; []: all; default: four generators of A5"
    )
    steps: int = setting(12, "operators of a problem; in the budget format the most that a row may draw")
    format: GroupFormat = setting(
        GroupFormat.stride,
        "stride: each row draws s from strides and writes every s-th running product; budget: all products are written "
        "up to a budget, then an answer mark and the answer",
    )
    strides: list[int] = setting([1, 2, 3, 12], "stride format: strides that rows draw from")


@dataclass
class CountdownConfig(TaskConfig):
    """Reach a target from a few numbers with + - *; many answers are right, and a verifier knows
    all of them.
    """

    numbers: int = setting(3, "numbers of a problem")
    low: int = setting(1, "smallest number")
    high: int = setting(12, "largest number")
    ceiling: int = setting(99, "every intermediate value lies between 0 and this")


@dataclass
class MultiplyConfig(TaskConfig):
    """Product of two numbers; the chain of thought is the partial products and their running
    sums.
    """

    digits: int = setting(4, "digits of each factor")


@dataclass
class QaConfig(TaskConfig):
    """Questions in text with a final answer, for pretrained checkpoints: GSM8K by its Hub name or
    local .jsonl files.
    """

    test: str = setting(
        "openai/gsm8k",
        "Hub name, path of a .jsonl with `question` and `answer`, or countdown: generated problems in words",
    )
    shots_from: str | None = setting(None, "file or split that exemplars are drawn from; null: the train split")
    hub_config: str | None = setting("main", "configuration of the Hub dataset")
    revision: str | None = setting(None, "revision of the Hub dataset; recorded")
    shots: int = setting(8, "exemplars before the question; 0: the chat template, where the tokenizer has one")
    shots_seed: int = setting(0, "seed of the choice of exemplars")


# --- schedule, optimiser --------------------------------------------------------------------------
@dataclass
class ScheduleConfig:
    """Base of the schedule family.

    The warm-up is never a function of the budget: one trunk serves all its budgets.
    """

    warmup_tokens: int | None = setting(None, "warm-up; null: n_head tokens (arXiv:2406.19146)", unit="tokens")


@dataclass
class WsdConfig(ScheduleConfig):
    """Warm-up, stable trunk, cooldown branches.

    One trunk run gives a point per token budget (arXiv:2405.18392).
    """

    decay_fraction: float = setting(0.2, "share of a point's tokens in its cooldown; its shape is 1 - sqrt(progress)")


@dataclass
class CosineConfig(ScheduleConfig):
    """Cosine decay over the whole budget; one point per run."""

    final: float = setting(0.1, "final rate as a share of the peak rate")


@dataclass
class ConstantConfig(ScheduleConfig):
    """Constant rate after the warm-up; its points are marked un-annealed and never enter a fit of
    L(N, D).
    """


@dataclass
class OptimConfig:
    """Base of the optimiser family. Rule for null: `ladder.hyperparameters`."""

    lr: float | None = setting(None, "peak learning rate; null: the rule")
    lr_scale: float = setting(1.0, "multiplies the learning rate; the rate check runs 0.5, 1, 2")
    batch_tokens: int | None = setting(None, "batch size; null: the rule", unit="tokens")
    weight_decay: float = setting(0.1, "decoupled weight decay; none on embeddings and norms")
    grad_clip: float = setting(1.0, "norm to which gradients are clipped")


@dataclass
class AdamwConfig(OptimConfig):
    """AdamW, fused where torch has it."""

    beta1: float = setting(0.9, "decay of the first moment")
    beta2: float | None = setting(
        None,
        "decay of the second moment; null: 0.95 from 524,288 tokens per batch up, else 0.99 (arXiv:2406.19146)",
    )
    eps: float = setting(1e-8, "added to the root of the second moment")


@dataclass
class MuonConfig(OptimConfig):
    """torch's Muon on the hidden matrices, AdamW on everything else."""

    momentum: float = setting(0.95, "momentum of Muon")
    adamw_lr_ratio: float = setting(1.0, "learning rate of the AdamW part as a multiple of Muon's")


# --- power ----------------------------------------------------------------------------------------
@dataclass
class PowerConfig:
    """Base of the power family. A field that names a local file or folder says `path=True`."""


@dataclass
class NvmlConfig(PowerConfig):
    """NVIDIA GPUs through NVML: energy counter as the value, instant and average power as
    cross-checks.
    """

    period_s: float = setting(0.01, "polling period of the sampler process", unit="s")
    tolerance: float = setting(0.03, "a window whose 95 % interval is wider than this share of its value is refused")
    mig_whole_card: bool = setting(False, "label a MIG slice's energy as the whole card's instead of refusing it")


@dataclass
class RaplConfig(PowerConfig):
    """CPU package and DRAM by the kernel's powercap tree."""

    root: str = setting("/sys/class/powercap", "folder of the powercap tree", path=True)
    period_s: float = setting(1.0, "polling period of the sampler process", unit="s")


@dataclass
class ReplayConfig(PowerConfig):
    """A recorded power trace played back as if it were a sensor."""

    path: str = setting(REQUIRED, "CSV file with the columns t_s, power_w", path=True)


@dataclass
class UnmeteredConfig(PowerConfig):
    """No meter: energy is None with this reason."""

    reason: str = setting("no meter: power=unmetered", "why no energy is measured; recorded")


# --- the run --------------------------------------------------------------------------------------
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
    attempt: AttemptConfig = field(default_factory=AttemptConfig)
    ttc: TtcConfig = field(default_factory=TtcConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    study: str = setting("default", "name of the study: its runs are fitted together; also the W&B group")
    role: Role = setting(
        Role.fit, "fit: the run enters the laws; probe: it never does, such as a learning-rate check or a trial"
    )
    seed: int = setting(0, "seed of the initialisation and of the data order")


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
    """The name of a config among the choices of its family; raises TypeError where it is none of
    them.
    """
    for name, cls in FAMILIES[family].items():
        if type(config) is cls:
            return name
    raise TypeError(f"{type(config).__name__} is no choice of FAMILIES[{family!r}]")
