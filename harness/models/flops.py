"""Exact FLOP and parameter counts of a Llama-style decoder, in every convention that the field
uses.

One multiply-add is two FLOP. Counted: the matrix products of the layers, of the head, and of
attention (scores and weighted sum). Not counted: embedding lookup (0 FLOP), norms, RoPE, residuals,
softmax, the loss, the optimiser (about 15 FLOP per parameter per step), activation recomputation. A
backward pass costs two forward passes. Symbols and fixtures: `docs/conventions.md`; the conventions
follow arXiv:2001.08361 (non-embedding), arXiv:2203.15556 (Chinchilla's appendix, with the embedding
as a matrix product) and arXiv:2406.19146 (head counted).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from harness.records import Counts


@dataclass(frozen=True)
class Shape:
    """The numbers that fix a decoder. `vocab` is the number of embedding rows as padded."""

    vocab: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    tied: bool = True

    @classmethod
    def of_record(cls, shape: Mapping[str, Any]) -> Shape:
        """The shape that a record holds.

        A field that is younger than the record has its default, other entries are passed over.
        """
        return cls(**{f.name: shape[f.name] for f in fields(cls) if f.name in shape})


def attended_mean(context: int, window: int | None = None) -> float:
    """Mean number of positions attended to: causal (s + 1)/2, or with a sliding window w: w - w(w -
    1)/(2 s).
    """
    w = context if window is None else min(window, context)
    return w - w * (w - 1) / (2 * context)


def counts(shape: Shape, window: int | None = None) -> Counts:
    """N and training FLOP per token (`fpt_*`) of a shape.

    `fpt_causal` is exact: 12 q L x mean attended length.
    """
    s = shape
    q, k = s.heads * s.head_dim, s.kv_heads * s.head_dim
    matrices = 2 * s.width * q + 2 * s.width * k + 3 * s.width * s.ffn
    nonemb = s.depth * (matrices + 2 * s.width) + s.width
    head = s.vocab * s.width
    matmul = s.depth * matrices + head
    fpt_matmul = 6 * matmul
    fpt_causal = fpt_matmul + 12 * q * s.depth * attended_mean(s.context, window)
    fpt_full = fpt_matmul + 12 * q * s.depth * s.context
    return Counts(
        n_total=nonemb + head * (1 if s.tied else 2),
        n_nonemb=nonemb,
        n_head=nonemb + head,
        n_matmul=matmul,
        n_eff=fpt_causal / 6,
        fpt_matmul=fpt_matmul,
        fpt_causal=round(fpt_causal),
        fpt_full=fpt_full,
        fpt_full_emb=fpt_full + 6 * head,
    )


def prefill_flop(shape: Shape, tokens: int, causal: bool = True, last_head: bool = False) -> int:
    """Forward FLOP of one sequence of `tokens` positions; causal counts only positions attended to,
    else all.

    `last_head`: the head runs on the last position only, as in decoding; else on every position, as
    in training.
    """
    q = shape.heads * shape.head_dim
    attended = tokens * (tokens + 1) // 2 if causal else tokens * tokens
    unheaded = 2 * shape.vocab * shape.width * (tokens - 1) if last_head else 0
    return 2 * counts(shape).n_matmul * tokens + 4 * q * shape.depth * attended - unheaded


def decode_flop(shape: Shape, position: int) -> int:
    """Forward FLOP of decoding one token that attends to `position` positions, itself included (KV
    cache).
    """
    return passes_flop(shape, 1, position)


def passes_flop(shape: Shape, row_passes: int, context_sum: int) -> int:
    """Forward FLOP of feeding `row_passes` single tokens that attend to `context_sum` positions
    between them.
    """
    q = shape.heads * shape.head_dim
    return 2 * counts(shape).n_matmul * row_passes + 4 * q * shape.depth * context_sum


def sample_flop(shape: Shape, prompt: int, tokens: int) -> int:
    """Useful FLOP of `tokens` tokens generated after a prefilled prompt: the first comes of the
    prefill, the last is never fed.
    """
    fed = max(0, tokens - 1)
    return passes_flop(shape, fed, fed * prompt + fed * (fed + 1) // 2)
