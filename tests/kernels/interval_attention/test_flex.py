"""FlexAttention over the blocks found from intervals, against the definition; forward only without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as pytorch

from kernels.interval_attention import Intervals, backends, flex, interval_attention
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


@pytest.mark.parametrize("extras", [0, 1, 2])
@pytest.mark.parametrize(("queries", "keys"), [(5, 0), (0, 3), (0, 0)])
def test_nothing_to_see_or_to_be_seen(queries: int, keys: int, extras: int, assert_agrees: Callable[..., None]) -> None:
    """Documents shorter than a chunk leave RAT no key."""
    nothing = torch.zeros(queries, dtype=torch.int64)
    wide, narrow = (queries, 2, 16), (keys, 2, 16)
    tensors = [torch.randn(shape) for shape in (wide, narrow, narrow, wide[:2], wide)[: 3 + extras]]
    assert_agrees(flex_attention, (Intervals(nothing[None], nothing, (2,)), tensors))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As on a GPU, with a compiler that runs what it is given; the graphs that it was given."""
    graphs: list[Any] = []

    def compiler(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    monkeypatch.setattr(pytorch, "_validate_device", lambda *tensors: None)
    torch._dynamo.reset()
    monkeypatch.setattr(flex, "_attention", cache(lambda device: flex._compiled()))
    return graphs


def every_kind(n: int, make_case: Callable[..., Any]) -> None:
    for kind in ("documents", "window", "long short", "finals"):
        intervals, tensors = make_case(kind, n)
        for gradients in (True, False):
            call = *(x.requires_grad_(gradients) for x in tensors), intervals, 0.6, None, None
            with torch.set_grad_enabled(gradients):
                torch.testing.assert_close(flex_attention(*call), reference_attention(*call), rtol=1e-5, atol=1e-5)


def test_a_run_of_every_mixer_stays_compiled(compiled: list[Any], make_case: Callable[..., Any]) -> None:
    """Training and validation of changing batches: more kernels than PyTorch keeps unless told, and then no more."""
    for n in (300, 411):
        every_kind(n, make_case)
    count = len(compiled)
    assert count > torch._dynamo.config.recompile_limit
    for n in (580, 158):
        every_kind(n, make_case)
    assert len(compiled) == count


def test_attention_that_is_not_compiled_is_an_error(
    compiled: list[Any], make_case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "MAX_VARIANTS", 2)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        every_kind(300, make_case)
    assert len(compiled) == 2


def test_what_it_does_not_serve_is_said() -> None:
    small = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(5, 2, 8))
    assert flex.FLEX.refuses(small) == "it serves a head_dim of at least 16, not 8"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_without_a_gpu_it_says_so(make_case: Callable[..., Any]) -> None:
    assert backends()["flex"] == "there is no GPU (on a CPU it has no backward)"
    intervals, tensors = make_case("global", 30)
    with pytest.raises(ValueError, match="'flex' cannot run here"):
        interval_attention(*tensors, intervals, backend="flex")
