"""The eager forward pass is transformers' own: equal logits and gradients, bit for bit, on every
kind of shape that a ladder has.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import LlamaForCausalLM

from harness.models import llama
from harness.models.flops import Shape

SHAPES = {
    "narrow": Shape(vocab=64, width=12, depth=2, heads=1, kv_heads=1, head_dim=12, ffn=32, context=9, tied=True),
    "two heads": Shape(vocab=64, width=16, depth=2, heads=2, kv_heads=2, head_dim=8, ffn=48, context=63, tied=True),
    "wide": Shape(vocab=96, width=96, depth=3, heads=3, kv_heads=3, head_dim=32, ffn=256, context=20, tied=True),
    "grouped queries": Shape(
        vocab=64, width=32, depth=1, heads=4, kv_heads=2, head_dim=8, ffn=96, context=17, tied=True
    ),
    "untied": Shape(vocab=64, width=16, depth=1, heads=2, kv_heads=2, head_dim=8, ffn=48, context=9, tied=False),
    "wide heads": Shape(vocab=64, width=16, depth=1, heads=2, kv_heads=1, head_dim=16, ffn=48, context=2, tied=True),
}


def model_and_tokens(shape: Shape) -> tuple[LlamaForCausalLM, torch.Tensor]:
    model = llama.build(shape, seed=3, rope_theta=500.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:  # as built they are 1, which would hide a wrong one
                p.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(4))
    tokens = torch.randint(shape.vocab, (3, shape.context), generator=torch.Generator().manual_seed(5))
    return model, tokens


def run(model: LlamaForCausalLM, logits: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    weight = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits.float() * weight).sum().backward()
    return logits.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_same_bits(shape: Shape, autocast: bool) -> None:
    model, tokens = model_and_tokens(shape)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        ours, theirs = llama.logits(model, tokens), model(input_ids=tokens).logits
    (found, our_gradients), (expected, their_gradients) = run(model, ours), run(model, theirs)
    assert torch.equal(found, expected)
    assert our_gradients.keys() == their_gradients.keys() == dict(model.named_parameters()).keys()
    for key, gradient in their_gradients.items():
        assert gradient.abs().max() > 0, key
        assert torch.equal(our_gradients[key], gradient), key


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_position_ids_that_do_not_rise(shape: Shape) -> None:
    """Attention stays causal in the order of the tokens, as under transformers' forward with an
    explicit mask; with rising ids, bit for bit.
    """
    model, tokens = model_and_tokens(shape)
    length = shape.context
    rising = torch.arange(length).expand(3, -1)
    assert torch.equal(llama.logits(model, tokens, rising), llama.logits(model, tokens))
    positions = torch.randint(0, length, (3, length), generator=torch.Generator().manual_seed(6))
    causal = torch.zeros(3, 1, length, length).masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    expected = model(input_ids=tokens, position_ids=positions, attention_mask=causal, use_cache=False).logits
    found = llama.logits(model, tokens, positions)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (_, ours), (_, theirs) = run(model, found), run(model, expected)
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    if length > 2:
        assert not torch.allclose(found, llama.logits(model, tokens), atol=1e-3), "the ids are used"


def test_why_transformers_forward_is_not_asked() -> None:
    """Without a mask it takes ids that fall for sequences packed into one row, and cuts attention
    between them.
    """
    model, tokens = model_and_tokens(dataclasses.replace(SHAPES["two heads"], context=8))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]).expand(3, -1)
    theirs = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
    assert not torch.allclose(theirs, llama.logits(model, tokens, positions), atol=1e-3)
