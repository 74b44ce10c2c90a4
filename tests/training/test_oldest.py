"""The forward pass and its traced graph once more under the oldest transformers that is allowed
(`scripts/oldest.txt`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OLDEST = Path(sys.prefix) / "oldest"


def test_under_the_oldest_transformers() -> None:
    if not OLDEST.is_dir():
        message = "the oldest transformers is not installed beside the others: run scripts/test"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    (version,) = re.findall(r"^transformers==(\S+)$", (ROOT / "scripts" / "oldest.txt").read_text(), re.M)
    assert f'"transformers>={version.removesuffix(".0")}"' in (ROOT / "pyproject.toml").read_text()
    environment = {**os.environ, "PYTHONPATH": str(OLDEST)}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )

    assert python("-c", "import transformers; print(transformers.__version__)").stdout.strip() == version
    tests = [str(HERE / "test_forward.py"), str(HERE / "test_compiled.py"), "-k", "forward or traced or rotary"]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 20
