"""`harness fit TABLE`: published data end to end, and a message for everything that is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic

from harness import laws, records
from harness.analysis import study_laws, tables
from harness.analysis.table_fit import fit_table
from harness.cli import main as cli
from harness.errors import FitError, RecordError
from harness.records import fits as fit_files

RNG = np.random.default_rng(5)


def surface(count: int = 25, noise: float = 0.002) -> dict[str, list]:
    """A 5 x 5 grid on the Chinchilla law with its five parameters known."""
    n, d = (m.ravel() for m in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(2e8, 2e10, 5)))
    loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(noise * RNG.normal(size=len(n)))
    table = {"params": n, "tok": d, "val loss": loss, "flops": 6.4 * n * d, "role": ["fit"] * 24 + ["late"]}
    return {k: list(v)[:count] for k, v in table.items()}


def write(path: Path, table: dict[str, list]) -> Path:
    with path.open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(table)
        out.writerows(zip(*table.values(), strict=True))
    return path


NAMED = ["--law", "chinchilla", "--n", "params", "--d", "tok", "--loss", "val loss", "--bootstrap", "40"]


def fitted(folder: Path, table: dict[str, list], *more: str, name: str = "t.csv") -> laws.Fit:
    source = write(folder / name, table)
    assert cli.main(["fit", str(source), *NAMED, *more, "--out", str(folder / "f.json")]) == 0
    return fit_files.load_file(folder / "f.json")["chinchilla"]


# --- published ------------------------------------------------------------------------------------
def test_chinchilla_points_end_to_end(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`besiroglu-240`: filter, D derived from C, the published optimum, and the prediction at
    Chinchilla's own budget.
    """
    source = published / "chinchilla_besiroglu" / "svg_extracted_data.csv"
    with source.open(newline="") as f:
        cut = sorted(float(r["loss"]) for r in csv.DictReader(f))[-5]
    truth = {c["id"]: c for c in json.loads((published / "truth.json").read_text())["cases"]}["besiroglu-240"]["checks"]
    out, md, tex = tmp_path / "f.json", tmp_path / "f.md", tmp_path / "f.tex"
    arguments = ["fit", str(source), "--law", "chinchilla", "--n", "Model Size", "--flop", "Training FLOP"]
    arguments += [
        "--filter",
        f"loss < {cut}",
        "--bootstrap",
        "400",
        "--out",
        str(out),
        "--markdown",
        str(md),
        "--latex",
        str(tex),
    ]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("chinchilla: L = E + A/N^alpha + B/D^beta on 240 points")
    assert f"5 rows failing the filter loss < {cut}" in text
    assert "ROWS_NOT_JUDGED" in text
    fit = fit_files.load_file(out)["chinchilla"]
    value = {**fit.params, **fit.derived, "objective": fit.objective, "n_rows": fit.n_points}
    for check in truth:
        if check["quantity"] not in value:
            continue
        fitted_value, expected = value[check["quantity"]], check["value"]
        match check["kind"]:
            case "equal":
                assert fitted_value == expected
            case "max":
                assert fitted_value <= expected * (1 + check["tol"])
            case "min":
                assert fitted_value >= expected
            case kind:
                assert abs(fitted_value - expected) <= check["tol"] * (abs(expected) if kind == "rel" else 1), check[
                    "quantity"
                ]
    assert fit.columns["D"] == "Training FLOP / (6 Model Size)"
    assert str(published) not in out.read_text(), "no local path"
    assert fit.columns["table"].startswith("svg_extracted_data.csv (sha256 193478df4e90f040")
    for paper in (md.read_text(), tex.read_text()):
        assert "1.82" in paper or "1.817" in paper
        assert "svg" in paper
        assert "failing the filter" in paper
    assert cli.main(["ask", str(out), "--flop", "5.76e23"]) == 0
    assert "D/N 17.9" in capsys.readouterr().out


