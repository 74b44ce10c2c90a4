"""What every model that can be trained keeps to: one shape rule, exact counts, and decoding that is
its own forward pass.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from harness import models
from harness.config import ladder
from harness.config.schema import FAMILIES, FactsConfig, PretrainedConfig, RunConfig
from harness.models import llama
from harness.models.flops import Shape, counts
from harness.training.trunk import build_model
from harness.ttc.decode import open_decoder

TRAINED = [kind for kind, cls in FAMILIES["model"].items() if cls is not PretrainedConfig]


@pytest.fixture(params=TRAINED)
def config(request: pytest.FixtureRequest) -> RunConfig:
    model: Any = FAMILIES["model"][request.param](width=32, depth=2)
    run = RunConfig(model=model, corpus=FactsConfig(context=21, vocab=32, keys=200, val_tokens=630))
    run.budget.tokens = 100_000
    return run


@pytest.fixture
def shape(config: RunConfig) -> Shape:
    return ladder.resolve(config, 32, 21).shape


@pytest.fixture
def model(config: RunConfig) -> PreTrainedModel:
    """As built for training, then every weight moved, so that none is at a value where it does
    nothing.
    """
    model = build_model(config, ladder.resolve(config, 32, 21)).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    return model


def test_weights_are_a_function_of_shape_and_seed(config: RunConfig, shape: Shape) -> None:
    rung = ladder.resolve(config, 32, 21)
    first, again = build_model(config, rung), build_model(config, rung)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    config.seed = 1
    assert not torch.equal(next(first.parameters()), next(build_model(config, rung).parameters()))
    assert {p.dtype for p in first.parameters()} == {torch.float32}


def test_parameters_are_those_that_are_counted(shape: Shape, model: PreTrainedModel) -> None:
    assert sum(p.numel() for p in model.parameters()) == counts(shape).n_total
    matrices = {n: p for n, p in model.named_parameters() if p.dim() > 1 and "embed" not in n and "lm_head" not in n}
    assert sum(p.numel() for p in matrices.values()) + shape.vocab * shape.width == counts(shape).n_matmul


def test_it_is_trained_and_decoded_as_itself(shape: Shape, model: PreTrainedModel) -> None:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 32, (3, 9)))
    expected = model(input_ids=tokens).logits.detach()
    assert float((llama.logits(model, tokens).detach() - expected).abs().max()) < 1e-5
    decoder = open_decoder(model, shape, "cpu")
    positions, pads = np.tile(np.arange(9), (3, 1)), np.zeros(3, dtype=np.int64)
    assert float((decoder.logits(tokens.numpy(), positions, pads, 9) - expected).abs().max()) < 1e-5
    _, prefix = decoder.prefill(tokens[:, :8].numpy(), positions[:, :8], pads)
    cache = decoder.expand(prefix, 1, 1)
    stepped = decoder.step(cache, tokens[:, 8].numpy(), positions[:, 8])
    assert float((stepped - expected[:, -1]).abs().max()) < 1e-4


def test_a_record_gives_the_model_back(config: RunConfig, shape: Shape, model: PreTrainedModel) -> None:
    kind = next(k for k in TRAINED if FAMILIES["model"][k] is type(config.model))
    rebuilt = models.build(kind, Shape.of_record(dataclasses.asdict(shape)), 0)
    assert rebuilt.state_dict().keys() == model.state_dict().keys()
    assert type(rebuilt) is type(model)
