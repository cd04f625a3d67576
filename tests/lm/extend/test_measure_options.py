from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lm.errors import UserError
from lm.extend.measure_options import MeasureOptions
from lm.run_file import ExtensionFile, load_run_file


@given(st.integers(1, 5000), st.integers(2, 200_000))
def test_lengths_rise_from_half_the_context_to_the_target(context: int, target: int) -> None:
    lengths = MeasureOptions().resolved_lengths(context, target)
    assert list(lengths) == sorted(set(lengths))
    assert lengths[-1] == target
    assert all(b <= 2 * a for a, b in pairwise(lengths))
    if 8 <= context <= target:
        assert lengths[0] == context // 2
    last = MeasureOptions().resolved_last_k(lengths[0])
    assert last < lengths[0]
    assert last == 256 or last == lengths[0] // 2


def test_given_lengths_and_last_tokens_stay() -> None:
    options = MeasureOptions.model_validate({"lengths": [512, 64, 512], "last_k": 32, "passkey": {"lengths": [600]}})
    assert options.resolved_lengths(8, 16) == (64, 512)
    assert options.resolved_last_k(64) == 32
    assert options.longest == 600
    with pytest.raises(ValidationError, match="64 tokens leave no context for the last 64"):
        MeasureOptions(lengths=(64, 512), last_k=64)


@pytest.mark.parametrize("base_folder", ["tied"], indirect=True)
def test_only_an_extension_is_measured_and_within_its_target(run_path: Path) -> None:
    run = load_run_file(run_path)
    assert isinstance(run, ExtensionFile)
    assert run.measure == MeasureOptions()
    plain = load_run_file(run_path, ["extend=null", "data.sequence_length=64"])
    assert isinstance(plain, ExtensionFile)
    assert plain.measure is None
    with pytest.raises(UserError, match="remove it, or add an extend section"):
        load_run_file(run_path, ["extend=null", "data.sequence_length=64", "measure.windows=3"])
    with pytest.raises(UserError, match=r"a length of 512, which exceeds extend.target_length 256"):
        load_run_file(run_path, ["measure.passkey.lengths=[512]"])


@pytest.mark.parametrize("base_folder", ["tied"], indirect=True)
def test_last_tokens_need_a_context_at_the_lengths_that_follow_from_the_base(run_path: Path) -> None:
    """The base has 64 tokens, so the shortest length is 32; without passkey nothing at all would be measured there."""
    load_run_file(run_path, ["measure.last_k=31"])
    with pytest.raises(UserError, match=r"command line.*measure\.last_k: given 32; the shortest .* is 32 tokens"):
        load_run_file(run_path, ["measure={last_k: 32, passkey: null}"])
