"""Buffers of keys and values against a plain list per row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.model.cache import KeyValues

ROWS = 3


@settings(deadline=None)
@given(
    st.one_of(st.none(), st.integers(1, 7)),
    st.lists(st.lists(st.integers(0, 9), min_size=ROWS, max_size=ROWS), min_size=1, max_size=8),
)
def test_entries_come_back_in_order(window, writes):
    buffer = KeyValues(ROWS, 2, 1, window, torch.float64, torch.device("cpu"))
    stored = [[] for _ in range(ROWS)]
    number = 0
    for counts in writes:
        row, entry, values = [], [], []
        for r, count in enumerate(counts):
            for _ in range(count):
                row.append(r)
                entry.append(len(stored[r]))
                number += 1
                values.append(float(number))
                stored[r].append(float(number))
        tensor = torch.tensor(values, dtype=torch.float64)[:, None, None].expand(-1, 2, 1)
        last = torch.tensor([len(entries) for entries in stored])
        buffer.write(tensor, -tensor, torch.tensor(row).long(), torch.tensor(entry).long(), last)
        first = torch.zeros_like(last) if window is None else (last - window).clamp(min=0)
        keys, values = buffer.read(first, last)
        expected = [value for r in range(ROWS) for value in stored[r][int(first[r]) :]]
        assert keys[:, 0, 0].tolist() == expected
        assert values[:, 1, 0].tolist() == [-value for value in expected]
        assert buffer.used_bytes == len(expected) * 2 * 2 * 8


@pytest.mark.parametrize(("window", "capacities"), [(None, [64, 128, 256, 512]), (100, [64, 100])])
def test_capacity_doubles_a_window_stops_it_and_nothing_is_lost(window, capacities):
    buffer = KeyValues(1, 1, 1, window, torch.float32, torch.device("cpu"))
    sizes = set()
    for token in range(300):
        key = torch.full((1, 1, 1), float(token))
        buffer.write(key, -key, torch.tensor([0]), torch.tensor([token]), torch.tensor([token + 1]))
        sizes.add(buffer.keys.shape[2])
        first = 0 if window is None else max(0, token + 1 - window)
        keys, values = buffer.read(torch.tensor([first]), torch.tensor([token + 1]))
        assert keys.flatten().tolist() == (-values).flatten().tolist() == list(range(first, token + 1))
    assert sorted(sizes) == capacities


def test_overwritten_entries_cannot_be_cropped_back_to():
    buffer = KeyValues(1, 1, 1, 4, torch.float32, torch.device("cpu"))
    buffer.crop(torch.tensor([4]), torch.tensor([2]))
    with pytest.raises(ValueError, match="window of 4"):
        buffer.crop(torch.tensor([5]), torch.tensor([4]))
