"""FLOP and parameter counts: published fixtures as exact integers, and what torch's own counter
sees.
"""

from __future__ import annotations

import dataclasses

import pytest

from harness.models.flops import Shape, attended_mean, counts, decode_flop, prefill_flop

# V d L H K h f s tied | n_total n_nonemb n_head n_matmul fpt_causal fpt_full fpt_full_emb
FIXTURES = [
    (
        Shape(256, 64, 2, 4, 2, 16, 192, 128, True),
        (115008, 98624, 115008, 114688, 787200, 884736, 983040),
    ),
    (
        Shape(4096, 256, 6, 4, 2, 64, 704, 512, True),
        (5475584, 4427008, 5475584, 5472256, 37561344, 42270720, 48562176),
    ),
    (
        Shape(50304, 768, 12, 12, 4, 64, 2048, 1024, False),
        (152783616, 75516672, 114150144, 114130944, 741464064, 798031872, 1029832704),
    ),
]
COLUMNS = ("n_total", "n_nonemb", "n_head", "n_matmul", "fpt_causal", "fpt_full", "fpt_full_emb")

SHAPES = {
    "tied": Shape(64, 32, 2, 4, 4, 8, 96, 16, True),
    "untied": Shape(48, 32, 1, 2, 2, 16, 80, 12, False),
    "gqa": Shape(64, 32, 2, 4, 2, 8, 96, 10, True),
    "mqa, untied": Shape(80, 48, 3, 6, 1, 8, 112, 7, False),
    "q wider than d": Shape(32, 16, 2, 4, 2, 8, 48, 9, True),
}


@pytest.mark.parametrize(("shape", "expected"), FIXTURES)
def test_fixtures_are_exact(shape: Shape, expected: tuple[int, ...]) -> None:
    found = counts(shape)
    assert tuple(getattr(found, c) for c in COLUMNS) == expected
    assert all(type(getattr(found, c)) is int for c in COLUMNS)
    assert found.fpt_matmul == 6 * found.n_matmul
    assert found.n_eff == found.fpt_causal / 6


def test_sliding_window() -> None:
    shape = FIXTURES[0][0]
    assert counts(shape, window=32).fpt_causal == 731328
    assert counts(shape, window=shape.context) == counts(shape), "a window as long as the context is none"
    assert counts(shape, window=10_000) == counts(shape)


@pytest.mark.parametrize(("context", "window"), [(1, None), (7, None), (7, 1), (7, 3), (7, 7), (128, 32)])
def test_attended_mean_is_the_mean(context: int, window: int | None) -> None:
    each = [min(i + 1, window or context) for i in range(context)]
    assert attended_mean(context, window) == pytest.approx(sum(each) / context, rel=1e-15)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_prefill_is_the_sum_of_decoding(shape: Shape) -> None:
    one_by_one = sum(decode_flop(shape, position) for position in range(1, shape.context + 1))
    assert prefill_flop(shape, shape.context) == one_by_one
    assert prefill_flop(shape, shape.context) * 3 == counts(shape).fpt_causal * shape.context


# --- against torch -------------------------------------------------------------------------------
def dense(shape: Shape):
    """The model with attention as plain matrix products, which the counter sees whole: it knows no
    causal mask.
    """
    from harness.models.llama import build

    model = build(shape, seed=0)
    return model.train()


def rotary_flop(model, length: int) -> int:
    """What torch counts for rotary angles, which no convention includes: older transformers make
    them a matrix product.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.rotary_emb(torch.zeros(1, length, 1), torch.arange(length)[None])
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_training_flop_against_torchs_counter(shape: Shape) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = dense(shape)
    tokens = torch.randint(shape.vocab, (3, shape.context))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False).logits.float().square().sum().backward()
    counted = counter.get_total_flops() - rotary_flop(model, shape.context)
    assert counted == counts(shape).fpt_full * tokens.numel()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_dense_prefill_against_torchs_counter(shape: Shape) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = dense(shape)
    for length in (1, 5, shape.context):
        tokens = torch.randint(shape.vocab, (1, length))
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(input_ids=tokens, use_cache=False)
        counted = counter.get_total_flops() - rotary_flop(model, length)
        assert counted == prefill_flop(shape, length, causal=False)


def test_model_has_the_parameters_that_are_counted() -> None:
    from harness.models.llama import build

    for shape in SHAPES.values():
        model, n = build(shape, seed=0), counts(shape)
        sizes = {k: p.numel() for k, p in model.named_parameters()}
        embedding, head = sizes["model.embed_tokens.weight"], 0 if shape.tied else sizes["lm_head.weight"]
        assert sum(sizes.values()) == n.n_total
        assert sum(sizes.values()) - embedding - head == n.n_nonemb


def test_wrong_counts_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.models import llama

    shape = SHAPES["gqa"]
    monkeypatch.setattr(llama, "counts", lambda s: dataclasses.replace(counts(s), n_total=counts(s).n_total + 1))
    with pytest.raises(AssertionError, match="analytic parameter count"):
        llama.build(shape, seed=0)
