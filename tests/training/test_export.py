"""An exported end point loads as any Hugging Face checkpoint and gives the same logits; a study is
a table of its points.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from harness import records
from harness.analysis import export
from harness.analysis.study import Study
from harness.config.schema import LlamaConfig
from harness.data.corpora import open_corpus
from harness.errors import RecordError
from harness.models import llama
from harness.models.flops import Shape


@pytest.fixture(scope="module", params=["tied", "untied"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    model = LlamaConfig(width=16, depth=1, kv_heads=1, tie_embeddings=request.param == "tied", rope_theta=500.0)
    config = tiny.config(tmp_path_factory.mktemp("study"), cooldowns=[0.5], model=model)
    assert tiny.train(config).state == "done"
    return tiny.run_dir(config), config


def our_logits(folder: Path, point: records.Point, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the checkpoint by our own builder, without the exporter."""
    from safetensors.torch import load_file

    record = records.load_record(folder)
    model = llama.build(Shape(**record.shape), 0, record.config["model"]["rope_theta"])
    weights = load_file(folder / "checkpoints" / str(point.hf_checkpoint) / "model.safetensors")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights.pop(name))
        assert not weights
        return model(input_ids=tokens).logits


def test_logits_are_identical(trained: tuple, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, config = trained
    tokens = torch.from_numpy(next(open_corpus(config.corpus, 0).val_batches(4)).tokens[:, :-1])
    seen = []
    for wanted in (None, 24 * tiny.BATCH):
        out = tmp_path / f"hf-{wanted}"
        point = export.to_hf(folder, out, wanted)
        assert point.tokens == (wanted or 48 * tiny.BATCH)
        model = AutoModelForCausalLM.from_pretrained(out).eval()
        with torch.no_grad():
            found = model(input_ids=tokens).logits
        assert torch.equal(found, our_logits(folder, point, tokens))
        seen.append(found)
        tokenizer = AutoTokenizer.from_pretrained(out)
        assert len(tokenizer) == model.config.vocab_size == 32
        assert tokenizer.decode(tokens[0, :3]).split() == [f"t{t}" for t in tokens[0, :3].tolist()]
    assert not torch.equal(*seen), "two points are two models"
    assert not list(tmp_path.glob(".*"))


def test_the_exported_model_has_the_recorded_loss(trained: tuple, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder, config = trained
    point = export.to_hf(folder, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    (batch,) = open_corpus(config.corpus, 0).val_batches(1000)
    tokens = torch.from_numpy(batch.tokens)
    with torch.no_grad():  # transformers' own forward: what a user of the exported model runs
        scores = model(input_ids=tokens[:, :-1]).logits
    found = torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
    assert float(found) == pytest.approx(point.loss_nat, rel=1e-6)
    assert tokens[:, 1:].numel() == point.val_tokens == 630


def test_what_cannot_be_exported_is_said(trained: tuple, tmp_path: Path) -> None:
    folder, _ = trained
    with pytest.raises(RecordError, match=r"--tokens 7: .*Choose one of: 2016, 4032"):
        export.to_hf(folder, tmp_path / "hf", 7)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(RecordError, match="is not empty"):
        export.to_hf(folder, tmp_path / "full")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "record.json").write_bytes((folder / "record.json").read_bytes())
    with pytest.raises(RecordError, match="has no weights of its point"):
        export.to_hf(bare, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_parquet_has_one_row_per_point(trained: tuple, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder, _ = trained
    study = folder.parent
    assert export.to_parquet(Study.load(study), tmp_path / "points.parquet") == 2
    rows = pq.read_table(tmp_path / "points.parquet").to_pylist()
    points = records.load_record(folder).points
    for column in ("tokens", "train_flop", "loss_nat", "loss_se_nat"):
        assert [r[column] for r in rows] == [getattr(p, column) for p in points]
    assert all(r["energy_j"] is None for r in rows)
    assert {r["run_id"] for r in rows} == {folder.name}


def test_parquet_of_nothing_and_to_nowhere(trained: tuple, tmp_path: Path) -> None:
    folder, _ = trained
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="no finished run"):
        export.to_parquet(Study.load(tmp_path / "empty"), tmp_path / "x.parquet")
    with pytest.raises(RecordError, match=r"cannot write .*x\.parquet.*--out"):
        export.to_parquet(Study.load(folder.parent), tmp_path / "nowhere" / "x.parquet")
