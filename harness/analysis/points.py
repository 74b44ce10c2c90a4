"""Records to arrays: the table that the laws are fitted to, its frontier, its noise and its floor.

Loss is in nat per scored token, compute in FLOP (causal count), energy in joule, size in
parameters. A missing number is NaN in arrays, because numpy has no None, and None with a reason
outside of them. A row enters the loss laws when its run is done, its role is `fit` and the point is
annealed. It enters the energy laws when its joules were measured too and the meter's verdict is not
`invalid`. Rows that are left out are counted by reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.records import RunRecord

Array = np.ndarray
CONVENTIONS = ("n_total", "n_nonemb", "n_head")
N_DEFAULT = "n_total"


@dataclass
class PointTable:
    """One row per point that enters the loss laws, as arrays of equal length.

    `excluded` and `energy_excluded`: reason -> points that are left out.
    """

    run_id: Array
    name: Array
    study: Array
    device: Array
    seed: Array
    rung: Array  # label, e.g. "width 64"
    width: Array
    n_total: Array
    n_nonemb: Array
    n_head: Array
    tokens: Array
    unique_tokens: Array
    epochs: Array
    train_flop: Array  # causal count
    matmul_flop: Array  # of the same training, counted without attention
    full_emb_flop: Array  # counted with dense attention and the embedding as a product
    loss_nat: Array
    loss_se_nat: Array
    bits_per_byte: Array  # NaN where the corpus has no bytes
    oracle_nat: Array  # NaN where unknown
    energy_j: Array  # NaN where unmeasured or invalid
    energy_se_j: Array
    # Minus idle_power_w over the point's windows; NaN without a measured idle power
    energy_net_j: Array
    energy_net_se_j: Array  # error of the reading and of the idle power, which grows with time
    idle_power_w: Array  # of the device with a context resident and no work
    idle_bare_w: Array  # of the device without a context
    verdict: Array
    wall_s: Array
    tokens_per_s: Array
    mfu: Array  # NaN where unknown
    excluded: dict[str, int] = field(default_factory=dict)
    energy_excluded: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.run_id)

    def where(self, mask: Array) -> PointTable:
        """The rows where `mask` holds; the counts of exclusions stay those of the whole table."""
        return PointTable(
            **{n: getattr(self, n)[mask] for n in _ARRAYS}, excluded=self.excluded, energy_excluded=self.energy_excluded
        )

    def columns(self) -> dict[str, Array]:
        return {n: getattr(self, n) for n in _ARRAYS}

    def rungs(self) -> list[str]:
        """Rung labels from the smallest to the largest n_total."""
        return [str(r) for r in dict.fromkeys(self.rung[np.argsort(self.n_total, kind="stable")])]


_ARRAYS = [n for n, f in PointTable.__dataclass_fields__.items() if f.type == "Array"]
_TEXT = {"run_id", "name", "study", "device", "rung", "verdict"}
_ENERGY = ("energy_j", "energy_se_j", "energy_net_j", "idle_power_w")


def rung_labels(records: Sequence[RunRecord]) -> dict[int, str]:
    """n_total -> label: the width, with the depth where two rungs share it; else n_total."""
    rungs = {record.counts.n_total: (record.shape.get("width"), record.shape.get("depth")) for record in records}
    widths = Counter(w for w, _ in rungs.values())
    shapes = Counter(rungs.values())
    labels = {}
    for n, (width, depth) in sorted(rungs.items()):
        if width is None or shapes[(width, depth)] > 1:
            labels[n] = f"N {n:,}"
        else:
            labels[n] = f"width {width}" + (f", depth {depth}" if widths[width] > 1 else "")
    return labels


def baselines(record: RunRecord) -> tuple[float | None, float | None]:
    """Idle power of the cards without a CUDA context, and the standard error of that with one, W.

    Both are sums over the sensor cards; None where one of the cards was not measured.
    """
    cards = record.meter.get("sensor_cards") or [None]

    def of_cards(name: str) -> list[float] | None:
        values = [None if c is None else c.get(name) for c in cards]
        return None if None in values else [float(v) for v in values if v is not None]

    bare, sd = of_cards("idle_bare_w"), of_cards("idle_context_sd_w")
    return None if bare is None else math.fsum(bare), None if sd is None else math.hypot(*sd)


def points(records: Sequence[RunRecord], excluded: dict[str, int] | None = None) -> PointTable:
    """The table of fit points; its counts include `excluded` (state -> runs)."""
    labels = rung_labels(records)
    out: Counter[str] = Counter({f"runs {state}": n for state, n in (excluded or {}).items()})
    no_energy: Counter[str] = Counter()
    columns: dict[str, list] = {n: [] for n in _ARRAYS}
    for record in records:
        of_run = vars(record.counts) | {
            "run_id": record.run_id,
            "name": record.name,
            "study": record.study,
            "seed": record.seed,
        }
        bare_w, idle_sd_w = baselines(record)
        of_run |= {"rung": labels[record.counts.n_total], "width": record.shape.get("width"), "idle_bare_w": bare_w}
        of_run |= {"device": str(record.provenance.get("device"))}
        for p in record.points:
            if record.state != "done":
                out[f"points of a run that is {record.state}"] += 1
            elif record.role != "fit":
                out[f"role {record.role}"] += 1
            elif not p.annealed:
                out["not annealed"] += 1
            else:
                e = p.energy
                of_energy = {k: getattr(e, k) for k in _ENERGY} | {"verdict": e.verdict, "energy_net_se_j": None}
                if e.energy_j is None or e.verdict == "invalid":
                    no_energy[e.reason or f"verdict {e.verdict}: {', '.join(e.codes) or 'no code'}"] += 1
                    of_energy |= dict.fromkeys(_ENERGY)
                elif e.energy_se_j is not None and idle_sd_w is not None:
                    of_energy["energy_net_se_j"] = math.hypot(e.energy_se_j, idle_sd_w * p.wall_s)
                counted = {"matmul_flop": record.counts.fpt_matmul, "full_emb_flop": record.counts.fpt_full_emb}
                of_count = {k: per_token * p.tokens for k, per_token in counted.items()}
                for values in (of_run, vars(p), of_count, of_energy):
                    for n in values.keys() & columns.keys():
                        columns[n].append(values[n])
    # None becomes NaN
    arrays = {n: np.array(c, dtype=str if n in _TEXT else float) for n, c in columns.items()}
    return PointTable(**arrays, excluded=dict(out), energy_excluded=dict(no_energy))


# --- frontier, noise, checks ----------------------------------------------------------------------
def seed_means(table: PointTable) -> PointTable:
    """One row per (rung, budget), with geometric means over seeds of loss and energy.

    Other columns are those of the first seed.
    """
    groups: dict[tuple[str, float], list[int]] = {}
    for i in range(len(table)):
        groups.setdefault((str(table.rung[i]), float(table.tokens[i])), []).append(i)
    means = table.where(np.array([g[0] for g in groups.values()], dtype=int))
    for column in ("loss_nat", "energy_j"):
        values = getattr(table, column)
        setattr(means, column, np.array([float(np.exp(np.mean(np.log(values[g])))) for g in groups.values()]))
    return means


def frontier_points(table: PointTable, x: str = "train_flop") -> tuple[PointTable, Array]:
    """Points on the lower envelope of loss against `x`, and whether each lies on an interior rung.

    The seed means of each rung are joined by straight lines in log-log space. A point is on the
    frontier when at least one other rung was run at its `x` and no other rung has a lower loss at
    that `x` or at less. Without another rung nothing shows that the point is the best.
    """
    m = seed_means(table)
    m = m.where(np.isfinite(getattr(m, x)) & (getattr(m, x) > 0))
    if not len(m):
        return m, np.zeros(0, dtype=bool)
    ln_x, ln_loss = np.log(getattr(m, x)), np.log(m.loss_nat)
    rivals, compared = np.full((len(m.rungs()), len(m)), np.nan), np.zeros(len(m), dtype=bool)
    for k, rung in enumerate(m.rungs()):
        rows = np.flatnonzero(m.rung == rung)
        rows = rows[np.argsort(ln_x[rows])]
        # Beyond its last point, its last loss
        rivals[k] = np.interp(ln_x, ln_x[rows], ln_loss[rows], left=np.nan)
        rivals[k, rows] = np.nan
        compared |= (ln_x >= ln_x[rows[0]]) & (ln_x <= ln_x[rows[-1]]) & (m.rung != rung)
    lowest = np.where(compared, np.nanmin(np.where(np.isfinite(rivals), rivals, np.inf), axis=0), -np.inf)
    front = m.where(ln_loss <= lowest)
    front = front.where(np.argsort(getattr(front, x), kind="stable"))
    ends = {m.rungs()[0], m.rungs()[-1]}
    return front, np.array([r not in ends for r in front.rung], dtype=bool)


@dataclass(frozen=True)
class SeedNoise:
    """Pooled standard deviation of ln loss over seeds at one (rung, budget)."""

    sd_ln: float
    groups: int
    dof: int


def seed_noise(table: PointTable) -> SeedNoise | None:
    """None where no (rung, budget) was run with two seeds: then the noise is unknown, not zero."""
    groups: dict[tuple[str, float], list[float]] = {}
    for rung, tokens, loss in zip(table.rung, table.tokens, table.loss_nat, strict=True):
        groups.setdefault((str(rung), float(tokens)), []).append(math.log(loss))
    repeated = [np.array(g) for g in groups.values() if len(g) > 1]
    if not repeated:
        return None
    dof = sum(len(g) - 1 for g in repeated)
    return SeedNoise(math.sqrt(sum(float(((g - g.mean()) ** 2).sum()) for g in repeated) / dof), len(repeated), dof)


@dataclass(frozen=True)
class RateCheck:
    """Losses of one rung, budget and seed at scaled learning rates s.

    `relative[s]` is loss(s) / loss(1) - 1.
    """

    rung: str
    n_total: int
    seed: int
    tokens: int
    relative: dict[float, float]
    best: float
    at_edge: bool  # the best rate tried is the smallest or the largest
    resolved: bool  # the edge is lower by more than two standard deviations over seeds, if known


def rate_check(records: Sequence[RunRecord], noise: SeedNoise | None = None) -> list[RateCheck]:
    """Compare runs that differ in `optim.lr_scale` alone, at their largest common budget."""
    labels = rung_labels(records)
    losses: dict[tuple[int, int, int], dict[float, float]] = {}
    for record in records:
        scale = float(record.config.get("optim", {}).get("lr_scale", 1.0))
        for p in record.points:
            if record.state == "done" and p.annealed:
                losses.setdefault((record.counts.n_total, record.seed, p.tokens), {})[scale] = p.loss_nat
    latest: dict[tuple[int, int], RateCheck] = {}
    for (n, seed, tokens), by_scale in sorted(losses.items()):
        if len(by_scale) < 2 or 1.0 not in by_scale:
            continue
        relative = {s: by_scale[s] / by_scale[1.0] - 1 for s in sorted(by_scale)}
        best = min(relative, key=relative.__getitem__)
        edge = best in (min(relative), max(relative))
        gain = -math.log1p(relative[best])
        resolved = edge and (noise is None or gain > 2 * noise.sd_ln)
        latest[(n, seed)] = RateCheck(labels[n], n, seed, tokens, relative, best, edge, resolved)
    return list(latest.values())


@dataclass(frozen=True)
class Floor:
    """The best possible loss, nat per scored token.

    Both are None where it is unknown, for `reason`.
    """

    entropy_nat: float | None  # of the source, in closed form
    oracle_nat: float | None  # mean over points of the best loss on their own validation tokens
    reason: str | None


def floor(records: Sequence[RunRecord]) -> Floor:
    entropies = {record.corpus.get("floor_nat") for record in records}
    oracles = [p.oracle_nat for record in records for p in record.points if p.oracle_nat is not None]
    entropy = entropies.pop() if len(entropies) == 1 else None
    oracle = float(np.mean(oracles)) if oracles else None
    if entropy is not None or oracle is not None:
        return Floor(entropy, oracle, None)
    reasons = {
        str(record.corpus.get("floor_reason") or "the entropy of this corpus is not known") for record in records
    }
    return Floor(None, None, "; ".join(sorted(reasons)) or "there is no run")


def theory(records: Sequence[RunRecord]) -> dict[str, float] | None:
    """Exponents expected on the facts corpus with Zipf exponent a: a for N, a / (1 + a) for D.

    Sources: arXiv:2303.13506 for N, arXiv:2102.04074 for D. None for other corpora.
    """
    exponents = {
        record.config.get("corpus", {}).get("zipf_a")
        for record in records
        if record.config.get("corpus", {}).get("kind") == "facts"
    }
    if len(exponents) != 1 or None in exponents:
        return None
    (a,) = exponents
    return {"alpha": float(a), "beta": float(a) / (1 + float(a))}


# --- export ---------------------------------------------------------------------------------------
def study_table(records: Sequence[RunRecord]) -> list[dict[str, str | int | float | bool | None]]:
    """One flat row per point, with probes and points that are not annealed."""
    rows = []
    for record in records:
        head = {
            "run_id": record.run_id,
            "study": record.study,
            "name": record.name,
            "role": record.role,
            "state": record.state,
            "seed": record.seed,
        }
        shape = {k: record.shape.get(k) for k in ("width", "depth", "heads", "head_dim", "vocab", "context")}
        hyper = {
            k: record.hyper.get(k) for k in ("lr", "batch_tokens", "weight_decay", "beta2", "warmup_tokens", "rule")
        }
        setting = {
            "corpus": record.corpus.get("corpus_id"),
            "tokenizer": record.corpus.get("tokenizer"),
            "schedule": record.config.get("schedule", {}).get("kind"),
            "decay_fraction": record.config.get("schedule", {}).get("decay_fraction"),
            "lr_scale": record.config.get("optim", {}).get("lr_scale"),
            "device": record.provenance.get("device"),
            "commit": record.provenance.get("commit"),
        }
        for p in record.points:
            point = {k: v for k, v in vars(p).items() if k != "energy"}
            energy = vars(p.energy) | {"codes": " ".join(p.energy.codes)}
            energy["energy_reason"], energy["energy_source"] = energy.pop("reason"), energy.pop("source")
            energy["energy_verdict"], energy["energy_codes"] = energy.pop("verdict"), energy.pop("codes")
            energy["energy_notes"] = "; ".join(energy.pop("notes"))
            rows.append(head | shape | vars(record.counts) | hyper | setting | point | energy)
    return rows
