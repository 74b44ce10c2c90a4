"""Any Hugging Face causal LM from a folder or the Hub: loading, its shape for exact counts,
decoding through transformers' own cache.

Code that comes with a checkpoint is never run. Shapes as in `llama_cache`: P problems, R rows, L
prompt positions, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harness.errors import ConfigError
from harness.models.flops import Shape, counts


def load(path: str, dtype: torch.dtype = torch.float32, revision: str | None = None) -> PreTrainedModel:
    """The model of a local folder or a Hub name, in evaluation mode on the CPU.

    ConfigError where there is none to be loaded.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, revision=revision, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"model.path={path} cannot be loaded as a causal language model: {first} "
            "Give a folder with config.json and weights, or a Hub name of an architecture that transformers has itself."
        ) from error
    model, loading = loaded  # a pair, as `output_loading_info` asks for
    if missing := sorted(loading["missing_keys"]):
        # transformers draws these at random and only warns
        raise ConfigError(
            f"model.path={path} lacks {len(missing)} of its weights, such as {missing[0]}: a model with random ones in their place would be "
            "scored. Give a complete checkpoint."
        )
    return model.eval()


def n_total(model: PreTrainedModel) -> int:
    """Parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def shape_of(model: PreTrainedModel) -> Shape:
    """The shape that `flops` counts by.

    ConfigError for an architecture whose products these formulas do not describe.

    Checked on the weights: its linear layers hold exactly `counts(shape).n_matmul` weights, and no
    other parameter is a matrix but the embedding. That refuses mixtures of experts, learned
    positions, convolutions and state spaces; sliding windows are refused by name.
    """
    config: Any = model.config
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    name = type(model).__name__
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if windows or window:
        what = ", ".join(sorted(windows)) or f"a window of {window} positions"
        raise ConfigError(
            f"FLOP of {name} are not counted: it attends by {what}, and the count knows full attention only."
        )
    try:
        heads = int(config.num_attention_heads)
        shape = Shape(
            vocab=int(config.vocab_size),
            width=int(config.hidden_size),
            depth=int(config.num_hidden_layers),
            heads=heads,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            ffn=int(config.intermediate_size),
            context=int(config.max_position_embeddings),
            tied=head.weight is embedding.weight,
        )
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"FLOP of {name} are not counted: its config has no Llama-like shape ({error}).") from error
    linear = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)}
    known = linear.keys() | {id(embedding.weight)}
    uncounted = [k for k, p in model.named_parameters() if p.dim() > 1 and id(p) not in known]
    expected = counts(shape).n_matmul
    if uncounted or sum(linear.values()) != expected:
        weights = (
            f"weights such as {uncounted[0]}" if uncounted else f"{sum(linear.values()):,} weights in linear layers"
        )
        raise ConfigError(
            f"FLOP of {name} are not counted: it has {weights}, where a Llama of its shape has {expected:,} in linear layers "
            "and no other matrix but the embedding. Use a dense Llama-like model (Llama, Mistral, Qwen2, Qwen3, SmolLM2)."
        )
    return shape


class HfCodec:
    """The tokenizer of a checkpoint, as `harness/tasks/qa.py` uses it."""

    def __init__(self, tokenizer: Any, vocab: int, context: int) -> None:
        self._tokenizer, self.vocab, self.context = tokenizer, vocab, context
        self.eos = int(tokenizer.eos_token_id)
        self.pad = self.eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.start = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
        self.info = {
            "class": type(tokenizer).__name__,
            "vocabulary_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "start": self.start,
            "eos": self.eos,
        }

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def chat(self, message: str) -> str | None:
        if not self._tokenizer.chat_template:
            return None
        turn = [{"role": "user", "content": message}]
        # Some templates write today's date; a prompt must be the same tomorrow
        return self._tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
        )


def load_codec(path: str, model: PreTrainedModel) -> HfCodec:
    """The tokenizer of a model from the same folder or Hub name.

    ConfigError where there is none, or none that fits the model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"model.path={path} has no tokenizer that can be loaded: {first} A text task needs the tokenizer that the model was trained with."
        ) from error
    shape, size = shape_of(model), len(tokenizer)
    if tokenizer.eos_token_id is None or size > shape.vocab:
        why = (
            "no end token" if tokenizer.eos_token_id is None else f"{size} tokens, where the model knows {shape.vocab}"
        )
        raise ConfigError(
            f"model.path={path}: its tokenizer has {why}. A text task needs the tokenizer that the model was trained with."
        )
    return HfCodec(tokenizer, shape.vocab, shape.context)


@dataclass
class HfCache:
    """The cache that transformers keeps of R rows, and their attention mask (R, positions so
    far).
    """

    past: Any
    mask: torch.Tensor


class HfDecoder:
    """Decoder of any causal LM through transformers' forward.

    The prompt's cache is repeated for the samples.
    """

    def __init__(self, model: PreTrainedModel, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.device = shape, device
        self._model = model.to(device, dtype).eval()  # type: ignore[arg-type]
        # transformers 5.24 renames the argument and the output `past_key_values` to `cache`
        accepted = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"

    @torch.inference_mode()
    def prefill(self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray) -> tuple[torch.Tensor, HfCache]:
        output = self._prompt(tokens, positions, pads, last=1, use_cache=True)
        return output.logits[:, -1].float(), HfCache(output[self._cache_name], self._mask(tokens, pads))

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray, last: int) -> torch.Tensor:
        return self._prompt(tokens, positions, pads, last, use_cache=False).logits.float()

    @torch.inference_mode()
    def expand(self, prefix: HfCache, samples: int, room: int) -> HfCache:
        past = copy.deepcopy(prefix.past)  # the prefix may be expanded again
        past.batch_repeat_interleave(samples)
        return HfCache(past, prefix.mask.repeat_interleave(samples, 0))

    @torch.inference_mode()
    def select(self, cache: HfCache, rows: np.ndarray) -> HfCache:
        at = self._put(rows)
        cache.past.batch_select_indices(at)
        return HfCache(cache.past, cache.mask[at])

    @torch.inference_mode()
    def step(self, cache: HfCache, tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        cache.mask = torch.cat((cache.mask, cache.mask.new_ones(len(tokens), 1)), dim=1)
        output: Any = self._model(
            input_ids=self._put(tokens)[:, None],
            attention_mask=cache.mask,
            position_ids=self._put(positions)[:, None],
            use_cache=True,
            **{self._cache_name: cache.past},
        )
        cache.past = output[self._cache_name]
        return output.logits[:, -1].float()

    def _prompt(self, tokens: np.ndarray, positions: np.ndarray, pads: np.ndarray, last: int, use_cache: bool) -> Any:
        # A mask is always given: without one transformers takes position ids that start again for
        # packed sequences
        return self._model(
            input_ids=self._put(tokens),
            attention_mask=self._mask(tokens, pads),
            position_ids=self._put(positions),
            use_cache=use_cache,
            logits_to_keep=last,
        )

    def _mask(self, tokens: np.ndarray, pads: np.ndarray) -> torch.Tensor:
        return self._put((np.arange(tokens.shape[1]) >= pads[:, None]).astype(np.int64))

    def _put(self, host: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(host)).to(self.device)
