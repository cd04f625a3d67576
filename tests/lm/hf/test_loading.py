"""What a user sees of transformers' reading and writing of models: nothing, and no GGUF file is parsed twice for it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf.gguf_reader import GGUFReader
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils
from transformers.utils import logging

from lm.errors import UserError
from lm.extend.base import read_config
from lm.extend.model import ExtendedModel
from lm.extend.options import BaseOptions, ExtendOptions
from lm.extend.trainee import Extension
from lm.hf import hub
from lm.hf import loading as loading_module
from lm.hf.generate import load
from lm.hf.importing import import_model
from lm.hf.loading import absent_here, forget_gguf, from_pretrained, loading, parsed_gguf

from .test_importing import save_original, write_gguf


def test_a_name_in_a_folder_that_is_here_is_not_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs/mina: there is no such file or folder\. Did you mean 'runs/mine'"):
        from_pretrained(AutoModelForCausalLM, "runs/mina")
    assert not any(absent_here(name) for name in ("runs/mine", "gpt2", "organization/gpt2"))
    assert all(absent_here(name) for name in ("./gpt2", "/gpt2", "one/two/three"))


def no_answer(url: str, **settings: object) -> None:
    raise RuntimeError(f"nobody answers at {url}")


def test_a_slip_in_a_name_beside_it_costs_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves Hub ids alone that are not like it, or are cached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "get_hf_file_metadata", no_answer)
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    (tmp_path / "llama").mkdir()
    said = r"llamaa: there is no such folder here\. Did you mean 'llama'\? For a model of the Hub write OWNER/llamaa\."
    with pytest.raises(UserError, match=rf"^base\.path: {said}"):
        read_config(BaseOptions(path="llamaa"))
    for reader in (load, lambda name: import_model(name, tmp_path / "imported")):
        with pytest.raises(UserError, match=f"^{said}"):
            reader("llamaa")
    assert not absent_here("gpt2")
    assert not absent_here("someone/llamaa")
    monkeypatch.setattr(loading_module, "is_cached", lambda name: True)
    assert not absent_here("llamaa")


def test_a_hub_that_does_not_answer_is_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url: no_answer(asked.append(url) or url))
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    said = r"nobody/nothing is no folder here, and on the Hub: there is no connection to it \(nobody answers at https"
    for reader, prefix in (
        (lambda: read_config(BaseOptions(path="nobody/nothing")), r"base\.path: "),
        (lambda: load("nobody/nothing"), ""),
        (lambda: import_model("nobody/nothing", tmp_path / "imported"), ""),
    ):
        asked.clear()
        with pytest.raises(UserError, match=f"^{prefix}{said}"):
            reader()
        assert len(asked) == 2


def test_what_was_downloaded_is_found_without_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    for name, content in ((f"snapshots/{commit}/config.json", "{}"), ("refs/main", commit)):
        path = tmp_path / "models--gpt2" / name
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert hub.is_cached("gpt2")
    assert hub.is_cached("gpt2", "main")
    assert not hub.is_cached("gpt2", "other")
    assert not hub.is_cached("gpt3")
    assert not hub.is_cached("no/model/at/all")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n", "git lfs pull"),
        (b"half", "is damaged, or was copied in part"),
        (None, "model.safetensors"),
    ],
)
def test_weights_that_are_not_there_in_full_are_said_by_every_reader(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    place = tmp_path / "original"
    save_original("llama", place)
    weights = place / "model.safetensors"
    if content is None:
        weights.unlink()
    else:
        weights.write_bytes(content)
    readers: list[Callable[[], object]] = [
        lambda: load(str(place)),
        lambda: import_model(str(place), tmp_path / "imported"),
        Extension(BaseOptions(path=str(place)), None, None, torch.float32, 1e-3).build,
    ]
    for read in readers:
        with pytest.raises(UserError, match=said) as caught:
            read()
        assert str(place) in str(caught.value)
    assert not (tmp_path / "imported").exists()


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write_gguf(save_original("llama", tmp_path / "original"), "llama", path)
    return path


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was parsed."""
    counts: Counter[str] = Counter()
    parse = GGUFReader.__init__

    def counted(self: GGUFReader, path: str, *args: object) -> None:
        counts[Path(path).name] += 1
        parse(self, path, *args)

    monkeypatch.setattr(GGUFReader, "__init__", counted)
    forget_gguf()
    return counts


def test_an_import_parses_its_file_once(gguf_file: Path, tmp_path: Path, parses: Counter[str]) -> None:
    import_model(str(gguf_file), tmp_path / "imported")
    assert parses == {"model.gguf": 1}


def test_an_extension_parses_its_base_once(gguf_file: Path, parses: Counter[str]) -> None:
    extend = ExtendOptions(target_length=512)
    for _ in range(2):  # a run file is read before a trainee is made of it
        trainee = Extension(BaseOptions(path=str(gguf_file)), extend, None, torch.float32, 1e-3)
        trainee.check(tokens=10, sequence_length=8)
    trainee.build()
    assert parses == {"model.gguf": 1}


def test_a_base_may_lie_below_the_home_folder(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run files are not read by a shell."""
    monkeypatch.setenv("HOME", str(gguf_file.parent))
    for named in ("~/model.gguf", "~/original"):
        trainee = Extension(BaseOptions(path=named), None, None, torch.float32, 1e-3)
        trainee.check(tokens=10, sequence_length=8)
        assert isinstance(trainee.build().model, ExtendedModel)


def test_a_file_that_changed_is_parsed_again(gguf_file: Path, parses: Counter[str]) -> None:
    first = parsed_gguf(gguf_file)
    assert parsed_gguf(gguf_file) is first
    os.utime(gguf_file, ns=(1, 1))
    assert parsed_gguf(gguf_file) is not first
    gguf_file.write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(UserError, match=r"model\.gguf is not a GGUF file that can be read"):
        import_model(str(gguf_file), gguf_file.parent / "imported")


def test_no_bar_is_drawn(gguf_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    AutoModelForCausalLM.from_pretrained(tmp_path / "original")
    assert "it/s" in capfd.readouterr().err, "transformers draws none by itself any more: is `loading` still needed?"
    import_model(str(gguf_file), tmp_path / "imported")
    Extension(BaseOptions(path=str(gguf_file)), None, None, torch.float32, 1e-3).build()
    assert capfd.readouterr().err == ""


def test_transformers_is_left_as_it_was() -> None:
    before = gguf.GGUFReader, modeling_gguf_pytorch_utils.tqdm, logging.set_tqdm_hook(None)
    with loading():
        assert gguf.GGUFReader is parsed_gguf
    with pytest.raises(ZeroDivisionError), loading():
        _ = 1 / 0
    assert (gguf.GGUFReader, modeling_gguf_pytorch_utils.tqdm, logging.set_tqdm_hook(None)) == before
