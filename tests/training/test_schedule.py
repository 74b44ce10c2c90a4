"""The learning rate as a function of the update: pinned values, shapes, and a trunk that no branch
changes.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.schema import ConstantConfig, CosineConfig, ScheduleConfig, WsdConfig
from harness.training.schedule import factor


def rates(schedule: ScheduleConfig, warmup: int, branch: int | None, steps: int) -> list[float]:
    return [factor(schedule, s, warmup, branch, steps) for s in range(steps)]


def test_wsd_pinned() -> None:
    assert rates(WsdConfig(), 2, 6, 10) == pytest.approx(
        [0.5, 1, 1, 1, 1, 1, 1, 1 - math.sqrt(0.25), 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    )


def test_cosine_pinned() -> None:
    found = rates(CosineConfig(final=0.1), 0, None, 4)
    assert found == pytest.approx([0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * s / 4)) for s in range(4)])
    assert found[0] == 1.0
    assert found[2] == pytest.approx(0.55)


def test_constant_pinned() -> None:
    assert rates(ConstantConfig(), 4, None, 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


SCHEDULES = st.sampled_from([WsdConfig(), CosineConfig(final=0.0), CosineConfig(final=0.1), ConstantConfig()])


@given(SCHEDULES, st.integers(0, 50), st.integers(1, 200), st.data())
def test_every_rate_is_a_share_and_only_falls_after_warmup(schedule, warmup: int, more: int, data) -> None:
    steps = warmup + more
    branch = data.draw(st.integers(warmup, steps - 1)) if isinstance(schedule, WsdConfig) else None
    found = rates(schedule, warmup, branch, steps)
    assert all(0 < r <= 1 or (r == 0 and isinstance(schedule, CosineConfig)) for r in found)
    assert found[:warmup] == sorted(found[:warmup])
    assert found[warmup:] == sorted(found[warmup:], reverse=True)


@given(st.integers(0, 30), st.integers(0, 100), st.integers(1, 50))
def test_a_branch_follows_the_trunk_up_to_its_point(warmup: int, stable: int, cooldown: int) -> None:
    branch = warmup + stable
    trunk = rates(WsdConfig(), warmup, None, branch + cooldown)
    branched = rates(WsdConfig(), warmup, branch, branch + cooldown)
    # the first cooldown update is still at the full rate
    assert branched[: branch + 1] == trunk[: branch + 1]
    assert all(b < t for b, t in zip(branched[branch + 1 :], trunk[branch + 1 :], strict=True))
    assert branched[-1] <= 1 - math.sqrt((cooldown - 1) / cooldown) + 1e-12


def test_unknown_schedule_is_a_bug() -> None:
    with pytest.raises(TypeError, match="no schedule for"):
        factor(ScheduleConfig(), 3, 0, None, 5)
