"""What comes from elsewhere is data: it is not unpickled, not run, and names no file outside its folder."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eval.opening import open_model
from lm.cli import main
from lm.data.cache import cached_folder, damage
from lm.errors import UserError
from lm.hf.loading import from_pretrained
from lm.train import manifest
from lm.train.tensor_file import write_text

ROOT = Path(__file__).parents[1]
OUTSIDE = ("../secret", "/etc/hostname", "a/../../secret", "link")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=32)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "model")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "verb", [["generate", "MODEL", "--prompt", "x"], ["import", "MODEL", "made"], ["eval", "MODEL"]]
)
def test_pickled_weights_are_refused_and_not_read(
    verb: list[str], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (copied / "model.safetensors").unlink()
    mark = tmp_path / "unpickled"
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    assert main([str(copied) if word == "MODEL" else word for word in verb]) == 2
    said = capsys.readouterr().err
    assert "the weights are pickled (pytorch_model.bin)" in said
    assert not mark.exists()


def test_a_pickled_adapter_is_refused(copied: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(copied)})
    )
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "unpickled")))
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        open_model(adapter)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("kind", [AutoConfig, AutoModelForCausalLM, AutoTokenizer])
def test_code_that_a_folder_brings_is_not_run(kind: type, copied: Path, tmp_path: Path) -> None:
    mark = tmp_path / "run"
    (copied / "own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    config = json.loads((copied / "config.json").read_text())
    classes = {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Model",
        "AutoTokenizer": ["own.Tokenizer", None],
    }
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    (copied / "tokenizer_config.json").write_text(json.dumps({"auto_map": classes, "tokenizer_class": "Tokenizer"}))
    with pytest.raises(UserError, match="is Python code that comes with it"):
        from_pretrained(kind, copied)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/other/model.safetensors"])
def test_an_index_of_weights_stays_in_its_folder(name: str, copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    with pytest.raises(UserError, match="names a file outside its folder"):
        from_pretrained(AutoModelForCausalLM, copied)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    """One that names a file elsewhere is damaged, even where size and checksum are right."""
    secret = tmp_path / "secret"
    entry = write_text(secret, "secret")
    if name == "/etc/hostname":
        name = str(secret)
    folder = manifest.commit(manifest.begin(tmp_path, 1), {})
    (folder / "a").mkdir()
    (folder / "link").symlink_to(secret)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": {name: vars(entry)}}))
    assert "outside the folder" in (manifest.damage(folder) or "")
    cached = cached_folder(tmp_path, "cached", lambda made: (made / "a").mkdir())
    (cached / "link").symlink_to(secret)
    (cached / "manifest.json").write_text(json.dumps({"files": {name: vars(entry)}}))
    assert "outside the folder" in (damage(cached) or "")


def test_removing_checkpoints_follows_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    root = tmp_path / "checkpoints"
    root.mkdir()
    for name in ("step-000001", "step-000002.tmp", "step-000001.damaged"):
        (root / name).symlink_to(precious)
    manifest.commit(manifest.begin(root, 3), {})
    manifest.tidy(root, [root / "step-000001"])
    assert not (root / "step-000001").is_symlink()
    assert (precious / "file").exists()


def test_results_of_a_model_named_by_dots_stay_below_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "model" / "inner")
    outputs = []
    monkeypatch.setattr("eval.entry.evaluate", lambda choice, options, output: outputs.append(output or choice.folder))
    for model in (".", "..", "org/name"):
        assert main(["eval", model, "--tasks", "copy"]) == 0
    assert outputs == [Path("runs/evaluations", name) for name in ("inner", "model", "name")]


UNSAFE = {"eval", "exec", "__import__"}
LOADERS = {"torch.load", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "marshal.loads", "os.system"}


def test_no_code_unpickles_or_evaluates() -> None:
    """And whoever asks transformers for something from elsewhere goes through `lm.hf.loading`, or says no to code."""
    for path in sorted(path for room in ("lm", "eval", "kernels") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            where = f"{path.relative_to(ROOT)}:{node.lineno} {called}"
            assert called not in UNSAFE | LOADERS, where
            assert not called.endswith((".extractall", ".extract")), where
            if called.startswith("Auto") and called.endswith(".from_pretrained"):
                own = path.name == "tokenizer.py"  # what was just written
                refuses = any(
                    word.arg == "trust_remote_code" and ast.unparse(word.value) == "False" for word in node.keywords
                )
                assert own or refuses, where
    assert torch.load  # the name that is looked for exists
