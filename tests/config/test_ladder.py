"""Config to rung: shapes, hyperparameters, and which updates a run makes; what does not fit is
refused in words.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import ladder
from harness.config.schema import (
    AdamwConfig,
    BudgetConfig,
    ConstantConfig,
    CosineConfig,
    LlamaConfig,
    MuonConfig,
    PretrainedConfig,
    RunConfig,
    WsdConfig,
)
from harness.errors import ConfigError
from harness.models.flops import Shape, counts


# --- shape ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("width", "depth", "heads", "head_dim", "ffn"),
    [
        (8, 2, 1, 8, 32),
        (16, 2, 2, 8, 48),
        (32, 2, 2, 16, 96),
        (64, 2, 2, 32, 176),
        (96, 2, 3, 32, 256),
        (128, 2, 2, 64, 352),
        (768, 12, 12, 64, 2048),
    ],
)
def test_shape_rule(width: int, depth: int, heads: int, head_dim: int, ffn: int) -> None:
    found = ladder.shape(LlamaConfig(width=width), vocab=512, context=63)
    assert found == Shape(512, width, depth, heads, heads, head_dim, ffn, 63, True)


@given(st.integers(1, 200).map(lambda k: 8 * k))
def test_every_multiple_of_eight_has_a_shape_or_a_reason(width: int) -> None:
    head = next((h for h in (64, 32, 16, 8) if width >= 2 * h), width)
    if width % head:
        with pytest.raises(ConfigError, match=rf"model\.width={width} cannot be split.*model\.head_dim"):
            ladder.shape(LlamaConfig(width=width), 512, 63)
        return
    s = ladder.shape(LlamaConfig(width=width), 512, 63)
    assert s.heads * s.head_dim == width
    assert s.ffn % 16 == 0
    assert 8 * width / 3 <= s.ffn < 8 * width / 3 + 16
    assert s.head_dim % 2 == 0


def test_every_part_can_be_set_by_hand() -> None:
    model = LlamaConfig(width=64, depth=5, head_dim=8, kv_heads=2, ffn=100, tie_embeddings=False)
    assert ladder.shape(model, 10, 7) == Shape(10, 64, 5, 8, 2, 8, 100, 7, False)


def test_all_problems_of_a_shape_at_once() -> None:
    with pytest.raises(ConfigError) as e:
        ladder.shape(LlamaConfig(width=20, head_dim=7, kv_heads=9, depth=0), 512, 63)
    text = str(e.value)
    assert len(e.value.problems) == 4
    assert "model.width=20 cannot be split into heads of 7" in text
    assert "model.head_dim=7 is odd" in text
    assert "model.kv_heads=9 does not divide the 2 query heads. Use one of [1, 2]." in text
    assert "model.depth=0 must be at least 1" in text


# --- hyperparameters ------------------------------------------------------------------------------
def rung_of(width: int = 768, vocab: int = 50304, context: int = 1024, **changes) -> tuple[ladder.Hyper, int]:
    run = RunConfig(model=LlamaConfig(width=width))
    for key, value in changes.items():
        setattr(run, key, value)
    n = counts(ladder.shape(run.model, vocab, context))  # type: ignore[arg-type]
    return ladder.hyperparameters(run, n, context), n.n_head


def test_the_published_rule_is_kept_above_five_million() -> None:
    """arXiv:2406.19146: 0.0047 (N/108M)^(-1/3), 160 (N/108M)^(2/3) sequences of 2048, warm-up of N
    tokens.
    """
    h, n = rung_of(schedule=CosineConfig())
    assert n > ladder.SMALL_N
    assert h.lr == pytest.approx(0.0047 * (n / 108e6) ** (-1 / 3))
    assert h.batch_tokens == pytest.approx(160 * 2048 * (n / 108e6) ** (2 / 3), abs=1024)
    assert h.batch_tokens % 1024 == 0
    assert h.warmup_tokens == n
    assert "arXiv:2406.19146" in h.rule
    wsd, _ = rung_of(schedule=WsdConfig())
    assert wsd.lr == pytest.approx(h.lr / 2)
    assert "halved" in wsd.rule


def test_hyperparameters_do_not_depend_on_the_budget() -> None:
    assert rung_of(budget=BudgetConfig(tokens=1)) == rung_of(budget=BudgetConfig(flop=1e20, cooldowns=[0.5]))


def test_beta2_by_batch() -> None:
    from harness.config.schema import OptimConfig

    def beta2(**optim) -> float:
        config: OptimConfig = AdamwConfig(**optim)
        return rung_of(optim=config)[0].beta2

    assert beta2(batch_tokens=524_288) == 0.95
    assert beta2(batch_tokens=524_288 - 1024) == 0.99
    assert beta2(batch_tokens=1024, beta2=0.9) == 0.9
    assert rung_of(optim=MuonConfig(batch_tokens=1024))[0].beta2 == 0.99


def test_what_is_set_by_hand_is_taken_and_said() -> None:
    h, _ = rung_of(optim=AdamwConfig(lr=0.02, lr_scale=0.5, batch_tokens=5000, weight_decay=0.3))
    assert (h.lr, h.batch_tokens, h.sequences, h.weight_decay) == (0.01, 5 * 1024, 5, 0.3)
    assert "by hand" in h.rule
    assert rung_of(schedule=WsdConfig(warmup_tokens=77))[0].warmup_tokens == 77
    plain, scaled = rung_of()[0], rung_of(optim=AdamwConfig(lr_scale=2.0))[0]
    assert scaled.lr == pytest.approx(2 * plain.lr)


@given(st.sampled_from([16, 24, 32, 48, 64, 96, 128]))
def test_small_rungs_have_a_rate_that_falls_with_size(width: int) -> None:
    small, n = rung_of(width, vocab=512, context=63)
    large, m = rung_of(2 * width, vocab=512, context=63)
    assert n < m
    assert 0 < large.lr < small.lr < 0.1
    assert small.batch_tokens >= 63


# --- points ---------------------------------------------------------------------------------------
def run_config(**budget) -> RunConfig:
    run = RunConfig(model=LlamaConfig(width=16), budget=BudgetConfig(**budget))
    run.optim.batch_tokens = 630
    run.schedule.warmup_tokens = 3150
    return run


def test_points_of_a_trunk() -> None:
    rung = ladder.resolve(run_config(tokens=63_000, cooldowns=[0.5, 0.25]), vocab=512, context=63)
    assert [(p.branch, p.steps, p.branch_step, p.tokens) for p in rung.points] == [
        ("d15750", 25, 20, 15_750),
        ("d31500", 50, 40, 31_500),
        ("d63000", 100, 80, 63_000),
    ]
    assert all(p.annealed for p in rung.points)
    assert rung.warmup_steps == 5
    assert rung.trunk_steps == 80
    assert rung.spent_tokens == (80 + 5 + 10 + 20) * 630
    assert rung.spent_flop == rung.counts.fpt_causal * rung.spent_tokens


def test_the_three_budgets_agree() -> None:
    by_tokens = ladder.resolve(run_config(tokens=63_000), 512, 63)
    n = by_tokens.counts
    for budget in ({"flop": 63_000.0 * n.fpt_causal}, {"tokens_per_param": 63_000 / n.n_head}):
        assert ladder.resolve(run_config(**budget), 512, 63) == by_tokens


def test_schedules_of_one_path_have_one_point() -> None:
    run = run_config(tokens=63_000)
    for schedule, annealed in ((CosineConfig(warmup_tokens=3150), True), (ConstantConfig(warmup_tokens=3150), False)):
        run.schedule = schedule
        (point,) = ladder.resolve(run, 512, 63).points
        assert (point.branch, point.steps, point.branch_step, point.annealed) == ("trunk", 100, 100, annealed)


@given(
    tokens=st.integers(20_000, 2_000_000),
    cooldowns=st.lists(st.floats(0.3, 0.99), max_size=4),
    phi=st.floats(0.01, 0.9),
    batch=st.integers(63, 900),
)
def test_points_are_sorted_distinct_and_inside_their_budget(
    tokens: int, cooldowns: list[float], phi: float, batch: int
) -> None:
    run = run_config(tokens=tokens, cooldowns=cooldowns)
    run.schedule = WsdConfig(decay_fraction=phi, warmup_tokens=0)
    run.optim.batch_tokens = batch
    run.budget.drop_short = True
    rung = ladder.resolve(run, 512, 63)
    steps = [p.steps for p in rung.points]
    assert steps == sorted(set(steps))
    assert abs(rung.points[-1].tokens - tokens) <= rung.hyper.batch_tokens / 2
    assert all(0 <= p.branch_step <= p.steps and p.steps >= ladder.MIN_STEPS for p in rung.points)
    assert rung.spent_tokens <= sum(p.tokens for p in rung.points)


def test_a_budget_that_buys_too_little_says_what_would_do() -> None:
    with pytest.raises(ConfigError) as e:
        ladder.resolve(run_config(tokens=63_000, cooldowns=[0.1, 0.15]), 512, 63)
    assert len(e.value.problems) == 2, "every point that is too short, at once"
    assert "model.width=16" in str(e.value)
    assert "buys 10 steps" in str(e.value)
    assert "shortest useful run is 20" in str(e.value)
    run = run_config(tokens=12_600, cooldowns=[])  # what it says would do does
    assert ladder.resolve(run, 512, 63).points[0].steps == 20


@given(warmup=st.integers(0, 400), phi=st.floats(0.05, 0.9))
def test_the_shortest_useful_run_that_is_named_is_accepted(warmup: int, phi: float) -> None:
    run = run_config(tokens=630)
    run.schedule = WsdConfig(decay_fraction=phi, warmup_tokens=warmup * 630)
    with pytest.raises(ConfigError) as e:
        ladder.resolve(run, 512, 63)
    named = int(str(e.value).split("shortest useful run is ")[1].split(".")[0])
    run.budget.tokens = named * 630
    assert ladder.resolve(run, 512, 63).points[0].steps == named


def test_short_points_can_be_dropped() -> None:
    run = run_config(tokens=63_000, cooldowns=[0.1, 0.5], drop_short=True)
    assert [p.steps for p in ladder.resolve(run, 512, 63).points] == [50, 100]
    run.budget.tokens = 630
    with pytest.raises(ConfigError, match="too small"):
        ladder.resolve(run, 512, 63)


def test_pretrained_models_are_not_trained() -> None:
    run = run_config(tokens=63_000)
    run.model = PretrainedConfig(path="x")
    with pytest.raises(ConfigError, match="model=pretrained"):
        ladder.resolve(run, 512, 63)


def test_disk_is_what_the_checkpoints_take() -> None:
    rung = ladder.resolve(run_config(tokens=63_000, cooldowns=[0.5]), 512, 63)
    weights = 4 * rung.counts.n_total
    assert rung.disk_bytes >= 2 * weights + 3 * weights * 2, "two end points, and two branch points with their moments"
    assert math.isfinite(rung.disk_bytes)
