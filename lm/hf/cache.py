"""The cache of a Braid model as transformers' generation knows it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from lm.model.cache import DecoderCache
from lm.model.decoder import DecoderLayers


class BraidCache(Cache):
    """Holds what every layer keeps; empty until a model's first forward fills it.

    Lengths count columns of `input_ids`, padding included, as transformers expects; what each row has really seen
    is `decoder.seen`, and `padding` [rows, n] bool says which of the first n columns it has not: later ones are real.
    """

    is_compileable = False
    is_sliding: list[bool] = []  # noqa: RUF012 - overrides a property of the base class

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.decoder: DecoderCache | None = None
        self.columns = 0
        self.padding: Tensor | None = None
        self._model: DecoderLayers | None = None

    def open(self, model: DecoderLayers, rows: int, dtype: torch.dtype, device: torch.device) -> DecoderCache:
        """The layers' caches, created for `rows` rows on first use."""
        if self.decoder is None:
            self.decoder = model.new_cache(rows, dtype, device)
            self._model = model
        if self.decoder.rows != rows:
            raise ValueError(f"this cache holds {self.decoder.rows} rows, the input has {rows}")
        return self.decoder

    def note(self, columns: int, real: Tensor | None) -> None:
        """Counts columns that were read, of which `real` [rows, columns] bool were tokens; None: all."""
        if real is not None:
            known = real.new_zeros(len(real), 0) if self.padding is None else self.padding
            self.padding = torch.cat((F.pad(known, (0, self.columns - known.shape[1])), ~real), dim=1)
        self.columns += columns

    def __deepcopy__(self, memo: dict[int, Any]) -> BraidCache:
        """A copy of what was read, as for a prompt that is continued twice; the model is shared."""
        memo[id(self._model)] = self._model
        copied = BraidCache()
        copied.__dict__.update({name: deepcopy(value, memo) for name, value in self.__dict__.items()})
        return copied

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rows={self.batch_size}, columns={self.columns}, bytes={self.used_bytes})"

    def __len__(self) -> int:
        return 0 if self.decoder is None else len(self.decoder.layers)

    @property
    def used_bytes(self) -> int:
        """Bytes of all rows' entries and states, slack left out."""
        return 0 if self.decoder is None else sum(layer.used_bytes for layer in self.decoder.layers)

    @property
    def batch_size(self) -> int:
        return -1 if self.decoder is None else self.decoder.rows

    @property
    def is_initialized(self) -> bool:
        return self.decoder is not None

    @property
    def is_croppable(self) -> bool:
        return self._model is not None and all(layer.croppable for layer in self._model.blocks)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.columns + query_length, 0

    def reset(self) -> None:
        self.decoder, self.columns, self.padding = None, 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.decoder is not None:
            beam_idx = beam_idx.to(self.decoder.seen.device)
            self.decoder.reorder(beam_idx)
            self.padding = None if self.padding is None else self.padding[beam_idx]

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.decoder is not None:
            self.reorder_cache(torch.arange(self.decoder.rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` columns of every row (the number is negative, as transformers has it).

        Raises ValueError where there are fewer, and, naming the layer, where a mixer no longer holds what it knew then.
        """
        if tokens_to_remove > 0:
            raise ValueError("crop takes a negative number: how many tokens to remove from the end")
        if self.decoder is None or self._model is None or tokens_to_remove == 0:
            return
        columns = self.columns + tokens_to_remove
        if columns < 0:
            raise ValueError(f"crop({tokens_to_remove}): the cache holds {self.columns} columns")
        seen = self.decoder.seen + tokens_to_remove
        if self.padding is not None:
            seen = seen + self.padding[:, columns:].sum(1)
        self._model.crop(self.decoder, seen)
        self.columns = columns
        self.padding = None if self.padding is None else self.padding[:, :columns]
