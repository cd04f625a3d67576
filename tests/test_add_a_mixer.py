"""The guide is true: its file is the one in the tree, and the mixer is known wherever a run file can name it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from lm.model.mixers import MIXERS
from lm.model.options import ModelOptions
from lm.plan import make_plan

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "add-a-mixer.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    return found


def test_the_guide_shows_the_file_in_the_tree() -> None:
    assert block("python") == (ROOT / "lm/model/mixers/convolution.py").read_text(encoding="utf-8")


def test_the_guides_pattern_is_planned_as_the_mixer_states() -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}
    plan = make_plan(ModelOptions(**sizes, **yaml.safe_load(block("yaml"))), 128)
    first, third, fourth = plan.layers[0], plan.layers[2], plan.layers[3]
    assert (first.kind, first.extent, first.reach, third.reach, fourth.reach) == ("convolution", "width 4", 4, 10, 128)
    assert first.cache_bytes == 3 * 64 * 4
    assert first.cache_bytes_per_token == 0


def test_every_mixer_is_in_the_reference_and_every_part_of_one_in_the_guide() -> None:
    reference = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for kind in MIXERS:
        assert f"`{kind}`" in reference, kind
    for name in ("forward", "visible", "earliest", "new_cache", "crop", "head_values", "neighbour_bytes"):
        assert f"`{name}`" in GUIDE, name
