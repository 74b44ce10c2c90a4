"""One study with its table, floor, noise and checks, computed once for charts and tables."""

from __future__ import annotations

from dataclasses import dataclass

from harness.analysis import points as study_points
from harness.analysis.points import Floor, PointTable, RateCheck, SeedNoise
from harness.analysis.study import Study
from harness.laws.result import Fit
from harness.records import RunRecord


@dataclass(frozen=True)
class StudyView:
    """One study as the report shows it."""

    name: str
    records: list[RunRecord]
    excluded: dict[str, int]  # state -> runs that have no record
    fits: dict[str, Fit]
    table: PointTable
    floor: Floor
    theory: dict[str, float] | None
    noise: SeedNoise | None
    rates: list[RateCheck]
    unfitted: dict[str, str]  # law -> why it is absent

    def trusted(self, name: str) -> Fit | None:
        """The fit, if it exists and its certificate passed; others are neither drawn nor used."""
        fit = self.fits.get(name)
        return fit if fit is not None and fit.certificate.passed else None

    @property
    def oracle_nat(self) -> float | None:
        return self.floor.oracle_nat if self.floor.oracle_nat is not None else self.floor.entropy_nat


def view_of(study: Study) -> StudyView:
    records = study.records
    table = study_points.points(records, study.excluded)
    noise = study_points.seed_noise(table)
    return StudyView(
        name=study.name,
        records=records,
        excluded=dict(study.excluded),
        fits=study.fits,
        table=table,
        floor=study_points.floor(records),
        theory=study_points.theory(records),
        noise=noise,
        rates=study_points.rate_check(records, noise),
        unfitted=study.unfitted(),
    )