def test_olmo_ladder_with_roles(published: Path, tmp_path: Path) -> None:
    """`olmo-c4`: text filter and a held-out target, N and D found by their symbols."""
    source = published / "olmo_ladder" / "ladder_final.csv"
    out = tmp_path / "f.json"
    arguments = [
        "fit",
        str(source),
        "--law",
        "chinchilla",
        "--loss",
        "c4_loss_avg5",
        "--bootstrap",
        "40",
        "--out",
        str(out),
    ]
    arguments += ["--filter", "role == 'fit16' or role == 'target'", "--hold-out", "role == 'target'"]
    assert cli.main(arguments) == 0
    fit = fit_files.load_file(out)["chinchilla"]
    assert fit.n_points == 16
    assert fit.held_out is not None
    assert fit.held_out.label == "role == 'target'"
    assert abs(fit.held_out.relative_error[0]) < 0.05
    assert fit.identified["E"] is False
    assert fit.columns["N"] == "N"


# --- forms of tables ------------------------------------------------------------------------------
def test_parquet_and_csv_give_the_same_fit(tmp_path: Path) -> None:
    table = surface()
    from_csv = fitted(tmp_path, table)
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    columns = {"N": "params", "D": "tok", "loss": "val loss"}
    from_parquet = fit_table(tables.read_table(tmp_path / "t.parquet"), "chinchilla", columns, bootstrap=40)
    assert from_parquet.params == from_csv.params
    assert from_parquet.data_hash == from_csv.data_hash
    assert from_csv.params["alpha"] == pytest.approx(0.35, abs=0.05)


def test_the_exported_table_of_a_study_needs_no_names(tmp_path: Path) -> None:
    """`export --format parquet` and `fit` speak the same names.

    Points of one run are one cluster.
    """
    from harness import records
    from harness.analysis import export
    from harness.analysis.study import Study

    runs = synthetic.ladder()
    for r in runs:
        (tmp_path / "s" / r.run_id).mkdir(parents=True)
        records.write_json(tmp_path / "s" / r.run_id / "record.json", r)
    export.to_parquet(Study.load(tmp_path / "s"), tmp_path / "t.parquet")
    fit = fit_table(tables.read_table(tmp_path / "t.parquet"), "chinchilla", {}, bootstrap=0)
    study_fit = study_laws.fit_study(runs, bootstrap=0)["loss_nd"]
    assert fit.params == pytest.approx(study_fit.params, rel=1e-9)
    assert fit.n_clusters == len(runs)
    assert fit.columns["cluster"] == "run_id"
    assert [w for w in fit.warnings if w.code == "ROWS_NOT_JUDGED"] == []


def test_a_wandb_project_is_fetched_and_fitted_as_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness import records

    projects = []

    def fetch(project: str, folder: Path) -> list[Path]:
        projects.append(project)
        paths = [folder / r.run_id / "record.json" for r in synthetic.ladder()]
        for path, r in zip(paths, synthetic.ladder(), strict=True):
            path.parent.mkdir(parents=True)
            records.write_json(path, r)
        return paths

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.track.wandb.fetch_records", fetch)
    assert cli.main(["fit", "wandb:lab/ladder", "--bootstrap", "40"]) == 0
    text = capsys.readouterr().out
    assert projects == ["lab/ladder"]
    assert "7 records fetched into runs/wandb-lab-ladder" in text
    assert "W&B:" not in text, "nothing is mirrored into the project that was read"
    assert "loss_nd" in fit_files.load_fits(tmp_path / "runs/wandb-lab-ladder")
    assert cli.main(["ask", "wandb-lab-ladder", "--flop", "1e13"]) == 0


def test_hold_out_filter_sigma_cluster_and_fix_reach_the_fit(tmp_path: Path) -> None:
    table = surface() | {"bar": [0.004] * 25, "trunk": [f"t{i % 5}" for i in range(25)]}
    more = ["--hold-out", "tok > 1.9e10", "--sigma", "bar", "--cluster", "trunk", "--fix", "E=1.8"]
    fit = fitted(tmp_path, table, *more, "--filter", "[val loss] < 100 and role != 'late'")
    assert fit.n_points == 20
    assert fit.n_clusters == 5
    assert fit.held_out is not None
    assert len(fit.held_out.measured) == 4
    assert fit.fixed == {"E": 1.8}
    assert (fit.columns["sigma"], fit.columns["cluster"]) == ("bar", "trunk")
    assert fit.excluded == {"failing the filter [val loss] < 100 and role != 'late'": 1}


