"""FlexAttention over the blocks found from intervals, against the definition; forward only without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as pytorch

from kernels.interval_attention import backends, flex, interval_attention
from kernels.interval_attention.flex import flex_attention
from kernels.interval_attention.reference import reference_attention, visible


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, and FlexAttention's definition without a trace by the compiler."""
    monkeypatch.setattr(flex, "BLOCK", 16)
    monkeypatch.setattr(pytorch, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("kind", ["global", "window", "long short", "shifted groups", "finals", "any order", "nothing"])
@pytest.mark.parametrize("extras", [0, 1, 2])
def test_forward_equals_the_definition(kind: str, extras: int, make_case: Callable[..., Any]) -> None:
    intervals, tensors = make_case(kind, 61, extras=extras)
    call = *tensors[:3], intervals, 0.6, *[*tensors[3:], None, None][:2]
    for ours, truth in zip(flex_attention(*call), reference_attention(*call), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("kind", ["window", "long short", "finals", "any order"])
def test_blocks_cover_what_is_seen_and_whole_ones_are(kind: str, make_case: Callable[..., Any]) -> None:
    """Blocks that are not listed are never computed, whole ones never masked."""
    intervals, (_, k, _) = make_case(kind, 90)
    mask = flex._block_mask(intervals, 1, len(k))
    seen = torch.nn.functional.pad(visible(intervals, len(k)), (0, -len(k) % 16, 0, -90 % 16))
    tiles = seen.unflatten(2, (-1, 16)).unflatten(1, (-1, 16)).transpose(2, 3).flatten(3)  # [G, rows, keys, 256]
    for head in range(2):
        for row in range(tiles.shape[1]):
            at = 0, min(head, mask.kv_num_blocks.shape[1] - 1), row
            edges = set(mask.kv_indices[at][: mask.kv_num_blocks[at]].tolist())
            whole = set(mask.full_kv_indices[at][: mask.full_kv_num_blocks[at]].tolist())
            assert not edges & whole
            assert whole == set(tiles[head, row].all(1).nonzero().flatten().tolist())
            assert edges | whole >= set(tiles[head, row].any(1).nonzero().flatten().tolist())


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_without_a_gpu_it_says_so(make_case: Callable[..., Any]) -> None:
    assert backends()["flex"] == "there is no GPU (on a CPU it has no backward)"
    intervals, tensors = make_case("global", 30)
    with pytest.raises(ValueError, match="'flex' cannot run here"):
        interval_attention(*tensors, intervals, backend="flex")
