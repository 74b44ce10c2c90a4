"""Who may import whom, read from the syntax tree: layers, torch-free parts, and each outside library in its own files."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "harness"

LAYERS: list[set[str]] = [
    {"errors", "units", "host", "gpus", "stop", "conditions"},
    {"schema", "records", "ttc_records", "flops", "spending"},
    {"models", "data", "tasks", "power", "track", "laws"},
    {
        "ladder",
        "compose",
        "checks",
        "curves",
        "study_fits",
        "joules",
        "corpora",
        "train",
        "ttc",
        "projection",
        "forecast",
        "tables",
        "prices",
        "fitfiles",
        "testtime",
        "exchange",
        "testtime_study",
        "testtime_laws",
        "emergence",
        "payback",
        "equalcost",
    },
    {
        "sweep",
        "watch",
        "planning",
        "exporting",
        "doctor",
        "reproduce",
        "mirror_study",
        "report",
        "table_fit",
        "table_compare",
        "answers",
        "nextruns",
        "asking",
    },
    {"cli", "verbs"},
]
SIBLINGS = LAYERS[2]  # these never import each other
TORCH_FREE = {
    *("errors", "units", "host", "gpus", "stop", "schema", "records", "ttc_records", "flops", "conditions", "spending"),
    *(
        "compose",
        "checks",
        "corpora",
        "tasks",
        "ladder",
        "curves",
        "study_fits",
        "joules",
        "laws",
        "power",
        "report",
        "track",
        "forecast",
        "sweep",
        "watch",
        "planning",
        "projection",
    ),
    *("exporting", "reproduce", "mirror_study", "cli", "verbs"),
    *(
        "tables",
        "prices",
        "fitfiles",
        "testtime",
        "testtime_study",
        "testtime_laws",
        "exchange",
        "emergence",
        "payback",
        "equalcost",
        "table_fit",
        "table_compare",
        "answers",
        "nextruns",
        "asking",
    ),
}
ONLY_IN = {
    "wandb": {"track/wandb.py", "track/wandb_client.py", "track/wandb_process.py"},
    "pynvml": {"power/nvml.py"},
    "datasets": {"data/text.py", "data/text_corpus.py", "tasks/qa_data.py"},
    "hydra": {"sweep.py", "compose.py"},
    "omegaconf": {"sweep.py", "compose.py"},
    "transformers": {
        "exporting.py",
        "models/llama.py",
        "models/pretrained.py",
        "data/tokenizer.py",
        "train/loop.py",
        "train/evaluate.py",
    },
    "altair": {"report/*.py"},
    "pyarrow": {"power/table.py", "tables.py", "exporting.py", "data/text.py", "data/text_corpus.py"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether a function does it) of every import; those under TYPE_CHECKING are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((a.name, inside) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path.name}: imports are absolute"
                yield str(child.module), inside
                if child.module in (
                    "harness",
                    *(f"harness.{p}" for p in ("train", "power", "data", "models", "track")),
                ):
                    yield from ((f"{child.module}.{a.name}", inside) for a in child.names)
            else:
                yield from walk(child, inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    return walk(tree, False)


def part(path: Path) -> str:
    """The unit that the rules speak of: a module of the package, or a subpackage."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def targets(path: Path) -> Iterator[tuple[str, bool]]:
    """Units of this package that a file imports."""
    for module, inside in imports(path):
        parts = module.split(".")
        if parts[0] == "harness" and len(parts) > 1 and not parts[1].startswith("__"):
            yield parts[1], inside


def test_every_part_has_a_layer() -> None:
    found = {part(p) for p in FILES} - {"__init__"}
    assert found <= set().union(*LAYERS), f"without a layer: {found - set().union(*LAYERS)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_down(path: Path) -> None:
    own = part(path)
    if own == "__init__":
        assert not list(targets(path))
        return
    for other, inside in targets(path):
        if other == own or (own, other, inside) == ("sweep", "train", False):
            continue
        assert layer(other) <= layer(own), f"{name(path)} (layer {layer(own)}) imports {other} (layer {layer(other)})"
        assert not ({own, other} <= SIBLINGS), f"{name(path)} imports its sibling {other}"


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in TORCH_FREE], ids=name)
def test_torch_free_parts(path: Path) -> None:
    """Not even inside functions, but where a worker or an export begins: then torch is what was asked for."""
    late = {
        "sweep.py": {"harness.train.run", "harness.ttc.run"},
        "exporting.py": {"harness.models", "harness.models.llama", "safetensors.torch", "transformers.utils"},
    }
    for module, inside in imports(path):
        heavy = module.split(".")[0] in ("torch", "transformers", "safetensors") or module.split(".")[:2] in (
            ["harness", "models"],
            ["harness", "train"],
            ["harness", "ttc"],
        )
        if not heavy or module in ("harness.train", "harness.train.lock"):
            continue
        assert inside, f"{name(path)} imports {module} at its top"
        assert module in late.get(name(path), set()), f"{name(path)} imports {module}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_outside_libraries_have_their_files(library: str) -> None:
    users = {name(p) for p in FILES if any(m.split(".")[0] == library for m, _ in imports(p))}
    allowed = {name(p) for p in FILES for pattern in ONLY_IN[library] if p.match(pattern)}
    assert users <= allowed, f"{library} is also imported by {users - allowed}"
    assert users, f"nothing imports {library}: the rule is out of date"


def test_the_lock_needs_no_torch() -> None:
    """`watch` asks who holds a run's lock; that one module of `train` is the standard library alone."""
    assert {m.split(".")[0] for m, _ in imports(PACKAGE / "train" / "lock.py")} <= {
        "__future__",
        "collections",
        "contextlib",
        "fcntl",
        "harness",
        "json",
        "os",
        "pathlib",
        "socket",
        "time",
        "typing",
    }
    assert not (PACKAGE / "train" / "__init__.py").read_text().strip()


def test_schema_is_the_standard_library_alone() -> None:
    assert {m.split(".")[0] for m, _ in imports(PACKAGE / "schema.py")} <= {"__future__", "dataclasses", "enum"}


def test_nothing_beyond_the_door_sees_a_dictconfig() -> None:
    users = {name(p) for p in FILES if "DictConfig" in p.read_text(encoding="utf-8")}
    assert users <= {"compose.py", "sweep.py"}


def test_no_god_modules_and_no_swallowed_exceptions() -> None:
    assert not [p for p in FILES if p.stem in ("utils", "helpers", "common", "misc")]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and all(isinstance(s, ast.Pass) for s in node.body):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in ("everything", "Exception", "BaseException"), (
                    f"{name(path)}:{node.lineno} swallows {caught}"
                )


# what a declared package brings under a name of its own, or together with a dependency that it cannot do without
BROUGHT = {
    "transformers": {"tokenizers", "safetensors"},
    "hydra-core": {"hydra", "omegaconf", "yaml"},
    "nvidia-ml-py": {"pynvml"},
    "vl-convert-python": {"vl_convert"},
}


def test_a_plain_installation_has_every_library_that_the_package_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=!\[]", d)[0].strip() for d in project["dependencies"]}
    known = {d.replace("-", "_") for d in declared} | set().union(*(BROUGHT.get(d, set()) for d in declared))
    wanted = {m.split(".")[0] for p in FILES for m, _ in imports(p)} - set(sys.stdlib_module_names) - {"harness"}
    assert wanted <= known, f"imported, but not among the dependencies of pyproject.toml: {wanted - known}"
