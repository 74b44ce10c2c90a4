"""`harness doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness.config.schema import TrackerConfig, WandbMode
from harness.console import TextTable, show
from harness.errors import CorpusError
from harness.hardware import cpu_model
from harness.units import si

if TYPE_CHECKING:
    from harness.power import sensor

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "hydra-core",
    "hydra-joblib-launcher",
    "hydra-submitit-launcher",
    "wandb",
    "nvidia-ml-py",
    "altair",
)
OPTIONAL = {"hydra-submitit-launcher": "only for Slurm: pip install 'scaling-harness[slurm]'"}
LOW_DISK_BYTES = 5e9


def doctor(arguments: Sequence[str]) -> int:
    """Print versions, GPUs, sensors, disk and W&B login, and what to do about each problem."""
    parser = argparse.ArgumentParser(
        prog="harness doctor", description="What this machine has, what is missing, and what to do about it."
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs will be written (default: runs)")
    parser.add_argument(
        "--sensor",
        action="store_true",
        help="measure the power sensor of each idle GPU for about two minutes and keep the result: runs then state net joules",
    )
    args = parser.parse_args(arguments)
    if args.sensor:
        parts, measured = sensor_cards()
        show(*parts)
        return 0 if measured else 1
    show(_table(examine(args.runs)))
    return 0


def examine(runs: Path) -> list[tuple[str, str, str | None]]:
    """(topic, finding, what to do or None) for everything that a run depends on."""
    return [
        ("harness", f"{__version__}, Python {_python()}", None),
        *_packages(),
        _torch(),
        *_sensors(),
        _disk(runs),
        _wandb(),
        _corpus(),
    ]


def _table(findings: list[tuple[str, str, str | None]]) -> TextTable:
    rows: list[tuple[str, str]] = []
    for topic, finding, todo in findings:
        rows += [(topic, finding), *([("", f"-> {todo}")] if todo else [])]
    return TextTable(rows)


def _python() -> str:
    import platform

    return f"{platform.python_version()}, {cpu_model()}, {len(os.sched_getaffinity(0))} usable cores"


def _packages() -> list[tuple[str, str, str | None]]:
    rows: list[tuple[str, str, str | None]] = []
    for name in PACKAGES:
        try:
            rows.append((name, importlib.metadata.version(name), None))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "not installed", OPTIONAL.get(name, "pip install -e . -c constraints.txt")))
    try:
        version = importlib.metadata.version("pynvml")
        rows.append(
            (
                "pynvml",
                f"{version}: the deprecated package shadows nvidia-ml-py",
                "pip uninstall pynvml; nvidia-ml-py provides the module",
            )
        )
    except importlib.metadata.PackageNotFoundError:
        pass
    return rows


def _torch() -> tuple[str, str, str | None]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return "CUDA", f"{torch.version.cuda}: {names}", None
    if torch.version.cuda:
        return (
            "CUDA",
            f"torch was built for CUDA {torch.version.cuda} but sees no device",
            "check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES",
        )
    return "CUDA", "this torch is a CPU build", None


def _sensors() -> list[tuple[str, str, str | None]]:
    from harness.power import nvml, rapl

    rows: list[tuple[str, str, str | None]] = []
    nvml_report = nvml.probe()
    if nvml_report["reason"]:
        rows.append(("NVML", str(nvml_report["reason"]), None))  # the reason ends with what to do
    for card in nvml_report["cards"]:
        support = ", ".join(f"{k} {card[k]}" for k in ("counter", "instant", "average"))
        mig = (
            "power=nvml refuses a MIG slice; power.mig_whole_card=true labels the whole card's energy"
            if card["mig"]
            else None
        )
        rows.append(
            (
                f"GPU {card['index']}",
                f"{card['name']} {card['uuid']}, limit {card['limit_w']} W, driver {nvml_report['driver']}; {support}",
                mig,
            )
        )
    zones = rapl.probe()
    rows.append(
        ("RAPL", str(zones["reason"]) if zones["reason"] else ", ".join(z["name"] for z in zones["zones"]), None)
    )
    return rows


def sensor_cards(seconds: float = 12.0) -> tuple[list[TextTable | str], bool]:
    """Measure and keep the sensor of every GPU that CUDA shows.

    Returns what to print, and False if there is no GPU.
    """
    from harness.power import sensor
    from harness.power.nvml import NvmlSource
    from harness.power.source import Refused

    source = NvmlSource(os.environ.get("CUDA_VISIBLE_DEVICES"), mig_whole_card=True)
    try:
        cards = source.open()
    except Refused as e:
        return [e.reason], False
    parts: list[TextTable | str] = []
    for i, c in enumerate(cards):
        actions, why = gpu_actions(i)
        card = sensor.measure(source, cards, i, seconds=seconds, actions=actions, why_no_actions=why)
        parts.append(f"{c.name} {c.uuid}, driver {c.driver}: kept in {sensor.store(card)}")
        rows: list[tuple[str, str]] = []
        for field in dataclasses.fields(card)[4:-2]:
            value = getattr(card, field.name)
            reason = card.reasons.get(field.name, "not measured")
            rows.append((f"  {field.name}", reason if value is None else f"{value:.4g}"))
        parts.append(TextTable(rows))
    source.close()
    return parts, True


def gpu_actions(index: int) -> tuple[sensor.Actions | None, str]:
    """Loads on the CUDA device of that index, or why there are none."""
    import time

    import torch

    from harness.power.sensor import Actions

    if not torch.cuda.is_available():
        return None, "this torch sees no CUDA device, so there is no load and no context"
    device = torch.device("cuda", index)

    def burst(seconds: float) -> tuple[int, int]:
        # zeros would draw less
        a, b = (torch.randn(4096, 4096, device=device, dtype=torch.bfloat16) for _ in range(2))
        torch.cuda.synchronize(device)
        begin = time.monotonic_ns()
        while time.monotonic_ns() - begin < seconds * 1e9:
            for _ in range(8):
                torch.mm(a, b)
            torch.cuda.synchronize(device)
        return begin, time.monotonic_ns()

    def context() -> None:
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)

    return Actions(context, burst), ""


def _disk(runs: Path) -> tuple[str, str, str | None]:
    folder = runs.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return "disk", f"{folder} cannot be written", "choose another folder with paths.runs=DIR"
    return (
        "disk",
        f"{si(free, 'B')} free for runs",
        None if free > LOW_DISK_BYTES else "free some space, or choose another folder with paths.runs=DIR",
    )


def _wandb() -> tuple[str, str, str | None]:
    from harness.track.wandb import login_state

    state = login_state(TrackerConfig(mode=WandbMode.online))
    key = "an API key is stored" if state["api_key"] else "no API key"
    todo = (
        f"{state['todo']} (tracker.mode is disabled by default, so this matters only if you want W&B)"
        if state["todo"]
        else None
    )
    return "W&B", f"{state['host']}: {key}", todo


def _corpus() -> tuple[str, str, str | None]:
    from harness.config.schema import FactsConfig
    from harness.data.corpora import open_corpus

    try:
        corpus = open_corpus(FactsConfig(), 0)
    except CorpusError as e:
        return "corpus", str(e), None
    return "corpus", f"embedded facts corpus, entropy {corpus.info['floor_nat']:.4f} nat/token", None
