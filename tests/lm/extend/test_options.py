"""The sections of an extension: what follows from what, and which combinations are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lm.extend.options import ExtendOptions, LoraOptions, RopeOptions


@pytest.mark.parametrize(
    ("target", "group"), [(16_384, 4096), (65_536, 16_384), (100_000, 24_960), (512, 128), (500, 124), (30, 6), (3, 2)]
)
def test_the_default_group_is_a_quarter_in_128s_where_it_can_be(target: int, group: int) -> None:
    assert ExtendOptions(target_length=target).group_size == group


def test_the_preset_is_the_published_recipe() -> None:
    preset = LoraOptions(preset="longlora")
    assert (preset.rank, preset.alpha, preset.dropout) == (8, 16, 0)
    assert preset.targets == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert preset.embeddings
    assert preset.norms
    assert LoraOptions.model_validate(preset.model_dump(mode="json")) == preset


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ExtendOptions, {"target_length": 512, "group_size": 33}, "33 must be even"),
        (ExtendOptions, {"target_length": 512, "group_size": 32, "attention": "full"}, "remove group_size"),
        (RopeOptions, {"kind": "theta"}, "give theta"),
        (RopeOptions, {"kind": "linear", "theta": 1e6}, "give theta for kind theta"),
        (RopeOptions, {"kind": "none", "factor": 2}, "takes no factor"),
        (RopeOptions, {"kind": "dynamic"}, "'linear', 'ntk', 'yarn', 'theta' or 'none'"),
        (LoraOptions, {"preset": "longlora", "norms": False}, "preset longlora trains norms"),
        (LoraOptions, {"learning_rates": {"embeddings": 1e-5}}, "set lora.embeddings too"),
        (LoraOptions, {"targets": []}, "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(kind: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(values)
