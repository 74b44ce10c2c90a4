"""`harness doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

from harness import __version__
from harness.errors import CorpusError
from harness.host import cpu_model
from harness.schema import TrackerConfig, WandbMode
from harness.units import si

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


def examine(runs: Path) -> list[tuple[str, str, str | None]]:
    """(topic, what was found, what to do or None) for everything a run depends on."""
    return [
        ("harness", f"{__version__}, Python {_python()}", None),
        *_packages(),
        _torch(),
        *_sensors(),
        _disk(runs),
        _wandb(),
        _corpus(),
    ]


def text(findings: list[tuple[str, str, str | None]]) -> str:
    width = max(len(topic) for topic, _, _ in findings)
    lines = []
    for topic, found, todo in findings:
        lines.append(f"{topic.ljust(width)}  {found}")
        if todo:
            lines.append(f"{' ' * width}  → {todo}")
    return "\n".join(lines)


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
    found = nvml.probe()
    if found["reason"]:
        rows.append(("NVML", str(found["reason"]), None))  # the reason ends with what to do
    for card in found["cards"]:
        support = ", ".join(f"{k} {card[k]}" for k in ("counter", "instant", "average"))
        mig = (
            "power=nvml refuses a MIG slice; power.mig_whole_card=true labels the whole card's energy"
            if card["mig"]
            else None
        )
        rows.append(
            (
                f"GPU {card['index']}",
                f"{card['name']} {card['uuid']}, limit {card['limit_w']} W, driver {found['driver']}; {support}",
                mig,
            )
        )
    zones = rapl.probe()
    rows.append(
        ("RAPL", str(zones["reason"]) if zones["reason"] else ", ".join(z["name"] for z in zones["zones"]), None)
    )
    return rows


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
    from harness.data import open_corpus
    from harness.schema import FactsConfig

    try:
        corpus = open_corpus(FactsConfig(), 0)
    except CorpusError as e:
        return "corpus", str(e), None
    return "corpus", f"embedded facts corpus, entropy {corpus.info['floor_nat']:.4f} nat/token", None
