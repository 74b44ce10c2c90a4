"""A study as one object: the records of its runs and evaluations, and what was made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness import records
from harness.analysis import points as study_points
from harness.analysis import study_laws
from harness.analysis.ttc import answers as ttc_answers
from harness.analysis.ttc import control_laws
from harness.analysis.ttc.answers import StudyAnswers
from harness.laws.result import Fit
from harness.records import RunRecord
from harness.records import fits as fit_files
from harness.records import ttc as ttc_records
from harness.records.ttc import TtcRecord

if TYPE_CHECKING:
    import pandas


def results_folder(folder: Path) -> Path:
    """The folder of a study's fits and pages: the study's own, except for a committed reference.

    A reference is never written to. Its results go to runs/<name>, or to runs/<name>-reference
    where runs/<name> holds runs, because these are another study with other fits.
    """
    if not records.is_reference(folder):
        return folder
    name = folder.resolve().name
    results = Path("runs") / name
    return results.with_name(f"{name}-reference") if records.holds_runs(results) else results


@dataclass
class Study:
    """The records of one study in `folder`, and its fits and answers in `results`.

    The two are the same folder, except for a committed reference (`records.is_reference`), which is
    never written to: its results go to `results_folder`, or to the caller's choice.
    """

    name: str
    records: list[RunRecord]
    # State -> runs without a finished record
    excluded: dict[str, int] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)
    evaluations: list[TtcRecord] = field(default_factory=list)
    answers: StudyAnswers | None = None  # about the evaluations
    folder: Path = Path()
    results: Path = Path()
    # Law of evaluations -> why `fit` found none
    unfitted_ttc: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path, results: str | Path | None = None) -> Study:
        """Read a study from its folder; fits and answers from `results` where it has some.

        Raises RecordError for a folder that does not exist or a file that cannot be read.
        """
        folder = Path(folder)
        runs, excluded = records.load(folder)
        name = folder.resolve().name
        results = results_folder(folder) if results is None else Path(results)
        source = results if (results / fit_files.STUDY_FILE).exists() else folder
        evaluations = ttc_records.load(folder)
        answers = ttc_answers.read(source) if evaluations else None
        return cls(name, runs, excluded, fit_files.load_fits(source), evaluations, answers, folder, results)

    def fit(self, *, bootstrap: int = 1000, delta: float | None = None, seed: int = 0) -> None:
        """Fit every law that the records allow, of training and of evaluations; `save` keeps them.

        `bootstrap`: draws behind the intervals; `delta`: Huber delta on log residuals, None for
        each law's own; `seed`: of the draws.
        """
        self.fits = study_laws.fit_study(self.records, self.excluded, bootstrap=bootstrap, seed=seed, delta=delta)
        if self.evaluations:
            of_evaluations, self.unfitted_ttc = control_laws.fit_all(self.evaluations, bootstrap=bootstrap, seed=seed)
            self.fits |= of_evaluations
            self.answers = ttc_answers.answers(self.evaluations, self.unfitted_ttc, seed=seed)

    def save(self) -> Path:
        """Write fits and answers into `results`; returns the path of fits.json."""
        records.make_folder(self.results)
        fit_files.write_fits(self.results, self.fits)
        if self.answers is not None:
            ttc_answers.write(self.results, self.answers)
        return self.results / fit_files.STUDY_FILE

    def unfitted(self) -> dict[str, str]:
        """Law of training -> why it has no fit."""
        return study_laws.unfitted(self.records, self.fits, self.excluded)

    def points(self) -> pandas.DataFrame:
        """One row per point of every record, columns as in the ledger."""
        import pandas

        return pandas.DataFrame(study_points.study_table(self.records))

    def parameters(self) -> pandas.DataFrame:
        """One row per parameter of every fit: fit, law, parameter, value, 95 % ends, converged."""
        import pandas

        rows = [
            {
                "fit": name,
                "law": fit.law,
                "parameter": p,
                "value": value,
                "low": fit.interval[p][0] if p in fit.interval else None,
                "high": fit.interval[p][1] if p in fit.interval else None,
                "converged": fit.certificate.passed,
            }
            for name, fit in self.fits.items()
            for p, value in fit.params.items()
        ]
        return pandas.DataFrame(rows)
