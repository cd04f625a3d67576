"""Runs on generated rows: no text anywhere, and everything else as for text."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lm.data.prepare import prepare
from lm.data.tokenizers import load_tokenizer
from lm.hf import BraidForCausalLM
from lm.run_file import RunFile, load_run_file
from lm.train.log import read_metrics
from lm.train.loop import train

RUN_FILE = """\
model:
  hidden_size: 16
  num_attention_heads: 2
  mixers: {{global: {{kind: attention, short_conv: 3}}}}
  layers: global
data:
  tokenizer: {{kind: numbers, size: 16}}
  sources: [{{kind: mqar, pairs: 2, held_out_rows: 20}}, {{kind: copy, length: 4, held_out_rows: 10}}]
  sequence_length: 16
train: {{output_dir: "{output}", steps: 6, global_batch_tokens: 64, micro_batch_size: 4, checkpoint_every: 3}}
optimizer: {{lr: 1.0e-2}}
log: {{wandb: disabled}}
"""


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFile]:
    def make(name: str, *overrides: str) -> RunFile:
        path = tmp_path / "run.yaml"
        path.write_text(RUN_FILE.format(output=tmp_path / name))
        return load_run_file(path, overrides)

    return make


def test_a_run_reports_accuracy_and_no_bytes(make_run: Callable[..., RunFile], capsys) -> None:
    run = make_run("out")
    train(run)
    out = run.train.output_dir
    said = capsys.readouterr().out.replace("\n", " ")
    assert "rows are made as they are read; held out 30; the run reads 384 tokens" in said
    record = read_metrics(out / "metrics.jsonl")[-1]
    assert f"held-out loss {record['validation_loss']:.4f}  accuracy {record['validation_accuracy']:.2%}" in said
    assert "bytes" not in said
    assert "validation_bits_per_byte" not in record
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert (evaluation["tokens"], evaluation["bytes"], evaluation["baselines"]) == (20 * 2 + 10 * 3, None, {})
    assert f"{evaluation['accuracy']:.1%}" in (out / "report.html").read_text()
    assert load_tokenizer(out / "model").encode("3 15") == [3, 15]

    model = BraidForCausalLM.from_pretrained(out / "model")
    validation = prepare(run.data).validation
    batch = validation.batches.rows(range(validation.num_rows))
    with torch.no_grad():
        found = model(batch.tokens).logits.argmax(-1)
    counted = batch.targets != -100
    assert float((found == batch.targets)[counted].double().mean()) == pytest.approx(evaluation["accuracy"])


def test_a_run_goes_on_where_it_stopped(make_run: Callable[..., RunFile]) -> None:
    train(make_run("whole"))
    train(make_run("parts", "train.steps=3"))
    resumed = make_run("parts")
    train(resumed)
    whole = make_run("whole")
    losses = [
        [record["loss"] for record in read_metrics(run.train.output_dir / "metrics.jsonl")] for run in (whole, resumed)
    ]
    assert losses[0] == losses[1]
