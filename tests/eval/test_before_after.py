"""An extension measured before and after: what is kept, what is measured again, what the report shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from eval.before_after import measure
from eval.length_figures import Bench
from eval.opening import open_model
from eval.perplexity import last_tokens
from eval.text import pieces, read_text
from lm.cli import main
from lm.data.prepare import prepare
from lm.extend import base
from lm.run_file import ExtensionFile, load_run_file
from lm.train.loop import train

WORDS = ("seven", "quick", "brown", "foxes", "jump", "over", "a", "lazy", "dog", "while", "wizards", "box", "jugs")
RUN_FILE = """\
base: {{path: "{root}/base"}}
extend: {{target_length: 512, attention: {attention}}}
lora: {{preset: longlora, learning_rates: {{b: 4.0e-2}}}}
measure:
  lengths: [64, 512]
  windows: 2
  last_k: 16
  passkey: {{lengths: [128, 512], depths: [0, 1], trials: 1}}
data:
  tokenizer: {{kind: bytes}}
  sources: [{{path: "{root}/corpus"}}]
  sequence_length: 256
  validation: {{fraction: 0.4}}
  cache_dir: "{root}/cache"
train: {{output_dir: "{root}/{attention}", steps: 4, global_batch_tokens: 512, sample_tokens: 0}}
optimizer: {{lr: 1.0e-2}}
log: {{wandb: disabled}}
"""
MEASURED = ["last_tokens 64", "last_tokens 512", "window_mean 64", "window_mean 512", "passkey 512 0", "passkey 512 1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., None]) -> Path:
    """A folder with a base, text, and a run file of an extension with shifted groups and one with full attention."""
    root = tmp_path_factory.mktemp("extension")
    save_model("llama", root / "base")
    (root / "corpus").mkdir()
    for index in range(16):
        words = (WORDS[(index * place + place // 5) % len(WORDS)] for place in range(40 + 60 * (index % 3)))
        (root / "corpus" / f"{index}.txt").write_text(" ".join(words))
    for attention in ("shifted_short", "full"):
        (root / f"{attention}.yaml").write_text(RUN_FILE.format(root=root, attention=attention))
    train(load_run_file(root / "full.yaml"))
    return root


@pytest.fixture(scope="module")
def measured(root: Path) -> Path:
    """The folder of the finished run, measured by `braid train`."""
    assert main(["train", str(root / "shifted_short.yaml")]) == 0
    return root / "shifted_short"


@pytest.fixture
def run(measured: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be measured further."""
    return Path(shutil.copytree(measured, tmp_path / "run"))


def found(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "extension.json").read_text())
    return values


