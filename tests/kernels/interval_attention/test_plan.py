"""Plans: every visible pair exactly once, little in vain, masks that do not grow with the square of the length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.interval_attention import plan as planning
from kernels.interval_attention.plan import Piece, plan_pieces

SMALL = {"MIN_TRIANGLE": 4, "MIN_BLOCK": 2, "MAX_BLOCK": 8, "MAX_JUMP": 5, "MIN_INTERIOR": 3, "MAX_BATCH_KEYS": 24}


@pytest.fixture
def small_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(planning, name, value)


def visits(pieces: list[Piece], rows: int, keys: int) -> np.ndarray:
    """How often the pieces compute each pair; also checks that the first visit of a row is the fresh one."""
    counts, touched = np.zeros((rows, keys), int), np.zeros(rows, bool)
    for piece in pieces:
        for i in range(piece.count):
            row, key = piece.first_row + i * piece.row_step, piece.first_key + i * piece.key_step
            seen = torch.ones(piece.num_rows, piece.num_keys, dtype=torch.bool)
            if piece.causal:
                seen = seen.tril()
            if piece.pattern is not None:
                bias, blind = piece.pattern.bias(torch.float32, torch.device("cpu"))
                seen &= bias == 0
                assert (
                    seen.any(1).logical_not().equal(torch.zeros(piece.num_rows, dtype=bool) if blind is None else blind)
                )
            span = slice(row, row + piece.num_rows)
            counts[span, key : key + piece.num_keys] += seen.numpy()
            assert not (piece.fresh and touched[span].any())
            assert piece.fresh or touched[span].all()
            touched[span] = True
    return counts


@st.composite
def bounds(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    rows, keys = draw(st.integers(1, 60)), draw(st.integers(1, 80))
    position = np.arange(rows)

    def edge() -> np.ndarray:
        kind = draw(st.sampled_from(["random", "slide", "steps", "constant"]))
        shift = draw(st.integers(-20, 40))
        if kind == "random":
            return np.sort(draw(st.lists(st.integers(0, keys), min_size=rows, max_size=rows)))
        if kind == "steps":
            width = draw(st.integers(1, 20))
            return ((position + shift) // width * draw(st.integers(1, width))).clip(0, keys)
        return (position + shift if kind == "slide" else np.full(rows, shift)).clip(0, keys)

    return np.asarray(edge(), np.int64), np.asarray(edge(), np.int64), keys


@pytest.mark.usefixtures("small_plans")
@pytest.mark.parametrize("whole_triangles", [True, False])
def test_covers_each_visible_pair_once(whole_triangles: bool) -> None:
    @settings(deadline=None, max_examples=150)
    @given(bounds())
    def check(case: tuple[np.ndarray, np.ndarray, int]) -> None:
        start, end, keys = case
        key = np.arange(keys)
        visible = (key >= start[:, None]) & (key < end[:, None])
        assert (visits(plan_pieces(start, end, whole_triangles), len(end), keys) == visible).all()

    check()


def shapes(tokens: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    p = np.arange(tokens)
    group = tokens // 4
    document = np.searchsorted(np.arange(0, tokens, 1000), p, side="right") - 1
    return {
        "global": (np.zeros_like(p), p + 1),
        "documents": (document * 1000, p + 1),
        "local 1024": ((p - 1023).clip(0), p + 1),
        "local 64": ((p - 63).clip(0), p + 1),
        "groups": (p // group * group, p + 1),
        "shifted groups": (((p + group // 2) // group * group - group // 2).clip(0), p + 1),
        "finals of 16": (np.zeros_like(p), p // 16),
    }


@pytest.mark.parametrize("name", list(shapes(16)))
@pytest.mark.parametrize("whole_triangles", [True, False])
def test_work_and_masks_stay_in_proportion(name: str, whole_triangles: bool) -> None:
    start, end = shapes(16384)[name]
    pieces = plan_pieces(start, end, whole_triangles)
    area = sum(p.count * p.num_rows * p.num_keys / (2 if p.causal else 1) for p in pieces)
    assert area <= 1.6 * (end - start).clip(0).sum()
    patterns = {p.pattern for p in pieces if p.pattern is not None}
    assert all(pattern.num_keys * len(pattern.start) <= 512 * 3072 for pattern in patterns)
    assert sum(pattern.num_keys * len(pattern.start) for pattern in patterns if pattern.keep) <= planning.MASK_BUDGET
    if not whole_triangles:
        assert max(piece.num_rows for piece in pieces) <= planning.MAX_BLOCK


def test_blocks_of_a_window_share_one_mask_and_run_as_batches() -> None:
    start, end = shapes(4096)["local 64"]
    pieces = plan_pieces(start, end, True)
    assert len({piece.pattern for piece in pieces}) <= 4
    assert len(pieces) < 4096 // 32 // 4


def test_kept_masks_are_built_once() -> None:
    start, end = shapes(4096)["local 64"]
    pattern = max(plan_pieces(start, end, True), key=lambda piece: piece.count).pattern
    assert pattern is not None
    assert pattern.bias(torch.float32, torch.device("cpu"))[0] is pattern.bias(torch.float32, torch.device("cpu"))[0]