def test_energy_law_of_a_table(tmp_path: Path) -> None:
    flop = np.geomspace(1e12, 1e16, 9)
    source = write(tmp_path / "e.csv", {"C": list(flop), "joules": list(3e-9 * flop**0.9)})
    arguments = ["fit", str(source), "--law", "energy_power", "--energy", "joules", "--bootstrap", "0"]
    assert cli.main([*arguments, "--out", str(tmp_path / "e.json")]) == 0
    assert fit_files.load_file(tmp_path / "e.json")["energy_power"].params["b"] == pytest.approx(0.9, abs=1e-6)


# --- refusals -------------------------------------------------------------------------------------
def with_cell(row: int, column: str, value: object) -> dict[str, list]:
    table = surface()
    table[column][row] = value
    return table


@pytest.mark.parametrize(
    ("table", "more", "words"),
    [
        (surface(), ["--loss", "val_loss"], ["--loss", "no column 'val_loss'", "Did you mean 'val loss'"]),
        (surface(), ["--n", "role"], ["'role' (N)", "'fit'", "not a number"]),
        (with_cell(3, "val loss", ""), [], ["'val loss' (loss)", "row 4 of 25", "empty", '--filter "[val loss] > 0"']),
        (with_cell(3, "val loss", "nan"), [], ["empty or not a number", "row 4"]),
        (with_cell(7, "val loss", -1.0), [], ["-1 in row 8", "1 such rows"]),
        (with_cell(0, "tok", "inf"), [], ["'tok' (D)", "row 1"]),
        (surface() | {"params": [x / 1e9 for x in surface()["params"]]}, [], ["N is at most 1 parameters", "billions"]),
        (surface() | {"tok": [x / 1e9 for x in surface()["tok"]]}, [], ["D is at most 20 tokens", "billions"]),
        (surface() | {"val loss": [float(np.exp(x + 2)) for x in surface()["val loss"]]}, [], ["perplexity"]),
        (surface() | {"flops": [x / 1e3 for x in surface()["flops"]]}, ["--flop", "flops"], ["times 6 N D", "0.00107"]),
        (surface() | {"flops": [x / 1e15 for x in surface()["flops"]]}, ["--flop", "flops"], ["PFLOP"]),
        (surface(5), [], ["5 free parameters", "5 rows"]),
        (surface() | {"state": ["done"] * 24 + ["running"]}, [], ["'state'", "running", "Drop"]),
        (surface() | {"annealed": ["True"] * 24 + ["False"]}, [], ["'annealed' is false in 1 rows"]),
        (surface() | {"tokenizer": ["a"] * 24 + ["b"]}, [], ["'tokenizer' mixes a, b"]),
        (surface(), ["--filter", "val loss < 3"], ["character 5", "after 'val' is missing", "[brackets]"]),
        (surface(), ["--filter", "params < 3"], ["keeps none of the 25 rows"]),
        (surface(), ["--hold-out", "params < 3"], ["is true for none of the 25 rows"]),
        (surface(), ["--sigma", "tok"], ["error bar", "1/sigma^2"]),
        (surface(), ["--fix", "E"], ["--fix E: give NAME=VALUE"]),
        (surface(), ["--fix", "E=low"], ["'low' is not a number"]),
        (surface(), ["--fix", "E=1", "--fix", "E=2"], ["--fix E: given twice, as 1 and 2"]),
        (surface(), ["--column", "X=tok"], ["has no symbol X", "it has N, D, loss"]),
        (surface(), ["--law", "chinchila"], ["'chinchila' is unknown", "chinchilla"]),
        (surface(), ["--out", "nowhere/f.json"], ["--out nowhere/f.json", "no folder nowhere"]),
        (surface(), ["--out", "."], ["--out .", "or it is one itself"]),
        (surface(), ["--markdown", "nowhere/f.md"], ["--markdown nowhere/f.md", "no folder nowhere"]),
        (surface(), ["--latex", "nowhere/f.tex"], ["--latex nowhere/f.tex", "no folder nowhere"]),
        (surface(), ["--seed", "-1"], ["seed=-1", "positive"]),
        (surface() | {"bar": [0.01] * 24 + [0.0]}, ["--sigma", "bar"], ["row 25 of 25 holds 0", "not an error bar"]),
        (surface() | {"bar": ["nan"] + [0.01] * 24}, ["--sigma", "bar"], ["row 1 of 25 holds nan", "not an error bar"]),
        (surface() | {"t": [""] * 5 + ["a"] * 20}, ["--cluster", "t"], ["--cluster t", "5 of 25 rows have no entry"]),
        (with_cell(0, "params", 0.01), [], ["N is down to 0.01 parameters", "or a row"]),
        (
            surface() | {"params": [x / 1e3 for x in surface()["params"]], "tok": [x * 1e6 for x in surface()["tok"]]},
            [],
            ["times N (median)", "plain counts"],
        ),
    ],
    ids=lambda x: " ".join(x)[:50] if isinstance(x, list) else "",
)
def test_refusals(
    table: dict[str, list],
    more: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.csv", table)
    assert cli.main(["fit", "t.csv", *NAMED, "--out", "f.json", *more]) == 2
    text = capsys.readouterr().err
    assert text.startswith("harness fit: ")
    assert all(w in text for w in words), text
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"], "nothing is written"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "", ["is empty", "first line"]),
        ("t.csv", "a,b\n", ["has no rows"]),
        ("t.csv", "a,a\n1,2\n", ["'a'", "two columns"]),
        ("t.csv", "a,b\n1\n", ["line 2", "1 cells under 2"]),
        ("t.csv", "a,b\n\n\n1\n", ["line 4", "1 cells under 2"]),
        ("t.csv", 'a,b\n"1,2\n', ["not comma-separated"]),
        ("t.csv", b"\xff\xfe\x00", ["cannot be read"]),
        ("t.parquet", "a,b\n1,2\n", ["not a parquet file"]),
        ("t.tsv", "a\tb\n", [".csv or .parquet"]),
    ],
)
def test_files_that_are_no_tables(name: str, content: str | bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(FitError) as e:
        tables.read_table(path)
    assert all(w in str(e.value) for w in words), str(e.value)


def test_joules_in_another_unit_are_refused(tmp_path: Path) -> None:
    flop = np.geomspace(1e15, 1e19, 9)
    # KWh; nanojoule; kilojoule of a card at 400 TFLOP/s and 700 W
    for joules in (1e-11 / 3.6e6, 1e-2, 1.75e-15):
        table = {"C": flop, "energy": flop * joules}
        with pytest.raises(FitError, match="joules per FLOP"):
            tables.choose(table, "energy_power", {}, "t.csv")
    assert tables.choose({"C": flop, "energy": flop * 1e-11}, "energy_power", {}, "t.csv").columns["energy"] == "energy"


def test_a_column_that_the_law_does_not_need_refuses_nothing(tmp_path: Path) -> None:
    """Here D is the name of a data set, N a number of problems, and one run has no FLOP."""
    k = np.array([1.0, 2, 4, 8])
    curve = {"k": k, "coverage": 1 - 0.5 / k, "D": np.array(["gsm"] * 4), "N": np.full(4, 200.0)}
    assert tables.choose(curve, "coverage", {}, "t.csv").table.keys() == {"k", "coverage"}
    n = np.geomspace(1e7, 1e9, 4)
    gap = {"N": n, "D": 30 * n, "loss": 2 + n**-0.1, "C": np.r_[np.nan, 180 * n[1:] ** 2]}
    assert tables.choose(gap, "chinchilla", {}, "t.csv").columns == {"N": "N", "D": "D", "loss": "loss"}
    with pytest.raises(FitError, match=r"'C' .C. is empty or not a number in row 1"):
        tables.choose({k: v for k, v in gap.items() if k != "D"}, "chinchilla", {}, "t.csv")


def test_probes_in_the_exported_table_of_a_study_are_refused(tmp_path: Path) -> None:
    """Runs at half and twice the rate are rows of the export.

    The study's own fit leaves them out.
    """
    from harness.analysis import points as study_points

    rows = study_points.study_table(synthetic.ladder(rates=True))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    table = tables.read_table(tmp_path / "t.parquet")
    with pytest.raises(FitError, match="'role' holds probe"):
        fit_table(table, "chinchilla", {}, bootstrap=0)
    study_fit = study_laws.fit_study(synthetic.ladder(rates=True), bootstrap=0)["loss_nd"]
    fit = fit_table(table, "chinchilla", {}, keep="role == 'fit'", bootstrap=0)
    assert fit.params == pytest.approx(study_fit.params, rel=1e-9)


def test_a_broken_law_that_the_data_do_not_earn_says_so() -> None:
    c = np.geomspace(1e15, 1e20, 14)
    loss = (1.5 + 200 * c**-0.15) * np.exp(0.002 * np.random.default_rng(0).normal(size=14))
    straight = fit_table(tables.TableFile("t.csv", "", {"C": c, "loss": loss}), "broken", {}, bootstrap=0)
    assert straight.warnings[0].code == "BREAK_NOT_SHOWN"
    bent = 1.2 + 900 * c**-0.15 * (1 + (c / 1e17) ** (1 / 0.6)) ** (-0.35 * 0.6)
    shown = fit_table(tables.TableFile("t.csv", "", {"C": c, "loss": bent}), "broken", {}, bootstrap=0)
    assert "BREAK_NOT_SHOWN" not in [w.code for w in shown.warnings]


def test_a_studys_fit_refuses_a_bootstrap_that_every_law_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a fits.json without fits would silently replace the old one."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "fits.json").write_text("{}")
    for options, words in ((["--bootstrap", "5"], "at least 40"), (["--seed", "-1"], "seed=-1")):
        assert cli.main(["fit", str(tmp_path / "s"), *options]) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "s" / "fits.json").read_text() == "{}"


