"""One place makes a model, and one that our own kernels do not know is computed by transformers,
never as a Llama.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from harness import models
from harness.models import llama
from harness.models.flops import Shape
from harness.models.llama_decode import LlamaDecoder
from harness.ttc.decode import open_decoder

SHAPE = Shape(vocab=40, width=32, depth=2, heads=4, kv_heads=4, head_dim=8, ffn=48, context=24)
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
}


def strangers() -> dict[str, PreTrainedModel]:
    """Models of the same shape that hold more than `llama.build` makes."""
    torch.manual_seed(0)
    made: dict[str, PreTrainedModel] = {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES)),
        "llama with biases": LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    }
    for model in made.values():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(p, std=0.5)
    return made


@pytest.mark.parametrize("name", ["qwen2", "llama with biases"])
def test_a_model_with_biases_is_decoded_and_trained_as_itself(name: str) -> None:
    model = strangers()[name].eval()
    tokens = torch.randint(0, 40, (3, 9))
    expected = model(input_ids=tokens).logits.detach()
    decoder = open_decoder(model, SHAPE, "cpu")
    assert not isinstance(decoder, LlamaDecoder)
    positions, pads = np.tile(np.arange(9), (3, 1)), np.zeros(3, dtype=np.int64)
    measured = decoder.logits(tokens.numpy(), positions, pads, 9)
    assert float((measured - expected).abs().max()) < 1e-5
    assert float((llama.logits(model, tokens).detach() - expected).abs().max()) < 1e-6


def test_what_we_build_has_the_fast_path() -> None:
    model = models.build("llama", SHAPE, 0)
    assert llama.is_plain(model)
    assert isinstance(open_decoder(model, SHAPE, "cpu"), LlamaDecoder)
    other = models.build("llama", SHAPE, 0, rope_theta=500.0)
    assert llama.is_plain(other), "another base of the same angles"
    with pytest.raises(TypeError, match="no model is built of kind 'mamba'"):
        models.build("mamba", SHAPE, 0)


def test_a_record_keeps_its_shape_when_shapes_gain_a_field() -> None:
    recorded = dataclasses.asdict(SHAPE) | {"window": 8}
    assert Shape.of_record(recorded) == SHAPE
    del recorded["tied"]
    assert Shape.of_record(recorded) == SHAPE
