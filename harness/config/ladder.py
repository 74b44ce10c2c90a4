"""Config to rung: the shape rule, the hyperparameter rule, and which steps a run will take.

Pure; touches nothing.

Shape rule (one dial, the width d): depth = max(2, round(d / 64)); heads of 64, narrower models take
the largest head of 32, 16 or 8 that leaves two heads; SwiGLU hidden size = 8/3 d rounded up to a
multiple of 16. Every part can be set by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.config.schema import AdamwConfig, ConstantConfig, LlamaConfig, RunConfig, WsdConfig
from harness.errors import ConfigError
from harness.models.flops import Shape, counts
from harness.records import Counts
from harness.units import sci

SMALL_N = 5_000_000  # below it the published rules extrapolate and our own sweep decides
MIN_STEPS = 20  # a point of fewer optimiser steps says nothing about the law


def shape(model: LlamaConfig, vocab: int, context: int) -> Shape:
    """The decoder that a Llama config means.

    ConfigError lists everything that does not fit together.
    """
    d = model.width
    head = model.head_dim or next((h for h in (64, 32, 16, 8) if d >= 2 * h), d)
    problems: list[str] = []
    if d < 8 or d % head:
        problems.append(
            f"model.width={d} cannot be split into heads of {head}. Use a multiple of {head}, or set model.head_dim to a divisor of {d}."
        )
    if head % 2:
        problems.append(f"model.head_dim={head} is odd and rotary positions need pairs. Use an even model.head_dim.")
    heads = max(1, d // head)
    kv = model.kv_heads or heads
    if kv < 1 or heads % kv:
        problems.append(
            f"model.kv_heads={kv} does not divide the {heads} query heads. Use one of {[k for k in range(1, heads + 1) if heads % k == 0]}."
        )
    depth = model.depth if model.depth is not None else max(2, round(d / 64))
    if depth < 1:
        problems.append(f"model.depth={depth} must be at least 1.")
    if problems:
        raise ConfigError(problems)
    ffn = model.ffn or -(-8 * d // 3 // 16) * 16
    return Shape(vocab, d, depth, heads, kv, head, ffn, context, model.tie_embeddings)


@dataclass(frozen=True)
class Hyper:
    """What the rule, or the user, decided for a rung.

    Tokens and rates; `rule` says where they come from.
    """

    lr: float
    batch_tokens: int
    sequences: int
    beta2: float
    warmup_tokens: int
    weight_decay: float
    rule: str


def hyperparameters(run: RunConfig, n: Counts, context: int) -> Hyper:
    """Peak rate, batch and warm-up from N = n_head alone, so that a trunk does not depend on its
    budgets.

    Batch 160 (N/108M)^(2/3) sequences of 2048 tokens, rate 0.0047 (N/108M)^(-1/3), warm-up N tokens
    (arXiv:2406.19146); the rate is halved for a constant-rate trunk (arXiv:2405.18392), and halved
    again below 5M parameters, where the rule extrapolates and our own sweep decides (docs/LOG.md).
    A batch set by hand moves the rate with the square root of the batch, as in nanochat.
    """
    size = n.n_head
    rule_batch = 160 * 2048 * (size / 108e6) ** (2 / 3)
    sequences = max(1, round((run.optim.batch_tokens or rule_batch) / context))
    batch_tokens = sequences * context
    factor, rule = 1.0, "arXiv:2406.19146"
    if isinstance(run.schedule, WsdConfig):
        factor, rule = factor / 2, rule + ", rate halved for wsd"
    if size < SMALL_N:
        factor, rule = factor / 2, rule + ", halved below 5M parameters (own sweep, docs/LOG.md)"
    if run.optim.batch_tokens is not None:
        factor, rule = factor * math.sqrt(batch_tokens / rule_batch), rule + ", times sqrt(batch / rule's batch)"
    lr = run.optim.lr if run.optim.lr is not None else factor * 0.0047 * (size / 108e6) ** (-1 / 3)
    if run.optim.lr is not None:
        rule = "rate set by hand"
    beta2 = run.optim.beta2 if isinstance(run.optim, AdamwConfig) else None
    return Hyper(
        lr=lr * run.optim.lr_scale,
        batch_tokens=batch_tokens,
        sequences=sequences,
        beta2=beta2 if beta2 is not None else (0.95 if batch_tokens >= 524_288 else 0.99),
        warmup_tokens=run.schedule.warmup_tokens if run.schedule.warmup_tokens is not None else size,
        weight_decay=run.optim.weight_decay,
        rule=rule,
    )


@dataclass(frozen=True)
class PlannedPoint:
    """One end point: `steps` in all, of which those after `branch_step` are its cooldown (equal:
    none).
    """

    branch: str
    steps: int
    branch_step: int
    tokens: int
    annealed: bool


@dataclass(frozen=True)
class Rung:
    """One run, resolved: shape, counts, hyperparameters and its points, shortest first."""

    shape: Shape
    counts: Counts
    hyper: Hyper
    points: tuple[PlannedPoint, ...]
    warmup_steps: int

    @property
    def trunk_steps(self) -> int:
        """Steps at the trunk's rate, up to the last branch."""
        return max(p.branch_step for p in self.points)

    @property
    def spent_tokens(self) -> int:
        """Tokens really trained: the trunk once, and each cooldown."""
        return (self.trunk_steps + sum(p.steps - p.branch_step for p in self.points)) * self.hyper.batch_tokens

    @property
    def spent_flop(self) -> float:
        return float(self.counts.fpt_causal) * self.spent_tokens

    @property
    def disk_bytes(self) -> int:
        """Checkpoints at the peak: weights and two moments in fp32, for the last two, each branch
        point and each end point.
        """
        return 4 * self.counts.n_total * (3 * (2 + len(self.points)) + len(self.points))


