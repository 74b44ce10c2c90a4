"""A Llama decoder from `transformers`, built from a shape. The parameter count is asserted against our own formula."""

from __future__ import annotations

import torch
from transformers import LlamaConfig as HfLlamaConfig
from transformers import LlamaForCausalLM

from harness.flops import Shape, counts


def hf_config(shape: Shape, rope_theta: float = 10_000.0) -> HfLlamaConfig:
    """The Hugging Face config of a shape; what an exported checkpoint carries."""
    return HfLlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=max(shape.context + 1, 2048),
        tie_word_embeddings=shape.tied,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        initializer_range=shape.width**-0.5,
        attn_implementation="sdpa",
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def build(shape: Shape, seed: int, rope_theta: float = 10_000.0) -> LlamaForCausalLM:
    """A freshly initialised fp32 model on the CPU, a pure function of (shape, seed).

    Initial weights are normal with standard deviation width^-0.5, and the projections that write into the residual stream are
    scaled by (2 depth)^-0.5 (GPT-2). Embeddings keep 0.02-scale when tied, so that the first loss is ln(vocab).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(hf_config(shape, rope_theta))
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_(0.0, 0.02)
            for name, weight in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_((2 * shape.depth) ** -0.5)
    total = sum(p.numel() for p in model.parameters())
    expected = counts(shape).n_total
    assert total == expected, (
        f"analytic parameter count {expected} != {total} of the model: flops.counts is wrong for this shape"
    )
    return model
