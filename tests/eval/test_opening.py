from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from eval.entry import ModelChoice
from eval.opening import open_model
from lm.errors import UserError
from lm.export import export_run
from lm.run_file import load_run_file
from lm.train.loop import train

SaveModel = Callable[..., None]
ROW = [5, 99, 3, 200, 17, 17, 42, 8] * 4
TEXT = "seven quick foxes jump over the lazy dog while wizards box jugs. "
SCRATCH = "model: {{hidden_size: 16, num_attention_heads: 2, mixers: {{global: {{kind: attention}}}}, layers: global}}"
EXTENSION = """\
base: {{path: "{base}"}}
extend: {{target_length: 256, group_size: 16}}
lora: {{preset: longlora}}"""
RUN_FILE = """
data: {{tokenizer: {{kind: bytes}}, sources: [{{path: "{root}/text"}}], sequence_length: 64, cache_dir: "{root}/cache"}}
train: {{output_dir: "{root}/run", steps: 2, global_batch_tokens: 128, sample_tokens: 0}}
optimizer: {{lr: 1.0e-2}}
log: {{wandb: disabled}}
"""


@pytest.fixture(params=["llama", "hybrid"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, save_model: SaveModel) -> Path:
    save_model(request.param, tmp_path / "saved")
    return tmp_path / "saved"


def assert_same(path: Path, logits: torch.Tensor, **options: object) -> None:
    model = open_model(path, **options)  # type: ignore[arg-type]
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], torch.tensor(ROW[1:]), reduction="none")
    torch.testing.assert_close(torch.from_numpy(model.token_nll([ROW])[0]).float(), expected, rtol=1e-5, atol=1e-5)


def test_a_folder_opens_in_fp32_with_its_tokenizer(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([ROW])).logits
    assert_same(folder, expected)
    model = open_model(str(folder))
    assert (model.name, model.context, model.encode("ab", bos=True)[0]) == ("saved", 128, 256)
    assert open_model(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.parametrize("sections", [SCRATCH, EXTENSION], ids=["scratch", "extension"])
def test_a_run_opens_as_its_export_does(sections: str, tmp_path: Path, save_model: SaveModel) -> None:
    save_model("llama", tmp_path / "base")
    (tmp_path / "text").mkdir()
    for number in range(8):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number}: {TEXT * 4}")
    run_file = tmp_path / "run.yaml"
    run_file.write_text((sections + RUN_FILE).format(base=tmp_path / "base", root=tmp_path))
    train(load_run_file(run_file))
    export_run(tmp_path / "run", tmp_path / "exported")
    run, exported = open_model(tmp_path / "run"), open_model(tmp_path / "exported")
    assert run.fingerprint() == exported.fingerprint()
    assert run.context == exported.context
    assert run.encode(TEXT) == exported.encode(TEXT)
    assert (run.token_nll([ROW])[0] == exported.token_nll([ROW])[0]).all()


@pytest.fixture
def adapter(tmp_path: Path, save_model: SaveModel) -> Path:
    """An adapter that changes what its base says, and its base beside it."""
    save_model("llama", tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_merged_into_its_base(adapter: Path) -> None:
    from peft import PeftModel

    base = adapter.parent / "base"
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(base)
        plain = model(torch.tensor([ROW])).logits
        adapted = PeftModel.from_pretrained(model, adapter).eval()(torch.tensor([ROW])).logits
    assert not torch.allclose(plain, adapted, atol=0.1)
    assert_same(adapter, adapted)
    assert_same(base, adapted, adapter=adapter)
    assert open_model(adapter).name == "adapter"
    assert open_model(base, adapter=adapter).name == "base+adapter"
    assert ModelChoice(str(base), str(adapter)).folder == Path("runs/evaluations/base+adapter")


def test_a_configuration_beside_the_adapter_counts(adapter: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(adapter.parent / "base").config
    config.max_position_embeddings = 512
    config.save_pretrained(adapter)
    assert open_model(adapter).context == 512
    assert open_model(adapter.parent / "base", adapter=adapter).context == 512


def missing(root: Path, save: SaveModel) -> None:
    pass


def empty(root: Path, save: SaveModel) -> None:
    (root / "model").mkdir()


def no_gguf(root: Path, save: SaveModel) -> str:
    return str(root / "model.gguf")


def not_causal(root: Path, save: SaveModel) -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=20, **sizes)).save_pretrained(root / "model")


