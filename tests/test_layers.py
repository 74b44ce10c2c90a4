"""Who may import whom, read from the syntax tree: one strict order of packages, no cycles,
torch-free parts, and each outside library in its own files. The table of `docs/extending.md` is
`layer_table()`.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "harness"

# Lowest first. A room imports from lower layers only; rooms of one layer never import each other.
LAYERS: list[tuple[str, ...]] = [
    ("errors", "units", "hardware", "console"),
    ("laws",),
    ("records",),
    ("models",),
    ("config",),
    ("power", "track", "tasks"),
    ("data",),
    ("runtime",),
    ("analysis",),
    ("training", "ttc", "report"),
    ("sweep",),
    ("cli",),
    ("__main__",),
]
MAX_ROOMS, MAX_EDGES, MAX_MODULES = 24, 100, 18
HEAVY = {"torch", "transformers", "safetensors"}
# Packages that torch is not imported for, and the modules of other packages of which the same holds
TORCH_FREE = {
    *("errors", "units", "hardware", "console", "laws", "records", "config", "power", "track", "tasks", "analysis", "report", "sweep", "cli"),
    *("models", "models.flops", "data", "data.corpora", "runtime", "runtime.lock", "runtime.signals", "runtime.energy_budget"),
}  # fmt: skip
MIXED = {"models", "data", "runtime"}  # only those of their modules that are named above
# Where a worker or an export begins, torch is what was asked for
LATE_TORCH = {
    "data.corpora": {"data.facts", "data.text", "data.tokenizer"},
    "cli.doctor": {"torch"},
    "sweep.worker": {"training.run", "ttc.run"},
    "models": {"models.llama"},
    "analysis.export": {"safetensors.torch", "transformers.utils"},
}
ONLY_IN = {
    "wandb": {"track/wandb.py", "track/wandb_client.py", "track/wandb_process.py"},
    "pynvml": {"power/nvml.py"},
    "datasets": {"data/text.py", "data/text_corpus.py", "tasks/qa_data.py"},
    "hydra": {"sweep/compose_sweep.py", "sweep/launch.py", "sweep/worker.py", "config/compose.py"},
    "omegaconf": {"sweep/compose_sweep.py", "sweep/launch.py", "sweep/worker.py", "config/compose.py"},
    "transformers": {
        "analysis/export.py",
        "models/llama.py",
        "models/pretrained.py",
        "data/tokenizer.py",
        "training/step.py",
        "training/trunk.py",
        "training/validate.py",
    },
    "rich": {"console.py"},
    "altair": {"report/*.py"},
    "msgspec": {"records/files.py", "records/schemas.py"},
    "jinja2": {"report/page.py"},
    "pyarrow": {"power/table.py", "analysis/tables.py", "analysis/export.py", "data/text.py", "data/text_corpus.py"},
}


def module_name(path: Path) -> str:
    """`power.meter` for harness/power/meter.py, `power` for harness/power/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py"))}
FILES = list(MODULES.values())


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether a function does it) of every import, modules of ours without `harness.`;
    TYPE_CHECKING is left out.
    """
    found: list[tuple[str, bool]] = []

    def own(module: str) -> str:
        return module.removeprefix("harness").lstrip(".") if module.split(".")[0] == "harness" else module

    def walk(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((own(a.name), inside) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path.name}: imports are absolute"
                base = own(str(child.module))
                for a in child.names:
                    name = f"{base}.{a.name}".lstrip(".")
                    found.append((name if name in MODULES else base, inside))
            else:
                walk(child, inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    walk(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def ours(module: str) -> Iterator[tuple[str, bool]]:
    """Modules of this package that one of them imports; the front door `harness/__init__` is none
    of them.
    """
    return ((m, inside) for m, inside in imports(MODULES[module]) if m in MODULES and m)


def room(module: str) -> str:
    return module.split(".")[0]


def layer(name: str) -> int:
    return next((i for i, names in enumerate(LAYERS) if name in names), -1)


def layer_table() -> str:
    """The layers as a Markdown table, for docs/extending.md."""
    rows = [
        f"| {i} | {', '.join(f'`{n}`' for n in names)} |" for i, names in enumerate(LAYERS) if names != ("__main__",)
    ]
    return "\n".join(["| layer | rooms |", "|---|---|", *rows])


def edges() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second."""
    pairs = {(room(m), room(other)) for m in MODULES if m for other, _ in ours(m)}
    return {(a, b) for a, b in pairs if a != b}


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_every_room_has_a_layer() -> None:
    rooms = {room(m) for m in MODULES if m}
    assert rooms == {n for names in LAYERS for n in names}
    assert len(rooms) <= MAX_ROOMS


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_imports_go_down(module: str) -> None:
    """Lazy imports too: what a function imports late, it still depends on."""
    for other, _ in ours(module):
        assert room(other) == room(module) or layer(room(other)) < layer(room(module)), (
            f"{module} (layer {layer(room(module))}) imports {other} (layer {layer(room(other))})"
        )


