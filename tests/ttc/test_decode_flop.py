"""What torch's counter sees under the MATH backend is our dense count, for both decoders; the
formulas of useful work follow from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from harness.config.schema import TtcConfig
from harness.errors import ConfigError
from harness.models import pretrained
from harness.models.flops import Shape, counts, decode_flop, passes_flop, prefill_flop, sample_flop
from harness.models.llama import build
from harness.tasks.task import Control
from harness.ttc import sampling, work_units
from harness.ttc.decode import Decoder, Request, open_decoder
from tests.ttc.stub import CopyTask

PLAIN = Shape(vocab=22, width=64, depth=2, heads=4, kv_heads=4, head_dim=16, ffn=192, context=18, tied=True)
SHAPES = {
    "plain": PLAIN,
    "gqa": dataclasses.replace(PLAIN, kv_heads=2, vocab=48),
    "mqa, untied": dataclasses.replace(PLAIN, kv_heads=1, depth=3, tied=False),
    "q wider than d": dataclasses.replace(PLAIN, head_dim=32, kv_heads=2),
}
TINY: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def counted(work: Callable[[], Any]) -> tuple[Any, int]:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = work()
    return found, counter.get_total_flops()


def models(shape: Shape) -> dict[str, Decoder]:
    model = build(shape, seed=0).eval()
    return {"own": open_decoder(model, shape, "cpu"), "transformers": open_decoder(model, None, "cpu")}


@pytest.mark.parametrize("kind", ["own", "transformers"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_prefill_and_decode_against_torchs_counter(shape: Shape, kind: str) -> None:
    check(models(shape)[kind])


@pytest.mark.parametrize("kind", ["own", "transformers"])
def test_likelihoods_are_booked_as_torchs_counter_sees_them(kind: str) -> None:
    """The head runs on the scored positions only."""
    task, shape = CopyTask(sizes=(5,)), dataclasses.replace(PLAIN, vocab=CopyTask.vocab)
    decoder, problems, unit = (
        models(shape)[kind],
        task.problems(3),
        work_units.Unit("", "smooth", slice(0, 3), slice(0, 1)),
    )
    work = partial(sampling.unit, Request(decoder, task, problems, Control()), unit, TtcConfig(), 1.0, 0)
    (arrays, _, booked), flop = counted(work)
    assert arrays["lnp"].shape[0] == 3
    assert booked == flop


def check(decoder: Decoder) -> None:
    shape = decoder.shape
    for length in (1, 5, 15):
        tokens = np.ones((3, length), dtype=np.int64)
        positions = np.broadcast_to(np.arange(length), (3, length))
        (_, prefix), flop = counted(lambda t=tokens, p=positions: decoder.prefill(t, p, np.zeros(3, dtype=np.int64)))
        assert flop == 3 * prefill_flop(shape, length, causal=False, last_head=True)
        cache = decoder.expand(prefix, 8, 3)
        for fed in (1, 2, 3):
            one = np.ones(24, dtype=np.int64)
            _, flop = counted(lambda c=cache, o=one, p=length + fed - 1: decoder.step(c, o, p * o))
            assert flop == 24 * decode_flop(shape, length + fed)
            if fed == 2:
                cache = decoder.select(cache, np.arange(24))
        _, flop = counted(lambda t=tokens, p=positions: decoder.logits(t, p, np.zeros(3, dtype=np.int64), t.shape[1]))
        assert flop == 3 * prefill_flop(shape, length, causal=False)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_formulas(shape: Shape) -> None:
    """N and A as in the guide: matrix weights with the head, and 4 q per layer."""
    n, a = counts(shape).n_matmul, 4 * shape.heads * shape.head_dim * shape.depth
    for p in (1, 15):
        assert prefill_flop(shape, p) == 2 * n * p + a * p * (p + 1) // 2
        assert prefill_flop(shape, p, causal=False) == 2 * n * p + a * p * p
        assert prefill_flop(shape, p) - prefill_flop(shape, p, last_head=True) == 2 * shape.vocab * shape.width * (
            p - 1
        )
        # The causal count is the counter's dense one less what lies above the diagonal
        assert prefill_flop(shape, p, causal=False) - prefill_flop(shape, p) == a * p * (p - 1) // 2
        for t in (0, 1, 2, 13):
            fed = max(0, t - 1)
            assert sample_flop(shape, p, t) == 2 * n * fed + a * (fed * p + t * fed // 2)
            assert sample_flop(shape, p, t) == sum(decode_flop(shape, p + i) for i in range(1, t))
    assert passes_flop(shape, 8, 8 * 16) == 8 * decode_flop(shape, 16)


def test_the_guides_numbers() -> None:
    """A model with N = 99,712 matrix weights, V 22, d 64, 2 layers: prefill of 15 and decoding at
    16, 17, 18 positions.
    """
    mlp = 99_712 - 22 * 64 - 2 * 4 * 64 * 64
    assert mlp % (2 * 64) == 0
    shape = dataclasses.replace(PLAIN, ffn=mlp // (2 * 3 * 64))
    # a GELU block's two matrices are not a multiple of three
    rest = 99_712 - counts(shape).n_matmul
    assert prefill_flop(shape, 15, causal=False) + 2 * rest * 15 == 3_106_560
    assert prefill_flop(shape, 15) + 2 * rest * 15 == 3_052_800
    assert [decode_flop(shape, c) + 2 * rest for c in (16, 17, 18)] == [207_616, 208_128, 208_640]


def tiny(kind: str) -> PreTrainedModel:
    match kind:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False))
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**TINY, tie_word_embeddings=True))
        case "mistral":
            return MistralForCausalLM(MistralConfig(**TINY, sliding_window=None))
        case "window":
            return MistralForCausalLM(MistralConfig(**TINY, sliding_window=8))
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64))
        case _:
            return Qwen3MoeForCausalLM(
                Qwen3MoeConfig(**TINY, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
            )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_pretrained_from_a_folder(kind: str, tmp_path: Path) -> None:
    made = tiny(kind)
    made.save_pretrained(tmp_path)
    model = pretrained.load(str(tmp_path))
    assert pretrained.n_total(model) == sum(p.numel() for p in made.parameters())
    shape = pretrained.shape_of(model)
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.tied) == (4, 2, 8, kind == "qwen2")
    check(open_decoder(model, None, "cpu"))


@pytest.mark.parametrize(("kind", "why"), [("window", "window of 8"), ("gpt2", "no Llama-like shape"), ("moe", "mlp")])
def test_what_cannot_be_counted_is_refused(kind: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"FLOP of .* are not counted: .*{why}"):
        pretrained.shape_of(tiny(kind))


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path=.* cannot be loaded as a causal language model"):
        pretrained.load(str(tmp_path))


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_at_random(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 of its weights, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        pretrained.load(str(tmp_path))


@pytest.mark.parametrize("damage", ["torn", "config"])
def test_a_damaged_checkpoint_is_told(damage: str, tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:100])
    else:
        config.write_text(config.read_text().replace('"intermediate_size": 48', '"intermediate_size": 96'))
    with pytest.raises(ConfigError, match=r"model\.path=.* cannot be loaded as a causal language model"):
        pretrained.load(str(tmp_path))
