"""What README.md and docs/ say exists, and their commands mean something: verbs and overrides
compose, the cheap ones run.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from harness import laws
from harness.analysis import reproduce
from harness.cli import main as cli
from harness.cli import sources
from harness.errors import HarnessError
from harness.laws.catalogue import LAWS
from harness.power.reason_codes import EFFECT
from harness.records import fits as fit_files

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
USAGE = ROOT / "docs/usage.md"
LOG = ROOT / "docs/LOG.md"
DOCS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LADDERS = sorted(p.stem for p in (ROOT / "conf/ladder").glob("*.yaml"))
REFERENCES = "results/reference/"
CHEAP = {"plan", "doctor"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every shell block."""
    lines = [(p.name, line) for p in DOCS for block in blocks(p, "bash") for line in block.splitlines()]
    return [(page, line.strip()) for page, line in lines if line.strip() and not line.startswith("#")]


HARNESS = [(f"{page}: {line}", shlex.split(line)[1:]) for page, line in commands() if line.startswith("harness")]
ONCE = [(name, given) for name, given in HARNESS if given[0] in CHEAP]
ONCE += [(" ".join(given), given) for given in (["--help"], ["--version"], ["run", "--help"])]


class Parsed(HarnessError):
    """Raised in place of a verb's work, once its arguments have been understood."""


def test_readme_is_short_and_plain() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert max(map(len, text.splitlines())) <= 100
    for page in DOCS:
        assert not re.search(r"(/work|/root|/opt|/tmp)/", page.read_text(encoding="utf-8"))


def test_every_shell_line_is_known() -> None:
    assert len(commands()) > 10
    for page, line in commands():
        first = line.split()[0]
        assert first in ("harness", "git") or (ROOT / first).is_file(), f"{page}: {line}"