def budget_tokens(run: RunConfig, n: Counts) -> float:
    """Tokens of the longest point; exactly one of the three budgets is set (checked by
    `checks.check_run`).
    """
    b = run.budget
    if b.tokens is not None:
        return float(b.tokens)
    if b.flop is not None:
        return b.flop / n.fpt_causal
    if b.tokens_per_param is not None:
        return b.tokens_per_param * n.n_head
    raise ConfigError(
        "budget: none is set. Use one of budget.tokens=2_000_000, budget.flop=1e12, budget.tokens_per_param=20."
    )


def resolve(run: RunConfig, vocab: int, context: int) -> Rung:
    """The rung of a run on a corpus with `vocab` embedding rows and sequences of `context`
    positions. ConfigError when the budget buys too little.
    """
    if not isinstance(run.model, LlamaConfig):
        raise ConfigError(
            "model=pretrained cannot be trained from scratch. Use model=llama, or `harness ttc` to evaluate it."
        )
    form = shape(run.model, vocab, context)
    n = counts(form)
    hyper = hyperparameters(run, n, context)
    longest = budget_tokens(run, n)
    warmup_steps = round(hyper.warmup_tokens / hyper.batch_tokens)
    wsd = isinstance(run.schedule, WsdConfig)
    phi = run.schedule.decay_fraction if isinstance(run.schedule, WsdConfig) else 0.0
    points: dict[str, PlannedPoint] = {}
    problems: list[str] = []
    for share in [*sorted(run.budget.cooldowns), 1.0]:
        steps = round(longest * share / hyper.batch_tokens)
        branch_step = steps - round(phi * steps)
        if steps < MIN_STEPS or branch_step < warmup_steps:
            if not run.budget.drop_short:
                problems.append(_too_short(form, n, hyper, longest * share, steps, warmup_steps, phi))
            continue
        branch = f"d{steps * hyper.batch_tokens}" if wsd else "trunk"
        points[branch] = PlannedPoint(branch, steps, branch_step, steps * hyper.batch_tokens, run_is_annealed(run))
    if not points and not problems:
        problems.append(_too_short(form, n, hyper, longest, round(longest / hyper.batch_tokens), warmup_steps, phi))
    if problems:
        raise ConfigError(problems)
    return Rung(form, n, hyper, tuple(points.values()), warmup_steps)


def _too_short(form: Shape, n: Counts, hyper: Hyper, tokens: float, steps: int, warmup_steps: int, phi: float) -> str:
    shortest = max(MIN_STEPS, math.ceil(warmup_steps / (1 - phi)) + 1)
    needed = shortest * hyper.batch_tokens
    return (
        f"budget={sci(tokens)} tokens is too small for model.width={form.width}: it buys {steps} steps of {hyper.batch_tokens:,} tokens, "
        f"{warmup_steps} of them warm-up; the shortest useful run is {shortest}. Use at least {sci(needed)} tokens "
        f"({sci(needed * float(n.fpt_causal))} FLOP), a smaller optim.batch_tokens or schedule.warmup_tokens, or budget.drop_short=true."
    )


def run_is_annealed(run: RunConfig) -> bool:
    """Whether a run's end points were decayed to a low rate, so that they may enter a fit of L(N,
    D).
    """
    return not isinstance(run.schedule, ConstantConfig)
