"""Compiled layers are the plain ones. The graph is what is looked at: the code for it is PyTorch's own affair."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from lm.errors import UserError
from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.options import ModelOptions
from lm.run_file import RunFile
from lm.train import compilation
from lm.train.compilation import compile_layers, require_compiler
from lm.train.log import read_metrics
from lm.train.loop import train

MakeRun = Callable[..., RunFile]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same graphs, run operation by operation."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    counters.clear()
    yield
    torch._dynamo.reset()


def model(compiled: bool) -> LanguageModel:
    torch.manual_seed(0)
    mixers = {"rat": {"kind": "rat"}, "local": {"kind": "attention", "window": 4, "short_conv": 2}}
    sizes = {"vocab_size": 31, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64}
    result = LanguageModel(ModelOptions.model_validate(sizes | {"mixers": mixers, "layers": "(rat local)*2"}))
    compile_layers(result, compiled)
    return result


def test_one_graph_serves_all_layers_and_lengths() -> None:
    plain, compiled = model(False), model(True)
    for lengths in ([20, 13], [9], [40, 1, 3]):
        documents = Documents.from_lengths(lengths)
        tokens = torch.randint(0, 31, (sum(lengths),))
        for one in (plain, compiled):
            one.zero_grad()
            one(tokens, documents, tokens).loss.backward()
        for (name, wanted), (_, found) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
            assert wanted.grad is not None, name
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize(("stage", "recompute"), [(0, "null"), (2, "{kind: layers}")])
def test_a_compiled_run_is_the_plain_one(make_run: MakeRun, tmp_path: Path, stage: int, recompute: str) -> None:
    settings = (
        "train.steps=4",
        "train.sample_tokens=0",
        f"deepspeed.zero_stage={stage}",
        "train.checkpoint_every=null",
    )
    train(make_run(*settings, f"train.output_dir={tmp_path / 'plain'}"))
    train(make_run(*settings, "train.compile=true", f"train.activation_checkpointing={recompute}"))
    assert counters["stats"]["unique_graphs"]
    found, wanted = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("out", "plain"))
    for key in ("loss", "grad_norm"):
        assert [record[key] for record in found] == pytest.approx([record[key] for record in wanted], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("deepspeed.zero_stage=3",), "ZeRO 3 gathers weights between operations"),
        (("train.activation_checkpointing={kind: selective}",), "choose layers"),
    ],
)
def test_what_compiled_code_cannot_do_is_refused(make_run: MakeRun, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_run("train.compile=true", *settings)


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    require_compiler(False)
    with pytest.raises(UserError, match=r"train\.compile: on a CPU it needs a C\+\+ compiler, and there is no no-such"):
        require_compiler(True)
