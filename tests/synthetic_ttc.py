"""TtcRecords that obey a known law, for tests of what is fitted to them.

Nothing here is a measurement.
"""

from __future__ import annotations

import numpy as np

from harness.records import Measured
from harness.records.ttc import ProblemStats, Smooth, TtcRecord, TtcRow


def row(strategy: str, n: int, accuracy: float | None, *, decode: float = 1e6, joules: float | None = None) -> TtcRow:
    return TtcRow(
        strategy, n, accuracy, accuracy, accuracy, None if accuracy is not None else "not drawn", 12.0 * n, 0.0, 0.0,
        decode * n, 0.0, decode * n, 12.0, energy_j=joules, energy_basis="metered" if joules else None,
        energy_reason=None if joules else "no meter: power=unmetered",
    )  # fmt: skip


def record(
    p: np.ndarray,
    *,
    samples: int = 64,
    seed: int = 0,
    train_flop: float = 1e12,
    tokens: int = 1000,
    decode: float = 1e6,
    train_j: float | None = None,
    query_j: float | None = None,
    stride: int = 1,
    budget: int | None = None,
    size: list[int] | None = None,
    greedy: list[bool] | None = None,
    smooth: Smooth | None = None,
    chance: float = 0.0,
    rows: list[TtcRow] | None = None,
) -> TtcRecord:
    """`p` (P,): chance that one sample of each problem is right; wrong ones all differ, so that
    votes find the right one.
    """
    rng = np.random.default_rng([seed, tokens, stride, round(decode)])
    right = rng.binomial(samples, p)
    wrong = [rng.multinomial(samples - c, np.full(20, 0.05)).tolist() for c in right]
    stats = ProblemStats(
        list(range(len(p))), size or [12] * len(p), greedy or (p > 0.5).tolist(), right.tolist(), right.tolist(), [0] * len(p), wrong
    )  # fmt: skip
    accuracy = float(right.mean() / samples)
    return TtcRecord(
        cell=f"c{tokens}-{stride}-{budget}", study="synthetic", run_id=f"s{seed}", name=f"d64-s{seed}", seed=seed,
        branch=f"d{tokens}", width=64, n_total=100_000, n_matmul=90_000, tokens=tokens, train_flop=train_flop,
        train_wall_s=None, train_energy=Measured(energy_j=train_j) if train_j else Measured(reason="no meter"),
        train_source="measured", task={"name": "group"},
        control={"stride": stride, "max_states": budget, "min_states": None}, label=f"stride {stride}",
        temperature=1.0, problems=len(p), samples=samples, chance=chance, accuracy_of="answer",
        rows=rows or [row("sample", 1, accuracy, decode=decode, joules=query_j)], stats=stats, smooth=smooth,
        smooth_reason=None if smooth else "no reference trace", mean_tokens=12.0, extracted=1.0, truncated=0.0,
    )  # fmt: skip


def exchange_ladder(g: float, *, seeds: int = 3, problems: int = 150, joules: bool = False) -> list[TtcRecord]:
    """Accuracy = sigmoid(ln F_test/1e6 + g ln F_train/1e12), so that F_test ~ F_train^-g at equal
    accuracy.
    """
    out = []
    for seed in range(seeds):
        for stride in (1, 2, 4):
            decode = 1e6 / stride
            for i in range(10):
                train = 1e12 * 10 ** (-2 + 0.5 * i)
                logit = np.log(decode / 1e6) + g * np.log(train / 1e12)
                spread = np.random.default_rng([seed, 7]).normal(0, 0.05, problems)
                p = np.clip(1 / (1 + np.exp(-logit)) + spread, 0.001, 0.999)
                train_j, query_j = (train * 1e-12, decode * 1e-9) if joules else (None, None)
                out.append(
                    record(
                        p,
                        seed=seed,
                        train_flop=train,
                        tokens=i + 1,
                        decode=decode,
                        stride=stride,
                        train_j=train_j,
                        query_j=query_j,
                    )
                )
    return out


def lines_that_break_even(g: float, *, seed: int = 0, problems: int = 200, noisy: bool = False) -> list[TtcRecord]:
    """Greedy accuracy = sigmoid(ln F_test/1e6 + g ln F_train/1e12) of three lines at test costs
    1e6, 5e5 and 2.5e5 FLOP.

    Exactly so unless `noisy`: then each problem is right by chance, the same draw of luck in every
    cell.
    """
    out = []
    luck = np.random.default_rng([seed, 11]).random(problems) if noisy else (np.arange(problems) + 0.5) / problems
    for stride in (1, 2, 4):
        for i in range(31):
            train = 1e12 * 10 ** (-1 + 0.15 * i)
            p = 1 / (1 + np.exp(-(np.log(1 / stride) + g * np.log(train / 1e12))))
            cell = row("greedy", 1, p, decode=1e6 / stride)
            out.append(record(np.full(problems, p), samples=4, train_flop=train, tokens=i + 1, decode=1e6 / stride,
                              stride=stride, greedy=(luck < p).tolist(), rows=[cell]))  # fmt: skip
    return out


def emergent(tokens_of_trace: int, *, bend: float = 0.0, chance: float = 0.1, jump: bool = False) -> list[TtcRecord]:
    """Exact match = c + (1 - c) p_token^T; logit p_token is a line in ln FLOP, plus `bend` above
    the middle end point.
    """
    out, rng = [], np.random.default_rng(3)
    for i in range(12):
        flop = 10.0 ** (10 + 0.25 * i)
        logit = -1.0 + 0.45 * i + bend * max(0, i - 6) + rng.normal(0, 0.03)
        token = 1 / (1 + np.exp(-logit))
        exact = chance + (1 - chance) * token**tokens_of_trace
        if jump:
            exact = chance if i < 6 else 0.95
        s = Smooth(0.1, token, token**tokens_of_trace, 0.1, float(tokens_of_trace), [token] * tokens_of_trace,
                   token - 0.005, token + 0.005 * (1 - token), token**tokens_of_trace, token**tokens_of_trace)  # fmt: skip
        out.append(record(np.full(200, exact), train_flop=flop, tokens=i + 1, smooth=s, chance=chance))
    return out
