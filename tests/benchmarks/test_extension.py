"""The extension benchmarks: recipes that differ in what they say, and figures that are kept and told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import LlamaConfig

from benchmarks import extension, extension_speed
from benchmarks.extension import COLUMNS, CONTEXT, EXTENSION_RUN, LLAMA, RECIPES, TARGET, measure, run_file, table
from lm.run_file import ExtensionFile, load_run_file

TOKENIZER = "data.tokenizer={kind: bytes}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The configuration of the benchmark's Llama."""
    LlamaConfig(**LLAMA).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(settings: dict[str, object], base: Path, seed: int = 5) -> ExtensionFile:
    path = base.parent / "run.yaml"
    path.write_text(yaml.safe_dump(run_file(seed, Path("out"), {"base": {"path": str(base)}, **settings})))
    run = load_run_file(path, [TOKENIZER])
    assert isinstance(run, ExtensionFile)
    return run


def test_recipes_differ_in_attention_and_trained_weights_alone(base: Path) -> None:
    runs = {name: loaded({**recipe, **EXTENSION_RUN}, base) for name, recipe in RECIPES.items()}
    first = next(iter(runs.values()))
    for name, run in runs.items():
        for section in ("data", "train", "optimizer", "deepspeed", "measure"):
            assert getattr(run, section) == getattr(first, section)
        assert run.extend.target_length == TARGET
        assert run.extend.attention == ("shifted_short" if name.startswith("shifted groups") else "full")
        assert (run.lora is None) == name.endswith("everything trained")
        if run.lora is not None:
            assert (run.lora.embeddings, run.lora.norms) == (("embeddings and norms" in name),) * 2
    assert (first.train.seed, first.data.seed, first.data.validation.seed) == (5, 5, 0)
    pretraining = loaded(extension.BASE_RUN | {"data": {"sequence_length": CONTEXT}}, base)
    assert pretraining.extend is None
    assert pretraining.data.validation == first.data.validation
    assert 3.1e6 < pretraining.trainee.plan(CONTEXT, pretraining.trainee.dtype).parameters < 3.2e6


def test_a_figure_that_is_there_is_not_measured_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = loaded({"extend": extension.FULL, **EXTENSION_RUN}, base)
    built: list[str] = []

    def figure(model: str, key: tuple[str, int, None]) -> SimpleNamespace:
        return SimpleNamespace(length=key[1], value=key[1] / 1000)

    bench = SimpleNamespace(lengths=(CONTEXT, TARGET), tokenizer=None, measure=figure)
    monkeypatch.setattr(extension, "bench_of", lambda run: bench)
    monkeypatch.setattr(extension, "Model", lambda model, tokenizer, name: name)

    def killed() -> None:
        raise KeyboardInterrupt

    models = {name: lambda name=name: built.append(name) for name in ("a", "b")}
    path, losses = tmp_path / "figures.json", {"512": 0.512, "4096": 4.096}
    with pytest.raises(KeyboardInterrupt):
        measure(path, run, "state", {"a": models["a"], "b": killed})
    assert measure(path, run, "state", models) == {"a": losses, "b": losses}
    assert built == ["a", "b"]
    measure(path, run, "other run files", models)
    assert built == ["a", "b", "a", "b"]


def test_the_table_has_each_seed_and_the_mean() -> None:
    seeds = [{name: {"512": 3.0 + seed, "4096": 2.0 + seed} for name in COLUMNS} for seed in (0, 1)]
    lines = table(seeds).splitlines()
    assert len(lines) == 2 + len(COLUMNS)
    assert lines[2] == "| before | 2.500 | 2.000, 3.000 | 3.500 | 3.000, 4.000 |"


def test_speed_counts_every_round_but_the_first_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(extension_speed.time, "process_time", lambda: clock[0])

    def work(name: str, seconds: list[float]) -> None:
        calls.append(name)
        clock[0] += seconds.pop(0)

    times = {"a": [100.0, 1.0, 3.0, 2.0], "b": [100.0, 6.0, 4.0, 5.0]}
    assert extension_speed.medians({n: lambda n=n: work(n, times[n]) for n in times}, 3) == {"a": 2.0, "b": 5.0}
    assert calls == ["a", "b"] * 4


def test_speed_of_a_short_row_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = tmp_path / "speed.json"
    monkeypatch.setattr("sys.argv", ["extension_speed", "--lengths", "64", "--rounds", "1", "--json", str(path)])
    threads = extension_speed.torch.get_num_threads()
    extension_speed.main()
    extension_speed.torch.set_num_threads(threads)
    found = json.loads(path.read_text())
    assert set(found["64"]["attention"]) == {"shifted groups", "full", "PyTorch, full"}
    assert set(found["64"]["step"]) == {"shifted groups", "full"}
    assert "| 64 | step |" in capsys.readouterr().out
