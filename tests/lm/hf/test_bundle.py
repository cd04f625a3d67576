from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import lm.model.mixers as mixers
from lm.hf.bundle import write_remote_code
from lm.hf.configuration import BraidConfig
from lm.hf.modeling import BraidForCausalLM

# It needs names that other modules have too, one imported under another name.
NEW_MIXER = '''"""Attention, halved."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from lm.model.cache import MixerCache as Kept
from lm.model.documents import Documents
from lm.model.mixers.attention import Attention, AttentionOptions


class HalvedOptions(AttentionOptions):
    kind: Literal["halved"] = "halved"
    factor: float = Field(0.5, gt=0, description="Multiplies what comes out.")


def _at_least_float32(x: Tensor, factor: float) -> Tensor:
    return x * factor


class Halved(Attention):
    options_class = HalvedOptions

    def forward(self, x: Tensor, documents: Documents, cache: Kept | None = None) -> Tensor:
        return _at_least_float32(super().forward(x, documents, cache), self.options.factor)
'''
FIELDS = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 64}
FOUR = {
    "rat": {"kind": "rat", "chunk_size": 4},
    "local": {"kind": "attention", "window": 5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "ls": {"kind": "long_short", "short_heads": 2, "window": 3},
    "s2": {"kind": "shifted_short", "group_size": 6, "short_conv": 3},
}
Bundle = Callable[[], tuple[ModuleType, ModuleType]]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Writes the two files as a package and imports them."""

    def write() -> tuple[ModuleType, ModuleType]:
        package = tmp_path / "bundled"
        package.mkdir()
        (package / "__init__.py").touch()
        write_remote_code(package)
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.partition(".")[0] == "bundled"]:
            monkeypatch.delitem(sys.modules, name)
        return tuple(importlib.import_module(f"bundled.{name}_braid") for name in ("configuration", "modeling"))

    return write


@pytest.fixture
def new_mixer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Adds a file to `lm/model/mixers`."""

    def add(text: str) -> None:
        (tmp_path / "halved.py").write_text(text)
        monkeypatch.setattr(mixers, "__path__", [*mixers.__path__, str(tmp_path)])
        module = importlib.import_module("lm.model.mixers.halved")
        monkeypatch.setitem(mixers.MIXERS, "halved", module.Halved)
        monkeypatch.delitem(sys.modules, "lm.model.mixers.halved")

    return add


def test_the_files_import_nothing_of_this_project_and_no_pydantic(bundle: Bundle) -> None:
    for module in bundle():
        text = Path(module.__file__).read_text()
        assert "Do not edit" in ast.get_docstring(ast.parse(text))
        nodes = list(ast.walk(ast.parse(text)))
        packages = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        packages |= {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 0}
        assert packages - sys.stdlib_module_names <= {"torch", "numpy", "transformers", "huggingface_hub"}


def test_logits_are_those_of_the_sources(bundle: Bundle) -> None:
    configuration, modeling = bundle()
    torch.manual_seed(0)
    ours = BraidForCausalLM(BraidConfig(**FIELDS, mixers=FOUR, layers="rat local ls s2")).eval()
    config = configuration.BraidConfig.from_dict(ours.config.to_dict())
    theirs = modeling.BraidForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(50, (2, 33))
    assert torch.equal(theirs(tokens).logits, ours(tokens).logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(*(model.generate(tokens, max_new_tokens=3, do_sample=False) for model in (theirs, ours)))
    assert config.to_dict() == ours.config.to_dict()


def test_a_new_mixer_file_is_bundled_and_its_names_give_way(bundle: Bundle, new_mixer: Callable[[str], None]) -> None:
    new_mixer(NEW_MIXER)
    configuration, modeling = bundle()
    torch.manual_seed(0)
    given = {**FOUR, "new": {"kind": "halved"}}
    model = modeling.BraidForCausalLM(configuration.BraidConfig(**FIELDS, mixers=given, layers="rat new")).eval()
    rat, new = model.model.mixers
    assert (type(rat).__name__, type(new).__name__) == ("Rat", "Halved")
    ours = BraidForCausalLM(
        BraidConfig(**FIELDS, mixers=FOUR | {"new": {"kind": "attention"}}, layers="rat new")
    ).eval()
    ours.load_state_dict(model.state_dict())
    with torch.no_grad():
        ours.model.mixers[1].o_proj.weight *= 0.5
    tokens = torch.randint(50, (1, 20))
    torch.testing.assert_close(model(tokens).logits, ours(tokens).logits)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("import Field\n", "import Field, PrivateAttr\n", "lm.model.mixers.halved uses 'PrivateAttr'"),
        ("from torch import Tensor\n", "from torch import Tensor, fft as nn\n", "nn is torch.nn"),
    ],
)
def test_what_cannot_be_bundled_is_named(
    bundle: Bundle, new_mixer: Callable[[str], None], before: str, after: str, message: str
) -> None:
    new_mixer(NEW_MIXER.replace(before, after))
    with pytest.raises(ValueError, match=message):
        bundle()
