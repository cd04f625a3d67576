"""What decoding keeps: keys and values by row, running states, and how many bytes they take."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


class KeyValues:
    """Keys and values [rows, heads, slots, head_dim] of one head group.

    Entry e of a row lies in slot e, or in slot e mod window where only the last `window` entries are kept.
    Capacity doubles when it runs out, so appending costs constant time per entry on average. A mixer that keeps
    several lists per document sets `parts`: rows are then (document, part) pairs.
    """

    parts: int = 1

    def __init__(
        self, rows: int, heads: int, head_dim: int, window: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.window = window
        self.keys = torch.empty(rows, heads, 0, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.used = torch.zeros(rows, dtype=torch.int64, device=device)

    def write(self, keys: Tensor, values: Tensor, row: Tensor, entry: Tensor, last: Tensor) -> None:
        """Stores keys and values [n, heads, head_dim] as entries `entry` [n] of rows `row` [n].

        last: [rows], the entries of each row once this write is done; of more than `window` only those that stay
        are stored.
        """
        self.used = last if self.window is None else last.clamp(max=self.window)
        if self.window is not None:
            stays = entry >= (last - self.window)[row]
            if not bool(stays.all()):
                keys, values, row, entry = keys[stays], values[stays], row[stays], entry[stays]
            entry = entry % self.window
        self._reserve(int(last.max()) if len(last) else 0)
        self.keys[row, :, entry] = keys.to(self.keys.dtype)  # autocast may begin or end between two calls
        self.values[row, :, entry] = values.to(self.values.dtype)

    def read(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Entries `first[r] ... last[r] - 1` of each row r, rows one after another: two [n, heads, head_dim]."""
        count = last - first
        row = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        entry = torch.arange(len(row), device=count.device) + (last - torch.cumsum(count, 0))[row]
        if self.window is not None:
            entry = entry % self.window
        return self.keys[row, :, entry], self.values[row, :, entry]

    def of_parts(self, part: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values [documents, heads, slots, head_dim] of part `part[d]` of each document d, of its first slots.

        Views where all documents want the same part.
        """
        same = bool((part == part[0]).all())
        document = slice(None) if same else torch.arange(len(part), device=part.device)
        wanted = int(part[0]) if same else part
        keys, values = (
            buffer[:, :, :slots].unflatten(0, (-1, self.parts))[document, wanted] for buffer in (self.keys, self.values)
        )
        return keys, values

    def crop(self, before: Tensor, after: Tensor) -> None:
        """Cuts every row from `before` [rows] entries back to `after`; raises ValueError for overwritten entries."""
        if self.window is not None and bool(((before > self.window) & (after < before)).any()):
            raise ValueError(f"a window of {self.window} no longer holds the tokens before its last {self.window}")
        self.used = after if self.window is None else after.clamp(max=self.window)

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was; the number of rows may change."""
        self.keys, self.values = (
            buffer.unflatten(0, (-1, self.parts))[rows].flatten(0, 1) for buffer in (self.keys, self.values)
        )
        self.used = self.used.unflatten(0, (-1, self.parts))[rows].flatten()

    @property
    def used_bytes(self) -> int:
        """Bytes of the entries of all rows, slack left out."""
        _, heads, _, head_dim = self.keys.shape
        return int(self.used.sum()) * 2 * heads * head_dim * self.keys.element_size()

    def _reserve(self, entries: int) -> None:
        if self.window is not None:
            entries = min(entries, self.window)
        slots = self.keys.shape[2]
        if entries <= slots:
            return
        grown = max(entries, 2 * slots, 64)
        if self.window is not None:
            grown = min(grown, self.window)
        self.keys, self.values = (_grow(buffer, grown) for buffer in (self.keys, self.values))


def _grow(buffer: Tensor, slots: int) -> Tensor:
    grown = buffer.new_zeros(*buffer.shape[:2], slots, buffer.shape[3])
    grown[:, :, : buffer.shape[2]] = buffer
    return grown


@dataclass
class MixerCache:
    """What one layer keeps: buffers of keys and values, and states [rows, ...] such as a recurrence's."""

    buffers: list[KeyValues] = field(default_factory=list)
    states: dict[str, Tensor] = field(default_factory=dict)

    @property
    def used_bytes(self) -> int:
        """Bytes of the entries and states of all rows, slack left out."""
        states = sum(state.numel() * state.element_size() for state in self.states.values())
        return states + sum(buffer.used_bytes for buffer in self.buffers)

    def reorder(self, rows: Tensor) -> None:
        for buffer in self.buffers:
            buffer.reorder(rows)
        self.states = {name: state[rows] for name, state in self.states.items()}


@dataclass
class DecoderCache:
    """The caches of all layers and the tokens seen by each row [rows] int64."""

    layers: list[MixerCache]
    seen: Tensor

    @property
    def rows(self) -> int:
        return len(self.seen)

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was, as beam search asks; the number of rows may change."""
        for layer in self.layers:
            layer.reorder(rows)
        self.seen = self.seen[rows]
