"""Decoding with our own Llama: eager, prompts cached once per problem, samples of a problem attend
to that one copy.

P problems, n samples of each, R = P n rows (row-major by problem), L prompt positions, T generated
ones, H heads, K key/value heads, g = H / K, h their size. Same mathematics as `llama.logits`, in
fewer and larger operations: norm weights and the scale of the scores are folded into the
projections behind them, query, key and value are one product, and the sizes of a head are reordered
so that a rotary pair is one complex number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from harness.models.flops import Shape
from harness.models.llama import rotary_turns

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

MANY = 256  # rows x heads from which on updates of all of them beat a product for each, on a CPU


@dataclass(frozen=True)
class _Layer:
    """Weights (in, out) of the five products of a layer."""

    qkv: torch.Tensor
    out: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True)
class Prefix:
    """Cached prompts: per layer keys and values (P, K, L, h); `hidden` (P, L) bool marks padding,
    None where there is none.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    hidden: torch.Tensor | None


@dataclass
class Cache:
    """R rows in progress: each problem's prefix, and per layer keys and values (T, P, K, n, h) of
    which `used` positions are filled.

    Position first: what a step writes then lies together, and is read so.
    """

    prefix: Prefix
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    used: int = 0


class LlamaDecoder:
    """Decoder of a model that `llama.build` made, on `device` in `dtype`.

    Weights are copied when it is opened.
    """

    def __init__(self, model: LlamaForCausalLM, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.device = shape, device

        def ready(*weights: torch.Tensor) -> torch.Tensor:
            return torch.cat([w.detach().float() for w in weights]).to(device, dtype).t()

        decoder: Any = model.model
        half = shape.head_dim // 2
        pairs = torch.arange(shape.head_dim).view(2, half).t().flatten()  # i next to i + h/2

        def paired(weight: torch.Tensor) -> torch.Tensor:
            return weight.view(-1, shape.head_dim, shape.width)[:, pairs.to(weight.device)].flatten(0, 1)

        self._layers: list[_Layer] = []
        for layer in decoder.layers:
            attention, mlp = layer.self_attn, layer.mlp
            first, second = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
            query = paired(attention.q_proj.weight) * shape.head_dim**-0.5
            qkv = ready(query * first, paired(attention.k_proj.weight) * first, attention.v_proj.weight * first)
            gate, up = ready(mlp.gate_proj.weight * second), ready(mlp.up_proj.weight * second)
            self._layers.append(_Layer(qkv, ready(attention.o_proj.weight), gate, up, ready(mlp.down_proj.weight)))
        self._embedding = decoder.embed_tokens.weight.detach().to(device, dtype)
        self._head = ready(model.lm_head.weight * decoder.norm.weight)
        self._eps = float(decoder.norm.variance_epsilon)
        self._rotary = decoder.rotary_emb
        self._table = self._turns(1024)

    @torch.inference_mode()
    def prefill(self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray) -> tuple[torch.Tensor, Prefix]:
        """Prompts (P, L) with their position ids, the first `pads` (P,) of each being padding:
        logits (P, V) after the last, and the cache.
        """
        x, keys, values, hidden = self._forward(tokens, positions, pads)
        return self._logits(x[:, -1]), Prefix(keys, values, hidden)

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray, last: int) -> torch.Tensor:
        """Logits (P, last, V) at the `last` final positions of sequences (P, L)."""
        return self._logits(self._forward(tokens, positions, pads)[0][:, -last:])

    @torch.inference_mode()
    def expand(self, prefix: Prefix, samples: int, room: int) -> Cache:
        """Rows to decode: `samples` of each problem, with room for `room` fed tokens.

        The prefix is shared, not copied.
        """
        count, heads, _, size = prefix.keys[0].shape
        new = [prefix.keys[0].new_empty(room, count, heads, samples, size) for _ in range(2 * len(prefix.keys))]
        return Cache(prefix, new[::2], new[1::2])

    @torch.inference_mode()
    def select(self, cache: Cache, rows: np.ndarray) -> Cache:
        """The rows at `rows`, ascending by problem, repetitions allowed.

        Prefixes are copied per row only if problems keep unequally many.
        """
        _, count, _, samples, _ = cache.keys[0].shape
        problem, sample = np.divmod(rows, samples)
        problems, counts = np.unique(problem, return_counts=True)
        if (counts != counts[0]).any():
            problems, counts = problem, np.ones(len(problem), dtype=np.int64)
        prefix = cache.prefix
        if len(problems) != count or (problems != np.arange(count)).any():
            of = self._put(problems)
            hidden = None if prefix.hidden is None else prefix.hidden[of]
            prefix = Prefix([k[of] for k in prefix.keys], [v[of] for v in prefix.values], hidden)
        at = (self._put(problem), self._put(sample))

        def selected(whole: torch.Tensor) -> torch.Tensor:
            room, _, heads, _, size = whole.shape
            new = whole.new_empty(room, len(problems), heads, int(counts[0]), size)
            rows_of = whole[: cache.used, at[0], :, at[1]]  # (R, used, K, h)
            new[: cache.used] = rows_of.unflatten(0, (len(problems), -1)).permute(2, 0, 3, 1, 4)
            return new

        return Cache(prefix, [selected(k) for k in cache.keys], [selected(v) for v in cache.values], cache.used)

    @torch.inference_mode()
    def step(self, cache: Cache, tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """Feed one token (R,) per row at its position id (R,): logits (R, V) of the next."""
        s, prefix = self.shape, cache.prefix
        _, count, _, samples, _ = cache.keys[0].shape
        length, groups, here = prefix.keys[0].shape[2], s.heads // s.kv_heads, cache.used
        cache.used += 1
        turns = self._turn(positions)
        x = F.embedding(self._put(tokens), self._embedding)
        for layer, prompt_keys, prompt_values, own_keys, own_values in zip(
            self._layers, prefix.keys, prefix.values, cache.keys, cache.values, strict=True
        ):
            query, key, value = (
                t.unflatten(0, (count, samples)).transpose(1, 2) for t in self._project(layer, x, turns)
            )  # (P, H or K, n, h)
            own_keys[here], own_values[here] = key, value
            if groups > 1:
                query = query.unflatten(1, (s.kv_heads, groups)).transpose(2, 3)
            query = query.reshape(count, s.kv_heads, samples, groups, s.head_dim)
            # Scores of the shared prompt are one product per problem and head, those of its own
            # tokens one per row and head
            shared = (query.flatten(2, 3) @ prompt_keys.mT).view(count, s.kv_heads, samples, groups, length)
            if prefix.hidden is not None:
                shared = shared.masked_fill(prefix.hidden[:, None, None, None], -torch.inf)
            own = query @ own_keys[: here + 1].permute(1, 2, 3, 4, 0)
            weights = torch.softmax(torch.cat((shared, own), dim=-1), dim=-1)
            mixed = _weighted(weights[..., length:], own_values[: here + 1])  # (P, K, n, g, h)
            mixed += (weights[..., :length].flatten(2, 3) @ prompt_values).view_as(mixed)
            x = self._after_attention(layer, x, mixed.transpose(1, 2).reshape(len(tokens), -1))
        return self._logits(x)

    def _forward(
        self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor], torch.Tensor | None]:
        """Hidden states (P, L, d), keys and values of every layer (P, K, L, h), and which positions
        are padding.
        """
        s, (count, length) = self.shape, tokens.shape
        hidden = mask = None
        if pads.any():
            hidden = torch.arange(length, device=self.device) < self._put(pads)[:, None]
            seen = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
            # Padding attends to itself: a softmax over nothing would be NaN and spread
            mask = (seen & ~hidden[:, None] | torch.eye(length, dtype=torch.bool, device=self.device))[:, None]
        turns = self._turn(positions.ravel())
        x = F.embedding(self._put(tokens.ravel()), self._embedding)
        keys, values = [], []
        for layer in self._layers:
            query, key, value = (
                t.unflatten(0, (count, length)).transpose(1, 2) for t in self._project(layer, x, turns)
            )
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=1.0, enable_gqa=s.heads > s.kv_heads
            )
            x = self._after_attention(layer, x, mixed.transpose(1, 2).reshape(count * length, -1))
            keys.append(key.contiguous())
            values.append(value.contiguous())
        return x.view(count, length, -1), keys, values, hidden

    def _project(
        self, layer: _Layer, x: torch.Tensor, turns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated and scaled queries (B, H, h), rotated keys (B, K, h) and values (B, K, h) of x
        (B, d) at `turns` (B, h/2).
        """
        s = self.shape
        both = (self._normed(x) @ layer.qkv).unflatten(-1, (s.heads + 2 * s.kv_heads, s.head_dim))
        turned, value = both.split((s.heads + s.kv_heads, s.kv_heads), dim=1)
        pairs = torch.view_as_complex(turned.float().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * turns[:, None]).flatten(-2).to(value.dtype)
        return turned[:, : s.heads], turned[:, s.heads :], value

    def _after_attention(self, layer: _Layer, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        x = torch.addmm(x, mixed, layer.out)
        normed = self._normed(x)
        # half of one product's rows would be read with gaps
        gate = F.silu(normed @ layer.gate, inplace=True)
        return torch.addmm(x, gate.mul_(normed @ layer.up), layer.down)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., d) over its root mean square, in fp32 within; the norm's weight is in the product
        behind.
        """
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return x * norm.square_().div_(x.shape[-1]).add_(self._eps).rsqrt_().to(x.dtype)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return (self._normed(x) @ self._head).float()

    def _put(self, host: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(host)).to(self.device)

    def _turns(self, size: int) -> torch.Tensor:
        """Rotations (size, h/2), complex, of the first position ids, as the model makes them."""
        where = next(self._rotary.buffers()).device
        cos, sin = rotary_turns(self._rotary, torch.arange(size, device=where))
        half = self.shape.head_dim // 2
        return torch.complex(cos[:, :half], sin[:, :half]).to(self.device)

    def _turn(self, positions: np.ndarray) -> torch.Tensor:
        """Rotations (B, h/2) of position ids (B,)."""
        largest = int(positions.max(initial=0))
        if largest >= len(self._table):
            self._table = self._turns(2 * largest)
        return self._table[self._put(positions)]


def _weighted(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values (T, P, K, n, h) summed with weights (P, K, n, g, T): (P, K, n, g, h).

    On a CPU a batch of many tiny products costs three times as much as T updates of all of it at
    once.
    """
    if weights.device.type != "cpu" or values[0, ..., 0].numel() < MANY:
        return weights @ values.permute(1, 2, 3, 0, 4)
    out = weights[..., :1] * values[0].unsqueeze(-2)
    for t in range(1, len(values)):
        out.addcmul_(weights[..., t : t + 1], values[t].unsqueeze(-2))
    return out
