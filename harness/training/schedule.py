"""The learning rate as a pure function of (step, path).

A branch with no cooldown steps is the trunk, bit for bit.
"""

from __future__ import annotations

import math

from harness.config.schema import ConstantConfig, CosineConfig, ScheduleConfig, WsdConfig


def factor(schedule: ScheduleConfig, step: int, warmup_steps: int, branch_step: int | None, steps: int) -> float:
    """Share of the peak rate for update number `step` (from 0) of a path of `steps` updates.

    `branch_step` is where the cooldown starts (None on a trunk). Shapes: linear warm-up; wsd decays
    as 1 - sqrt(progress) (arXiv:2405.18392); cosine to `final` of the peak.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    match schedule:
        case WsdConfig():
            if branch_step is None or step < branch_step:
                return 1.0
            return 1.0 - math.sqrt((step - branch_step) / (steps - branch_step))
        case CosineConfig(final=final):
            progress = (step - warmup_steps) / max(1, steps - warmup_steps)
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        case ConstantConfig():
            return 1.0
        case _:
            raise TypeError(f"no schedule for {type(schedule).__name__}")
