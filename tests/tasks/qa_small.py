"""Text problems of the tests' own, a byte-level tokenizer, a random Llama beside it, and a stand-in
for a model that has made up its mind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.config.schema import Arm, QaConfig
from harness.tasks.qa import QaTask
from harness.tasks.task import NONE, Control, Grades, Problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def row(i: int) -> dict[str, str]:
    """The i-th templated problem; answers from 1,000 on are written with a comma."""
    shelf, boxes, each = 3 + i % 7, 2 + i % 5, 4 + 31 * i
    full = boxes * each
    return {
        "question": f"A shelf holds {shelf} jars. {boxes} boxes of {each} jars are put on it. How many jars does it hold?",
        "answer": f"The boxes hold {boxes} * {each} = <<{boxes}*{each}={full}>>{full} jars.\n"
        f"With those before it holds {shelf} + {full} = <<{shelf}+{full}={shelf + full}>>{shelf + full} jars.\n"
        f"#### {shelf + full:,}",
    }


def write(path: Path, indexes: range) -> Path:
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in indexes), encoding="utf-8")
    return path


def tokenizer(chat: bool = False, words: tuple[str, ...] = (" Wait", " .")) -> PreTrainedTokenizerFast:
    """Bytes, a start and an end token, and `words` as single tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    backend.add_tokens([AddedToken(w, normalized=False) for w in words])
    found = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    found.chat_template = CHAT if chat else None
    return found


def checkpoint(folder: Path, *, chat: bool = False, context: int = 2048) -> Path:
    """A random Llama of 1e4 parameters with its tokenizer, as Hugging Face files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(chat)
    torch.manual_seed(0)
    ids = words.get_vocab()
    config = LlamaConfig(
        vocab_size=len(words) + 3,  # more rows than tokens, as many checkpoints have
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def task(
    folder: Path,
    arm: Arm = Arm.cot,
    *,
    shots: int = 2,
    problems: int = 12,
    chat: bool = False,
    test: str | None = None,
    room: int = 400,
    words: tuple[str, ...] = (" Wait", " ."),
) -> QaTask:
    from harness.models.pretrained import HfCodec

    codec = HfCodec(tokenizer(chat, words), 264, 4096)
    if test is None:
        test = str(write(folder / "test.jsonl", range(problems)))
    return QaTask(QaConfig(arm=arm, test=test, shots=shots), codec, room)


def play(task: QaTask, problems: Problems, control: Control, text: str) -> tuple[np.ndarray, int, Grades]:
    """What comes of the first problem when the model wants to write `text` and then end: tokens (1,
    t), forced ones, grades.

    Like the engine, a token that is forced or swapped takes the place of one that the model would
    have written; it then goes on with its text.
    """
    wants = [*task.codec.encode(text), task.eos]
    one = problems.take(np.array([0]))
    out, forced, said = np.zeros((1, 0), dtype=np.int64), 0, 0
    while out.shape[1] < task.max_new(control):
        rule = task.rule(one, control, out)
        if rule.forced[0] != NONE:
            token, forced = int(rule.forced[0]), forced + 1
        else:
            token, said = wants[min(said, len(wants) - 1)], said + 1
            if rule.swap is not None and token == rule.swap[0] and rule.swap[1][0] != NONE:
                token, forced = int(rule.swap[1][0]), forced + 1
        out = np.append(out, [[token]], axis=1)
        if token == task.eos:
            break
    return out, forced, task.grade(one, control, out, np.array([out.shape[1]]))


def written(task: QaTask, tokens: np.ndarray) -> str:
    return task.codec.decode([t for t in tokens[0].tolist() if t != task.eos])
