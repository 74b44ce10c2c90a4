"""Batched decoding: every prompt once through the model, its samples in lockstep from one cache,
exact counts of what was done.

P problems, R rows (one sample of one problem, row-major by problem), L prompt tokens, T the most
that a row may generate. A row's first token comes from the prefill; each further one costs a pass
that feeds the token before it, so T tokens take T - 1 passes. Every row has its own uniform
numbers, fixed by (seed, T, row): what a row draws depends neither on `batch_rows` nor on the other
rows of its batch, up to rounding of the logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from harness.errors import ConfigError
from harness.models import llama
from harness.models.flops import Shape, passes_flop, prefill_flop
from harness.models.llama_decode import LlamaDecoder
from harness.models.pretrained import HfDecoder, shape_of
from harness.tasks.task import NONE, Control, Problems, Rule, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORED_NUMBERS = 1 << 24  # logits that `likelihood` holds at a time


class Decoder(Protocol):
    """A model that decodes.

    Tokens and position ids are int64 numpy arrays; logits are float32 tensors on `device`.
    """

    shape: Shape
    device: torch.device

    def prefill(self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray) -> tuple[torch.Tensor, Any]:
        """Prompts (P, L), padded on the left by `pads` (P,): logits (P, V) after the last position
        (the head runs there only), and a prefix.
        """
        ...

    def logits(self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray, last: int) -> torch.Tensor:
        """Logits (P, last, V) of the last positions, without a cache."""
        ...

    def expand(self, prefix: Any, samples: int, room: int) -> Any:
        """A cache of R = P samples rows with room for `room` fed tokens; the prefix can be expanded
        again.
        """
        ...

    def select(self, cache: Any, rows: np.ndarray) -> Any:
        """The cache of the rows at `rows`, ascending by problem, repetitions allowed; the old cache
        is not to be used any more.
        """
        ...

    def step(self, cache: Any, tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """Feed a token (R,) to each row: logits (R, V) of the next."""
        ...


def open_decoder(
    model: PreTrainedModel, shape: Shape | None, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Decoder:
    """The decoder of a model, chosen by its class: our own for a plain Llama whose `shape` is
    given, else transformers' own path, counted by the shape or else by the model's config.
    """
    device = torch.device(device)
    if shape is not None and llama.is_plain(model):
        return LlamaDecoder(model, shape, device, dtype)
    return HfDecoder(model, shape_of(model) if shape is None else shape, device, dtype)


@dataclass(frozen=True)
class Request:
    """Problems of a task, put to a decoder under one control."""

    decoder: Decoder
    task: Task
    problems: Problems
    control: Control

    def take(self, index: np.ndarray) -> Request:
        """The same request for the problems at `index` alone."""
        return dataclasses.replace(self, problems=self.problems.take(index))


@dataclass(frozen=True)
class Sampling:
    """How rows are drawn: temperature 0 is greedy, and at most `batch_rows` rows are decoded side
    by side.
    """

    temperature: float
    seed: int
    batch_rows: int


@dataclass
class Drawn:
    """Generated rows and what they cost.

    FLOP by `harness/models/flops.py`; "useful" leaves out padding and rows that only waited.
    """

    problem: np.ndarray  # (R,) index into the problems of the request
    tokens: np.ndarray  # (R, T) int64, padded with the task's pad
    lengths: np.ndarray  # (R,) tokens that count, the end token included
    forced: np.ndarray  # (R,) forced ones among them
    # (R,) float64, sum of the model's own ln p (temperature 1, nothing banned) of the tokens that
    # it chose
    logprob: np.ndarray
    prefill_tokens: int = 0  # every prompt once
    prefill_flop: float = 0.0  # useful: causal count, head on the last position
    decode_flop: float = 0.0  # useful
    executed_flop: float = 0.0  # dense prefill with padding, and every row of every pass
    passes: int = 0  # of decoding, without the prefill
    row_passes: int = 0  # sum over passes of the rows in them
    # Sum over passes and rows of the positions in the cache, the fed one and padding included
    context_sum: float = 0.0

    @classmethod
    def empty(cls, request: Request, samples: int) -> Drawn:
        """Room for `samples` rows of every problem, before anything is generated."""
        count, room = len(request.problems) * samples, request.task.max_new(request.control)
        return cls(
            problem=np.repeat(np.arange(len(request.problems)), samples),
            tokens=np.full((count, room), request.task.pad, dtype=np.int64),
            lengths=np.zeros(count, dtype=np.int64),
            forced=np.zeros(count, dtype=np.int64),
            logprob=np.zeros(count),
        )

    def book_prefill(self, shape: Shape, lengths: np.ndarray) -> None:
        """One prefill of prompts of these lengths, side by side."""
        self.prefill_tokens += int(lengths.sum())
        self.prefill_flop += sum(prefill_flop(shape, n, last_head=True) for n in lengths.tolist())
        self.executed_flop += len(lengths) * prefill_flop(shape, int(lengths.max()), causal=False, last_head=True)

    def book_pass(self, shape: Shape, prompt: np.ndarray, width: int, fed: int, alive: np.ndarray) -> None:
        """One pass over rows with `prompt` (R,) tokens before, padded to `width`, that feeds their
        `fed`-th token; `alive` (R,) needed it.
        """
        context = len(prompt) * (width + fed)
        self.passes += 1
        self.row_passes += len(prompt)
        self.context_sum += context
        self.executed_flop += passes_flop(shape, len(prompt), context)
        useful = prompt[alive]
        self.decode_flop += passes_flop(shape, len(useful), int(useful.sum()) + len(useful) * fed)


def uniforms(seed: int, rows: int, draws: int) -> np.ndarray:
    """Uniform numbers in [0, 1), (rows, draws) float32: one per token of a row."""
    return np.random.default_rng(seed).random((rows, draws), dtype=np.float32)


def pick(
    logits: torch.Tensor, rule: Rule, temperature: float, uniform: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The next token (R,) of logits (R, V), which of them are forced, and the model's ln p (0 where
    forced).

    Temperature 0 takes the largest logit that is allowed, the first of equal ones; else the inverse
    of the cumulative distribution at `uniform` (R,). Forced tokens win over banned ones. A swapped
    token counts as forced.
    """
    lnp = torch.log_softmax(logits, dim=-1)
    allowed = lnp
    if rule.banned is not None:
        allowed = lnp.masked_fill(torch.from_numpy(rule.banned).to(lnp.device), -torch.inf)
    if temperature == 0:
        chosen = allowed.argmax(-1, keepdim=True)
    else:
        plain = temperature == 1 and rule.banned is None
        cumulative = (lnp.exp() if plain else torch.softmax(allowed / temperature, dim=-1)).cumsum(-1)
        total = cumulative[:, -1:].contiguous()
        at = torch.from_numpy(np.ascontiguousarray(uniform)).to(lnp.device)[:, None] * total
        # Rounding may lift a number to the total itself: the last token with any probability is
        # meant
        chosen = torch.minimum(torch.searchsorted(cumulative, at, right=True), torch.searchsorted(cumulative, total))
    logprob = lnp.gather(-1, chosen)
    forced = rule.forced != NONE
    tokens = np.where(forced, rule.forced, chosen[:, 0].cpu().numpy())
    if rule.swap is not None:
        token, by = rule.swap
        swapped = ~forced & (tokens == token) & (by != NONE)
        tokens, forced = np.where(swapped, by, tokens), forced | swapped
    return tokens, forced, np.where(forced, 0.0, logprob[:, 0].double().cpu().numpy())