def test_no_module_imports_itself_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other, _ in ours(module):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_house_stays_small() -> None:
    assert len(edges()) <= MAX_EDGES
    for folder in {p.parent for p in FILES if p.parent != PACKAGE}:
        modules = [p.name for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(modules) <= MAX_MODULES, f"{name(folder)}: {len(modules)} modules"


def test_the_documentation_shows_the_layers() -> None:
    assert layer_table() in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def torch_free(module: str) -> bool:
    return module in TORCH_FREE or (room(module) in TORCH_FREE and room(module) not in MIXED)


@pytest.mark.parametrize("module", [m for m in MODULES if m and torch_free(m)])
def test_torch_free_parts(module: str) -> None:
    """Neither a module nor anything that it imports at its top imports torch; functions do so only
    where LATE_TORCH says.
    """
    seen: set[str] = set()

    def visit(current: str, path: tuple[str, ...]) -> None:
        if current in seen:
            return
        seen.add(current)
        for other, inside in imports(MODULES[current]):
            if inside:
                continue
            assert other.split(".")[0] not in HEAVY, f"{' -> '.join([*path, current])} imports {other} at its top"
            if other in MODULES:
                visit(other, (*path, current))

    visit(module, ())
    for other, inside in imports(MODULES[module]):
        if inside and (other.split(".")[0] in HEAVY or (other in MODULES and other and not torch_free(other))):
            assert other in LATE_TORCH.get(module, set()), f"{module} imports {other}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_outside_libraries_have_their_files(library: str) -> None:
    users = {name(p) for p in FILES if any(m.split(".")[0] == library for m, _ in imports(p))}
    allowed = {name(p) for p in FILES for pattern in ONLY_IN[library] if p.match(pattern)}
    assert users <= allowed, f"{library} is also imported by {users - allowed}"
    assert users, f"nothing imports {library}: the rule is out of date"


@pytest.mark.parametrize(
    "module", ["runtime.lock", "runtime.signals", "config.schema", "config.sections", "config.setting"]
)
def test_these_are_the_standard_library_alone(module: str) -> None:
    """`status` asks who holds a run's lock, and the schema is imported everywhere."""
    for other, _ in imports(MODULES[module]):
        assert other.split(".")[0] in sys.stdlib_module_names or other in (
            "errors",
            "config.sections",
            "config.setting",
        ), other


def test_nothing_beyond_the_door_sees_a_dictconfig() -> None:
    users = {module_name(p) for p in FILES if "DictConfig" in p.read_text(encoding="utf-8")}
    assert users <= {"config.compose", "sweep.worker", "sweep.launch"}


def test_no_god_modules_and_no_swallowed_exceptions() -> None:
    assert not [p for p in FILES if p.stem in ("utils", "helpers", "common", "misc")]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and all(isinstance(s, ast.Pass) for s in node.body):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in ("everything", "Exception", "BaseException"), (
                    f"{name(path)}:{node.lineno} swallows {caught}"
                )


# what a declared package brings under a name of its own, or together with a dependency that it
# cannot do without
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
    wanted = (
        {m.split(".")[0] for p in FILES for m, _ in imports(p)}
        - set(sys.stdlib_module_names)
        - {m.split(".")[0] for m in MODULES}
    )
    assert wanted <= known, f"imported, but not among the dependencies of pyproject.toml: {wanted - known}"
