"""Decoding with our own Llama: eager, prompts cached once per problem, samples of a problem attend to that one copy.

P problems, n samples of each, R = P n rows (row-major by problem), L prompt positions, T generated ones, H heads, K key/value heads,
g = H / K, h their size. Same mathematics as `llama.eager_logits`; projections that share an input are one product here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from harness.flops import Shape

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class _Layer:
    norm1: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    norm2: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True)
class Prefix:
    """Cached prompts: per layer keys and values (P, K, L, h); `hidden` (P, L) bool marks padding, None where there is none."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    hidden: torch.Tensor | None


@dataclass
class Cache:
    """R rows in progress: the prefix of each group of R / P neighbouring rows, and every row's own `used` positions of (R, K, T, h)."""

    prefix: Prefix
    problem: np.ndarray  # (R,) row of `prefix`; ascending, equally often each
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    used: int = 0


class LlamaDecoder:
    """Decoder of a model that `llama.build` made, on `device` in `dtype`. Weights are copied when it is opened."""

    def __init__(self, model: LlamaForCausalLM, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.device = shape, device

        def cast(*weights: torch.Tensor) -> torch.Tensor:
            return torch.cat([w.detach().to(device, dtype) for w in weights])

        decoder = model.model
        self._eps = float(decoder.norm.variance_epsilon)
        self._layers = [
            _Layer(
                cast(layer.input_layernorm.weight),
                cast(*(p.weight for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj))),
                cast(layer.self_attn.o_proj.weight),
                cast(layer.post_attention_layernorm.weight),
                cast(layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight),
                cast(layer.mlp.down_proj.weight),
            )
            for layer in decoder.layers
        ]
        self._embedding = cast(decoder.embed_tokens.weight)
        self._norm = cast(decoder.norm.weight)
        self._head = self._embedding if shape.tied else cast(model.lm_head.weight)
        self._rotary = decoder.rotary_emb
        self._table = self._positions(1024)

    @torch.inference_mode()
    def prefill(self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray) -> tuple[torch.Tensor, Prefix]:
        """Prompts (P, L) with their position ids, the first `pads` (P,) of each being padding: logits (P, V) after the last, and the cache."""
        x, keys, values, hidden = self._forward(tokens, positions, pads)
        return self._logits(x[:, -1]), Prefix(keys, values, hidden)

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray, last: int) -> torch.Tensor:
        """Logits (P, last, V) at the `last` final positions of sequences (P, L)."""
        return self._logits(self._forward(tokens, positions, pads)[0][:, -last:])

    @torch.inference_mode()
    def expand(self, prefix: Prefix, samples: int, room: int) -> Cache:
        """Rows to decode: `samples` of each problem, with room for `room` fed tokens. The prefix is shared, not copied."""
        count, heads, _, size = prefix.keys[0].shape
        new = [prefix.keys[0].new_empty(count * samples, heads, room, size) for _ in range(2 * len(prefix.keys))]
        return Cache(prefix, np.repeat(np.arange(count), samples), new[::2], new[1::2])

    @torch.inference_mode()
    def select(self, cache: Cache, rows: np.ndarray) -> Cache:
        """The rows at `rows`, ascending by problem, repetitions allowed. Prefixes are copied per row only if problems keep unequally many."""
        problem = cache.problem[rows]
        kept, number = np.unique(problem, return_counts=True)
        if (number != number[0]).any():
            kept, number = problem, np.ones(len(problem), dtype=np.int64)
        at, of = (torch.from_numpy(i).to(self.device) for i in (rows, kept))
        prefix = cache.prefix
        if len(kept) != prefix.keys[0].shape[0] or (kept != np.arange(len(kept))).any():
            hidden = None if prefix.hidden is None else prefix.hidden[of]
            prefix = Prefix([k[of] for k in prefix.keys], [v[of] for v in prefix.values], hidden)
        keys, values = ([_taken(c, at, cache.used) for c in side] for side in (cache.keys, cache.values))
        return Cache(prefix, np.repeat(np.arange(len(kept)), number), keys, values, cache.used)

    @torch.inference_mode()
    def step(self, cache: Cache, tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """Feed one token (R,) per row at its position id (R,): logits (R, V) of the next."""
        s, prefix = self.shape, cache.prefix
        rows, count, length = len(tokens), prefix.keys[0].shape[0], prefix.keys[0].shape[2]
        groups, samples = s.heads // s.kv_heads, rows // count
        cos, sin = self._rope(positions[:, None])
        x = F.embedding(self._put(tokens), self._embedding)
        cache.used += 1
        for layer, before_k, before_v, own_k, own_v in zip(
            self._layers, prefix.keys, prefix.values, cache.keys, cache.values, strict=True
        ):
            query, key, value = self._project(layer, x, cos[:, 0], sin[:, 0])
            own_k[:, :, cache.used - 1], own_v[:, :, cache.used - 1] = key, value
            # Scores of the shared prompt are one product per problem, those of a row's own tokens one per row
            together = query.view(count, samples, s.kv_heads, groups, s.head_dim).transpose(1, 2)
            together = together.reshape(count, s.kv_heads, samples * groups, s.head_dim)
            shared = together @ before_k.transpose(2, 3)
            if prefix.hidden is not None:
                shared = shared.masked_fill(prefix.hidden[:, None, None], -torch.inf)
            shared = shared.view(count, s.kv_heads, samples, groups, length).transpose(1, 2)
            own = query.view(rows, s.kv_heads, groups, s.head_dim) @ own_k[:, :, : cache.used].transpose(2, 3)
            scores = torch.cat((shared.reshape(rows, s.kv_heads, groups, length), own), dim=-1)
            weights = torch.softmax(scores * s.head_dim**-0.5, dim=-1)
            shared = weights[..., :length].view(count, samples, s.kv_heads, groups, length).transpose(1, 2)
            shared = shared.reshape(count, s.kv_heads, samples * groups, length) @ before_v
            shared = shared.view(count, s.kv_heads, samples, groups, s.head_dim).transpose(1, 2)
            own = weights[..., length:] @ own_v[:, :, : cache.used]
            mixed = shared.reshape(rows, -1) + own.reshape(rows, -1)
            x = self._after_attention(layer, x, mixed)
        return self._logits(x)

    def _forward(
        self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor], torch.Tensor | None]:
        """Hidden states (P, L, d), keys and values of every layer (P, K, L, h), and which positions are padding."""
        s, length = self.shape, tokens.shape[1]
        hidden = mask = None
        if pads.any():
            hidden = torch.arange(length, device=self.device) < self._put(pads)[:, None]
            seen = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
            # Padding attends to itself: a softmax over nothing would be NaN and spread
            mask = (seen & ~hidden[:, None] | torch.eye(length, dtype=torch.bool, device=self.device))[:, None]
        cos, sin = self._rope(positions)
        x = F.embedding(self._put(tokens), self._embedding)
        keys, values = [], []
        for layer in self._layers:
            query, key, value = (t.transpose(1, 2) for t in self._project(layer, x, cos, sin))
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=s.heads > s.kv_heads
            )
            x = self._after_attention(layer, x, mixed.transpose(1, 2).flatten(2))
            keys.append(key.contiguous())
            values.append(value.contiguous())
        return x, keys, values, hidden

    def _project(
        self, layer: _Layer, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries (..., H, h), rotated keys and values (..., K, h) of x (..., d)."""
        s = self.shape
        both = F.linear(F.rms_norm(x, layer.norm1.shape, layer.norm1, self._eps), layer.qkv)
        both = both.unflatten(-1, (s.heads + 2 * s.kv_heads, s.head_dim))
        turned, value = both[..., : s.heads + s.kv_heads, :], both[..., s.heads + s.kv_heads :, :]
        half = s.head_dim // 2
        turned = turned * cos + torch.cat((-turned[..., half:], turned[..., :half]), dim=-1) * sin
        return turned[..., : s.heads, :], turned[..., s.heads :, :], value

    def _after_attention(self, layer: _Layer, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        x = x + F.linear(mixed, layer.out)
        gate, up = F.linear(F.rms_norm(x, layer.norm2.shape, layer.norm2, self._eps), layer.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, layer.down)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.rms_norm(x, self._norm.shape, self._norm, self._eps), self._head).float()

    def _put(self, host: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(host)).to(self.device)

    def _positions(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (size, h) of the first position ids, as the model makes them."""
        where = next(self._rotary.buffers()).device
        cos, sin = self._rotary(torch.empty(0, device=where), torch.arange(size, device=where)[None])
        return cos[0].to(self.device, self._embedding.dtype), sin[0].to(self.device, self._embedding.dtype)

    def _rope(self, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (..., 1, h) of position ids (...)."""
        largest = int(positions.max(initial=0))
        if largest >= len(self._table[0]):
            self._table = self._positions(2 * largest)
        at = self._put(positions)
        return self._table[0][at][..., None, :], self._table[1][at][..., None, :]


def _taken(whole: torch.Tensor, rows: torch.Tensor, used: int) -> torch.Tensor:
    """The rows of a cache (R, K, T, h) with its room, copying only what is used."""
    new = whole.new_empty(len(rows), *whole.shape[1:])
    new[:, :, :used] = whole[:, :, :used][rows]
    return new
