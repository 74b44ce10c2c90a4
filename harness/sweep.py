"""From a command line to finished runs: compose every run of a sweep, check all of them, launch, and say how each ended.

Hydra sweeps and launches; success is read from the runs' own state files, never from Hydra's return values, because its launchers
swallow failures. Every run is composed and checked before the first one starts.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import compose, records, spending, stop
from harness.errors import BusyError, ConfigError
from harness.ladder import Rung
from harness.schema import PretrainedConfig, RunConfig, TtcPoints
from harness.ttc_records import FOLDER, answered
from harness.units import duration
from harness.watch import Progress, describe, table

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
if not CONF.is_dir():
    CONF = Path(__file__).resolve().parent / "conf"  # an installed wheel carries the YAML files inside the package


@dataclass(frozen=True)
class Planned:
    """One run of a sweep, composed and checked."""

    config: RunConfig
    run_id: str
    name: str
    overrides: list[str]

    @property
    def run_dir(self) -> Path:
        return Path(self.config.paths.runs) / self.config.study / self.run_id


# --- composing -----------------------------------------------------------------------------------------------------------
def enumerate_runs(arguments: list[str]) -> tuple[list[Planned], list[str]]:
    """All runs that a command line means, and Hydra flags among the arguments. ConfigError when any of them is wrong."""
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    flags, overrides = split_flags(arguments)
    compose.register()
    GlobalHydra.instance().clear()
    extra = user_conf_dir(flags)
    search = [f"hydra.searchpath=[{quoted(f'file://{extra}')}]"] if extra else []
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="harness"):
        try:
            parsed = OverridesParser.create().parse_overrides(overrides)
            sweeping = any(o.is_sweep_override() for o in parsed)
            single = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
            master = hydra_compose("train", overrides=[*single, *search], return_hydra_config=True)
            params = master.hydra.sweeper.params or {}
            multirun = sweeping or (master.hydra.mode is not None and master.hydra.mode.name == "MULTIRUN")
            given = {o.key_or_group for o in parsed}
            lines = [f"{k}={v}" for k, v in params.items() if str(k).lstrip("+~") not in given] if multirun else []
            jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([*lines, *overrides]), None)[0]
            planned, problems = [], []
            for job in jobs:
                try:
                    config = compose.load_run(hydra_compose("train", overrides=[*job, *search]))
                    planned.append(
                        Planned(
                            config,
                            compose.run_id(config),
                            compose.run_name(config),
                            [o for o in job if not o.startswith("hydra")],
                        )
                    )
                except ConfigError as e:
                    problems += [p for p in e.problems if p not in problems]
        except (HydraException, OmegaConfBaseException, ValueError) as e:  # a group set to null is a bare ValueError
            raise ConfigError(_explain(e)) from e
        except yaml.YAMLError as e:
            raise ConfigError(f"a config file is not valid YAML: {' '.join(str(e).split())}. Mend it there.") from e
    if problems:
        raise ConfigError(problems)
    return planned, flags


def quoted(value: str) -> str:
    """A value as Hydra reads it back unchanged, whatever characters a path holds."""
    return "'" + value.replace("'", r"\'") + "'"


def split_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's own flags (with the value of --config-dir) and the overrides."""
    flags, overrides, i = [], [], 0
    while i < len(arguments):
        argument = arguments[i]
        if argument in ("--config-dir", "-cd"):
            if i + 1 == len(arguments):
                raise ConfigError(
                    "--config-dir needs a folder, such as --config-dir my_conf (with my_conf/ladder/x.yaml in it)."
                )
            flags += ["--config-dir", arguments[i + 1]]
            i += 1
        elif argument in ("-m", "--multirun", "--help", "-h", "--hydra-help"):
            flags.append(argument)
        elif argument.startswith("-"):
            raise ConfigError(
                f"unknown flag {argument}. Settings are given as key=value; flags are --config-dir DIR, -m, --help."
            )
        else:
            overrides.append(argument)
        i += 1
    return flags, overrides


