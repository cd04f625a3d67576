from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm.cli import main
from lm.errors import UserError
from lm.export import export_run
from lm.model.decoder import LanguageModel
from lm.run_file import load_run_file
from lm.train.loop import train
from lm.train.model_file import full_weights

RUN_FILE = """\
model:
  hidden_size: 16
  num_attention_heads: 4
  mixers: {{rat: {{kind: rat, chunk_size: 4}}, local: {{kind: attention, window: 8}}}}
  layers: rat local
data:
  tokenizer: {{kind: sentencepiece, vocab_size: 290}}
  sources: [{{path: "{corpus}"}}]
  sequence_length: 32
  validation: {{fraction: 0}}
  cache_dir: "{root}/cache"
train:
  output_dir: "{root}/run"
  steps: 6
  global_batch_tokens: 64
  micro_batch_size: 2
  checkpoint_every: 2
  sample_tokens: 0
optimizer: {{lr: 1.0e-2, schedule: {{kind: wsd, warmup_steps: 0.2}}}}
log: {{wandb: disabled}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 6 steps with checkpoints at 2, 4 and 6; its corpus lies beside it."""
    root = tmp_path_factory.mktemp("finished")
    (root / "corpus").mkdir()
    for number in range(8):
        (root / "corpus" / f"{number}.txt").write_text(f"{number} quick foxes jump over {number * 7} dogs.\n" * 12)
    (root / "run.yaml").write_text(RUN_FILE.format(root=root, corpus=root / "corpus"))
    train(load_run_file(root / "run.yaml"))
    return root / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The finished run, to be spoiled."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def unfinish(run: Path) -> None:
    shutil.rmtree(run / "model")
    (run / "complete.json").unlink()


def assert_weights(exported: Path, checkpoint: Path) -> None:
    with torch.device("meta"):
        model = LanguageModel(load_run_file(checkpoint.parents[1] / "run.yaml").model)
    wanted = full_weights(checkpoint, model)
    saved = load_file(exported / "model.safetensors")
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[name], wanted[name]) for name in saved)


def test_the_model_folder_of_a_finished_run_is_a_hugging_face_folder(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "exported")
    inputs = AutoTokenizer.from_pretrained(run / "model")("7 quick foxes", return_tensors="pt")
    own, exported = (AutoModelForCausalLM.from_pretrained(at) for at in (run / "model", tmp_path / "exported"))
    assert torch.equal(own(**inputs).logits, exported(**inputs).logits)


def test_a_finished_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "model"
    assert main(["export", str(run), str(target)]) == 0
    assert "6 steps, 384 tokens" in capsys.readouterr().out
    assert_weights(target, run / "checkpoints" / "step-000006")
    tokenizer = AutoTokenizer.from_pretrained(target)
    inputs = tokenizer("7 quick foxes", return_tensors="pt")
    assert inputs.input_ids[0, 0] == tokenizer.bos_token_id
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 32
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs.input_ids.shape[1]
    assert main(["export", str(run), str(target)]) == 0  # over an earlier export


def test_a_stopped_run_gives_its_newest_good_checkpoint(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_run(run, tmp_path / "finished")
    unfinish(run)
    newest = run / "checkpoints" / "step-000006"
    assert export_run(run, tmp_path / "newest").steps == 6
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "newest" / name).read_text() == (tmp_path / "finished" / name).read_text()
    state = newest / "state-00000.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    training = export_run(run, tmp_path / "older")
    assert (training.steps, training.tokens) == (4, 256)
    assert "step-000006 is damaged" in caplog.text
    assert_weights(tmp_path / "older", run / "checkpoints" / "step-000004")
    assert newest.is_dir()  # looked at, not moved


def test_a_run_that_goes_on_after_its_end_gives_its_newer_checkpoint(run: Path, tmp_path: Path) -> None:
    (run / "complete.json").write_text('{"steps": 2}')
    assert export_run(run, tmp_path / "model").steps == 6


def no_run(run: Path, target: Path) -> None:
    (run / "run.yaml").unlink()


def broken_run(run: Path, target: Path) -> None:
    (run / "run.yaml").write_text("model: {layers: rat}\n")


def no_checkpoint(run: Path, target: Path) -> None:
    unfinish(run)
    shutil.rmtree(run / "checkpoints")


def lost_weights(run: Path, target: Path) -> None:
    (run / "model" / "model.safetensors").unlink()


def used_target(run: Path, target: Path) -> None:
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")


def file_target(run: Path, target: Path) -> None:
    target.write_text("years of work")


MISTAKES = [
    (no_run, "not a run's folder"),
    (broken_run, "run.yaml cannot be read"),
    (no_checkpoint, "no weights yet"),
    (lost_weights, "no longer holds"),
    (used_target, "not empty, and not an earlier export"),
    (file_target, "is a file"),
]


@pytest.mark.parametrize(("spoil", "message"), MISTAKES)
def test_mistakes_are_said(run: Path, tmp_path: Path, spoil: Callable[[Path, Path], None], message: str) -> None:
    target = tmp_path / "target"
    spoil(run, target)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        export_run(run, target)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tokenizer_is_not_trained_on_other_text(finished: Path, run: Path, tmp_path: Path) -> None:
    unfinish(run)
    corpus = shutil.copytree(finished.parent / "corpus", tmp_path / "corpus")
    (tmp_path / "corpus" / "0.txt").write_text("More dogs quick over foxes jump.\n" * 20)
    config = run / "run.yaml"
    config.write_text(config.read_text().replace(str(finished.parent / "corpus"), str(corpus)))
    with pytest.raises(UserError, match=r"data\.sources have changed"):
        export_run(run, tmp_path / "model")
