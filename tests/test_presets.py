"""The run files named after published models have the shapes that their comments claim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lm.model.decoder import LanguageModel
from lm.plan_table import plan_run
from lm.run_file import RunFile, load_run_file

CONFIGS = Path(__file__).parents[1] / "configs"


def preset(name: str) -> RunFile:
    return load_run_file(CONFIGS / f"{name}.yaml")


def test_rat_has_the_published_parameters() -> None:
    plan, _ = plan_run(preset("rat-1.3b"), world_size=1)
    assert plan.parameters == pytest.approx(1298.8e6, rel=1e-4)
    assert [layer.extent for layer in plan.layers] == ["chunk 16"] * 24


def test_long_short_keeps_a_tenth_of_the_cache() -> None:
    run = preset("ls-attention")
    plan, _ = plan_run(run, world_size=1)
    full = 2 * run.model.hidden_size * run.data.sequence_length * torch.bfloat16.itemsize
    assert plan.cache_bytes / (12 * full) == pytest.approx(0.095, abs=1e-3)
    assert {layer.extent for layer in plan.layers} == {"window 100 in 11 heads"}


@pytest.mark.parametrize(
    ("name", "layers", "windows", "bases"),
    [
        ("gemma3-like", "LLLLLG" * 4 + "LL", (1024, None), (1e4, 1e6)),
        ("command-like", "LLLG" * 6, (4096, None), (5e4, None)),
        ("modernbert-like", "GLL" * 7 + "G", (128, None), (1e4, 1.6e5)),
    ],
)
def test_local_and_global_layers_alternate_as_published(
    name: str, layers: str, windows: tuple[int, None], bases: tuple[float, float | None]
) -> None:
    model = preset(name).model
    assert "".join(mixer[0].upper() for mixer in model.layer_names) == layers
    for mixer, window, base in zip(("local", "global"), windows, bases, strict=True):
        options = model.mixers[mixer].model_dump()
        assert options["window"] == window
        rotary = (options["rope_theta"] or model.rope_theta) if options["positions"] == "rope" else None
        assert rotary == base


PRETRAINING = [path for path in sorted(CONFIGS.glob("*.yaml")) if "\nmodel:" in path.read_text()]


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda path: path.stem)
def test_every_preset_builds_on_the_meta_device(path: Path) -> None:
    with torch.device("meta"):
        model = LanguageModel(load_run_file(path).model)
    assert all(parameter.is_meta for parameter in model.parameters())
