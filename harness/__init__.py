"""A scaling-experiment harness: loss, FLOP and joules of a ladder of small transformers in one
ledger, and their laws.

    from harness import LlamaConfig, BudgetConfig, RunConfig, load_study, train

    train(RunConfig(model=LlamaConfig(width=32), budget=BudgetConfig(tokens=300_000), study="mine"))
    study = load_study("runs/mine")
    study.points()

Names are imported when they are first used, so that `import harness` is instant and torch is loaded
for training alone. Reading order: `config.schema` (what a run may be), `config.ladder` (config to
rung), `training.run` (START HERE for the path of one run), `records` (what a run leaves),
`analysis.points` (records to arrays), `laws` (arrays to fits), `report` (fits to pages), `cli`
(verbs).
"""

from __future__ import annotations

# type checkers take it for true; importing `typing` would take half of this module's time
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.analysis.study import Study
    from harness.analysis.tables import read_table
    from harness.config.schema import (
        AdamwConfig,
        BudgetConfig,
        ConstantConfig,
        CosineConfig,
        CountdownConfig,
        DeviceConfig,
        EvalConfig,
        FactsConfig,
        GroupConfig,
        LlamaConfig,
        MultiplyConfig,
        MuonConfig,
        NvmlConfig,
        PretrainedConfig,
        QaConfig,
        RaplConfig,
        ReplayConfig,
        RunConfig,
        TextConfig,
        TtcConfig,
        UnmeteredConfig,
        WsdConfig,
    )
    from harness.errors import HarnessError
    from harness.laws import Fit, Law, Parameter, fit, frontier, predict, predict_interval, summary
    from harness.models.flops import Shape, counts
    from harness.records import Measured, Point, RunRecord
    from harness.records.ttc import TtcRecord
    from harness.report.page import build_report
    from harness.training.run import train
    from harness.ttc.run import evaluate

__version__ = "0.1.0"
__all__ = [
    "AdamwConfig",
    "BudgetConfig",
    "ConstantConfig",
    "CosineConfig",
    "CountdownConfig",
    "DeviceConfig",
    "EvalConfig",
    "FactsConfig",
    "Fit",
    "GroupConfig",
    "HarnessError",
    "Law",
    "LlamaConfig",
    "Measured",
    "MultiplyConfig",
    "MuonConfig",
    "NvmlConfig",
    "Parameter",
    "Point",
    "PretrainedConfig",
    "QaConfig",
    "RaplConfig",
    "ReplayConfig",
    "RunConfig",
    "RunRecord",
    "Shape",
    "Study",
    "TextConfig",
    "TtcConfig",
    "TtcRecord",
    "UnmeteredConfig",
    "WsdConfig",
    "__version__",
    "build_report",
    "counts",
    "evaluate",
    "fit",
    "frontier",
    "load_study",
    "predict",
    "predict_interval",
    "read_table",
    "summary",
    "train",
]
# Module -> the names of `__all__` that it holds; those that are not listed are in `config.schema`
_MODULES: dict[str, tuple[str, ...]] = {
    "harness.analysis.study": ("Study",),
    "harness.analysis.tables": ("read_table",),
    "harness.errors": ("HarnessError",),
    "harness.laws": ("Fit", "Law", "Parameter", "fit", "frontier", "predict", "predict_interval", "summary"),
    "harness.models.flops": ("Shape", "counts"),
    "harness.records": ("Measured", "Point", "RunRecord"),
    "harness.records.ttc": ("TtcRecord",),
    "harness.report.page": ("build_report",),
    "harness.training.run": ("train",),
    "harness.ttc.run": ("evaluate",),
}


def load_study(folder: str) -> Study:
    """The study in a folder, such as runs/cpu: records, evaluations, fits and answers.

    RecordError for a folder that is none.
    """
    from harness.analysis.study import Study

    return Study.load(folder)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = next((m for m, names in _MODULES.items() if name in names), "harness.config.schema")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
