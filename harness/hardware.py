"""What a machine is: the name of its processor, and vendor figures of GPUs by the name that the
driver reports. Imports no torch.
"""

from __future__ import annotations

import re
from pathlib import Path

# (board power in W, dense bf16 tensor-core peak in FLOP/s) by words of the name, special cases
# first; vendor data sheets, without sparsity, SXM boards where the name does not say. None: no
# figure with a source at hand.
GPUS: dict[str, tuple[float | None, float | None]] = {
    "GH200": (None, 989e12),  # its power limit is shared with the CPU
    "H200 NVL": (None, None),
    "H200": (700.0, 989e12),
    "H100 PCIe": (350.0, 756e12),
    "H100 NVL": (None, 835e12),
    "H100": (700.0, 989e12),
    "B200": (1000.0, 2250e12),
    "A100 PCIe": (None, 312e12),  # the driver writes PCIe and PCIE
    "A100": (400.0, 312e12),
    "L40S": (None, 362e12),
    "L4": (72.0, 121e12),
    "L40": (None, 181e12),
    "RTX 4090 Laptop": (None, None),
    "RTX 4090 D": (None, None),
    "RTX 4090": (450.0, 165e12),  # with fp32 accumulation
    "V100 PCIe": (None, None),
    "V100": (300.0, 125e12),  # fp16; the card has no bf16
}


def bf16_peak_flop_per_s(name: str) -> float | None:
    """Peak of the card that the driver calls `name`, by whole words: an L40 is no L4.

    None where the table has no figure.
    """
    figures = _figures(name)
    return None if figures is None else figures[1]


def floor_j_per_flop(name: str) -> float | None:
    """Board power over peak: no dense bf16 training on random data at full power uses less.

    None where a figure is missing.
    """
    figures = _figures(name)
    return None if figures is None or figures[0] is None or figures[1] is None else figures[0] / figures[1]


def _figures(name: str) -> tuple[float | None, float | None] | None:
    words = set(re.split(r"[\s-]+", name.casefold()))
    return next((v for k, v in GPUS.items() if words.issuperset(k.casefold().split())), None)


def cpu_model() -> str:
    """The processor's model name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
