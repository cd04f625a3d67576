"""A model that learns answers by a chat template stops where it ends them, in whatever form it leaves its run."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eval.opening import open_model
from lm.cli import main
from lm.export import export_run, model_of_run, read_run
from lm.run_file import load_run_file
from lm.train.loop import train

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS, EOS, START, END = range(256, 260)
OTHER = 7
"""One more token by which the base ends what it writes."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCRATCH = """\
model: {{hidden_size: 32, num_attention_heads: 2, mixers: {{global: {{kind: attention}}}}, layers: global}}
"""
TUNED = """\
base: {{path: "{root}/base"}}
lora: {{rank: 2}}
"""
GRAFTED = """\
base: {{path: "{root}/base"}}
graft:
  mixers: {{rat: {{kind: rat, chunk_size: 4}}}}
  layers: rat
  regress: {{steps: 2, global_batch_tokens: 256}}
"""
REST = """\
data:
  tokenizer: {{kind: huggingface, path: "{root}/base"}}
  sources: [{{kind: chat, path: "{root}/chat.jsonl"}}]
  sequence_length: 64
  validation: {{fraction: 0}}
  cache_dir: "{root}/cache"
train: {{output_dir: "{root}/run", steps: {steps}, global_batch_tokens: 256, sample_tokens: 0}}
optimizer: {{lr: 1.0e-2}}
log: {{wandb: disabled}}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A base whose chat template ends messages by another token than eos, and conversations beside it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=260, bos_token_id=BOS, eos_token_id=EOS))
    base.generation_config.eos_token_id = [EOS, OTHER]
    base.generation_config.save_pretrained(tmp_path / "base")
    base.save_pretrained(tmp_path / "base")
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": said}) + "\n") * 8)
    return tmp_path


def trained(root: Path, model: str, steps: int = 1) -> Path:
    """The folder of a run on the conversations."""
    (root / "run.yaml").write_text((model + REST).format(root=root, steps=steps))
    assert main(["train", str(root / "run.yaml")]) == 0
    return root / "run"


def ends(folder: Path) -> list[int]:
    found = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    return [found] if isinstance(found, int) else found


def ends_in_memory(run: Path) -> list[int]:
    found: list[int] = model_of_run(read_run(run))[0].generation_config.eos_token_id
    return found


def test_a_model_from_scratch(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "run.yaml").write_text((SCRATCH + REST).format(root=root, steps=1))
    with caplog.at_level(logging.WARNING):
        train(load_run_file(root / "run.yaml"))
    (said,) = (record.message for record in caplog.records if "eos" in record.message)
    assert said.endswith("answers end with <|im_end|>, not with the eos token </s>; the model stops at either")
    export_run(root / "run", root / "exported")
    assert ends(root / "run" / "model") == ends(root / "exported") == ends_in_memory(root / "run") == [EOS, END]


def test_a_tuned_base_ends_where_it_did_before_too(root: Path) -> None:
    run = trained(root, TUNED)
    export_run(run, root / "exported")
    export_run(run, root / "adapter", adapter_only=True)
    assert ends(root / "exported") == ends(root / "adapter") == ends_in_memory(run) == [EOS, OTHER, END]
    opened = open_model(root / "adapter").model
    assert opened.generation_config.eos_token_id == sorted([EOS, OTHER, END])


def test_a_grafted_base_too(root: Path) -> None:
    run = trained(root, GRAFTED)
    export_run(run, root / "exported")
    assert ends(run / "grafted") == [EOS, OTHER]
    assert ends(root / "exported") == ends_in_memory(run) == [EOS, OTHER, END]


def test_text_ends_at_the_eos_token_alone(root: Path) -> None:
    (root / "corpus.txt").write_text("some words of text " * 40)
    plain = REST.replace('{{kind: chat, path: "{root}/chat.jsonl"}}', '{{path: "{root}/corpus.txt"}}')
    (root / "run.yaml").write_text((SCRATCH + plain).format(root=root, steps=1))
    train(load_run_file(root / "run.yaml"))
    assert ends(root / "run" / "model") == [EOS]


def test_what_was_learned_ends_in_a_chat(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(root, SCRATCH, steps=40)
    export_run(run, root / "exported")
    for place in (run, root / "exported"):
        monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
        capsys.readouterr()
        assert main(["chat", str(place), "--greedy", "--max-new-tokens", "20"]) == 0
        captured = capsys.readouterr()
        assert captured.out == "> ok\n> \n"
        assert ", 3 written, " in captured.err
