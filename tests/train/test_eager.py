"""The eager forward pass is transformers' own: equal logits and gradients, bit for bit, on every kind of shape that a ladder has."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import LlamaForCausalLM

from harness.flops import Shape
from harness.models import llama
from harness.train import evaluate

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
        ours, theirs = llama.eager_logits(model, tokens), model(input_ids=tokens).logits
    (found, our_gradients), (expected, their_gradients) = run(model, ours), run(model, theirs)
    assert torch.equal(found, expected)
    assert our_gradients.keys() == their_gradients.keys() == dict(model.named_parameters()).keys()
    for key, gradient in their_gradients.items():
        assert gradient.abs().max() > 0, key
        assert torch.equal(our_gradients[key], gradient), key


def test_positions_take_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed sequences attend to their own part only, which transformers' forward sees from the positions."""
    model, tokens = model_and_tokens(dataclasses.replace(SHAPES["two heads"], context=8))
    calls = []
    monkeypatch.setattr(llama, "eager_logits", lambda model, tokens: calls.append(tokens))
    evaluate.logits(model, tokens, None)
    assert len(calls) == 1
    packed = evaluate.logits(model, tokens, torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]).expand(3, -1))
    assert len(calls) == 1
    second = evaluate.logits(model, tokens[:, 4:], torch.arange(4).expand(3, -1))
    assert torch.allclose(packed[:, 4:], second, atol=1e-6)
