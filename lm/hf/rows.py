"""From rectangular, padded rows to the flat stream of documents inside the model, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lm.model.documents import Documents


@dataclass(frozen=True)
class Rows:
    """Which entries of [rows, columns] are real tokens, and the documents they form.

    real: [rows, columns] bool, or None where all are.
    """

    shape: tuple[int, int]
    real: Tensor | None
    documents: Documents

    def flatten(self, x: Tensor) -> Tensor:
        """[rows, columns, ...] to [N, ...], the real tokens only."""
        return x.flatten(0, 1) if self.real is None else x[self.real]

    def restore(self, flat: Tensor) -> Tensor:
        """[N, ...] back to [rows, columns, ...], zeros where there is padding."""
        if self.real is None:
            return flat.view(*self.shape, *flat.shape[1:])
        rows = flat.new_zeros(*self.shape, *flat.shape[1:])
        rows[self.real] = flat
        return rows


def real_tokens(attention_mask: Tensor | None, columns: int) -> Tensor | None:
    """The last `columns` columns of a 2-D mask as bool, None where nothing is masked.

    Raises ValueError for masks of more dimensions: what a token sees is the mixers' affair.
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise ValueError(f"attention_mask must be [rows, tokens]; got {attention_mask.dim()} dimensions")
    real = attention_mask[:, -columns:].bool()
    return None if bool(real.all()) else real


def restarts(position_ids: Tensor | None, shape: tuple[int, int], real: Tensor | None) -> Tensor | None:
    """[rows, columns] bool: real tokens at which a new document begins inside a row, None where there are none.

    A document begins where a position does not follow the one of the row's real token before it.
    """
    if position_ids is None or shape[1] == 1:
        return None
    positions = position_ids.expand(shape)
    if real is None:
        begins = torch.zeros(shape, dtype=torch.bool, device=positions.device)
        begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    else:
        row = torch.arange(shape[0], device=positions.device)[:, None].expand(shape)[real]
        flat = positions[real]
        begins = torch.zeros(shape, dtype=torch.bool, device=positions.device)
        begins[real] = torch.cat((flat.new_zeros(1).bool(), (flat[1:] != flat[:-1] + 1) & (row[1:] == row[:-1])))
    return begins if bool(begins.any()) else None


def arrange(
    shape: tuple[int, int], real: Tensor | None, begins: Tensor | None, past: Tensor | None, device: torch.device
) -> Rows:
    """The rows as documents: one each, after `past` [rows] cached tokens, or cut where `begins` says.

    `begins` and `past` exclude each other: a cache holds one document per row.
    """
    rows, columns = shape
    counts = torch.full((rows,), columns, device=device) if real is None else real.sum(1)
    if begins is None:
        return Rows(shape, real, Documents.from_lengths(counts, past))
    row_starts = torch.cumsum(counts, 0) - counts
    starts = begins.flatten() if real is None else begins[real]
    starts = torch.cat((starts.nonzero().flatten(), row_starts[counts > 0])).unique()
    return Rows(shape, real, Documents.from_lengths(torch.diff(starts, append=counts.sum()[None])))