def user_conf_dir(flags: list[str]) -> Path | None:
    """The user's own configs: --config-dir DIR, else ./conf of the working directory where that is not ours."""
    if "--config-dir" in flags:
        folder = Path(flags[flags.index("--config-dir") + 1]).resolve()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder} is not a folder. Give the one that holds your ladder/*.yaml.")
        return folder
    folder = Path("conf").resolve()
    return folder if folder.is_dir() and folder != CONF else None


def _explain(error: Exception) -> str:
    """Hydra's message on one or two lines, without its advice to append unknown keys, and with the nearest real key."""
    cause: BaseException = error
    text = str(error)
    while cause.__cause__ is not None:
        cause = cause.__cause__
        text += "\n" + str(cause)
    lines = []
    for line in text.splitlines():
        line = line.strip()
        if (
            line
            and not line.startswith(
                (
                    "To append to your config",
                    "Config search path",
                    "provider=",
                    "full_key",
                    "object_type",
                    "See https",
                    "Set the environment",
                )
            )
            and line not in lines
        ):
            lines.append(line)
    message = " ".join(lines)
    if isinstance(error, ValueError) and "group override" in message:
        message += " A group such as optim or power takes the name of a choice."
    if override := getattr(error, "override", None):
        message = (
            f"{override} cannot be read: {message}. Settings are key=value; a value that holds more than plain letters, digits and / . _ - "
            f"is quoted twice, as in \"{override.partition('=')[0]}='…'\"."
        )
    if re.search(r"Key '(?:ladder|arm)' not in 'RunConfig'", message):
        message += " A ladder's file begins with the line `# @package _global_`."
    elif match := re.search(r"(?:Could not override|Key) '([\w.]+)'", message):
        key = match.group(1)
        leaf = key.rsplit(".", 1)[-1]
        keys = _known_keys(RunConfig, "")
        known = sorted({*keys, *(k.partition(".")[0] for k in keys)})
        near = [
            k
            for k in known
            if k.rsplit(".", 1)[-1] in difflib.get_close_matches(leaf, [k.rsplit(".", 1)[-1] for k in known], n=2)
        ]
        if near := sorted(near, key=lambda k: -difflib.SequenceMatcher(None, k, key).ratio())[:2]:
            message += f" Did you mean {' or '.join(near)}?"
    return message


def _known_keys(cls: type, prefix: str) -> list[str]:
    """Every settable key, over all choices of every family."""
    import dataclasses
    import typing

    from harness.schema import FAMILIES

    keys = []
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            for choice in FAMILIES.get(name, {"": hint}).values() if not prefix else [hint]:
                keys += _known_keys(typing.cast(type, choice), f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


# --- one job, in whatever process the launcher puts it -------------------------------------------------------------------
def job(config: DictConfig) -> str:
    """Hydra's task function: train one run; returns its state. Failures are written to the run's state, not raised."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    stop.install()
    if stop.reason() is not None:
        return "not started"  # queued behind a run that was stopped
    run_config = compose.load_run(config)
    study = Path(run_config.paths.runs) / run_config.study
    if spending.exhausted(run_config.budget.kwh, study) is not None:
        return "not started"  # the launching process says why
    hydra_config = HydraConfig.get()
    workers = getattr(hydra_config.launcher, "n_jobs", 1) if hydra_config.mode is RunMode.MULTIRUN else 1
    from harness.train.run import run

    try:
        state = run(
            run_config,
            compose.run_id(run_config),
            compose.run_name(run_config),
            compose.resolved(run_config),
            compose.public_overrides([str(o) for o in hydra_config.overrides.task]),
            parallel_runs=workers if workers > 0 else len(os.sched_getaffinity(0)),
        )
    except BusyError as e:
        print(e, file=sys.stderr)
        return "busy"
    return state.state


def job_and_test(config: DictConfig) -> str:
    """Hydra's task function of `harness ttc`: train the run, unless it is done or pretrained, then evaluate it in the same worker."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    run_config = compose.load_run(config)
    if not isinstance(run_config.model, PretrainedConfig) and (trained := job(config)) != "done":
        return trained
    stop.install()
    if stop.reason() is not None:
        return "not started"
    hydra_config = HydraConfig.get()
    workers = getattr(hydra_config.launcher, "n_jobs", 1) if hydra_config.mode is RunMode.MULTIRUN else 1
    from harness.ttc.run import evaluate

    try:
        state = evaluate(
            run_config,
            compose.run_id(run_config),
            compose.run_name(run_config),
            compose.resolved(run_config),
            parallel_runs=workers if workers > 0 else len(os.sched_getaffinity(0)),
        )
    except BusyError as e:
        print(e, file=sys.stderr)
        return "busy"
    return state.state


def launch_tests(arguments: list[str], planned: list[Planned], rungs: list[Rung]) -> int:
    """Train and evaluate a sweep, unless all of it is done, and print its table. Exit code as `launch`.

    `rungs` is empty for pretrained models, which are only evaluated.
    """
    trained = bool(rungs)
    tests = [(f"{p.name} ttc", p.run_dir / FOLDER) for p in planned]
    runs = [r for p, t in zip(planned, tests, strict=True) for r in ([(p.name, p.run_dir), t] if trained else [t])]
    _make_folders(planned)
    began_s = time.monotonic()
    if not all(_tested(p, rungs[i] if trained else None) for i, p in enumerate(planned)):
        with Progress(runs, [1.0] * len(runs), sys.stdout):
            _launch_hydra(arguments, len(planned), job_and_test)
    print(table(runs))
    return _tell(runs, planned, began_s)


def _tested(planned: Planned, rung: Rung | None) -> bool:
    """Whether nothing is left to train or to evaluate."""
    if rung is not None and not _finished(planned, rung):
        return False
    branches = ["pretrained"]
    if rung is not None:
        points = records.load_record(planned.run_dir).points
        branches = [p.branch for p in (points if planned.config.ttc.points is TtcPoints.all else points[-1:])]
    done = describe(planned.run_dir / FOLDER)[0] == "done"
    return done and answered(planned.run_dir, compose.resolved(planned.config), branches)


def _make_folders(planned: list[Planned]) -> None:
    for p in planned:
        try:
            p.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ConfigError(
                f"paths.runs={p.config.paths.runs}: cannot create {p.run_dir}: {e.strerror}. Choose a folder that can be written."
            ) from e
        if not p.config.run.force:  # which discards whatever is there
            records.load_state(p.run_dir)  # refuses a damaged one


def launch(arguments: list[str], planned: list[Planned], rungs: list[Rung]) -> int:
    """Run a sweep, unless all of it is done, and print its table. Exit code 0 when every run is done, else 1."""
    _make_folders(planned)
    runs = [(p.name, p.run_dir) for p in planned]
    began_s = time.monotonic()
    if not all(_finished(p, rung) for p, rung in zip(planned, rungs, strict=True)):
        with Progress(runs, [r.spent_flop for r in rungs], sys.stdout):
            _launch_hydra(arguments, len(planned), job)
    print(table(runs))
    return _tell(runs, planned, began_s)


def _tell(runs: list[tuple[str, Path]], planned: list[Planned], began_s: float) -> int:
    """How many are done, and what to do about the others; the exit code."""
    states = [describe(folder)[0] for _, folder in runs]
    done = states.count("done")
    what = "runs and evaluations" if any(folder.name == FOLDER for _, folder in runs) else "runs"
    print(
        f"{done} of {len(runs)} {what} done in {duration(time.monotonic() - began_s)}; files in {planned[0].run_dir.parent}"
    )
    if done == len(runs):
        return 0
    if why := spending.exhausted(planned[0].config.budget.kwh, planned[0].run_dir.parent):
        print(f"stopped: {why}. Raise budget.kwh and launch again to go on.")
    advice = {
        "failed": "run.retry=failed takes failed runs up again",
        "diverged": "a diverged run needs a lower optim.lr_scale (run.force=true starts it afresh)",
        "interrupted": "launch again to go on with interrupted runs",
        "died": "launch again to resume runs whose process died",
        "not started": "launch again to start the rest",
        "running": "another process trains the runs that are still running",
    }
    print("; ".join(text for state, text in advice.items() if state in states))
    return 1


def _finished(planned: Planned, rung: Rung) -> bool:
    """Whether nothing is left to do for a run, so that no worker need be started for it."""
    if planned.config.run.force or describe(planned.run_dir)[0] != "done":
        return False
    if not (planned.run_dir / "record.json").exists():
        return False  # it is written again from what the run's other files hold
    have = {p.branch for p in records.load_record(planned.run_dir).points}
    return all(p.branch in have for p in rung.points)


def _launch_hydra(arguments: list[str], runs: int, task: Callable[[DictConfig], str]) -> None:
    """Hand the command line to Hydra, whose launcher calls `task` once per run, in whatever process it chooses."""
    import hydra

    flags, overrides = split_flags(arguments)
    sys.argv = ["harness", *overrides]
    if extra := user_conf_dir(flags):
        sys.argv += ["--config-dir", str(extra)]
    if runs > 1:
        sys.argv.append("--multirun")  # a ladder sets the mode itself, a list of values on the command line does not
    try:
        with stop.forwarding():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(task)()
    except SystemExit as e:
        if e.code not in (0, None):
            print("a worker died; the table below says which runs it left behind", file=sys.stderr)
