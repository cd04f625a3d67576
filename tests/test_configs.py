"""Every run file that people start from loads, is planned, and is what its comments say."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm.plan_table import plan_run
from lm.run_file import load_run_file

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_and_plans(path: Path, smollm2: Path) -> None:
    extends = "\nbase:" in path.read_text()
    run = load_run_file(path, [f"base.path={smollm2}", "data.tokenizer={kind: bytes}"] if extends else [])
    plan, memory = plan_run(run, world_size=1)
    assert len(plan.layers) == (30 if extends else run.model.num_hidden_layers)
    assert plan.parameters > 0
    assert memory.total > 0
    assert path.read_text().startswith("# "), "a config begins by saying what it is"
    assert run.train.output_dir == Path("runs") / path.relative_to(FOLDER).with_suffix("")


def test_the_quickstart_uses_every_mixer_and_downloads_nothing() -> None:
    run = load_run_file(Path(__file__).parents[1] / "configs" / "quickstart.yaml")
    kinds = {run.model.mixers[name].kind for name in run.model.layer_names}
    assert kinds == {"attention", "rat", "shifted_short", "long_short"}
    assert [source.path for source in run.data.sources] == ["python-stdlib"]
    assert run.data.tokenizer.kind == "sentencepiece"
    assert run.log.wandb != "online"


def test_smollm2_trains_what_longlora_trains(smollm2: Path) -> None:
    run = load_run_file(FOLDER / "extend-smollm2.yaml", [f"base.path={smollm2}", "data.tokenizer={kind: bytes}"])
    plan, _ = plan_run(run, world_size=1)
    lora, embeddings, norms = 30 * 8 * (4 * 576 + 2 * (576 + 192)), 49_152 * 576, 61 * 576
    assert plan.parameters - plan.frozen_parameters == lora + embeddings + norms
    assert plan.parameters == 134_515_008 + lora


def test_half_of_smollm2s_layers_keep_an_eighth_of_the_cache(smollm2: Path) -> None:
    run = load_run_file(FOLDER / "graft-smollm2.yaml", [f"base.path={smollm2}", "data.tokenizer={kind: bytes}"])
    plan, _ = plan_run(run, world_size=1)
    assert [layer.extent for layer in plan.layers] == ["all", "window 256"] * 15
    per_token = 2 * 3 * 64 * 4  # keys and values of three heads of 64 channels in fp32
    assert plan.base_cache_bytes == 30 * 2048 * per_token
    assert plan.cache_bytes == 15 * (2048 + 256) * per_token


def test_rat_swa_has_the_published_shape() -> None:
    plan, _ = plan_run(load_run_file(Path(__file__).parents[1] / "configs" / "rat-swa-1.3b.yaml"), world_size=16)
    assert [layer.mixer for layer in plan.layers] == ["rat", "local"] * 12
    assert plan.parameters == pytest.approx(1286.2e6, rel=1e-4)  # from the authors' configuration, by hand
    assert plan.cache_bytes == pytest.approx(120 * 2**20, rel=0.005)  # the same, at 4096 tokens in bf16