@pytest.mark.parametrize("page", DOCS, ids=lambda p: p.name)
def test_prose_wraps(page: Path) -> None:
    """Prose wraps at 100 columns; headings, tables, commands and pictures do not."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    long = [line for line in text.splitlines() if len(line) > 100 and not line.startswith(("#", "|", "!["))]
    assert [line for line in long if " " in re.sub(r"`[^`]*`", "", line.strip())] == [], (
        "but for one long word or command"
    )


@pytest.mark.parametrize("page", DOCS, ids=lambda p: p.name)
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page == LOG:  # an entry is never rewritten: it names the files of its day
        text = "\n".join(re.findall(r"\]\([^)]+\)", text))
    named = [(page.parent / link, link) for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named += [(ROOT / p, p) for p in re.findall(r"`((?:harness|conf|scripts|tests|docs|results)/[\w./-]*)`", text)]
    named += [
        (ROOT / "harness" / p, p) for p in re.findall(r"`((?:data|power|train|laws|models|report)/\w+\.py)`", text)
    ]
    missing = [
        name for path, name in named if not path.exists() and not name.endswith("/mine.yaml")
    ]  # the reader's own
    studies = {name.removeprefix(REFERENCES).split("/")[0] for name in missing if name.startswith(REFERENCES)}
    assert [name for name in missing if not name.startswith(REFERENCES)] == []
    for study in studies:
        assert not (ROOT / REFERENCES / study).exists(), f"{page.name}: {missing} is missing from a study that is there"
    if studies:
        pytest.skip(f"no study {', '.join(sorted(studies))} below {REFERENCES} yet")


def test_verbs_and_ladders_are_those_that_exist() -> None:
    text = README.read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert table == re.findall(r"^  ([a-z]+) .*  ", cli.USAGE, re.M), "the verbs of `harness --help`, in its order"
    listed = re.search(r"a\s+ladder\s+is\s+a\s+named\s+sweep:(.*?)\(", USAGE.read_text(encoding="utf-8"), re.S)
    assert listed is not None
    assert sorted(re.findall(r"`(\w+)`", listed.group(1))) == LADDERS


def test_names_in_conventions_are_those_of_the_code() -> None:
    import dataclasses

    from harness import records
    from harness.analysis import study_laws

    text = (ROOT / "docs/conventions.md").read_text(encoding="utf-8")
    for name in study_laws.FIT_NAMES:
        assert f"`{name}`" in text, f"fits.json holds {name}"
    for f in dataclasses.fields(records.Counts):
        assert f"`{f.name}`" in text, f"records hold {f.name}"
    for law in ("chinchilla", "loss_compute", "loss_energy", "energy_power"):
        formula = LAWS[law].formula
        assert formula in text, formula
    for code in re.findall(r"code `([A-Z_]+)`", text):
        assert code in EFFECT


def test_flop_fixtures_in_conventions() -> None:
    """The printed integers are those of the code."""
    from harness.models.flops import Shape, counts

    text = (ROOT / "docs/conventions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:\d+ ){8}(?:yes|no)) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.M)
    assert len(rows) == 3
    for shape, *printed in rows:
        *numbers, tied = shape.split()
        v, d, layers, h, k, head, ffn, s = map(int, numbers)
        c = counts(Shape(v, d, layers, h, k, head, ffn, s, tied == "yes"))
        assert [c.n_total, c.n_nonemb, c.fpt_causal, c.fpt_full] == [int(p) for p in printed]


def points_table() -> list[tuple[float, float, float]]:
    """(N, C, loss) on a Chinchilla surface with 0.3 % noise, 1e18 to 3e22 FLOP."""
    rng = np.random.default_rng(0)
    grid = [(float(n), float(r)) for n in np.geomspace(6e7, 1.6e10, 7) for r in np.geomspace(5, 100, 5)]
    noise = np.exp(0.003 * rng.normal(size=len(grid)))
    return [
        (n, 6 * n * n * r, (1.8 + 480 / n**0.35 + 2100 / (n * r) ** 0.37) * float(e))
        for (n, r), e in zip(grid, noise, strict=True)
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the commands name: a text, the ladder printed in
    docs/extending.md, a table, a fit.
    """
    table = points_table()
    lines = ["Model Size,Training FLOP,loss", *(",".join(map(repr, row)) for row in table)]
    (tmp_path / "points.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    n, c, loss = (np.array(column) for column in zip(*table, strict=True))
    fitted = laws.fit("chinchilla", {"N": n, "D": c / (6 * n), "loss": loss}, bootstrap=100)
    fit_files.write_fit(tmp_path / "f.json", fitted)
    (tmp_path / "my.txt").write_text("It was a bright cold day in April.\n" * 20_000, encoding="utf-8")
    (ladder,) = blocks(ROOT / "docs/extending.md", "yaml")
    (tmp_path / "conf/ladder").mkdir(parents=True)
    (tmp_path / "conf/ladder/mine.yaml").write_text(ladder, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("arguments", [given for _, given in HARNESS], ids=[name for name, _ in HARNESS])
def test_command_parses(arguments: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every harness command reaches its work with arguments that it understands."""

    def parsed(*_: object, **__: object) -> None:
        raise Parsed("understood")

    monkeypatch.setattr(sources, "find_study", parsed)
    monkeypatch.setattr(reproduce, "load_reference", parsed)
    monkeypatch.setattr("harness.track.wandb.fetch_records", parsed)
    verb, rest = arguments[0], arguments[1:]
    if verb in ("plan", "run", "ttc") and "--help" not in rest:
        from harness.config.schema import PretrainedConfig
        from harness.sweep.compose_sweep import enumerate_runs
        from harness.sweep.plan import check_rungs, check_tests

        planned, _ = enumerate_runs(rest)
        rungs = check_tests(planned) if verb == "ttc" else check_rungs(planned)
        assert len(rungs) == sum(not isinstance(p.config.model, PretrainedConfig) for p in planned)
        assert planned
    elif verb in CHEAP or {"points.csv", "f.json"} & set(rest):
        assert cli.main(arguments) == 0
    else:
        with pytest.raises(Parsed):
            cli._verb(verb)(rest)


@pytest.mark.parametrize("arguments", [given for _, given in ONCE], ids=[name for name, _ in ONCE])
def test_cheap_commands_run(arguments: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.strip()
    assert not (workplace / "runs").exists(), "nothing is written before something is trained"


def test_pins_are_bare() -> None:
    """Name and version, nothing else: no address, no local build, nothing editable."""
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    for pin in pins:
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.]*", pin), pin
    names = [p.split("==")[0] for p in pins]
    assert len(set(names)) == len(names)
    assert "torch==2.13.0" in pins


def test_every_dependency_is_pinned() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, groups = settings["project"], settings["dependency-groups"]
    extras = [*project["optional-dependencies"].values(), *groups.values()]
    wanted = project["dependencies"] + [d for extra in extras for d in extra]
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for requirement in wanted:
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert match is not None
        assert re.sub(r"[-_.]+", "-", match.group()).lower() in pins, f"{requirement} has no pin in constraints.txt"


def test_licence_is_the_official_text() -> None:
    import hashlib

    # The text as the Apache Software Foundation publishes it, byte for byte
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
