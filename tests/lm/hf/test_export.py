from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lm.data.tokenizers import BytesTokenizer
from lm.hf.export import Training, export_model
from lm.hf.modeling import BraidForCausalLM
from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.options import ModelOptions

TRAINING = Training(steps=30, tokens=61_440)
SCRIPT = Path(__file__).with_name("load_script.py")


def four_mixers(seed: int = 0, **fields: object) -> LanguageModel:
    torch.manual_seed(seed)
    options = {
        "vocab_size": 260,  # two more than the tokenizer has
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "initializer_range": 0.3,
        "mixers": {
            "rat": {"kind": "rat", "chunk_size": 4},
            "local": {"kind": "attention", "window": 8, "sink": True, "qk_norm": True},
            "ls": {"kind": "long_short", "short_heads": 2, "window": 4},
            "s2": {"kind": "shifted_short", "group_size": 8},
            "far": {"kind": "attention", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        },
        "layers": "(rat local) ls s2 far",
    }
    return LanguageModel(ModelOptions.model_validate(options | fields)).eval()


def export(model: LanguageModel, folder: Path, **more: str) -> None:
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    export_model(folder, model.options, weights, BytesTokenizer(), TRAINING, **more)


def logits(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens[0], Documents.from_lengths([tokens.shape[1]]))[None]


@pytest.mark.parametrize(("tied", "multiple"), [(True, 1), (False, 1), (True, 128), (False, 128)])
def test_the_installed_classes_load_what_was_trained(tmp_path: Path, tied: bool, multiple: int) -> None:
    model = four_mixers(tie_word_embeddings=tied, pad_vocab_to_multiple_of=multiple)
    assert model.lm_head.weight.shape[0] == (260 if multiple == 1 else 384)
    export(model, tmp_path / "model")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(loaded) is BraidForCausalLM
    assert not any(info.values())
    assert loaded.dtype == torch.float32
    tokens = torch.randint(256, (1, 40))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, logits(model, tokens), rtol=0, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.model_max_length == 96
    for ids in (loaded.config, loaded.generation_config):
        assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (256, 257, 257)


def test_an_earlier_export_is_replaced_and_other_files_stay(tmp_path: Path) -> None:
    export(four_mixers(seed=1), tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "notes.txt").write_text("mine")
    model = four_mixers()
    export(model, tmp_path)
    assert [path.name for path in tmp_path.glob("model*.safetensors*")] == ["model.safetensors"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    tokens = torch.randint(256, (1, 9))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tokens).logits, logits(model, tokens), rtol=0, atol=1e-6)


def test_sharded_weights_load(tmp_path: Path) -> None:
    model = four_mixers()
    export(model, tmp_path, max_shard_size="60KB")
    tokens = torch.randint(256, (1, 9))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tokens).logits, logits(model, tokens), rtol=0, atol=1e-6)


def test_weights_of_another_model_leave_the_folder_as_it_was(tmp_path: Path) -> None:
    export(four_mixers(), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    options = four_mixers(layers="far far far far").options
    weights = {name: parameter.detach() for name, parameter in four_mixers(layers="far local far").named_parameters()}
    with pytest.raises(ValueError, match=r"missing .*layers\.3.*unexpected .*layers\.1\.mixer\.sink"):
        export_model(tmp_path / "model", options, weights, BytesTokenizer(), TRAINING)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_the_card_and_the_map_of_classes(tmp_path: Path) -> None:
    export(four_mixers(), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    for said in (
        "`(rat local) ls s2 far`",
        "61,440 tokens in 30 steps",
        "| rat | rat | chunk 4 |",
        "trust_remote_code",
    ):
        assert said in card
    files = {path.stem for path in (tmp_path / "model").glob("*.py")}
    auto_map = json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert {place.split(".")[0] for place in auto_map.values()} == files


@pytest.mark.launch
def test_the_folder_loads_where_only_transformers_is(tmp_path: Path) -> None:
    model = four_mixers()
    export(model, tmp_path / "model")
    installed = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    batch = tokenizer(["def", "import this"], return_tensors="pt", padding=True)
    greedy = installed.generate(**batch, max_new_tokens=8, do_sample=False)
    tokens = torch.randint(256, (1, 40))
    expected = {
        "tokens": tokens,
        "logits": logits(model, tokens),
        "text": tokenizer.batch_decode(greedy, skip_special_tokens=True),
    }
    torch.save(expected, tmp_path / "expected.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "model"), str(tmp_path / "expected.pt")],
        cwd=tmp_path,
        env=environment | {"HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
