"""Decoding against the full forward pass, transformers' cache, its own rules, and the formulas of
what it cost.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from harness.errors import ConfigError
from harness.models import llama_decode
from harness.models.flops import Shape, passes_flop, prefill_flop, sample_flop
from harness.models.llama import build
from harness.tasks.task import NONE, Control, Rule
from harness.ttc.decode import Decoder, Drawn, Request, Sampling, draw, likelihood, open_decoder, pick
from tests.ttc.stub import END, PAD, SHAPE, CopyTask

FREE = Control()
SIZES = {"one length": (5,), "unequal": (2, 5, 3)}
SHAPES = {
    "gqa": SHAPE,
    "mha, untied": dataclasses.replace(SHAPE, kv_heads=4, tied=False, depth=1),
    "mqa": dataclasses.replace(SHAPE, kv_heads=1, width=16),
}


def model_of(shape: Shape = SHAPE, seed: int = 0) -> LlamaForCausalLM:
    """Sharper than as built, so that an argmax is no toss of rounding, and norms that are not 1."""
    model = build(shape, seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.normal_(1.5, 0.3, generator=torch.Generator().manual_seed(4))
        model.model.embed_tokens.weight.mul_(10)
    return model.eval()


def decoders(model: LlamaForCausalLM, shape: Shape = SHAPE) -> dict[str, Decoder]:
    return {"own": open_decoder(model, shape, "cpu"), "transformers": open_decoder(model, None, "cpu")}


def sampled(decoder: Decoder, task: CopyTask, control: Control = FREE, count: int = 6, **settings) -> Drawn:
    settings = {"samples": 3, "temperature": 1.0, "seed": 1, "batch_rows": 64} | settings
    samples = settings.pop("samples")
    return draw(Request(decoder, task, task.problems(count), control), samples, Sampling(**settings))


def full_logits(model: LlamaForCausalLM, task: CopyTask, drawn: Drawn, row: int) -> torch.Tensor:
    """Logits (T, V) of every generated token of a row, one forward pass without cache or padding
    per token.
    """
    of = task.problems(int(drawn.problem.max()) + 1).take(drawn.problem[row : row + 1])
    (prompt,), (place,) = task.prompts(of, FREE)
    found = []
    for t in range(int(drawn.lengths[row])):
        generated = drawn.tokens[row : row + 1, :t]
        fed = [task.position(of, FREE, generated[:, : j + 1])[0] for j in range(t)]
        tokens = torch.from_numpy(np.concatenate((prompt, generated[0])))[None]
        positions = torch.tensor([[*place, *fed]])
        # without one transformers reads packed sequences out of such positions
        mask = torch.ones_like(tokens)
        with torch.no_grad():
            found.append(model(input_ids=tokens, position_ids=positions, attention_mask=mask).logits[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_greedy_is_the_argmax_of_full_forward_passes(shape: Shape, sizes: tuple[int, ...]) -> None:
    model, task = model_of(shape), CopyTask(sizes=sizes)
    for name, decoder in decoders(model, shape).items():
        drawn = sampled(decoder, task, samples=1, temperature=0)
        for row in range(6):
            logits, n = full_logits(model, task, drawn, row), int(drawn.lengths[row])
            assert drawn.tokens[row, :n].tolist() == logits.argmax(-1).tolist(), name
            logprob = torch.log_softmax(logits.double(), -1).max(-1).values.sum()
            assert drawn.logprob[row] == pytest.approx(float(logprob), abs=1e-4), name


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cached_logits_are_those_of_the_full_pass(shape: Shape, sizes: tuple[int, ...]) -> None:
    """Positions fall back at the mark, and one row leaves after the second token: its neighbours no
    longer share evenly.
    """
    model, task = model_of(shape), CopyTask(sizes=sizes)
    problems = task.problems(3)
    for name, decoder in decoders(model, shape).items():
        prompts, places = task.prompts(problems, FREE)
        longest = max(map(len, prompts))
        pads = np.array([longest - len(p) for p in prompts])
        tokens, positions = (
            np.stack([np.pad(p, (n, 0)) for p, n in zip(side, pads, strict=True)]) for side in (prompts, places)
        )
        logits, prefix = decoder.prefill(tokens, positions, pads)
        cache = decoder.expand(prefix, 2, 4)
        generated = np.random.default_rng(3).integers(10, size=(6, 5))
        rows, of = np.arange(6), problems.take(np.repeat(np.arange(3), 2))
        lengths = np.full(6, 5)
        ghost = Drawn(np.repeat(np.arange(3), 2), generated, lengths, lengths * 0, lengths * 0.0)
        expected = [full_logits(model, task, ghost, row) for row in range(6)]
        logits = logits.repeat_interleave(2, 0)
        for t in range(5):
            for at, row in enumerate(rows.tolist()):
                torch.testing.assert_close(logits[at], expected[row][t], atol=2e-5, rtol=1e-4, msg=name)
            if t == 4:
                break
            if t == 2:
                cache, rows = decoder.select(cache, np.array([0, 2, 3, 4, 5])), rows[[0, 2, 3, 4, 5]]
            if t == 3:  # and one problem leaves whole, another row is doubled
                cache, rows = decoder.select(cache, np.array([0, 0, 3, 4])), rows[[0, 0, 3, 4]]
            place = task.position(of.take(rows), FREE, generated[rows, : t + 1])
            logits = decoder.step(cache, generated[rows, t], place)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_transformers_draws_the_same(sizes: tuple[int, ...], temperature: float) -> None:
    task = CopyTask(sizes=sizes, room=12)
    own, theirs = (sampled(d, task, temperature=temperature, count=9) for d in decoders(model_of()).values())
    for f in dataclasses.fields(Drawn):
        np.testing.assert_allclose(getattr(own, f.name), getattr(theirs, f.name), atol=1e-4, rtol=1e-6, err_msg=f.name)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["own", "transformers"])
def test_the_batch_does_not_change_what_is_drawn(kind: str, temperature: float) -> None:
    """Left-padded neighbours, problems alone, samples in turns from one prefill: the same rows."""
    decoder, task = decoders(model_of())[kind], CopyTask(sizes=SIZES["unequal"], room=12)
    together = sampled(decoder, task, temperature=temperature)
    for batch_rows in (1, 2, 7):
        apart = sampled(decoder, task, temperature=temperature, batch_rows=batch_rows)
        assert (apart.tokens == together.tokens).all()
        np.testing.assert_allclose(apart.logprob, together.logprob, atol=1e-4)
        assert (apart.prefill_tokens, apart.prefill_flop) == (together.prefill_tokens, together.prefill_flop)
        assert apart.decode_flop == together.decode_flop


def test_seeds() -> None:
    decoder, task = decoders(model_of())["own"], CopyTask()
    first, again, other = (sampled(decoder, task, seed=seed) for seed in (1, 1, 2**63 + 5))
    for f in dataclasses.fields(Drawn):
        assert np.array_equal(getattr(first, f.name), getattr(again, f.name)), f.name
    assert (first.tokens != other.tokens).any()
    assert len(np.unique(first.tokens[first.problem == 0], axis=0)) > 1


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("ban", [None, 2])
def test_sampling_follows_the_distribution(temperature: float, ban: int | None) -> None:
    """Chi-square of 20,000 draws at a fixed seed; 99.9 % quantile of the chi-square law with the
    cells' degrees of freedom.
    """
    from scipy.stats import chi2

    n, logits = 20_000, torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, -3.0])
    banned = None if ban is None else np.arange(6)[None].repeat(n, 0) == ban
    uniform = np.random.default_rng(0).random(n, dtype=np.float32)
    tokens, _, logprob = pick(logits.expand(n, -1), Rule(np.full(n, NONE), banned), temperature, uniform)
    weight = np.exp(logits.double().numpy() / temperature) * (np.arange(6) != (NONE if ban is None else ban))
    expected = n * weight / weight.sum()
    seen = np.bincount(tokens, minlength=6)
    assert (seen[expected == 0] == 0).all()
    cells = expected > 0
    assert ((seen - expected)[cells] ** 2 / expected[cells]).sum() < chi2.ppf(0.999, cells.sum() - 1)
    np.testing.assert_allclose(logprob, torch.log_softmax(logits.double(), -1).numpy()[tokens], rtol=1e-5)


def test_the_last_uniform_number_never_draws_what_has_no_probability() -> None:
    logits = torch.tensor([[0.3, 1.0, -torch.inf, -torch.inf]]).expand(2, -1)
    edge = np.array([0.0, np.nextafter(np.float32(1), np.float32(0))], dtype=np.float32)
    assert pick(logits, Rule(np.full(2, NONE)), 1.0, edge)[0].tolist() == [0, 1]


def test_forced_and_banned_tokens() -> None:
    decoder, task = decoders(model_of())["own"], CopyTask(room=9)
    cut = sampled(decoder, task, Control(max_states=3))
    assert (cut.lengths <= 4).all()
    assert (cut.tokens[np.arange(18), cut.lengths - 1] == END).all()
    assert cut.forced.tolist() == (cut.lengths == 4).astype(int).tolist()
    assert cut.forced.any()
    long = sampled(decoder, task, Control(min_states=5), count=20)
    assert (long.lengths > 5).all()
    banned = sampled(decoder, CopyTask(room=9, ban=3), count=20)
    assert (banned.tokens != 3).all()
    assert (sampled(decoder, task, count=20).tokens == 3).any()
    row = int(np.flatnonzero(cut.lengths == 4)[0])
    lnp = torch.log_softmax(full_logits(model_of(), task, cut, row).double(), -1)[np.arange(3), cut.tokens[row, :3]]
    assert cut.logprob[row] == pytest.approx(float(lnp.sum()), abs=1e-4), "a forced token is not the model's"


def test_rows_that_ended_are_dropped_and_padded() -> None:
    decoder, task = decoders(model_of())["own"], CopyTask(sizes=SIZES["unequal"], room=40)
    drawn = sampled(decoder, task, count=20)
    after = np.arange(40) >= drawn.lengths[:, None]
    assert (drawn.tokens[after] == PAD).all()
    ended = drawn.lengths < 40
    assert (drawn.tokens[np.arange(60), drawn.lengths - 1][ended] == END).all()
    assert ((drawn.tokens == END) & ~after).sum(1).max() == 1
    useful = int((drawn.lengths - 1).sum())
    assert drawn.passes == drawn.lengths.max() - 1
    assert useful < drawn.row_passes <= 2 * useful, "never more than half of the rows wait"
    assert drawn.row_passes < 60 * drawn.passes


@pytest.mark.parametrize("batch_rows", [4, 64])
def test_counts_are_the_formula_of_the_lengths(batch_rows: int) -> None:
    task = CopyTask(sizes=SIZES["unequal"], room=10)
    drawn = sampled(decoders(model_of())["own"], task, batch_rows=batch_rows)
    prompts = task.problems(6).size + 2
    assert drawn.prefill_tokens == prompts.sum()
    assert drawn.prefill_flop == sum(prefill_flop(SHAPE, int(p), last_head=True) for p in prompts)
    pairs = zip(prompts[drawn.problem].tolist(), drawn.lengths.tolist(), strict=True)
    assert drawn.decode_flop == sum(sample_flop(SHAPE, p, t) for p, t in pairs)
    prefill = drawn.executed_flop - passes_flop(SHAPE, drawn.row_passes, int(drawn.context_sum))
    dense = sum(prefill_flop(SHAPE, int(p), causal=False, last_head=True) for p in prompts)
    longest = 6 * prefill_flop(SHAPE, 7, causal=False, last_head=True)
    assert prefill == (longest if batch_rows == 64 else dense)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_likelihood_is_that_of_full_forward_passes(sizes: tuple[int, ...]) -> None:
    model, task = model_of(), CopyTask(sizes=sizes)
    problems = task.problems(4)
    trace = task.trace(problems, FREE)
    assert trace is not None
    lengths = trace.scored.sum(1)
    ghost = Drawn(np.arange(4), trace.tokens, lengths, lengths * 0, lengths * 0.0)
    for decoder in decoders(model).values():
        logprob, brier = likelihood(Request(decoder, task, problems, FREE))
        assert (np.isnan(logprob) == ~trace.scored).all()
        assert (np.isnan(brier) == ~trace.scored).all()
        for row in range(4):
            p = torch.softmax(full_logits(model, task, ghost, row).double(), -1).numpy()
            right = trace.tokens[row, : lengths[row]]
            hit = np.arange(task.vocab) == right[:, None]
            np.testing.assert_allclose(logprob[row, : lengths[row]], np.log(p[hit]), atol=1e-4)
            np.testing.assert_allclose(brier[row, : lengths[row]], ((p - hit) ** 2).sum(1), atol=1e-5)


def test_no_trace_no_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    task = CopyTask()
    monkeypatch.setattr(CopyTask, "trace", lambda *_: None)
    with pytest.raises(ConfigError, match="task copy has no reference trace"):
        likelihood(Request(decoders(model_of())["own"], task, task.problems(1), FREE))


@pytest.mark.parametrize("samples", [1, 64])
def test_weighted_sums_of_values_are_the_product_however_they_are_made(samples: int) -> None:
    """Few rows by a product, many by updates; values are a slice of a longer cache, weights one of
    the whole row's.
    """
    torch.manual_seed(0)
    weights, values = torch.rand(4, 2, samples, 3, 9)[..., 4:], torch.randn(8, 4, 2, samples, 16)[:5]
    assert (4 * 2 * samples >= llama_decode.MANY) == (samples == 64)
    torch.testing.assert_close(llama_decode._weighted(weights, values), weights @ values.permute(1, 2, 3, 0, 4))