def names(model: dict[str, Any]) -> list[str]:
    keys = ((figure["kind"], figure["length"], figure["depth"]) for figure in model["figures"])
    return [" ".join(str(part) for part in key if part is not None).removesuffix(".0") for key in keys]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The measurements that are made in a test, by model and key."""
    made: list[str] = []
    measure_one = Bench.measure

    def noted(self: Bench, model: Any, key: Any) -> Any:
        made.append(f"{model.name} {key[0]} {key[1]}")
        return measure_one(self, model, key)

    monkeypatch.setattr(Bench, "measure", noted)
    return made


def test_training_ends_with_a_comparison(measured: Path, root: Path) -> None:
    models = found(measured)["models"]
    assert list(models) == ["before", "rope only", "after"]
    assert all(names(model) == MEASURED for model in models.values())
    losses = {name: [figure["value"] for figure in model["figures"][:4]] for name, model in models.items()}
    assert all(after < before - 0.5 for after, before in zip(losses["after"], losses["before"], strict=True))
    assert losses["rope only"] != losses["before"]
    assert [models[name]["cost"] is None for name in models] == [True, True, False]
    cost = models["after"]["cost"]
    assert (cost["attention"], cost["steps"]) == ("shifted_short", 4)
    run = load_run_file(root / "shifted_short.yaml")
    sizes = [p.numel() for p in run.trainee.build().model.parameters() if p.requires_grad]
    assert cost["trained_parameters"] == sum(sizes) < cost["parameters"]
    assert cost["tokens_per_second"] > 0
    assert cost["peak_memory"] > 1 << 20
    report = (measured / "report.html").read_text()
    for said in ("What the extension gained", "LongLoRA&#x27;s window mean", "Passkey found: after", "shifted-short"):
        assert said in report


def test_figures_are_those_of_the_models_alone(measured: Path, root: Path, tmp_path: Path) -> None:
    assert main(["export", str(measured), str(tmp_path / "exported")]) == 0
    model = open_model(tmp_path / "exported")
    run = load_run_file(root / "shifted_short.yaml")
    validation = prepare(run.data).validation
    assert validation is not None
    store = validation.stores[0]
    borders = store.document_bytes.cumsum()
    parts = [store.text[end - size : end].tobytes() for end, size in zip(borders, store.document_bytes, strict=True)]
    texts = [read_text(model.tokenizer, part.decode()).behind(256) for part in parts]
    segments = pieces(texts, None, 512, 2)
    expected = [part.nll for part in last_tokens(model, segments, [64, 512], 16)]
    figures = found(measured)["models"]["after"]["figures"]
    assert [figure["value"] for figure in figures[:2]] == pytest.approx(expected, rel=1e-4)


def test_nothing_is_measured_twice(run: Path, root: Path, calls: list[str]) -> None:
    before = found(run)
    assert main(["train", str(root / "shifted_short.yaml"), f"train.output_dir={run}"]) == 0
    assert main(["measure", str(run)]) == 0
    assert calls == []
    assert found(run) == before


def test_a_kill_loses_one_measurement(
    run: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = found(run)
    values = found(run)
    values["models"]["after"]["figures"] = values["models"]["after"]["figures"][:1]
    (run / "extension.json").write_text(json.dumps(values))
    noted = Bench.measure

    def killed(self: Bench, model: Any, key: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        return noted(self, model, key)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "measure", killed)
        assert main(["measure", str(run)]) == 130
    assert names(found(run)["models"]["after"]) == MEASURED[:4]
    assert main(["measure", str(run)]) == 0
    assert [call.split()[2] for call in calls] == ["512", "64", "512", "512", "512"]
    assert found(run) == before


def test_a_control_stands_beside_it(run: Path, root: Path, calls: list[str]) -> None:
    assert main(["measure", str(run), "--control", str(root / "full")]) == 0
    assert len(calls) == len(MEASURED)
    models = found(run)["models"]
    assert list(models) == ["before", "rope only", "after", "full attention"]
    assert models["full attention"]["cost"]["attention"] == "full"
    assert "full attention" in (run / "report.html").read_text()
    assert main(["measure", str(run)]) == 0  # which keeps it
    assert list(found(run)["models"]) == ["before", "rope only", "after", "full attention"]


def test_other_settings_measure_anew(run: Path, calls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["measure.passkey=null", "measure.lengths=[32,64]"]
    assert main(["measure", str(run), *wanted]) == 0
    assert "measuring anew" in capsys.readouterr().out
    assert len(calls) == 12
    assert main(["measure", str(run), *wanted, "--again"]) == 0
    assert len(calls) == 24


def test_what_does_not_fit_is_said(run: Path, capsys: pytest.CaptureFixture[str], root: Path) -> None:
    other = load_run_file(root / "shifted_short.yaml", ["data.validation.max_bytes=400"])
    assert isinstance(other, ExtensionFile)
    measure(other, run)
    said = capsys.readouterr().out
    assert "not measured: last tokens at 512: the held-out text has only" in said
    assert "not measured: passkey at 128: its question alone is longer" in said
    assert names(found(run)["models"]["after"])[0] == "last_tokens 64"


def no_run(root: Path) -> list[str]:
    return [str(root / "base")]


def unfinished(root: Path) -> list[str]:
    (root / "begun").mkdir()
    (root / "begun" / "run.yaml").write_text((root / "shifted_short.yaml").read_text())
    return [str(root / "begun")]


def null(root: Path) -> list[str]:
    return [str(root / "full"), "measure=null"]


def no_control(root: Path) -> list[str]:
    return [str(root / "full"), "--control", str(root / "base")]


def shifted_control(root: Path) -> list[str]:
    return [str(root / "full"), "--control", str(root / "shifted_short")]


def other_control(root: Path) -> list[str]:
    return [str(root / "full"), "--control", str(root / "full"), "extend.target_length=600"]


def other_steps(root: Path) -> list[str]:
    return [*other_control(root)[:3], "optimizer.lr=2.0e-2", "base.revision=other", "lora.rank=4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (no_run, "is not a run's folder"),
        (unfinished, "the run is not finished"),
        (null, "no measure section"),
        (no_control, "is not a run's folder"),
        (shifted_control, "is not an extension with extend.attention full"),
        (other_control, "differs in more than attention: extend.target_length is 512 there and 600 here"),
        (
            other_steps,
            "attention: base.revision is None there and other here; lora.rank is 8 there and 4 here; "
            "optimizer.lr is 0.01 there and 0.02 here",
        ),
    ],
)
def test_mistakes_are_said(
    arguments: Callable[[Path], list[str]], message: str, measured: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", *arguments(root)]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases whose weights are read in a test."""
    made: list[str] = []
    load = base.load
    monkeypatch.setattr(base, "load", lambda *args: made.append(args[0].path) or load(*args))
    return made


def test_weights_are_read_once_for_all_models(run: Path, root: Path, loads: list[str]) -> None:
    before = found(run)["models"]
    assert main(["measure", str(run), "--again"]) == 0
    assert loads == [str(root / "base")]
    for name, model in found(run)["models"].items():
        values = [[figure["value"] for figure in each["figures"]] for each in (model, before[name])]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_the_base_is_left_as_it_was(measured: Path, root: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.max_position_embeddings == 128
    assert torch.isfinite(model.lm_head.weight).all()
