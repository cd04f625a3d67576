"""Documents of a flat stream, their key lists and their intervals."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.model.documents import Documents, KeyList, Visible

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6)


@given(LENGTHS)
def test_documents_and_positions_count_from_each_first_token(lengths):
    documents = Documents.from_lengths(lengths)
    assert documents.document.tolist() == [d for d, length in enumerate(lengths) for _ in range(length)]
    assert documents.position.tolist() == [p for length in lengths for p in range(length)]
    assert documents.cu_seqlens.tolist() == [sum(lengths[:d]) for d in range(len(lengths) + 1)]
    assert documents.num_tokens == sum(lengths)
    assert documents.num_documents == len(lengths)


@given(PAIRS)
def test_past_tokens_move_the_positions(pairs):
    past, lengths = zip(*pairs, strict=True)
    documents = Documents.from_lengths(lengths, past=past)
    assert documents.position.tolist() == [before + p for before, length in pairs for p in range(length)]
    assert documents.total.tolist() == [before + length for before, length in pairs]


@settings(deadline=None)
@given(PAIRS, st.one_of(st.none(), st.integers(0, 5)), st.integers(1, 6))
def test_intervals_over_cached_and_new_keys_name_the_right_tokens(pairs, kept, window):
    """Every key list entry is labelled (document, position); each query must see exactly its window of them."""
    past, lengths = zip(*pairs, strict=True)
    documents = Documents.from_lengths(lengths, past=past)
    keys = documents.tokens(kept)
    cached = torch.tensor(
        [(d, p) for d, before in enumerate(past) for p in range(before - min(before, kept or before), before)]
        if kept != 0
        else []
    ).view(-1, 2)
    stream = torch.stack((documents.document, documents.position), 1)
    joined = keys.join(cached, stream)
    position = documents.position
    intervals = documents.intervals(Visible((position - window + 1)[None], position + 1, (1,)), keys)
    for token, (document, place) in enumerate(stream.tolist()):
        seen = joined[intervals.start[0, token] : intervals.end[token]].tolist()
        oldest = max(0, place - window + 1, past[document] - (kept if kept is not None else past[document]))
        assert seen == [[document, p] for p in range(oldest, place + 1)]


def test_a_key_list_orders_cached_entries_before_new_ones():
    keys = KeyList(torch.tensor([0, 2]), torch.tensor([1, 4]), torch.tensor([3, 5]))
    joined = keys.join(torch.tensor([10, 20, 21]), torch.tensor([11, 12, 22]))
    assert joined.tolist() == [10, 11, 12, 20, 21, 22]
    assert keys.offset.tolist() == [0, 1]


@given(PAIRS, st.integers(1, 5))
def test_dilation_makes_tokens_of_one_residue_neighbours(pairs, dilation):
    past, lengths = zip(*pairs, strict=True)
    documents = Documents.from_lengths(lengths, past=past)
    order, regrouped = documents.dilated(dilation)
    assert sorted(order.tolist()) == list(range(documents.num_tokens))
    document, position = documents.document[order], documents.position[order]
    assert torch.equal(regrouped.document, document * dilation + position % dilation)
    assert torch.equal(regrouped.position, position // dilation)


def test_what_is_memoised_is_built_once():
    documents = Documents.from_lengths([3])
    built = []
    for _ in range(2):
        assert documents.memo("key", lambda: built.append(1) or "value") == "value"
    assert built == [1]
