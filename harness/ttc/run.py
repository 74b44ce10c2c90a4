"""START HERE: the path of one evaluation, from a finished run (or a pretrained model) to its TtcRecords.

An evaluation is all that is asked of one run: every end point x control x temperature is a cell, drawn in units (`blocks.py`), scored
(`score.py`), metered (`metering.py`). It lives in `<run_dir>/ttc/` with a state, a lock, a spend file and a mirror of its own, so the
ledger of the training stays what training used. Killed at any moment, it resumes with the units that are missing.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import records
from harness.config import identity
from harness.config.checks import require
from harness.config.schema import RunConfig
from harness.errors import ConfigError
from harness.models.flops import counts
from harness.power.meter import Meter, open_meter
from harness.records import Measured, RunState, SpendRow
from harness.records.ttc import FOLDER, QUESTION_FILE, TtcRecord, Window, question
from harness.runtime import attempt, energy_budget, provenance, signals
from harness.runtime import device as devices
from harness.runtime.attempt import Attempt, Interrupted
from harness.tasks.task import Control
from harness.track.wandb import Mirror
from harness.ttc import metering, sampling, score, wandb_rows, work_units
from harness.ttc.decode import Decoder
from harness.ttc.spend import Books
from harness.ttc.strategies import scorer
from harness.ttc.subjects import Subject, dtype, open_subjects
from harness.ttc.work_units import Unit

SEEN = 256  # problems of the training side, for `seen_greedy`
COUNTED = ("answer", "correct", "verified", "trace_ok", "truncated", "length", "forced", "logprob")


def evaluate(config: RunConfig, *, workers: int = 1) -> RunState:
    """Evaluate what is missing of this run's end points and return the state that the evaluation ended in, as `attempt.make` says.

    `workers` is how many runs share this machine's cores. ConfigError for a config that cannot be evaluated, BusyError when another
    process evaluates the same run.
    """
    require(config)

    def work(this: Attempt) -> None:
        with signals.listening():
            _Evaluation(config, this, workers).run()

    return attempt.make(identity.run_dir(config) / FOLDER, f"{identity.run_name(config)} ttc", config.run, work)


@dataclass(frozen=True)
class Cell:
    branch: str
    control: Control
    temperature: float
    key: str
    folder: Path


class _Evaluation:
    def __init__(self, config: RunConfig, this: Attempt, workers: int) -> None:
        self.config, self.ttc, self.attempt, self.folder, self.state = config, config.ttc, this, this.folder, this.state
        self.run_id, self.name, self.resolved = (
            identity.run_id(config),
            identity.run_name(config),
            identity.resolved(config),
        )
        # Sampling sums probabilities with a kernel that the deterministic mode refuses on CUDA; the setting is of training
        self.device = devices.choose(dataclasses.replace(config.device, deterministic=False), workers)
        self.reason = energy_budget.guard(config.budget.kwh, self.folder.parent.parent, signals.reason)
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        self.meter: Meter = open_meter(
            config.power, self.folder / "power", attempt=this.state.attempt, cuda_visible=card
        )
        self.books = Books(self.folder, this.state.attempt, self.meter, self.device.sync)
        self.cells: list[TtcRecord] = []

    # --- the whole
    def run(self) -> None:
        # First of all: whatever stops this attempt from here on, the next one no longer knows of the kill
        if self.attempt.killed:
            self.books.book_lost()
        self.state.step = 0
        self.attempt.begin()
        self.task, found = open_subjects(self.config, self.folder.parent, self.device)
        self.problems = self.task.problems(self.ttc.problems, self.ttc.seed)
        if not len(self.problems):
            raise ConfigError(
                f"corpus={self.task.name} has no problem to be asked: none is left on the test side. Give the task more problems, "
                "or show fewer of them as exemplars (corpus.shots)."
            )
        self.seen = self.task.problems(min(SEEN, self.ttc.problems), self.ttc.seed, held_out=False)
        controls = self.task.controls(self.ttc)
        # One W&B run per evaluation, as it is launched, locked and resumed as one; its rows carry end point and control
        mirror = Mirror(
            self.config.tracker,
            run_id=f"ttc-{self.run_id}",
            study=self.config.study,
            job_type="ttc",
            name=f"{self.name} ttc",
            run_config=self.resolved,
            tags=[self.config.role.value],
            folder=self.folder,
        )
        self.meter.start()
        try:
            mirror.start()
            subjects = list(found)
            grid = [(s, c, t) for s in subjects for c in controls for t in self.ttc.temperatures]
            self.state.steps = len(grid)
            for subject, control, temperature in grid:
                # Shapes are equal at all end points of a run, so one is metered: the longest
                record = self._cell(subject, control, temperature, subjects[-1])
                self.cells.append(record)
                wandb_rows.cell(mirror, record)
                self.state.step += 1
                self.attempt.beat(self.meter.power_w, force=True)
            wandb_rows.tables(mirror, self.cells, self.run_id, self.folder)
            status = mirror.finish()
        except BaseException:
            mirror.finish(exit_code=1)
            raise
        finally:
            self.meter.close()
        if status != "disabled":
            for record in self.cells:
                record.mirror = status.split(":", 1)[0]
                records.write_json(self.folder / record.cell / "record.json", record)
        branches = [s.branch for s in subjects]
        records.write_json(self.folder / QUESTION_FILE, question(self.resolved, branches, scorer()))

    # --- one cell
    def _cell(self, subject: Subject, control: Control, temperature: float, metered: Subject) -> TtcRecord:
        cell = self._named(subject, control, temperature)
        sample = work_units.units("sample", self.problems, self.ttc.samples)
        greedy = work_units.units("greedy", self.problems)
        seen = work_units.units("seen", self.seen)
        width, keep = self.ttc.beam_width, self.ttc.beam_keep
        search = work_units.units("search", self.problems, detail=f"-w{width}k{keep}") if width else []
        likely = (
            work_units.units("smooth", self.problems)
            if self.task.trace(self.problems.take(np.arange(1)), control)
            else []
        )
        missing = [
            u for u in (*sample, *greedy, *seen, *search, *likely) if not work_units.path(cell.folder, u).exists()
        ]
        if missing:
            with self.books.window(subject.branch) as row:
                for unit in missing:
                    self._unit(cell, subject.decoder, unit, row)
        windows, loads = self._metered(metered, control, temperature)
        exact = subject is metered
        prompts, _ = self.task.prompts(self.problems, control)
        drawn = score.Sampled(
            self.problems,
            np.array([len(p) for p in prompts]),
            work_units.merge(cell.folder, greedy, COUNTED),
            work_units.merge(cell.folder, sample, COUNTED),
            work_units.merge(cell.folder, search, (*COUNTED, "flop", "passes", "row_passes", "context"))
            if search
            else None,
        )
        parts = [work_units.read(work_units.path(cell.folder, u)) for u in likely]
        record = self._record(subject, cell, drawn, metering.cost_model(windows, loads, exact=exact))
        if seen:  # a text task has no training side
            record.seen_greedy = float(work_units.merge(cell.folder, seen, ("correct",))["correct"].mean())
        if "strict" in work_units.read(work_units.path(cell.folder, sample[0])):
            strict = work_units.merge(cell.folder, sample, ("strict",))["strict"]
            record.extracted_strict = float(strict.mean())
            record.sample_strict = float((strict & drawn.samples["correct"]).mean())
        if parts:
            scores = [np.concatenate([p[k] for p in parts]) for k in ("lnp", "brier")]
            record.smooth = score.smooth(scores[0], scores[1], self.problems.cluster)
            record.smooth_reason = None
        records.write_json(cell.folder / "record.json", record)
        return record

    def _named(self, subject: Subject, control: Control, temperature: float) -> Cell:
        """The cell's key covers everything that decides what is drawn."""
        key = work_units.digest(
            {
                "weights": subject.identity,
                "task": self.task.info,
                "version": self.task.version,
                "control": dataclasses.asdict(control),
                "temperature": temperature,
                "dtype": str(dtype(self.device)),
                "seed": self.ttc.seed,
            }
        )
        return Cell(subject.branch, control, temperature, key, self.folder / key)

    def _unit(self, cell: Cell, decoder: Decoder, unit: Unit, row: SpendRow) -> None:
        """Draw one unit and write it; what it cost is added to `row` and stored with it, in case this process is killed before booking."""
        self._ask_to_stop()
        self.attempt.beat(self.meter.power_w)
        began_ns = time.monotonic_ns()
        problems = (self.seen if unit.kind == "seen" else self.problems).take(_index(unit.problems))
        seed = unit.seed(cell.key)
        arrays, tokens, flop = sampling.unit(
            decoder, self.task, problems, cell.control, unit, self.ttc, cell.temperature, seed
        )
        self.device.sync()
        spent = {
            "attempt": self.state.attempt,
            "tokens": tokens,
            "spent_flop": flop,
            "t_a_ns": began_ns,
            "t_b_ns": time.monotonic_ns(),
        }
        work_units.write(cell.folder, unit, {**arrays, **{k: np.array(v) for k, v in spent.items()}})
        row.tokens += tokens
        row.flop += flop

    # --- metering
    def _metered(
        self, subject: Subject, control: Control, temperature: float
    ) -> tuple[list[Window], list[metering.Load]]:
        """Windows of this control, from disk where they were metered before under the same settings."""
        cell, ttc = self._named(subject, control, temperature), self.ttc
        samples = [n for n in ttc.meter_samples if n <= ttc.samples] or [ttc.samples]
        settings = {  # extended to more samples or problems, windows of other shapes are asked for
            "cell": cell.key,
            "samples": samples,
            "queries": min(work_units.side_by_side(1, ttc.batch_rows), len(self.problems)),
            "s": ttc.meter_s,
            "rows": ttc.batch_rows,
            "power": self.resolved["power"],
            "device": self.device.label,
        }
        path = self.folder / f"meter-{work_units.digest(settings)}.json"
        if not path.exists():
            with self.books.window(subject.branch) as row:
                windows, loads = metering.meter_windows(
                    subject.decoder,
                    self.task,
                    self.problems,
                    control,
                    samples=samples,
                    temperature=temperature,
                    seed=ttc.seed,
                    batch_rows=ttc.batch_rows,
                    least_s=ttc.meter_s,
                    meter=self.meter,
                    sync=self.device.sync,
                    stop=self._ask_to_stop,
                    books=row,
                )
            records.write_json(path, Metered(windows, [x.numbers().tolist() for x in loads]))
        found = records.from_json(Metered, records.read_json(path), str(path))
        return found.windows, [metering.Load(*x) for x in found.loads]

    # --- the record
    def _record(self, subject: Subject, cell: Cell, drawn: score.Sampled, cost: metering.CostModel) -> TtcRecord:
        point, run, samples = subject.point, subject.record, drawn.samples
        ttc = self.ttc
        scoring = score.Scoring(
            shape=subject.decoder.shape,
            chance=self.task.chance,
            verifier_tpr=ttc.verifier_tpr,
            verifier_fpr=ttc.verifier_fpr,
            beam_width=ttc.beam_width,
            batch_rows=ttc.batch_rows,
            seed=ttc.seed,
        )
        rows = score.rows(drawn, scoring, cost)
        return TtcRecord(
            cell=cell.key,
            study=self.config.study,
            run_id=self.run_id,
            name=self.name,
            seed=self.config.seed,
            branch=cell.branch,
            width=subject.decoder.shape.width,
            n_total=subject.n_total,
            n_matmul=counts(subject.decoder.shape).n_matmul,
            tokens=point.tokens if point else None,
            train_flop=point.train_flop if point else None,
            train_wall_s=point.wall_s if point else None,
            train_energy=point.energy
            if point
            else Measured(reason="a pretrained model: its training was not measured"),
            train_source="measured" if point else "unknown",
            task={**self.task.info, "name": self.task.name, "version": self.task.version, "arm": self.task.arm},
            control=dataclasses.asdict(cell.control),
            label=cell.control.label(),
            temperature=cell.temperature,
            problems=len(self.problems),
            samples=ttc.samples,
            chance=self.task.chance,
            accuracy_of=score.accuracy_of(self.task.chance, ttc.samples),
            rows=rows,
            stats=score.statistics(drawn),
            smooth=None,
            smooth_reason=f"{self.task.name} has no single reference trace",
            mean_tokens=float(samples["length"].mean()),
            extracted=float(1 - ((samples["answer"] == -1) & ~samples["correct"]).mean()),
            truncated=float(samples["truncated"].mean()),
            windows=cost.windows,
            config=self.resolved,
            provenance={
                **provenance.describe(self.device),
                "metered_at": "this end point" if cost.exact else "the longest end point of the run; shapes are equal",
                "queries_side_by_side": min(work_units.side_by_side(1, ttc.batch_rows), len(self.problems)),
                "attempts": self.state.attempt,
                "role": run.role if run else self.config.role.value,
            },
            meter=self.meter.describe(),
        )

    # --- life
    def _ask_to_stop(self) -> None:
        if (why := self.reason()) is not None:
            raise Interrupted(f"stopped by {why}; launch again to draw what is missing")


@dataclass
class Metered:
    """Windows of one control and their loads per repetition, as kept on disk."""

    windows: list[Window]
    loads: list[list[float]]
    schema_version: int = records.SCHEMA_VERSION


def _index(part: slice) -> np.ndarray:
    return np.arange(part.start, part.stop)
