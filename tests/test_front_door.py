"""What `from harness import …` offers: one sorted list, imported late, with the checks behind
it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = re.findall(
    r"^## (.*?)\n.*?```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M | re.S
)


def test_the_list_is_sorted_and_every_name_is_there() -> None:
    assert harness.__all__ == sorted(harness.__all__)
    for name in harness.__all__:
        assert getattr(harness, name) is not None
    assert set(harness.__all__) <= set(dir(harness))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = harness.trian  # type: ignore[attr-defined]


def test_no_name_is_that_of_a_module() -> None:
    """`harness.fit` must not depend on which module was imported before."""
    modules = {p.stem for p in (ROOT / "harness").iterdir()}
    assert not modules & set(harness.__all__)


def test_the_types_are_published() -> None:
    assert (ROOT / "harness" / "py.typed").exists()


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import harness, sys; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'hydra', 'wandb', 'scipy'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_examples_run(title: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "results").symlink_to(ROOT / "results")
    (tmp_path / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_are_five_examples() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": {"width": "64"}}, r"model\.width: expected int, got str: '64'"),
        ({"budget": {"tokens": 1.5}}, r"budget\.tokens: expected int \| null, got float: 1\.5"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"optim": {"lr": "high"}}, r"optim\.lr: expected float \| null, got str: 'high'"),
    ],
)
@pytest.mark.parametrize("door", ["train", "evaluate"])
def test_values_of_a_wrong_type_are_named(door: str, config: dict[str, Any], message: str) -> None:
    run = harness.RunConfig(model=harness.LlamaConfig(width=8), budget=harness.BudgetConfig(tokens=300_000))
    for section, value in config.items():
        if isinstance(value, dict):
            for name, item in value.items():
                setattr(getattr(run, section), name, item)
        else:
            setattr(run, section, value)
    with pytest.raises(ConfigError, match=message):
        getattr(harness, door)(run)


def test_what_is_no_config_or_no_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="a RunConfig is needed, not a dict"):
        harness.train({"model": "llama"})  # type: ignore[arg-type]
    run = harness.RunConfig(model=harness.LlamaConfig(width=8), budget=harness.BudgetConfig(tokens=300_000))
    with pytest.raises(ConfigError, match="its corpus is no task, so there is nothing to test"):
        harness.evaluate(run)