@dataclass
class Prompts:
    """Prompts of P problems side by side: tokens and positions (P, L), padded on the left,
    `lengths` (P,).
    """

    problems: np.ndarray  # (P,) index into all problems
    tokens: np.ndarray
    positions: np.ndarray
    lengths: np.ndarray

    @property
    def pads(self) -> np.ndarray:
        return self.tokens.shape[1] - self.lengths


def batches(request: Request, size: int) -> Iterator[Prompts]:
    """Prompts in batches of at most `size`, sorted by length so that little is padded.

    Problems whose prompts are equally long keep their order.
    """
    tokens, positions = request.task.prompts(request.problems, request.control)
    lengths = np.array([len(t) for t in tokens], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        index = order[start : start + size]
        longest = int(lengths[index].max())
        rows = np.full((len(index), longest), request.task.pad, dtype=np.int64)
        places = np.zeros_like(rows)
        for row, i in enumerate(index.tolist()):
            rows[row, longest - lengths[i] :], places[row, longest - lengths[i] :] = tokens[i], positions[i]
        yield Prompts(index, rows, places, lengths[index])


def draw(request: Request, samples: int, sampling: Sampling) -> Drawn:
    """Draw `samples` rows of every problem.

    Where `batch_rows` holds fewer than the samples of one problem, they are decoded in turns from
    one prefill.
    """
    decoder, out = request.decoder, Drawn.empty(request, samples)
    chances = uniforms(sampling.seed, *out.tokens.shape)
    for prompts in batches(request, max(1, sampling.batch_rows // samples)):
        logits, prefix = decoder.prefill(prompts.tokens, prompts.positions, prompts.pads)
        out.book_prefill(decoder.shape, prompts.lengths)
        for first in range(0, samples, sampling.batch_rows):
            each = min(sampling.batch_rows, samples - first)
            rows = (prompts.problems[:, None] * samples + np.arange(first, first + each)).ravel()
            finish(Lockstep(request, prompts, each, logits, prefix, out), rows, sampling.temperature, chances)
    return out


class Lockstep:
    """Rows that are fed side by side: `each` of every problem of `prompts` to begin with.

    `of` are their problems, `logits` (R, V) those of their next tokens; what they cost is added to
    `books`.
    """

    def __init__(
        self, request: Request, prompts: Prompts, each: int, logits: torch.Tensor, prefix: Any, books: Drawn
    ) -> None:
        self.task, self.control, self.books = request.task, request.control, books
        self._decoder, self._problems = request.decoder, request.problems
        self.room = self.task.max_new(self.control)
        self._width = prompts.tokens.shape[1]
        self._place(np.repeat(prompts.problems, each), np.repeat(prompts.lengths, each))
        self.logits = logits.repeat_interleave(each, 0)
        self._cache = self._decoder.expand(prefix, each, self.room - 1)

    def _place(self, index: np.ndarray, prompt: np.ndarray) -> None:
        self.index, self._prompt, self.of = index, prompt, self._problems.take(index)

    def select(self, rows: np.ndarray) -> None:
        """Go on with the rows at `rows`, ascending by problem, repetitions allowed.

        `logits` stay those of before until the next `feed`.
        """
        self._cache = self._decoder.select(self._cache, rows)
        self._place(self.index[rows], self._prompt[rows])

    def feed(self, generated: np.ndarray, alive: np.ndarray) -> None:
        """Feed the last token of `generated` (R, t); rows that are not `alive` are carried
        along.
        """
        positions = self.task.position(self.of, self.control, generated)
        self.books.book_pass(self._decoder.shape, self._prompt, self._width, generated.shape[1], alive)
        self.logits = self._decoder.step(self._cache, generated[:, -1], positions)


def finish(batch: Lockstep, rows: np.ndarray, temperature: float, chances: np.ndarray) -> None:
    """Generate the rows `rows` of `out` until each has ended; rows that ended leave the batch when
    they are more than half of it.
    """
    out, task = batch.books, batch.task
    alive = np.ones(len(rows), dtype=bool)
    for t in range(batch.room):
        rule = task.rule(batch.of, batch.control, out.tokens[rows, :t])
        token, forced, logprob = pick(batch.logits, rule, temperature, chances[rows, t])
        now = rows[alive]
        out.tokens[now, t] = token[alive]
        out.lengths[now] = t + 1
        out.forced[now] += forced[alive]
        out.logprob[now] += logprob[alive]
        alive &= token != task.eos
        if t + 1 == batch.room or not alive.any():
            return
        if 2 * alive.sum() < len(alive):
            keep = np.flatnonzero(alive)
            batch.select(keep)
            rows, alive = rows[keep], alive[keep]
        batch.feed(out.tokens[rows, : t + 1], alive)


def likelihood(request: Request) -> tuple[np.ndarray, np.ndarray]:
    """Teacher-forced ln p (P, T) of the tokens of `task.trace`, and their Brier scores, NaN where
    not scored.

    A Brier score is sum_v (p_v - [v is right])^2. ConfigError where the task has no trace.
    """
    decoder, task, problems, control = request.decoder, request.task, request.problems, request.control
    trace = task.trace(problems, control)
    if trace is None:
        raise ConfigError(
            f"task {task.name} has no reference trace, so no likelihood. Leave likelihoods out for this task."
        )
    length = trace.tokens.shape[1]
    size = max(1, SCORED_NUMBERS // (length * decoder.shape.vocab))
    logprob, brier = np.full(trace.tokens.shape, np.nan), np.full(trace.tokens.shape, np.nan)
    for prompts in batches(request, size):
        index = prompts.problems
        of, target = problems.take(index), trace.tokens[index]
        fed = [task.position(of, control, target[:, : t + 1])[:, None] for t in range(length - 1)]
        tokens = np.concatenate((prompts.tokens, target[:, :-1]), axis=1)
        logits = decoder.logits(tokens, np.concatenate((prompts.positions, *fed), axis=1), prompts.pads, length)
        lnp = torch.log_softmax(logits, dim=-1)
        right = lnp.gather(-1, torch.from_numpy(target).to(lnp.device)[..., None])[..., 0].double()
        score = lnp.exp().square().sum(-1).double() - 2 * right.exp() + 1
        logprob[index], brier[index] = right.cpu().numpy(), score.cpu().numpy()
    return np.where(trace.scored, logprob, np.nan), np.where(trace.scored, brier, np.nan)
