"""RunRecords that obey a known law, for tests that must not wait for training.

The surface is L = E + A / n_total^alpha + B / tokens^beta with log-normal noise per trunk and per
point; energy, where asked for, is P0 t + e C. Nothing here is a measurement: every record says
`device: synthetic`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from harness.models import flops
from harness.records import Measured, Point, RunRecord

NO_METER = "no meter: power=unmetered"


@dataclass(frozen=True)
class Truth:
    """The law that the records obey."""

    A: float = 40.0
    B: float = 260.0
    E: float = 1.034
    alpha: float = 0.45
    beta: float = 0.40
    noise_trunk: float = 0.002  # sd of ln loss, shared by the points of a trunk
    noise_point: float = 0.001
    idle_w: float = 30.0
    j_per_flop: float = 2.0e-12
    flop_per_s: float = 4.0e10
    noise_energy: float = 0.0  # sd of ln energy, per point

    def loss(self, n: float, d: float) -> float:
        return self.E + self.A / n**self.alpha + self.B / d**self.beta


TRUTH = Truth()


def shape(width: int) -> flops.Shape:
    """A two-layer decoder, as narrow models have by the ladder's rule."""
    ffn = -(-8 * width // 3 // 16) * 16
    heads = max(1, width // 16)
    return flops.Shape(
        vocab=512,
        width=width,
        depth=max(2, round(width / 64)),
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        ffn=ffn,
        context=63,
    )


def record(
    width: int,
    *,
    seed: int = 0,
    study: str = "synthetic",
    budgets: tuple[int, ...] = (262_144, 524_288, 1_048_576, 2_097_152, 4_194_304),
    truth: Truth = TRUTH,
    energy: bool = False,
    idle: bool = False,  # with idle power measured
    corpus: str = "facts",
    role: str = "fit",
    lr_scale: float = 1.0,
    loss_factor: float = 1.0,
    annealed: bool = True,
    name: str | None = None,
) -> RunRecord:
    """One trunk of one rung with a point per budget. Deterministic in (width, seed, lr_scale)."""
    s = shape(width)
    c = flops.counts(s)
    rng = np.random.default_rng([width, seed, round(1000 * lr_scale)])
    trunk = rng.normal(0, truth.noise_trunk)
    points = []
    for d in budgets:
        loss = truth.loss(c.n_total, d) * loss_factor * float(np.exp(trunk + rng.normal(0, truth.noise_point)))
        flop = float(c.fpt_causal * d)
        rate = truth.flop_per_s * width / (width + 32)
        wall = flop / rate
        energy_j = truth.idle_w * wall + truth.j_per_flop * flop
        energy_j *= float(np.exp(np.random.default_rng([width, seed, d]).normal(0, truth.noise_energy)))
        points.append(
            Point(
                branch=f"d{d}",
                tokens=d,
                unique_tokens=d,
                epochs=1.0,
                steps=d // 1024,
                train_flop=flop,
                train_flop_full=float(c.fpt_full * d),
                train_flop_6nd=6.0 * c.n_total * d,
                loss_nat=loss,
                loss_se_nat=0.002,
                bits_per_byte=None if corpus == "facts" else loss / np.log(2) / 3.2,
                val_tokens=129_024,
                oracle_nat=truth.E if corpus == "facts" else None,
                annealed=annealed,
                wall_s=wall,
                tokens_per_s=d / wall,
                flop_per_s=rate,
                mfu=rate / 9.9e10,
                mfu_reason=None,
                energy=Measured(
                    energy_j=energy_j,
                    energy_se_j=0.01 * energy_j,
                    energy_net_j=energy_j - truth.idle_w * wall if idle else None,
                    idle_power_w=truth.idle_w if idle else None,
                    power_w=energy_j / wall,
                    source="nvml-counter",
                    verdict="valid",
                )
                if energy
                else Measured(reason=NO_METER),
                train_loss_nat=loss,
            )
        )
    ident = hashlib.sha256(f"{study} {width} {seed} {lr_scale} {role} {budgets}".encode()).hexdigest()[:12]
    top = points[-1]
    config = {
        "model": {"kind": "llama", "width": width},
        "corpus": {"kind": "facts", "zipf_a": 0.5, "vocab": 512} if corpus == "facts" else {"kind": "text"},
        "schedule": {"kind": "wsd", "decay_fraction": 0.2},
        "optim": {"kind": "adamw", "lr_scale": lr_scale},
        "study": study,
        "seed": seed,
    }
    return RunRecord(
        run_id=ident,
        study=study,
        name=name or f"d{width}-s{seed}" + ("" if lr_scale == 1 else f"-lr{lr_scale:g}"),
        role=role,
        state="done",
        seed=seed,
        config=config,
        overrides=[f"model.width={width}", f"seed={seed}"],
        counts=c,
        shape={"width": width, "depth": s.depth, "heads": s.heads, "head_dim": s.head_dim, "vocab": s.vocab},
        hyper={"lr": 0.01 * lr_scale, "batch_tokens": 1024, "weight_decay": 0.1, "beta2": 0.99, "rule": "test rule"},
        corpus={
            "corpus_id": corpus,
            "tokenizer": "none" if corpus == "facts" else "bytes",
            "floor_nat": truth.E if corpus == "facts" else None,
        },
        points=points,
        spent={
            "train": {
                "tokens": top.tokens,
                "flop": top.train_flop * 1.1,
                "wall_s": top.wall_s * 1.1,
                "energy_j": None if not energy else 1.1 * (top.energy.energy_j or 0.0),
                "energy_reason": None if energy else NO_METER,
            },
            "eval": {
                "tokens": 129_024 * len(points),
                "flop": 129_024.0 * len(points) * c.fpt_causal / 3,
                "wall_s": 1.5,
                "energy_j": None,
                "energy_reason": NO_METER if not energy else "window too short",
            },
        },
        provenance={"commit": "0" * 40, "device": "synthetic", "versions": {"torch": "0"}, "host_class": "test"},
        meter={"source": "nvml" if energy else "unmetered"},
    )


def ladder(
    *, widths: tuple[int, ...] = (16, 24, 32, 48, 64, 96, 128), seeds: int = 1, rates: bool = False, **kw: object
) -> list[RunRecord]:
    """A ladder of trunks; `rates` adds the probes of a learning-rate check at the smallest and the
    largest rung.
    """
    records = [record(w, seed=s, **kw) for w in widths for s in range(seeds)]  # type: ignore[arg-type]
    if rates:
        for w in (widths[0], widths[-1]):
            for scale, factor in ((0.5, 1.02), (2.0, 1.03)):
                records.append(record(w, role="probe", lr_scale=scale, loss_factor=factor, **kw))  # type: ignore[arg-type]
    return records


def many(count: int, truth: Truth = TRUTH) -> list[RunRecord]:
    """`count` records of five points each, for benches of the report."""
    widths = (16, 24, 32, 48, 64, 96, 128)
    return [record(widths[i % len(widths)], seed=i // len(widths), truth=truth) for i in range(count)]
