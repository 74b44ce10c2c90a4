"""Decoders and their FLOP.

`build` is the one place that makes a model from a shape; torch is imported when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.models.flops import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build(kind: str, shape: Shape, seed: int, **settings: Any) -> PreTrainedModel:
    """A freshly initialised fp32 model on the CPU, a pure function of its arguments.

    `kind` is the name under `FAMILIES["model"]`, as records hold it; `settings` are what the family
    takes besides a shape, such as `rope_theta`. Raises TypeError for a family that is not built
    here.
    """
    if kind == "llama":
        from harness.models import llama

        return llama.build(shape, seed, **settings)
    raise TypeError(f"no model is built of kind {kind!r}")
