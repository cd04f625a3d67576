"""The order of rows: permutations, exact shares, and nothing remembered."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.order import Permutation, SequentialOrder, ShuffledOrder
from lm.errors import UserError


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=60)
def test_a_permutation_hits_every_element_once(size: int, key: int) -> None:
    permutation = Permutation(size, key)
    assert sorted(map(permutation, range(size))) == list(range(size))


def test_permutations_of_few_elements_are_all_reached_evenly() -> None:
    counts = Counter(tuple(map(Permutation(3, key), range(3))) for key in range(6000))
    assert len(counts) == 6
    assert max(counts.values()) < 1.25 * min(counts.values())


def test_a_permutation_of_a_huge_range_is_immediate_and_spreads_neighbours() -> None:
    permutation = Permutation(10**15, 7)
    places = [permutation(index) for index in range(1000)]
    assert len(set(places)) == 1000
    assert sum(abs(left - right) > 10**13 for left, right in itertools.pairwise(places)) > 950


@pytest.mark.parametrize("index", [-1, 5])
def test_a_permutation_refuses_what_is_outside(index: int) -> None:
    with pytest.raises(IndexError):
        Permutation(5, 0)(index)


sources = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([0.1, 0.25, 1.0, 1.5, 3.0, 7.0])), min_size=1, max_size=5
)


@given(sources=sources, seed=st.integers(0, 100))
@settings(deadline=None, max_examples=60)
def test_every_row_of_a_source_comes_once_per_epoch_and_shares_are_exact(
    sources: list[tuple[int, float]], seed: int
) -> None:
    rows, weights = zip(*sources, strict=True)
    order = ShuffledOrder(rows, weights, seed)
    shares = [Fraction(str(weight)) / sum(Fraction(str(other)) for other in weights) for weight in weights]
    seen: list[list[tuple[int, int]]] = [[] for _ in sources]
    for index in range(400):
        place = order.locate(index)
        seen[place.source].append((place.epoch, place.row))
        for share, places in zip(shares, seen, strict=True):
            assert abs(len(places) - share * (index + 1)) < len(sources)
    for count, places in zip(rows, seen, strict=True):
        assert [epoch for epoch, _ in places] == [number // count for number in range(len(places))]
        for epoch in range(len(places) // count):
            assert sorted(row for _, row in places[epoch * count : (epoch + 1) * count]) == list(range(count))


caps = st.sampled_from([None, 0.3, 1, 2.5])


@given(
    sources=st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from([0.1, 0.25, 1.5, 3.0]), caps), min_size=1, max_size=4
    )
)
@settings(deadline=None, max_examples=60)
def test_a_source_gives_no_more_than_it_may_and_the_others_go_on_by_their_weights(
    sources: list[tuple[int, float, float | None]],
) -> None:
    rows, weights, max_epochs = zip(*sources, strict=True)
    order, free = ShuffledOrder(rows, weights, 0, max_epochs), ShuffledOrder(rows, weights, 0)
    room = [math.inf if cap is None else max(1, int(Fraction(str(cap)) * size)) for size, _, cap in sources]
    total = sum(room)
    assert order.num_rows == (None if total == math.inf else total)
    given: Counter[int] = Counter()
    capped = False
    for index in range(int(min(total, 300))):
        place = order.locate(index)
        assert capped or place == free.locate(index), "a cap changes nothing before it is reached"
        assert place.epoch * rows[place.source] <= given[place.source]
        given[place.source] += 1
        assert given[place.source] <= room[place.source]
        capped = capped or given[place.source] == room[place.source]
    if order.num_rows is not None:
        with pytest.raises(UserError, match=r"max_epochs"):
            order.locate(order.num_rows)


def test_a_source_without_weight_gives_nothing() -> None:
    order = ShuffledOrder([5, 5, 5, 5], [0, 0, 1, 1], 0)
    assert {order.locate(index).source for index in range(50)} == {2, 3}


def test_epochs_sources_and_seeds_are_shuffled_differently() -> None:
    def epoch(order: ShuffledOrder, source: int, number: int) -> list[int]:
        places = map(order.locate, range(1200))
        return [place.row for place in places if (place.source, place.epoch) == (source, number)]

    one, other = ShuffledOrder([100, 100], [1, 1], 0), ShuffledOrder([100, 100], [1, 1], 1)
    orders = [epoch(one, 0, 0), epoch(one, 0, 1), epoch(one, 1, 0), epoch(other, 0, 0)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_row_far_away_is_found_at_once() -> None:
    place = ShuffledOrder([10**12, 3], [0.7, 0.3], 0).locate(10**15)
    assert place.source in {0, 1}
    assert 0 <= place.row < 10**12


def test_this_order_is_the_one_of_earlier_versions() -> None:
    # A change here silently changes what a resumed run reads.
    order = ShuffledOrder([10, 4], [2, 1], 3)
    assert [tuple(order.locate(index)) for index in range(8)] == [
        (0, 0, 8),
        (0, 0, 9),
        (1, 0, 0),
        (0, 0, 6),
        (0, 0, 3),
        (1, 0, 3),
        (0, 0, 5),
        (0, 0, 0),
    ]


def test_sequential_order_walks_every_source_once() -> None:
    order = SequentialOrder([2, 1, 3])
    assert [tuple(order.locate(index)) for index in range(len(order))] == [
        (0, 0, 0),
        (0, 0, 1),
        (1, 0, 0),
        (2, 0, 0),
        (2, 0, 1),
        (2, 0, 2),
    ]
    with pytest.raises(IndexError):
        order.locate(6)
