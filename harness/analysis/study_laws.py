"""The laws of a study: the table that each is fitted to, or why there is none, and the fits.

Loss laws are fitted without weights. Energy laws weigh each point by its error bar, at least 0.5 %.
They also state their result with all powers shifted by 5 W, which is the effect of a wrong zero of
the sensor: an offset moves the exponent of rungs where idle power dominates; a gain moves none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from harness import laws
from harness.analysis.points import N_DEFAULT, Array, PointTable, floor, frontier_points, points
from harness.errors import FitError
from harness.laws.catalogue import law_of
from harness.laws.result import Fit, Warn
from harness.records import RunRecord

FIT_NAMES = {
    "loss_nd": "L(N, D), all rungs",
    "loss_nd_heldout": "L(N, D), largest rung held out",
    "loss_nd_floor_fixed": "L(N, D), floor fixed at the known entropy",
    "loss_nd_nonemb": "L(N, D) with N = n_nonemb",
    "loss_nd_head": "L(N, D) with N = n_head",
    "loss_compute": "L(C) on the frontier",
    "loss_compute_matmul": "L(C) on the frontier, C without attention",
    "loss_compute_full_emb": "L(C) on the frontier, C with dense attention and embedding",
    "energy_compute": "E(C), training energy, gross",
    "energy_compute_net": "E(C), training energy, net of idle",
    "energy_idle": "E = P t + e C, idle power fitted",
    "energy_idle_fixed": "E = P t + e C, idle power as measured",
    "loss_energy": "L(J) on the energy frontier",
}
ENERGY_FITS = [name for name in FIT_NAMES if "energy" in name]
MIN_FRONTIER = 4  # points of a frontier below which three parameters are not worth fitting
SIGMA_FLOOR = 0.005  # of an energy: no error bar counts as smaller
OFFSET_W = 5.0
IDLE_SPREAD_W = 5.0  # idle powers of one study that differ by more are not one number


@dataclass(frozen=True)
class Job:
    """One law to fit: symbol -> column of `table`, fixed parameters, and the rung to hold out."""

    law: str
    table: PointTable
    columns: dict[str, str]
    fixed: dict[str, float] = field(default_factory=dict)
    hold_out: str | None = None
    notes: list[Warn] = field(default_factory=list)


def jobs(records: Sequence[RunRecord], excluded: dict[str, int] | None = None) -> dict[str, Job | str]:
    """What would be fitted, or the reason why not, for every name of `FIT_NAMES`."""
    table = points(records, excluded)
    reasons = _unusable(records, table)
    if reasons:
        return dict.fromkeys(FIT_NAMES, reasons)
    nd = {"N": N_DEFAULT, "D": "tokens", "loss": "loss_nat"}
    lowest = floor(records)
    oracle = lowest.oracle_nat if lowest.oracle_nat is not None else lowest.entropy_nat
    out: dict[str, Job | str] = {
        "loss_nd": Job("chinchilla", table, nd),
        "loss_nd_heldout": Job("chinchilla", table, nd, hold_out=table.rungs()[-1]),
        "loss_nd_floor_fixed": Job("chinchilla", table, nd, {"E": oracle})
        if oracle is not None
        else str(lowest.reason),
        "loss_nd_nonemb": Job("chinchilla", table, nd | {"N": "n_nonemb"}),
        "loss_nd_head": Job("chinchilla", table, nd | {"N": "n_head"}),
        "loss_compute": _frontier_job(table, "train_flop", {"C": "train_flop"}, "loss_compute"),
        "loss_compute_matmul": _frontier_job(table, "matmul_flop", {"C": "matmul_flop"}, "loss_compute"),
        "loss_compute_full_emb": _frontier_job(table, "full_emb_flop", {"C": "full_emb_flop"}, "loss_compute"),
    }
    return out | _energy_jobs(table)


def _energy_jobs(table: PointTable) -> dict[str, Job | str]:
    measured = table.where(np.isfinite(table.energy_j))
    if len(measured) < MIN_FRONTIER:
        reasons = "; ".join(f"{reason} ({n} points)" for reason, n in table.energy_excluded.items())
        return dict.fromkeys(ENERGY_FITS, f"energy of {len(measured)} of {len(table)} points: {reasons}")
    if len(devices := sorted(set(measured.device))) > 1:
        return dict.fromkeys(ENERGY_FITS, f"points of different devices are not pooled: {', '.join(devices)}")
    power = {"C": "train_flop", "energy": "energy_j"}
    idle_w = measured_idle_w(measured)
    out: dict[str, Job | str] = {
        "energy_compute": Job("energy_power", measured, power),
        "energy_idle": Job("energy_idle", measured, power | {"t": "wall_s"}),
    }
    if isinstance(idle_w, str):
        out["energy_compute_net"] = out["energy_idle_fixed"] = idle_w
    else:
        out["energy_compute_net"] = _net_job(measured, power | {"energy": "energy_net_j"})
        out["energy_idle_fixed"] = Job("energy_idle", measured, power | {"t": "wall_s"}, {"P_idle": idle_w})
    out["loss_energy"] = _frontier_job(measured, "energy_j", {"J": "energy_j"}, "loss_energy")
    return out


def measured_idle_w(measured: PointTable) -> float | str:
    """Idle power of the device during these points, W, or why there is no such number."""
    idle_w = measured.idle_power_w[np.isfinite(measured.idle_power_w)]
    if len(idle_w) < len(measured):
        return (
            f"idle power was not measured for {len(measured) - len(idle_w)} of {len(measured)} points: "
            "harness doctor --sensor measures it, and runs after it state net joules"
        )
    if np.ptp(idle_w) > IDLE_SPREAD_W:
        return f"idle power differs between points, {idle_w.min():.1f} to {idle_w.max():.1f} W: one baseline cannot hold for all"
    return float(idle_w.mean())


def _net_job(measured: PointTable, columns: dict[str, str]) -> Job | str:
    positive = measured.energy_net_j > 0
    if positive.sum() < MIN_FRONTIER:
        return f"net energy is above 0 for {positive.sum()} of {len(measured)} points: the idle power takes all of it"
    notes = []
    if not positive.all():
        text = f"{(~positive).sum()} of {len(measured)} points have no net energy above 0 and are left out: the exponent is biased"
        notes = [Warn("NET_NOT_POSITIVE", text)]
    return Job("energy_power", measured.where(positive), columns, notes=notes)


def _unusable(records: Sequence[RunRecord], table: PointTable) -> str | None:
    """Why nothing can be fitted at all: no points, or losses that cannot be compared."""
    if not len(table):
        left_out = ", ".join(f"{reason}: {n}" for reason, n in table.excluded.items())
        return "no point to fit" + (f" (left out: {left_out})" if left_out else "")
    for field_name in ("corpus_id", "tokenizer"):
        values = {str(record.corpus.get(field_name)) for record in records if record.role == "fit"}
        if len(values) > 1:
            return f"losses on different scales cannot be fitted together: {field_name} is {', '.join(sorted(values))}"
    contexts = {str(record.shape.get("context")) for record in records if record.role == "fit"}
    if len(contexts) > 1:
        return f"losses over different contexts cannot be fitted together: context is {', '.join(sorted(contexts))}"
    return None


def _frontier_job(table: PointTable, x: str, symbol: dict[str, str], law: str) -> Job | str:
    front, interior = frontier_points(table, x)
    if len(front) < MIN_FRONTIER:
        return f"{len(front)} points on the frontier of loss against {x}; at least {MIN_FRONTIER} are needed"
    if interior.sum() >= MIN_FRONTIER + 1:
        return Job(law, front.where(interior), symbol | {"loss": "loss_nat"})
    edge = int((~interior).sum())
    text = (
        f"{edge} of {len(front)} frontier points are of the smallest or largest rung; the true frontier may lie lower"
    )
    return Job(law, front, symbol | {"loss": "loss_nat"}, notes=[Warn("FRONTIER_EDGE", text)])


def fit_study(
    records: Sequence[RunRecord],
    excluded: dict[str, int] | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    delta: float | None = None,
) -> dict[str, Fit]:
    """Every law that the records allow, by its name in `FIT_NAMES`; `unfitted` explains the rest.

    Intervals resample whole trunks (`run_id`), because the points of one trunk share its noise.
    """
    fits: dict[str, Fit] = {}
    for name, job in jobs(records, excluded).items():
        if isinstance(job, str):
            continue
        try:
            fits[name] = _run(job, bootstrap=bootstrap, seed=seed, delta=delta)
        except FitError:
            continue  # `unfitted` gives the reason
        fits[name].warnings.extend(job.notes)
        if "energy" in job.columns and not _absorbs_offset(job):
            _shift_powers(job, fits[name], delta)
    return fits


def _run(job: Job, *, bootstrap: int, seed: int, delta: float | None) -> Fit:
    table = job.table
    return laws.fit(
        job.law,
        {symbol: getattr(table, column) for symbol, column in job.columns.items()},
        sigma=_sigma(job),
        delta=delta,
        bootstrap=bootstrap,
        seed=seed,
        cluster=table.run_id,
        strata=table.rung,
        fixed=job.fixed,
        hold_out=None if job.hold_out is None else table.rung == job.hold_out,
        hold_out_label=job.hold_out,
        columns=job.columns,
        excluded=table.excluded,
    )


def _sigma(job: Job) -> Array | None:
    """Error bar of each energy, at least `SIGMA_FLOOR`.

    None for laws of loss, or without error bars.
    """
    column = {"energy_j": "energy_se_j", "energy_net_j": "energy_net_se_j"}.get(job.columns.get("energy", ""))
    if column is None:
        return None
    energy, se = getattr(job.table, job.columns["energy"]), getattr(job.table, column)
    return np.hypot(se, SIGMA_FLOOR * energy) if np.isfinite(se).all() else None


def _absorbs_offset(job: Job) -> bool:
    """Whether a fitted power of its own takes up a wrong zero of the sensor."""
    return "t" in job.columns and not job.fixed


def _shift_powers(job: Job, fit: Fit, delta: float | None) -> None:
    """Refit with every power 5 W lower and higher; the slopes (b, or e) go into `fit.derived`."""
    law = law_of(fit)
    slope = law.exponents[0] if law.exponents else law.params[-1]
    for shift_w, label in ((-OFFSET_W, "minus"), (OFFSET_W, "plus")):
        column = job.columns["energy"]
        shifted = replace(job.table)
        setattr(shifted, column, getattr(job.table, column) + shift_w * job.table.wall_s)
        try:
            refit = _run(replace(job, table=shifted), bootstrap=0, seed=0, delta=delta)
        except FitError:
            text = f"with all powers {abs(shift_w):g} W lower some joules are not above 0: an offset of that size decides this law"
            fit.warnings.append(Warn("OFFSET_DECIDES", text))
            continue
        fit.derived[f"{slope}_at_{label}_5w"] = refit.params[slope]
        interval = fit.interval.get(slope)
        if interval and not interval[0] <= refit.params[slope] <= interval[1]:
            text = f"{slope} becomes {refit.params[slope]:.4g} with all powers shifted by {shift_w:+g} W, outside its 95 % interval"
            fit.warnings.append(Warn("OFFSET_SENSITIVE", text))


def unfitted(
    records: Sequence[RunRecord], fits: dict[str, Fit], excluded: dict[str, int] | None = None
) -> dict[str, str]:
    """Name -> reason for every law of `FIT_NAMES` that `fits` lacks."""
    reasons: dict[str, str] = {}
    if fits.keys() >= FIT_NAMES.keys():
        return reasons
    for name, job in jobs(records, excluded).items():
        if name in fits:
            continue
        if isinstance(job, str):
            reasons[name] = job
            continue
        try:
            _run(job, bootstrap=0, seed=0, delta=None)
            reasons[name] = "not fitted yet; run harness fit"
        except FitError as e:
            reasons[name] = str(e)
    return reasons
