"""A model is extended, exported, tuned on answers at the same length, exported again, and answers in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm.export import export_run
from lm.run_file import load_run_file
from lm.train.log import read_metrics
from lm.train.loop import train

SAMPLES = {
    "Who jumps?": "a fox",
    "Which colour?": "brown, it says",
    "How is it?": "quick!",
    "The lazy dog. " * 40 + "What of it?": "it sleeps",
}
RUN_FILE = """\
base: {{path: "{base}"}}
extend: {{target_length: 256, rope: {{kind: none}}, group_size: 64}}
data:
  sources: [{{kind: sft, path: "{samples}"}}]
  sequence_length: 256
  validation: {{fraction: 0}}
  cache_dir: "{cache}"
train: {{output_dir: "{output}", steps: 40, global_batch_tokens: 256, sample_tokens: 0}}
optimizer: {{lr: 1.0e-2, weight_decay: 0}}
log: {{wandb: disabled}}
"""


@pytest.mark.parametrize("base_folder", ["tied"], indirect=True)
def test_an_extended_model_learns_to_answer(run_path: Path, tmp_path: Path) -> None:
    train(load_run_file(run_path))
    export_run(tmp_path / "out", tmp_path / "longer")

    samples = [{"instruction": question, "output": answer} for question, answer in SAMPLES.items()]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    places = {"base": tmp_path / "longer", "cache": tmp_path / "cache", "output": tmp_path / "two"}
    path = tmp_path / "sft.yaml"
    path.write_text(RUN_FILE.format(samples=tmp_path / "samples.json", **places))
    train(load_run_file(path))
    export_run(tmp_path / "two", tmp_path / "tuned")

    learned = sum(len(answer) + 1 for answer in SAMPLES.values())
    # An epoch is a row of the short samples and one of the long one, which was cut.
    records = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert {records[0]["targets"] + records[1]["targets"], records[2]["targets"] + records[3]["targets"]} == {learned}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").eval()
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "longer")
    assert model.config.max_position_embeddings == first.config.max_position_embeddings == 256
    assert model.config.rope_parameters == first.config.rope_parameters
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tuned")
    for question, answer in list(SAMPLES.items())[:3]:
        asked = tokenizer(f"[INST]{question}[/INST]", return_tensors="pt")
        found = model.generate(**asked, max_new_tokens=40, do_sample=False)[0, asked.input_ids.shape[1] :]
        assert tokenizer.decode(found) == answer + tokenizer.eos_token