def test_a_study_is_a_table_of_its_fit_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same law as the study's own fit.

    Probes stay out without a filter; other laws find its joules and C.
    """
    for r in (runs := synthetic.ladder(energy=True, rates=True)):
        (tmp_path / "s" / r.run_id).mkdir(parents=True)
        records.write_json(tmp_path / "s" / r.run_id / "record.json", r)
    table = tables.read_table(tmp_path / "s")
    assert set(table.columns["role"]) == {"fit"}
    study_fits = study_laws.fit_study(runs, bootstrap=0)
    for law, name in (("chinchilla", "loss_nd"), ("energy_power", "energy_compute")):
        out = tmp_path / f"{law}.json"
        assert cli.main(["fit", str(tmp_path / "s"), "--law", law, "--bootstrap", "0", "--out", str(out)]) == 0
        assert json.loads(out.read_text())["params"] == pytest.approx(study_fits[name].params, rel=1e-4)
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    assert cli.main(["fit", str(tmp_path / "empty"), "--law", "chinchilla", "--out", str(tmp_path / "x.json")]) == 2
    assert "no point to fit" in capsys.readouterr().err
    assert cli.main(["fit", "nowhere", "--law", "chinchilla", "--out", str(tmp_path / "x.json")]) == 2
    assert "study 'nowhere' is not a folder" in capsys.readouterr().err


def test_missing_columns_are_named_with_their_flags() -> None:
    with pytest.raises(FitError) as e:
        tables.choose({"x": np.ones(3), "loss": np.ones(3)}, "chinchilla", {}, "t.csv")
    assert "needs N, D, and no column was named for it: --n COLUMN --d COLUMN. Columns: 'x', 'loss'" in str(e.value)


def test_a_file_that_is_no_fit(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema_version": 1}')
    with pytest.raises(RecordError, match="holds no fit"):
        fit_files.load_file(tmp_path / "x.json")