def no_tokenizer(root: Path, save: SaveModel) -> None:
    save("llama", root / "model")
    for path in (root / "model").glob("*token*"):
        path.unlink()


def no_weights(root: Path, save: SaveModel) -> None:
    save("llama", root / "model")
    (root / "model" / "model.safetensors").unlink()


def weights_left_to_git(root: Path, save: SaveModel) -> None:
    save("llama", root / "model")
    leave_to_git(root / "model" / "model.safetensors")


def half_a_tokenizer(root: Path, save: SaveModel) -> None:
    save("llama", root / "model")
    halve(root / "model" / "tokenizer.json")


def newer_tokenizer(root: Path, save: SaveModel) -> None:
    save("llama", root / "model")
    file = root / "model" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pre_tokenizer": {"type": "Newer"}}))


def small_embedding(root: Path, save: SaveModel) -> None:
    save("llama", root / "model", vocab_size=100, bos_token_id=1, eos_token_id=2)


def adapter_without_base(root: Path, save: SaveModel) -> None:
    (root / "model").mkdir()
    (root / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/base"}')


def unfinished_run(root: Path, save: SaveModel) -> None:
    (root / "model").mkdir()
    sections = SCRATCH.replace("layers", "vocab_size: 258, max_position_embeddings: 64, layers") + RUN_FILE
    (root / "model" / "run.yaml").write_text(sections.format(root=root))


def leave_to_git(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")


def halve(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


MISTAKES = [
    (missing, "there is no such file or folder"),
    (empty, "holds no config.json"),
    (no_gguf, "gguf: there is no such file or folder"),
    (not_causal, "not a causal language model but BertForMaskedLM"),
    (no_tokenizer, "brings no tokenizer"),
    (no_weights, "cannot be loaded: .*model.safetensors"),
    (weights_left_to_git, r"model/model\.safetensors is what git leaves .*`git lfs pull`"),
    (half_a_tokenizer, "model brings no tokenizer that can be read: Expecting"),
    (newer_tokenizer, "model brings no tokenizer that can be read: data did not match any variant"),
    (small_embedding, "258 tokens, but the model embeds only 100"),
    (adapter_without_base, "an adapter without its base .it names '/gone/base'"),
    (unfinished_run, "no weights yet"),
]


@pytest.mark.parametrize(("spoil", "message"), MISTAKES)
def test_mistakes_are_said(
    spoil: Callable[[Path, SaveModel], str | None], message: str, tmp_path: Path, save_model: SaveModel
) -> None:
    path = spoil(tmp_path, save_model) or tmp_path / "model"
    with pytest.raises(UserError, match=message) as caught:
        open_model(path)
    assert "base.path" not in str(caught.value)


def test_what_is_no_adapter_or_fits_no_base_is_said(adapter: Path, save_model: SaveModel) -> None:
    base = adapter.parent / "base"
    with pytest.raises(UserError, match="is not an adapter's folder"):
        open_model(base, adapter=base)
    with pytest.raises(UserError, match="name the base"):
        open_model(adapter, adapter=adapter)
    with pytest.raises(UserError, match="a revision is of a model on the Hub"):
        open_model(base, revision="main")
    save_model("llama", adapter.parent / "wider", hidden_size=64)
    with pytest.raises(UserError, match=r"adapter on .*wider cannot be loaded"):
        open_model(adapter.parent / "wider", adapter=adapter)
    save_model("llama", adapter.parent / "deeper", num_hidden_layers=3)
    with pytest.raises(UserError, match="Found missing adapter keys"):
        open_model(adapter.parent / "deeper", adapter=adapter)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("adapter_config.json", halve, r"adapter_config\.json cannot be read: "),
        ("adapter_config.json", lambda file: file.write_text("[]"), "does not describe an adapter"),
        ("adapter_model.safetensors", leave_to_git, r"adapter_model\.safetensors is what git leaves"),
        ("adapter_model.safetensors", halve, r"adapter_model\.safetensors is damaged"),
    ],
)
def test_a_damaged_adapter_is_said(adapter: Path, name: str, spoil: Callable[[Path], object], message: str) -> None:
    spoil(adapter / name)
    with pytest.raises(UserError, match=message):
        open_model(adapter)
    with pytest.raises(UserError, match=message):
        open_model(adapter.parent / "base", adapter=adapter)
