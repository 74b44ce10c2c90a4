"""Text tasks for pretrained checkpoints: questions with a final answer, in one of three arms.

One of them is countdown in words.

    Question: ...        cot:     Answer: worked steps     filler:  Answer: as many filler tokens
    Answer: ...                   #### 18                           #### 18
    #### 18              direct:  Answer:
                                  #### 18

Exemplars come first (`corpus.shots`), one blank line between them. Without exemplars the question
is put to the tokenizer's chat template, with an instruction; where it has none, the instruction
precedes the question. The prompts of `direct` end in the mark; in `filler` the filler tokens and
the mark are forced.

Thought is counted in TOKENS: `max_states` = b writes the mark after b tokens, unless it is there
already; `min_states` puts a continuation word in the place of an end that comes sooner. A row ends
with the end token, which is forced once the text has finished its answer line or begun another
question. P, R, T as in `task.py`; the tokenizer is handed in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np

from harness.config.schema import Arm, QaConfig, TtcConfig
from harness.errors import ConfigError, CorpusError
from harness.tasks.qa_data import COUNTDOWN, Record, open_records
from harness.tasks.qa_text import MARK, answer_id, expression, last_number, reaches, strict_number, verified_steps
from harness.tasks.task import NONE, Control, Grades, Problems, Rule

ANSWER_TOKENS = 32  # room for the answer after a forced mark
STEP_TOKENS = 32  # of a step of the step search: text has no steps of one length
GO_ON = (" Wait", "Wait")  # continuation words; the first that is a single token is taken
FILLER = (" .", ".")  # likewise
_TAIL = 48  # tokens in which the end of a text is looked for
# The answer line is finished, or the model goes on to a question of its own
_STOP = re.compile(rf"{MARK}[^\n]*[^\s#][^\n]*\n|\n\s*Question:")
INSTRUCTIONS = {
    Arm.cot: f"Solve the problem step by step. Then write {MARK} and the final answer alone on the last line.",
    Arm.direct: f"Write {MARK} and the final answer alone, without any working.",
}
INSTRUCTIONS[Arm.filler] = INSTRUCTIONS[Arm.direct]


class Codec(Protocol):
    """A tokenizer as the model was trained with."""

    info: dict[str, Any]  # names and hashes, for the record
    vocab: int  # embedding rows of the model
    context: int  # positions that the model has
    eos: int
    pad: int
    start: list[int]  # tokens before every text

    def encode(self, text: str) -> list[int]:
        """Without tokens before or after it."""
        ...

    def decode(self, tokens: list[int]) -> str: ...

    def chat(self, message: str) -> str | None:
        """The chat template around a user's message, up to where the model's turn begins; None: the
        tokenizer has no template.
        """
        ...


@dataclass(frozen=True)
class _Read:
    key: int
    strict: bool
    correct: bool


class QaTask:
    """See the module's text. A problem's payload is the index of its record, (P,)."""

    name, version, context, step_tokens = "qa", 1, 0, STEP_TOKENS
    thought_end: int | None = None
    floor_nat: float | None = None
    floor_reason = "text tasks are never trained on"
    distinct_rows = 0

    def __init__(self, config: QaConfig, codec: Codec, max_new_tokens: int) -> None:
        self.config, self.codec, self.arm = config, codec, config.arm.value
        self.vocab, self.eos, self.pad = codec.vocab, codec.eos, codec.pad
        self._free = max_new_tokens
        source = open_records(config)
        self.chance = source.chance
        shown = _by_hash(source.shots, f"shots {config.shots_seed}")[: config.shots]
        if len(shown) < config.shots:
            raise CorpusError(
                f"corpus.shots={config.shots}: there are only {len(shown)} records to draw exemplars from."
            )
        if config.arm is not Arm.direct and shown and not any(r.rationale for r in shown):
            raise CorpusError(
                f"corpus.arm={self.arm}: none of the exemplars has worked steps before {MARK}. Use corpus.arm=direct."
            )
        exemplars = {r.question for r in shown}
        self.records = [r for r in source.test if r.question not in exemplars]
        self._ids = np.array([r.id for r in self.records], dtype=np.uint64)
        self._exact = config.test != COUNTDOWN
        self._mark = codec.encode(f"\n{MARK}")
        self._filler, self._go_on = _single(codec, FILLER), _single(codec, GO_ON)
        lengths = [len(codec.encode(" " + r.rationale)) for r in shown]
        self._fillers = int(np.median(lengths)) if lengths else None
        self._head = "".join(self._exemplar(r, n) + "\n\n" for r, n in zip(shown, lengths, strict=True))
        self._templated = not shown and codec.chat("") is not None
        self._prompts: dict[int, np.ndarray] = {}
        # whether a token may finish a stop; NONE: not looked up
        self._ends = np.full(self.vocab, NONE, dtype=np.int8)
        self.info: dict[str, Any] = {
            **source.info,
            "shots": config.shots,
            "shots_seed": config.shots_seed,
            "chat_template": self._templated,
            "prompt_sha256": hashlib.sha256(self.prompt("{question}").encode()).hexdigest(),
            "tokenizer": codec.info,
            "max_new_tokens": max_new_tokens,
            "filler_tokens": self._fillers if config.arm is Arm.filler else None,
            "records": len(self.records),
            "chance": self.chance,
        }
        self.info["hash"] = hashlib.sha256(json.dumps(self.info, sort_keys=True).encode()).hexdigest()[:16]

    # --- prompts
    def _exemplar(self, record: Record, rationale_tokens: int) -> str:
        match self.config.arm:
            case Arm.cot:
                thought = f" {record.rationale}"
            case Arm.filler:
                thought = self._filler_text() * rationale_tokens
            case Arm.direct:
                thought = ""
        return f"Question: {record.question}\nAnswer:{thought}\n{MARK} {record.answer}"

    def _filler_text(self) -> str:
        if self._filler is None:
            raise ConfigError(
                f"corpus.arm=filler: none of {FILLER} is a single token of this tokenizer, so no filler has a known length. Use cot or direct."
            )
        return self.codec.decode([self._filler])

    def prompt(self, question: str) -> str:
        """The whole text that a question is put in, from which generation goes on."""
        lead = f"\n{MARK}" if self.config.arm is Arm.direct else ""
        instruction = INSTRUCTIONS[self.config.arm]
        if self._templated:
            chat = self.codec.chat(f"{instruction}\n\n{question}")
            assert chat is not None
            return chat + lead.lstrip()
        before = self._head or f"{instruction}\n\n"
        return f"{before}Question: {question}\nAnswer:{lead}"

    def prompts(self, problems: Problems, control: Control) -> tuple[list[np.ndarray], list[np.ndarray]]:
        tokens = [self._prompt(i) for i in problems.payload.tolist()]
        longest = max(map(len, tokens), default=0)
        if longest + self.max_new(control) > self.codec.context:
            raise ConfigError(
                f"a prompt of {longest} tokens and {self.max_new(control)} new ones exceed the {self.codec.context} positions of this model. "
                f"Use fewer exemplars (corpus.shots={self.config.shots}), a smaller ttc.max_new_tokens or ttc.max_states, or another model."
            )
        return tokens, [np.arange(len(t)) for t in tokens]

    def _prompt(self, index: int) -> np.ndarray:
        if index not in self._prompts:
            start = [] if self._templated else self.codec.start  # a template writes its own
            tokens = start + self.codec.encode(self.prompt(self.records[index].question))
            self._prompts[index] = np.array(tokens, dtype=np.int64)
        return self._prompts[index]

    # --- as a corpus
    def rows(self, rng: np.random.Generator, n: int, *, held_out: bool = False) -> NoReturn:
        raise ConfigError(
            "corpus=qa is not trained on: it tests pretrained checkpoints. Use model=pretrained and `harness ttc`."
        )

    # --- as a test
    def problems(self, count: int, seed: int = 0, *, held_out: bool = True) -> Problems:
        """The `count` records with the smallest hash of (seed, question).

        There is no training side, because it is not known what a checkpoint was trained on.
        """
        if not held_out:
            index = np.zeros(0, dtype=np.int64)
        else:
            place = {r.question: i for i, r in enumerate(self.records)}
            chosen = _by_hash(self.records, f"test {seed}")[:count]
            index = np.array([place[r.question] for r in chosen], dtype=np.int64)
        size = np.array([len(self.records[i].numbers) for i in index.tolist()], dtype=np.int64)
        return Problems(self._ids[index], np.arange(len(index)), size, index)

    def controls(self, ttc: TtcConfig) -> list[Control]:
        check_controls(self.config, ttc, self._free)
        max_states, min_states = ttc.max_states, ttc.min_states
        if self.config.arm is Arm.filler and self._fillers is None and not max_states:
            raise ConfigError(
                "corpus.arm=filler with corpus.shots=0 has no rationale to take its length from. Use ttc.max_states=[64], or exemplars."
            )
        if self.config.arm is Arm.filler:
            self._filler_text()
        if min_states is not None and self._go_on is None:
            raise ConfigError(
                f"ttc.min_states={min_states}: none of {GO_ON} is a single token of this tokenizer, so an end cannot be replaced. Use null."
            )
        return [Control(max_states=b, min_states=min_states) for b in max_states or [None]]

    def _fill(self, control: Control) -> int:
        count = self._fillers if control.max_states is None else control.max_states
        assert count is not None
        return count

    def max_new(self, control: Control) -> int:
        forced = len(self._mark) + ANSWER_TOKENS
        if self.config.arm is Arm.direct:
            return ANSWER_TOKENS
        if self.config.arm is Arm.filler:
            return self._fill(control) + forced
        return self._free if control.max_states is None else control.max_states + forced

    def rule(self, problems: Problems, control: Control, generated: np.ndarray) -> Rule:
        n, t = generated.shape
        forced = np.full(n, NONE)
        if self.config.arm is Arm.filler and t < self._fill(control) + len(self._mark):
            forced[:] = ([self._filler] * self._fill(control) + self._mark)[t]
            return Rule(forced)
        short = control.min_states is not None and t < control.min_states
        stopped = self._stopped(generated)
        forced[stopped] = self.eos
        swap = None
        if short:
            assert self._go_on is not None, "`controls` refuses min_states without a continuation word"
            forced[stopped] = self._go_on
            swap = (self.eos, np.full(n, self._go_on))
        budget = control.max_states
        if self.config.arm is Arm.cot and budget is not None and budget <= t < budget + len(self._mark):
            cut = (forced == NONE) & (generated[:, budget:t] == self._mark[: t - budget]).all(1)
            for row in np.flatnonzero(cut).tolist():
                cut[row] = MARK not in self.codec.decode(generated[row, :budget].tolist())
            forced[cut] = self._mark[t - budget]
        return Rule(forced, swap=swap)

    def _stopped(self, generated: np.ndarray) -> np.ndarray:
        """Which rows finished a stop with their last token, (R,) bool.

        Only the tail is decoded, and only where that token may end one.
        """
        stopped = np.zeros(len(generated), dtype=bool)
        if generated.shape[1] == 0:
            return stopped
        last = generated[:, -1]
        for token in np.unique(last[self._ends[last] == NONE]).tolist():
            self._ends[token] = any(c in self.codec.decode([token]) for c in "\n:")
        lead = self._lead() if generated.shape[1] <= _TAIL else ""
        for row in np.flatnonzero(self._ends[last] == 1).tolist():
            tail = generated[row, -_TAIL:].tolist()
            now, before = (lead + self.codec.decode(tokens) for tokens in (tail, tail[:-1]))
            stopped[row] = len(_STOP.findall(now)) > len(_STOP.findall(before))
        return stopped

    def _lead(self) -> str:
        """What of the prompt belongs to the text that is read."""
        return MARK if self.config.arm is Arm.direct else ""

    def position(self, problems: Problems, control: Control, generated: np.ndarray) -> np.ndarray:
        lengths = np.array([len(self._prompt(i)) for i in problems.payload.tolist()], dtype=np.int64)
        return lengths + generated.shape[1] - 1

    def text(self, control: Control, tokens: np.ndarray) -> str:
        """The text of one row that is read: the mark of the prompt, what was generated, up to the
        first stop that ended it.
        """
        body = tokens[:-1] if len(tokens) and tokens[-1] == self.eos else tokens
        whole = self._lead() + self.codec.decode(body.tolist())
        short = max(0, (control.min_states or 0) - 1)  # a stop within so many tokens was overridden
        after = len(self.codec.decode(body[:short].tolist())) if short else 0
        match = next((m for m in _STOP.finditer(whole) if m.end() > after), None)
        if match is None:
            return whole
        return whole[: match.end() if match.group().startswith(MARK) else match.start()]

    def _read(self, record: Record, text: str) -> _Read:
        if self._exact:
            number = strict_number(text)
            strict = number is not None
            number = number if strict else last_number(text)
            return _Read(answer_id(number), strict, number == record.gold)
        answer, strict = expression(text)
        right = answer is not None and reaches(answer, record.numbers, int(record.gold))
        return _Read(answer_id(answer and answer.form), strict, right)

    def grade(self, problems: Problems, control: Control, generated: np.ndarray, lengths: np.ndarray) -> Grades:
        """An answer is read after the last mark (strict), else it is the last number, or
        expression, of the text (lenient).

        `verified` counts the annotations `<<expr=value>>` that hold: they prove arithmetic, not
        that it answers the question. A text without any has every step right.
        """
        n = len(generated)
        answer, strict, correct = np.full(n, NONE), np.zeros(n, bool), np.zeros(n, bool)
        verified, sound = np.zeros(n, np.int64), np.zeros(n, bool)
        last = generated[np.arange(n), np.maximum(lengths, 1) - 1] if generated.shape[1] else np.full(n, NONE)
        for row, record in enumerate(self.records[i] for i in problems.payload.tolist()):
            text = self.text(control, generated[row, : lengths[row]])
            read = self._read(record, text)
            answer[row], strict[row], correct[row] = read.key, read.strict, read.correct
            verified[row], steps = verified_steps(text)
            sound[row] = verified[row] == steps
        return Grades(answer, correct, verified, correct & sound, last != self.eos, strict=strict)

    def trace(self, problems: Problems, control: Control) -> None:
        return None


def check_controls(config: QaConfig, ttc: TtcConfig, max_new_tokens: int) -> None:
    """ConfigError for controls that the arm does not have, as far as they can be checked without a
    tokenizer.
    """
    strides, max_states, min_states = ttc.strides, ttc.max_states, ttc.min_states
    problems = []
    if strides:
        problems.append(f"ttc.strides={strides}: corpus=qa has no strides. Use [].")
    if max_states and config.arm is Arm.direct:
        problems.append(f"ttc.max_states={max_states}: corpus.arm=direct has no thought to cut. Use [].")
    if min_states is not None and config.arm is not Arm.cot:
        problems.append(f"ttc.min_states={min_states}: only corpus.arm=cot decides when to end. Use null.")
    if min_states is not None and any(min_states > b for b in max_states):
        problems.append(f"ttc.min_states={min_states} is above one of ttc.max_states={max_states}.")
    if min_states is not None and not max_states and min_states >= max_new_tokens:
        problems.append(
            f"ttc.min_states={min_states} leaves no room to answer within ttc.max_new_tokens={max_new_tokens}."
        )
    if problems:
        raise ConfigError(problems)


def _by_hash(records: Iterable[Record], salt: str) -> list[Record]:
    return sorted(records, key=lambda r: hashlib.sha256(f"{salt}/{r.question}".encode()).digest())


def _single(codec: Codec, words: tuple[str, ...]) -> int | None:
    """The first of the words that is a single token of this tokenizer; None where all are
    longer.
    """
    encoded = (codec.encode(w) for w in words)
    return next((tokens[0] for tokens in encoded if len(tokens) == 1), None)
