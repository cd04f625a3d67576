from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from eval.harness.truncation import Side, Truncation

BOS = 0
SIDES: list[Side] = ["left", "middle"]


@settings(deadline=None)
@given(
    body=st.lists(st.integers(1, 9), max_size=20),
    bos=st.booleans(),
    room=st.integers(1, 12),
    side=st.sampled_from(SIDES),
)
def test_what_is_kept_is_in_order_ends_with_the_end_and_counts(
    body: list[int], bos: bool, room: int, side: Side
) -> None:
    ids = [BOS] * bos + [*body, 10]
    truncation = Truncation(side, BOS)
    kept = truncation.fit(ids, room)
    assert len(kept) == min(len(ids), room)
    assert len(truncation.shortened) == (len(ids) > room)
    front = next(n for n in range(len(kept) + 1) if kept == ids[:n] + ids[n + len(ids) - len(kept) :])
    assert kept[:front] + kept[front:] == kept
    if bos:
        assert kept[0] == BOS
    if room > bos:
        assert kept[-1] == 10


def test_middle_keeps_both_ends() -> None:
    assert Truncation("middle", None).fit(range(10), 4) == [0, 1, 8, 9]
    assert Truncation("middle", None).fit(range(10), 5) == [0, 1, 7, 8, 9]
    assert Truncation("left", None).fit(range(10), 4) == [6, 7, 8, 9]
    assert Truncation("left", 0).fit(range(10), 4) == [0, 7, 8, 9]
