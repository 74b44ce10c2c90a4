"""A Llama decoder from `transformers`, built from a shape.

The parameter count is asserted against our own formula.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard, cast

import torch
from torch.nn import functional as F
from transformers import LlamaConfig as HfLlamaConfig
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from harness.models.flops import Shape, counts


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
        attn_implementation="sdpa",  # type: ignore[call-arg]
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def build(shape: Shape, seed: int, rope_theta: float = 10_000.0) -> LlamaForCausalLM:
    """A freshly initialised fp32 model on the CPU, a pure function of (shape, seed).

    Initial weights are normal with standard deviation width^-0.5, and the projections that write
    into the residual stream are scaled by (2 depth)^-0.5 (GPT-2). Embeddings keep 0.02-scale when
    tied, so that the first loss is ln(vocab).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(hf_config(shape, rope_theta))
        with torch.no_grad():
            model.model.embed_tokens.weight.normal_(0.0, 0.02)
            for name, weight in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_((2 * shape.depth) ** -0.5)
    total = sum(p.numel() for p in model.parameters())
    expected = counts(shape).n_total
    assert total == expected, (
        f"analytic parameter count {expected} != {total} of the model: flops.counts is wrong for this shape"
    )
    return model


def is_plain(model: object) -> TypeGuard[LlamaForCausalLM]:
    """Whether a model is a Llama as `build` makes it: without biases, with default rotary angles.

    Only such a model is computed here.
    """
    if type(model) is not LlamaForCausalLM:
        return False
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return not (config.attention_bias or config.mlp_bias) and rope.get("rope_type", "default") == "default"


def logits(model: PreTrainedModel, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Tokens (B, S) to logits (B, S, V): the one forward pass, on every device, compiled or not.

    A model that `is_plain` is computed here, any other by transformers' own forward, which builds a
    mask.

    Equal to `model(input_ids=tokens).logits` and its gradients, bit for bit. `positions` (B, S) are
    the ids that the rotary embedding takes, in any order; attention stays causal in the order of
    the tokens. (transformers' forward reads ids that do not rise as sequences packed into one row,
    and cuts attention between them.)

    Attention is called as causal, never with a mask: while it is traced, transformers' forward
    builds a dense (B, 1, S, S) mask, which excludes the flash kernels and doubles the work. Without
    its masks, caches, hooks, module calls and output objects, narrow models also save a fifth of
    the time of forward and backward on a CPU.
    """
    if not is_plain(model):
        return model(input_ids=tokens, position_ids=positions, use_cache=False).logits
    decoder = model.model
    batch, length = tokens.shape
    x = F.embedding(tokens, decoder.embed_tokens.weight)
    places = torch.arange(length, device=x.device)[None] if positions is None else positions
    cos, sin = (t[:, :, None] for t in rotary_turns(decoder.rotary_emb, places))
    for layer in cast(Iterable[LlamaDecoderLayer], decoder.layers):
        attention, mlp = layer.self_attn, layer.mlp
        normed = _rms_norm(layer.input_layernorm, x)
        query, key, value = (  # (B, S, heads, head_dim)
            F.linear(normed, projection.weight).view(batch, length, -1, attention.head_dim)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = F.scaled_dot_product_attention(
            _rotate(query, cos, sin).transpose(1, 2),
            _rotate(key, cos, sin).transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            enable_gqa=attention.num_key_value_groups > 1,
        )
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, length, -1), attention.o_proj.weight)
        normed = _rms_norm(layer.post_attention_layernorm, x)
        gated = F.silu(F.linear(normed, mlp.gate_proj.weight)) * F.linear(normed, mlp.up_proj.weight)
        x = x + F.linear(gated, mlp.down_proj.weight)
    return F.linear(_rms_norm(decoder.norm, x), model.lm_head.weight)


def rotary_turns(rotary: LlamaRotaryEmbedding, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (…, head_dim), fp32, of the rotary angles at `positions` (…), for the
    default rope type.

    An elementwise product, as in transformers 5.23; 5.17 multiplies matrices, which TF32 would
    round (0.3 rad at position 2048).
    """
    angles = positions[..., None].float() * rotary.inv_freq.float()
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rms_norm(norm: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions in transformers' layout: pairs are (i, i + head_dim / 2). x (B, S, heads,
    head_dim); cos, sin (1 or B, S, 1, head_dim).
    """
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin
