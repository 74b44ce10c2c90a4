"""The word problem of a finite group: given operators g1 .. gk, what is g1 * g2 * ... * gk?

The chain of thought is the running products.

Elements are permutations in lexicographic order (even ones only for A_n), (a * b)(i) = a[b[i]].
States and operators have tokens of their own, and g_t shares its position id with the state after t
operators, so that fetching the next operator is a constant lag for RoPE.

stride format: BOS S_s g1 .. gk EQ c_s c_2s .. c_k EOS
budget format: BOS g1 .. gk PAD .. EQ c_1 .. c_b ANS answer EOS
               k ~ U{1 .. steps}; b = k in half the rows, else b ~ U{0 .. k - 1}
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from functools import partial
from typing import Any

import numpy as np

from harness.config.schema import Arm, GroupConfig, GroupFormat, TtcConfig
from harness.errors import ConfigError, CorpusError
from harness.tasks.task import NONE, Control, Grades, Problems, Rule, Trace, first_distinct, hashes, held_out_side

_ENUMERATE = 65_536  # as many problems of one size are listed; of more, distinct ones are drawn


def table(name: str) -> np.ndarray:
    """Products of a group: (G, G) int64, entry [a, b] is the index of a * b.

    ConfigError for an unknown name.
    """
    kind = re.fullmatch(r"S[345]|A[45]|Z([2-9]|[1-9]\d|1[01]\d|120)", name)
    if not kind:
        raise ConfigError(f"corpus.group={name!r} is unknown. Use S3, S4, S5, A4, A5, or Z2 to Z120.")
    n = int(name[1:])
    if name[0] == "Z":
        return (np.arange(n)[:, None] + np.arange(n)) % n
    elements = np.array(list(itertools.permutations(range(n))))
    if name[0] == "A":
        odd = sum((elements[:, i] > elements[:, j]) for i in range(n) for j in range(i + 1, n)) % 2
        elements = elements[odd == 0]
    powers = n ** np.arange(n)
    keys = elements @ powers
    order = np.argsort(keys)
    products = elements[:, elements] @ powers  # elements[a][elements[b]]: (G, G, n)
    return order[np.searchsorted(keys[order], products)]


class GroupTask:
    """See the module's text.

    P or R problems, K = steps, G elements; a problem's payload is its K operators, NONE after the
    last.
    """

    name, version, step_tokens = "group", 1, 1

    def __init__(self, config: GroupConfig) -> None:
        self.table = table(config.group)
        self.steps, self.config, self.arm = config.steps, config, config.arm.value
        elements = len(self.table)
        self.operators = np.array(config.operators or range(elements), dtype=np.int64)
        self.budget = config.format is GroupFormat.budget
        self.elements = elements
        self.bos, self.eq, self.eos, self.pad = range(2 * elements, 2 * elements + 4)
        special = 2 * elements + 4
        # The baselines keep the stride tokens of the chain of thought, so that all arms have the
        # same embedding
        self.strides = [] if self.budget else list(config.strides)
        if config.arm is Arm.direct and not self.budget and self.steps not in self.strides:
            self.strides.append(self.steps)
        self.ans = special if self.budget else NONE
        self.stride_token = {s: special + i for i, s in enumerate(self.strides)}
        # a token in the filler arm only
        self.fill = special + (1 if self.budget else len(self.strides))
        self.vocab = self.fill + (config.arm is Arm.filler)
        self.thought_end: int | None = self.ans if self.budget else None
        self.prompt_tokens = self.steps + (2 if self.budget else 3)
        if self.budget:
            written = 3 if config.arm is Arm.direct else self.steps + 3
        else:
            written = max(self._states(s) for s in self._row_strides()) + 1
        self.context = self.prompt_tokens + written - 1
        self.chance = 1 / elements
        self.floor_nat: float | None = 0.0
        self.floor_reason = "every scored token follows from the operators"
        sizes = range(1, self.steps + 1) if self.budget else [self.steps]
        self.distinct_rows = sum(len(self.operators) ** k for k in sizes)  # problems of both sides
        fixed = {
            "task": self.name,
            "version": self.version,
            "arm": self.arm,
            "group": config.group,
            "operators": self.operators.tolist(),
            "steps": self.steps,
            "format": config.format.value,
            "strides": self.strides,
        }
        self.info: dict[str, Any] = {
            **fixed,
            "chance": self.chance,
            "hash": hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16],
        }

    # --- problems
    def _row_strides(self) -> list[int]:
        return [self.steps] if self.config.arm is Arm.direct else self.strides

    def _states(self, stride: int) -> int:
        return -(-self.steps // stride)

    def _ids(self, payload: np.ndarray) -> np.ndarray:
        """uint64 hash of (group, k, operators)."""
        seed = int.from_bytes(hashlib.sha256(self.config.group.encode()).digest()[:8], "little")
        return hashes(payload, seed)

    def _of(self, payload: np.ndarray) -> Problems:
        ids = self._ids(payload)
        return Problems(ids, np.unique(ids, return_inverse=True)[1].astype(np.int64), (payload >= 0).sum(1), payload)

    def _draw(self, rng: np.random.Generator, size: np.ndarray) -> np.ndarray:
        payload = self.operators[rng.integers(0, len(self.operators), (len(size), self.steps))]
        return np.where(np.arange(self.steps) < size[:, None], payload, NONE)

    def _of_size(self, rng: np.random.Generator, k: int, n: int) -> Problems:
        return self._of(self._draw(rng, np.full(n, k)))

    def _sizes(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.integers(1, self.steps + 1, n) if self.budget else np.full(n, self.steps)

    def _side(self, rng: np.random.Generator, n: int, held_out: bool) -> np.ndarray:
        """Operators (n, K) of one side; a row that falls on the other is drawn again at its size,
        so that the law of sizes stays.
        """
        size = self._sizes(rng, n)
        payload = self._draw(rng, size)
        for attempt in range(1, 2_000):
            wrong = np.flatnonzero(held_out_side(self._ids(payload)) != held_out)
            if not len(wrong):
                return payload
            if attempt % 100 == 0:  # a size may have no problem on this side
                size[wrong] = self._sizes(rng, len(wrong))
            payload[wrong] = self._draw(rng, size[wrong])
        side = "held-out" if held_out else "training"
        raise CorpusError(f"corpus.steps={self.steps}: too few {side} problems. Use more corpus.steps or operators.")

    def problems(self, count: int, seed: int = 0, *, held_out: bool = True) -> Problems:
        """Distinct problems, as many of each size as there are up to an equal share."""
        pools = []
        for k in range(1, self.steps + 1) if self.budget else [self.steps]:
            # A stream per size, so that the first problems stay the same when more are drawn
            key = np.array([seed % 2**64, 2 + held_out], dtype=np.uint64)
            rng = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, k, 0], dtype=np.uint64)))
            total = len(self.operators) ** k
            if total > _ENUMERATE:
                pools.append(first_distinct(partial(self._of_size, rng, k), count, held_out).payload)
                continue
            digits = rng.permutation(total)[:, None] // len(self.operators) ** np.arange(k)
            payload = np.full((total, self.steps), NONE)
            payload[:, :k] = self.operators[digits % len(self.operators)]
            pools.append(payload[held_out_side(self._ids(payload)) == held_out][:count])
        rank = np.concatenate([np.arange(len(p)) for p in pools])
        return self._of(np.concatenate(pools)[np.argsort(rank, kind="stable")[:count]])

    def products(self, payload: np.ndarray) -> np.ndarray:
        """Running products (P, K); after the last operator they stay."""
        out = np.empty_like(payload)
        out[:, 0] = state = payload[:, 0]
        for t in range(1, payload.shape[1]):
            state = np.where(payload[:, t] >= 0, self.table[state, payload[:, t]], state)
            out[:, t] = state
        return out

    # --- as a corpus
    def rows(
        self, rng: np.random.Generator, n: int, *, held_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        problems = self._of(self._side(rng, n, held_out))
        tokens = np.full((n, self.context + 1), self.pad)
        scored = np.zeros(tokens.shape, bool)
        positions = np.repeat(problems.size[:, None] + 1, self.context + 1, 1)
        if self.budget:
            cut = np.where(rng.random(n) < 0.5, problems.size, (rng.random(n) * problems.size).astype(np.int64))
            groups = [(cut == b, Control(max_states=b)) for b in np.unique(cut).tolist()]
        else:
            strides = np.array(self._row_strides())[rng.integers(0, len(self._row_strides()), n)]
            groups = [(strides == s, Control(stride=s)) for s in np.unique(strides).tolist()]
        for chosen, control in groups:
            part = problems.take(chosen)
            prompt, prompt_positions = self._prompt(part, control)
            written, learned = self._written(part, control)
            row = np.concatenate([prompt, written], 1)
            tokens[chosen, : row.shape[1]] = row
            scored[chosen, prompt.shape[1] : row.shape[1]] = learned
            places = [self.position(part, control, written[:, : t + 1]) for t in range(written.shape[1])]
            positions[chosen, : row.shape[1]] = np.concatenate([prompt_positions, np.stack(places, 1)], 1)
        return tokens, scored[:, 1:].astype(np.float32), positions[:, :-1]

    def _written(self, problems: Problems, control: Control) -> tuple[np.ndarray, np.ndarray]:
        """The right continuation (P, T), padded, and which of its tokens are trained on."""
        products, size = self.products(problems.payload), problems.size
        arm, answer = self.config.arm, products[:, -1:]
        end = np.full_like(answer, self.eos)
        if not self.budget:
            count = self._states(control.stride)
            states = products[:, np.minimum(np.arange(1, count + 1) * control.stride, self.steps) - 1]
            if arm is Arm.filler:
                states[:, :-1] = self.fill
            written = np.concatenate([states, end], 1)
            learned = np.ones(written.shape, bool)
            if arm is Arm.filler:
                learned[:] = np.arange(count + 1) == count - 1
            return written, learned
        count = self._thoughts(size, control)
        # 0 at ANS, 1 at the answer, 2 at EOS
        place = np.arange(int(count.max()) + 3) - count[:, None]
        states = np.pad(products, ((0, 0), (0, 3)))[:, : place.shape[1]]
        thought = np.full_like(states, self.fill) if arm is Arm.filler else states
        written = np.select([place < 0, place == 0, place == 1, place == 2], [thought, self.ans, answer, end], self.pad)
        learned = place == 1
        if arm is not Arm.filler:
            # A cut thought must not teach the model to stop early
            learned |= (place < 0) | (place == 2) | ((place == 0) & (count == size)[:, None])
        return written, learned

    def _thoughts(self, size: np.ndarray, control: Control) -> np.ndarray:
        """States or fillers before the answer mark of the right continuation, budget format."""
        if self.config.arm is Arm.direct:
            return np.zeros_like(size)
        return size if control.max_states is None else np.minimum(size, control.max_states)

    # --- as a test
    def controls(self, ttc: TtcConfig) -> list[Control]:
        strides, max_states, min_states = ttc.strides, ttc.max_states, ttc.min_states
        problems = []
        if self.budget:
            if strides not in ([], [1]):
                problems.append(f"ttc.strides={strides}: the budget format writes every state. Use [].")
            if self.config.arm is Arm.direct and max_states not in ([], [0]):
                problems.append(f"ttc.max_states={max_states}: corpus.arm=direct has no thought to cut. Use [].")
            outside = [m for m in max_states if not 0 <= m <= self.steps]
            if outside:
                problems.append(f"ttc.max_states={outside} lies outside 0 to corpus.steps={self.steps}.")
            if min_states is not None and self.config.arm is not Arm.cot:
                problems.append(f"ttc.min_states={min_states}: only corpus.arm=cot decides when to end. Use null.")
            if min_states is not None and any(min_states > m for m in max_states):
                problems.append(f"ttc.min_states={min_states} is above one of ttc.max_states={max_states}.")
            if min_states is not None and not 0 <= min_states <= self.steps:
                problems.append(f"ttc.min_states={min_states} lies outside 0 to corpus.steps={self.steps}.")
            controls = [Control(max_states=m, min_states=min_states) for m in max_states] or [
                Control(min_states=min_states)
            ]
        else:
            known = self._row_strides()
            if max_states or min_states is not None:
                problems.append(
                    f"ttc.max_states={max_states}, ttc.min_states={min_states}: the stride format has no answer mark to force or to ban. "
                    "Use corpus.format=budget, or [] and null."
                )
            unknown = [s for s in strides if s not in known]
            if unknown:
                problems.append(f"ttc.strides={unknown} was never trained on: the strides of this task are {known}.")
            controls = [Control(stride=s) for s in strides or known]
        if problems:
            raise ConfigError(problems)
        return controls

    def _prompt(self, problems: Problems, control: Control) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and positions (P, L); all prompts of a format are equally long."""
        operators = np.where(problems.payload >= 0, problems.payload + self.elements, self.pad)
        head = [self.bos] if self.budget else [self.bos, self.stride_token[control.stride]]
        parts = [np.tile(head, (len(problems), 1)), operators, np.full((len(problems), 1), self.eq)]
        places = np.concatenate([np.zeros(len(head), np.int64), np.arange(1, self.steps + 1), [0]])
        return np.concatenate(parts, 1), np.tile(places, (len(problems), 1))

    def prompts(self, problems: Problems, control: Control) -> tuple[list[np.ndarray], list[np.ndarray]]:
        tokens, positions = self._prompt(problems, control)
        return list(tokens), list(positions)

    def max_new(self, control: Control) -> int:
        if not self.budget:
            return self._states(control.stride) + 1
        return int(self._thoughts(np.array([self.steps]), control)[0]) + 3

    def rule(self, problems: Problems, control: Control, generated: np.ndarray) -> Rule:
        n, t = generated.shape
        forced = np.full(n, NONE)
        arm = self.config.arm
        if not self.budget:
            if arm is Arm.filler:
                last = self._states(control.stride) - 1
                forced[:] = self.fill if t < last else NONE if t == last else self.eos
            return Rule(forced)
        if arm is Arm.filler:
            count = self._thoughts(problems.size, control)
            return Rule(np.select([t < count, t == count, t == count + 1], [self.fill, self.ans, NONE], self.eos))
        thinking = ~(generated == self.ans).any(1)
        most = 0 if arm is Arm.direct else control.max_states
        if most is not None and t >= most:
            forced[thinking] = self.ans
        if control.min_states is None or t >= control.min_states:
            return Rule(forced)
        banned = np.zeros((n, self.vocab), bool)
        # Beyond its last operator a thought has nothing to go on with
        banned[:, self.ans] = thinking & (t < problems.size)
        return Rule(forced, banned)

    def position(self, problems: Problems, control: Control, generated: np.ndarray) -> np.ndarray:
        size, t = problems.size, generated.shape[1]
        if not self.budget:
            return np.minimum(t * control.stride, size) if t <= self._states(control.stride) else size + 1
        marks = generated == self.ans
        # the mark takes the id of the last state written
        at = np.where(generated[:, -1] == self.ans, t - 1, t)
        return np.where(marks[:, :-1].any(1), size + 1, np.minimum(at, size))

    def grade(self, problems: Problems, control: Control, generated: np.ndarray, lengths: np.ndarray) -> Grades:
        n, width = generated.shape
        products = self.products(problems.payload)
        place = np.arange(width)
        inside = place < lengths[:, None]
        ended = np.where(inside, generated == self.eos, False)
        stop = np.where(ended.any(1), ended.argmax(1), lengths)  # the place of the end token
        truncated = np.asarray(~ended.any(1))
        if self.budget:
            marks = (generated == self.ans) & (place < stop[:, None])
            thought = np.where(marks.any(1), marks.argmax(1), stop)
            readable = ~truncated & marks.any(1) & (stop == thought + 2)
            limit = problems.size
            right = np.pad(products, ((0, 0), (0, max(0, width - self.steps))))[:, :width]
        else:
            thought, readable = stop, ~truncated & (stop >= 1)
            limit = np.full(n, self._states(control.stride))
            due = np.minimum((place + 1) * control.stride, self.steps) - 1
            right = products[:, due]
        before = np.take_along_axis(generated, np.maximum(stop - 1, 0)[:, None], 1)[:, 0]
        answer = np.where(readable & (before >= 0) & (before < self.elements), before, NONE)
        correct = answer == products[:, -1]
        if self.config.arm is Arm.filler:
            return Grades(answer, correct, np.zeros(n, np.int64), correct.copy(), truncated)
        steps = place < np.minimum(thought, limit)[:, None]
        verified = np.cumprod(np.where(steps, generated == right, False), 1).sum(1)
        whole = (verified == thought) & (thought <= limit) & (self.budget | (thought == limit))
        return Grades(answer, correct, verified, whole & correct, truncated)

    def trace(self, problems: Problems, control: Control) -> Trace:
        """Scored are states and answer; marks and the end, which carry no part of the problem,
        would only raise the mean.
        """
        tokens, _ = self._written(problems, control)
        return Trace(tokens, tokens < self.elements)
