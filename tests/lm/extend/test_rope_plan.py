"""Planned rope parameters, judged by the frequencies that transformers makes of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from lm.errors import UserError
from lm.extend.base import context, plan_config
from lm.extend.options import ExtendOptions, RopeOptions
from lm.extend.rope_plan import ORIGINAL as STATED
from lm.extend.rope_plan import covered_context, plan_rope

DIM = 128
OLD = 4096


def llama(**changes: object) -> LlamaConfig:
    heads = {"hidden_size": 4 * DIM, "num_attention_heads": 4, "max_position_embeddings": OLD}
    return LlamaConfig(**(heads | changes))


def planned(config: LlamaConfig, target: int, **rope: object) -> LlamaConfig:
    options = ExtendOptions.model_validate({"target_length": target, "rope": rope})
    return plan_config(config, options, training=True)


def frequencies(config: LlamaConfig) -> tuple[Tensor, float]:
    embedding = LlamaRotaryEmbedding(config)
    return embedding.inv_freq, embedding.attention_scaling


def rotary(config: LlamaConfig, positions: Tensor) -> Tensor:
    return torch.stack(LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None]))


@pytest.mark.parametrize(("target", "factor"), [(8192, 2), (16_384, 4), (32_768, 8), (100_000, 25)])
def test_factors_of_position_interpolation_are_whole(target: int, factor: int) -> None:
    config = planned(llama(), target)
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 10_000.0, "factor": factor}
    assert config.max_position_embeddings == target


@pytest.mark.parametrize("factor", [2, 8])
def test_linear_positions_are_divided(factor: int) -> None:
    positions = torch.arange(100)
    found = rotary(planned(llama(), OLD * factor), positions * factor)
    assert torch.equal(found, rotary(llama(), positions))


@pytest.mark.parametrize("factor", [2, 8])
def test_scores_under_linear_positions_depend_on_the_divided_distance_alone(factor: int) -> None:
    random = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, DIM, generator=random)

    def score(config: LlamaConfig, i: int, j: int) -> float:
        (cos_i, sin_i), (cos_j, sin_j) = (LlamaRotaryEmbedding(config)(q, torch.tensor([[p]])) for p in (i, j))
        rotated = apply_rotary_pos_emb(q, q, cos_i, sin_i)[0], apply_rotary_pos_emb(k, k, cos_j, sin_j)[0]
        return float((rotated[0] * rotated[1]).sum())

    extended = planned(llama(), OLD * factor)
    for distance in (0, 5, 40):
        expected = score(llama(), distance, 0)
        for j in (0, 3, 1000):
            assert score(extended, j + factor * distance, j) == pytest.approx(expected, abs=2e-3)
    assert abs(score(extended, 40, 0) - score(llama(), 40, 0)) > 0.1


def test_a_factor_of_one_is_the_identity() -> None:
    same = llama(rope_parameters={"rope_type": "linear", "factor": 1.0, "rope_theta": 10_000.0})
    assert torch.equal(frequencies(same)[0], frequencies(llama())[0])
    assert covered_context(same.rope_parameters, OLD) == OLD


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_ntk_keeps_the_first_frequency_and_divides_the_last(factor: float) -> None:
    config = planned(llama(), int(OLD * factor), kind="ntk")
    old, new = frequencies(llama())[0], frequencies(config)[0]
    assert new[0] == old[0]
    torch.testing.assert_close(new[-1], old[-1] / factor)
    assert config.rope_parameters["rope_theta"] == pytest.approx(10_000 * factor ** (DIM / (DIM - 2)))
    if factor == 8:
        assert config.rope_parameters["rope_theta"] == pytest.approx(82_684.6, abs=0.1)


@pytest.mark.parametrize("factor", [4.0, 7.5])
def test_yarn_keeps_high_frequencies_divides_low_ones_and_sharpens(factor: float) -> None:
    config = planned(llama(), int(OLD * factor), kind="yarn")
    assert config.rope_parameters["original_max_position_embeddings"] == OLD
    assert config.rope_parameters["factor"] == factor
    (old, _), (new, scaling) = frequencies(llama()), frequencies(config)
    torch.testing.assert_close(new[:8], old[:8])
    torch.testing.assert_close(new[-8:], old[-8:] / factor)
    assert scaling == pytest.approx(0.1 * math.log(factor) + 1)


def test_theta_replaces_the_base_and_nothing_else() -> None:
    config = planned(llama(), 16_384, kind="theta", theta=500_000)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500_000}
    assert planned(llama(), 16_384, kind="none").rope_parameters == llama().rope_parameters


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_second_extension_goes_on_from_the_first(kind: str, tmp_path: Path) -> None:
    planned(llama(), 16_384, kind=kind).save_pretrained(tmp_path)
    twice = planned(AutoConfig.from_pretrained(tmp_path), 65_536, kind=kind)
    once = planned(llama(), 65_536, kind=kind)
    assert torch.equal(frequencies(twice)[0], frequencies(once)[0])
    assert frequencies(twice)[1] == frequencies(once)[1]
    with pytest.raises(UserError, match="reaches 65536 tokens already"):
        planned(twice, 65_536, kind=kind)


FIRST_STAGES = {"ntk": {}, "theta": {"theta": 160_000}, "none": {}}


@pytest.mark.parametrize("first", FIRST_STAGES)
def test_yarn_behind_a_first_stage_turns_by_the_angles_of_its_own_definition(first: str, tmp_path: Path) -> None:
    """YaRN (arXiv 2309.00071, eq. 23) from the first stage's base and length, whatever that one left in the file."""
    planned(llama(), 16_384, kind=first, **FIRST_STAGES[first]).save_pretrained(tmp_path / "first")
    before = AutoConfig.from_pretrained(tmp_path / "first")
    config = planned(before, 65_536, kind="yarn")
    config.save_pretrained(tmp_path / "second")

    base = before.rope_parameters["rope_theta"]
    steps = torch.arange(DIM // 2)
    plain = base ** (-2 * steps.double() / DIM)

    def channel(rotations: float) -> float:
        """The pair of channels that turns so often within the original context."""
        return DIM * math.log(16_384 / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = math.floor(channel(32)), math.ceil(channel(1))
    divided = ((steps - low) / (high - low)).clamp(0, 1)
    expected = plain * (1 - divided) + plain / 4 * divided
    for found in (config, AutoConfig.from_pretrained(tmp_path / "second")):
        heads = {"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 8}
        for name, value in heads.items():
            setattr(found, name, value)
        built = LlamaForCausalLM(found).model.rotary_emb
        torch.testing.assert_close(built.inv_freq.double(), expected, rtol=1e-4, atol=0)
        assert built.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)
        assert context(found) == 65_536


@pytest.mark.parametrize("stated", [32_768, 40_960], ids=["qwen2.5", "qwen3"])
def test_yarn_reaches_its_factor_times_the_original_whatever_the_stated_length(stated: int, tmp_path: Path) -> None:
    """Qwen's published recipes: the factor is added to config.json, and max_position_embeddings stays what it was."""
    angles = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32_768}
    llama(max_position_embeddings=stated, rope_parameters=angles).save_pretrained(tmp_path)
    published = AutoConfig.from_pretrained(tmp_path)
    assert context(published) == 131_072
    with pytest.raises(UserError, match="reaches 131072 tokens already"):
        planned(published, 131_072, kind="yarn")
    further = planned(published, 262_144, kind="yarn")
    assert (further.rope_parameters["factor"], further.rope_parameters[STATED]) == (8, 32_768)
    stage = planned(published, 131_072, kind="none")
    assert (stage.rope_parameters, context(stage)) == (published.rope_parameters, 131_072)


def test_linear_positions_with_a_stated_original(tmp_path: Path) -> None:
    """The factor counts on top of a length that was not raised, and a stage at the length that is reached keeps it."""
    angles = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    for published in (
        llama(rope_parameters=angles),
        llama(rope_parameters=angles, original_max_position_embeddings=OLD),
    ):
        assert context(published) == 4 * OLD
        planned(published, 4 * OLD, kind="none").save_pretrained(tmp_path)
        stage = AutoConfig.from_pretrained(tmp_path)
        assert context(stage) == 4 * OLD
        assert planned(stage, 8 * OLD).rope_parameters["factor"] == 8
    assert context(planned(llama(), 100_000)) == 100_000  # factor 25 would be enough for 102,400


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_model_with_more_factor_than_it_needs_has_further_stages_at_its_length(kind: str) -> None:
    first = planned(llama(), 8 * OLD, kind=kind, factor=16)
    again = planned(first, 8 * OLD, kind="none")
    assert (again.rope_parameters, again.max_position_embeddings) == (first.rope_parameters, 8 * OLD)


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_a_stage_at_the_same_length_changes_nothing(kind: str, tmp_path: Path) -> None:
    planned(llama(), 16_384, kind=kind).save_pretrained(tmp_path)
    first = AutoConfig.from_pretrained(tmp_path)
    again = planned(first, 16_384, kind="none")
    assert (again.rope_parameters, again.max_position_embeddings) == (first.rope_parameters, 16_384)
    twice, once = planned(again, 65_536, kind=kind), planned(first, 65_536, kind=kind)
    assert twice.rope_parameters == once.rope_parameters, "a later extension counts from the same context"
    with pytest.raises(UserError, match=r"more, or set extend\.rope\.kind to none"):
        planned(first, 16_384, kind=kind)
    with pytest.raises(UserError, match=r"reaches 16384 tokens already: ask for more$"):
        planned(first, 16_383, kind="none")


def test_a_factor_counts_on_top_where_the_length_was_not_raised() -> None:
    published = llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0})
    assert covered_context(published.rope_parameters, OLD) == 4 * OLD
    assert planned(published, 8 * OLD).rope_parameters["factor"] == 8
    with pytest.raises(UserError, match="reaches 16384 tokens already"):
        planned(published, 4 * OLD)


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_saving_keeps_every_bit_of_the_frequencies(kind: str, tmp_path: Path) -> None:
    config = planned(llama(), 100_000, kind=kind)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert torch.equal(frequencies(loaded)[0], frequencies(config)[0])
    assert loaded.max_position_embeddings == 100_000


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_a_given_factor_may_reach_further_than_the_target_but_not_less_far(kind: str) -> None:
    further = plan_rope(llama().rope_parameters, OLD, DIM, RopeOptions(kind=kind, factor=16), 8 * OLD)
    exact = plan_rope(llama().rope_parameters, OLD, DIM, RopeOptions(kind=kind), 16 * OLD)
    assert further.parameters == exact.parameters
    assert further.max_position_embeddings == 8 * OLD
    with pytest.raises(UserError, match="use 8 or leave it out"):
        plan_rope(llama().rope_parameters, OLD, DIM, RopeOptions(kind=kind, factor=4), 8 * OLD)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_kinds_that_do_not_combine_are_refused_with_those_that_do() -> None:
    config = llama(rope_parameters=dict(LLAMA3), max_position_embeddings=131_072)
    with pytest.raises(UserError, match="own rope type 'llama3'; these do: theta, none"):
        planned(config, 262_144)
    theta = planned(config, 262_144, kind="theta", theta=4e6)
    assert theta.rope_parameters == LLAMA3 | {"rope_theta": 4e6}
    dynamic = llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(UserError, match="no kind does"):
        planned(dynamic, 262_144, kind="none")
