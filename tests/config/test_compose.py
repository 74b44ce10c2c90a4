"""The one door from a command line to a RunConfig: every YAML composes, every known trap is caught,
and the run id means identity.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from enum import Enum
from pathlib import Path

import pytest

from harness.config import checks, identity, schema
from harness.config.schema import FAMILIES, BudgetConfig, CosineConfig, RunConfig, TextConfig, WsdConfig
from harness.errors import ConfigError
from harness.sweep.compose_sweep import CONF, Planned, enumerate_runs

BUDGET = "budget.tokens=2_000_000"


def planned(*arguments: str) -> list[Planned]:
    return enumerate_runs(list(arguments))[0]


def problems(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as e:
        planned(*arguments)
    return e.value.problems


def test_tf32_never_meets_a_forward_pass_that_is_not_ours() -> None:
    (problem,) = problems("model=pretrained", "model.path=x", "corpus=qa", "device.tf32=true", BUDGET)
    assert problem.startswith("device.tf32=true with model=pretrained")


# --- everything that is shipped composes ----------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_every_choice_has_a_yaml_and_composes(family: str) -> None:
    names = {p.stem for p in (CONF / family).glob("*.yaml")}
    assert names == set(FAMILIES[family])
    needs = {"path": "x", "train": "x.txt"}
    for name, cls in FAMILIES[family].items():
        given = [f"{family}.{f.name}={needs[f.name]}" for f in dataclasses.fields(cls) if f.default == "???"]
        (one,) = planned(BUDGET, f"{family}={name}", *given)
        assert type(getattr(one.config, family)) is cls
        assert identity.resolved(one.config)[family]["kind"] == name


@pytest.mark.parametrize("path", sorted((CONF / "ladder").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_ladder_composes(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = " ".join(line for line in lines if line.startswith("#"))
    for word in ("Claim:", "Hardware:", "Cost:", "Command:", f"+ladder={path.stem}"):
        assert word in header, f"{path.name} does not say its {word}"
    given = ["corpus.train=x.txt"] if "corpus: text" in path.read_text() or "corpus.train" in header else []
    runs = planned(f"+ladder={path.stem}", *given)
    assert len(runs) > 1
    assert len({r.run_id for r in runs}) == len(runs), "two runs of a ladder are the same run"
    assert len({r.config.study for r in runs}) == 1


def test_yaml_files_hold_choices_only() -> None:
    for path in CONF.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert not any("_target_" in line.split("#")[0] for line in text.splitlines())
        assert ("@package _global_" in text) == (path.parent.name in ("ladder", "recipe"))


def test_defaults_are_those_of_the_schema() -> None:
    (one,) = planned(BUDGET)
    assert one.config == RunConfig(budget=BudgetConfig(tokens=2_000_000))


# --- traps, tried one by one (ecosystem guide, section 3) -----------------------------------------
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("optim.lrr=1", ["optim.lrr", "optim.lr"]),
        ("+optim.lrr=1", ["optim.lrr is not a field of AdamwConfig", "did you mean optim.lr?"]),
        ("++optim.lrr=1", ["optim.lrr is not a field of AdamwConfig", "did you mean optim.lr?"]),
        ("+typo=1", ["typo is not a field of RunConfig"]),
        ("+model.zzz.yyy=1", ["model.zzz is not a field of LlamaConfig", "its fields are"]),
        ("optim.lr=fast", ["optim.lr", "fast", "Float"]),
        ("seed=1.5", ["seed", "1.5", "Integer"]),
        ("budget.tokens=1e9", ["budget.tokens", "1e9", "Integer"]),
        ("model=foo", ["model/foo", "llama", "pretrained"]),
        ("schedule=wds", ["schedule/wds", "wsd"]),
        ("+ladder=nope", ["ladder/nope", "cpu"]),
        ("power=off", ["power"]),
        ("device.precision=fp8", ["fp8", "bf16", "fp32"]),
        ("schedule=cosine schedule.decay_fraction=0.1", ["decay_fraction", "CosineConfig"]),
        ("optim=null", ["group override", "name of a choice"]),
        ("model.width=null", ["model.width"]),
        ("~optim.lr", ["optim.lr"]),
        ("corpus=text", ["corpus.train is required", "corpus.train=VALUE"]),
        ("power=replay", ["power.path is required"]),
        ("budget.cooldowns=0.5", ["budget.cooldowns"]),
        ("budget.cooldowns=[a]", ["budget.cooldowns", "a"]),
        ("model.width=[16", ["model.width=[16"]),
        ("--flag", ["unknown flag --flag", "key=value"]),
        ("model.width", ["model.width"]),
    ],
)
def test_traps_are_caught_in_words(argument: str, words: list[str]) -> None:
    text = "\n".join(problems(BUDGET, *argument.split()))
    assert all(w in text for w in words), text
    assert "To append to your config" not in text, "the advice that leads into the next trap"
    assert "Traceback" not in text
    assert len(text) < 900


@pytest.mark.parametrize(
    "argument",
    ["+budget.cooldowns.0.x=1", "+corpus.vocabb=3", "+attempt.forced=true", "+paths.runz=x", "+tracker.mod=online"],
)
def test_the_guard_reaches_every_section(argument: str) -> None:
    assert problems(BUDGET, argument)


def test_all_unknown_keys_at_once() -> None:
    found = problems(BUDGET, "+optim.lrr=1", "++model.wdith=2", "+sed=3")
    assert len(found) == 3
    assert [p.split(" ")[0] for p in sorted(found)] == ["model.wdith", "optim.lrr", "sed"]


def test_all_contradictions_at_once() -> None:
    found = problems(
        "budget.flop=-1", "budget.tokens=5", "optim.lr=0", "corpus.context=10", "schedule.decay_fraction=2", "study=a/b"
    )
    text = "\n".join(found)
    for words in (
        "budget: tokens and flop set",
        "budget.flop=-1",
        "optim.lr=0",
        "corpus.context=10 is not a multiple of 3",
        "decay_fraction=2",
        "study='a/b'",
    ):
        assert words in text, text


def test_problems_of_a_sweep_are_collected_over_its_runs() -> None:
    found = problems(BUDGET, "model.width=4,16,5")
    assert len(found) == 2
    assert "model.width=4" in found[0]
    assert "model.width=5" in found[1]


def test_clean_configs_raise_no_alarm() -> None:
    (one,) = planned(BUDGET, "budget.cooldowns=[0.25,0.5]", "optim.lr=null")
    assert one.config.budget.cooldowns == [0.25, 0.5]


def test_underscores_enums_and_quotes() -> None:
    (one,) = planned(BUDGET, "device.precision=bf16", 'study="1e9"', "attempt.retry=failed")
    assert one.config.budget.tokens == 2_000_000
    assert one.config.device.precision is schema.Precision.bf16
    assert one.config.attempt.retry is schema.Retry.failed
    assert one.config.study == "1e9"


def test_a_sweep_on_the_command_line_replaces_the_ladders_list() -> None:
    assert [r.config.model.width for r in planned("+ladder=cpu", "model.width=16,32")] == [16, 32]  # type: ignore[attr-defined]
    assert {r.config.seed for r in planned("+ladder=cpu", "seed=0,1")} == {0, 1}
    assert len(planned("+ladder=cpu", "seed=0,1")) == 2 * len(planned("+ladder=cpu"))
    assert [r.config.model.width for r in planned("+ladder=cpu", "model.width=16")] == [16]  # type: ignore[attr-defined]


# --- numbers that would blow up later -------------------------------------------------------------
def numbers() -> list[tuple[str, type]]:
    """Every int and float setting of the default config."""
    found = []
    for f in dataclasses.fields(RunConfig):
        section = getattr(RunConfig(), f.name)
        if dataclasses.is_dataclass(section):
            for g in dataclasses.fields(section):
                kind = next((t for t in (int, float) if t.__name__ in str(g.type).split(" | ")), None)
                if kind and not isinstance(getattr(section, g.name), (bool, list)):
                    found.append((f"{f.name}.{g.name}", kind))
    return found


def problems_of(key: str, value: float) -> str:
    """What the pure check says of the default config with one number changed."""
    run = RunConfig() if key.startswith("budget.") else RunConfig(budget=BudgetConfig(tokens=2_000_000))
    owner, name = (run, key) if "." not in key else (getattr(run, key.split(".")[0]), key.split(".")[1])
    setattr(owner, name, value)
    return "\n".join(checks.check_run(run))


@pytest.mark.parametrize("key", [k for k, t in numbers() if t is float])
def test_no_setting_may_be_non_finite(key: str) -> None:
    """A record refuses a non-finite number, so a config with one must not begin to train."""
    for value in (math.nan, math.inf, -math.inf):
        assert f"{key}={value}" in problems_of(key, value)


@pytest.mark.parametrize("key", [k for k, _ in numbers()])
def test_no_setting_may_be_negative(key: str) -> None:
    assert f"{key}=-1" in problems_of(key, -1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", -1), ("seed", 10**24), ("optim.beta1", 1), ("optim.beta2", 1.5), ("corpus.unique_tokens", 1)],
)
def test_values_that_a_library_would_refuse(key: str, value: float) -> None:
    assert f"{key}={value}" in problems_of(key, value)


def test_a_bad_number_on_the_command_line() -> None:
    assert problems(BUDGET, "ttc.temperatures=[1.0,1.0]") == [
        "ttc.temperatures=[1.0, 1.0] names a value twice. Name each once."
    ]
    assert problems(BUDGET, "ttc.temperatures=[]") == [
        "ttc.temperatures=[] asks for nothing. Name at least one, such as [1.0]."
    ]
    assert problems(BUDGET, "optim.grad_clip=inf") == [
        "optim.grad_clip=inf must be a finite number: records hold no other."
    ]


# --- identity -------------------------------------------------------------------------------------
BASE = RunConfig(budget=BudgetConfig(tokens=2_000_000))


def leaves(value: object, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        leaf
        for f in dataclasses.fields(value)  # type: ignore[arg-type]
        for leaf in (
            leaves(getattr(value, f.name), (*prefix, f.name))
            if dataclasses.is_dataclass(getattr(value, f.name))
            else [(*prefix, f.name)]
        )
    ]


def changed(run: RunConfig, path: tuple[str, ...]) -> RunConfig:
    """The config with another value at one leaf."""
    run = copy.deepcopy(run)
    owner = run
    for name in path[:-1]:
        owner = getattr(owner, name)
    old = getattr(owner, path[-1])
    match old:
        case Enum():
            new = next(m for m in type(old) if m is not old)
        case bool():
            new = not old
        case None:
            new = 7
        case str():
            new = old + "x"
        case list():
            new = [*old, 0.5]
        case _:
            new = old + 1
    setattr(owner, path[-1], new)
    return run


@pytest.mark.parametrize("path", leaves(BASE), ids=".".join)
def test_identity_of_a_trunk(path: tuple[str, ...]) -> None:
    same = identity.run_id(changed(BASE, path)) == identity.run_id(BASE)
    assert same == (path[0] in ("tracker", "paths", "attempt", "ttc", "budget") or path == ("device", "threads"))


@pytest.mark.parametrize("path", [p for p in leaves(BASE) if p[0] == "budget" and p[1] != "kwh"], ids=".".join)
def test_a_single_path_is_identified_by_its_budget(path: tuple[str, ...]) -> None:
    base = dataclasses.replace(copy.deepcopy(BASE), schedule=CosineConfig())
    assert identity.run_id(changed(base, path)) != identity.run_id(base)


def test_choices_of_a_family_are_identity_even_with_equal_fields() -> None:
    ids = {
        identity.run_id(dataclasses.replace(copy.deepcopy(BASE), schedule=s))
        for s in (WsdConfig(), CosineConfig(), schema.ConstantConfig())
    }
    assert len(ids) == 3


def test_records_hold_no_local_path(tmp_path: Path) -> None:
    run = copy.deepcopy(BASE)
    run.corpus = TextConfig(train=str(tmp_path / "a.txt"), val=str(tmp_path / "b.txt"), cache_dir=str(tmp_path))
    run.power = schema.ReplayConfig(path=str(tmp_path / "trace.csv"))
    run.paths.runs = str(tmp_path / "runs")
    value = identity.resolved(run)
    assert str(tmp_path) not in str(value)
    assert (value["corpus"]["train"], value["corpus"]["val"], value["power"]["path"]) == ("a.txt", "b.txt", "trace.csv")


def test_check_run_is_pure() -> None:
    run = copy.deepcopy(BASE)
    assert checks.check_run(run) == []
    assert run == BASE


def test_names_tell_runs_of_a_ladder_apart() -> None:
    names = [r.name for r in planned("+ladder=cpu", "seed=0,1")]
    assert len(set(names)) == len(names)


def test_the_former_name_of_a_section_is_read_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (planned(BUDGET, f"{name}.retry=failed", f"{name}.force=true")[0] for name in ("run", "attempt"))
    assert old.config == new.config
    assert old.run_id == new.run_id
    message = "deprecated: run.force is attempt.force, run.retry is attempt.retry now. The old name is still read.\n"
    assert capsys.readouterr().err == message
    with pytest.raises(ConfigError, match="retryy"):
        planned(BUDGET, "run.retryy=failed")


def test_a_ladder_file_with_the_former_name_of_a_section_is_read(tmp_path: Path) -> None:
    (tmp_path / "ladder").mkdir()
    (tmp_path / "ladder" / "old.yaml").write_text("# @package _global_\nrun:\n  checkpoint_every_s: 7\n")
    (run,) = planned("+ladder=old", BUDGET, "--config-dir", str(tmp_path))
    assert run.config.attempt.checkpoint_every_s == 7
