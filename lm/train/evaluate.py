"""Held-out loss: how well the model predicts text that it never trained on."""

from __future__ import annotations

from typing import Protocol

import torch

from kernels.linear_cross_entropy import CrossEntropy
from lm.data.rows import IGNORED
from lm.data.validation import Validation
from lm.model.documents import Documents
from lm.train.distributed import World
from lm.train.evaluation import Evaluation, loss_by_position
from lm.train.sharing import MicroBatch


class Evaluated(Protocol):
    """A model on all ranks; `lm.train.engine.Engine` is one."""

    @property
    def world(self) -> World: ...
    def eval(self) -> None:
        """Evaluation mode."""

    def forward(self, batch: MicroBatch) -> CrossEntropy:
        """The summed loss, and what it was for each target [N]."""


def evaluate(
    engine: Evaluated, validation: Validation, step: int, micro_batch_size: int, max_tokens: int | None = None
) -> Evaluation:
    """Reads the held-out rows, or evenly spaced ones of at most `max_tokens` tokens, with all ranks. Collective.

    The bytes of a part of the text are counted in proportion to its tokens.
    """
    world, batches = engine.world, validation.batches
    rows = chosen_rows(validation.num_rows, batches.sequence_length, max_tokens)
    sums = torch.zeros(3, batches.sequence_length, dtype=torch.float64)
    engine.eval()
    with torch.no_grad():
        for indices, real in forwards(rows, micro_batch_size, world.reader, world.readers):
            batch = batches.rows(indices)
            batch.targets[real:] = IGNORED
            out = engine.forward(batch)
            counted = batch.targets.flatten() != IGNORED
            position = Documents.from_lengths(batch.lengths).position[counted]
            for total, values in zip(sums, (out.token_nll, out.correct, counted), strict=True):
                total.index_add_(0, position, values.cpu().double()[counted])
    nll, correct, counts = world.sum_once(sums).cpu()
    tokens = round(counts.sum().item())
    return Evaluation(
        step=step,
        loss=nll.sum().item() / max(1, tokens),
        accuracy=correct.sum().item() / max(1, tokens),
        tokens=tokens,
        bytes=max(1, round(tokens * bytes_per_target(validation))) if validation.stores else None,
        by_position=loss_by_position(nll.numpy(), counts.long().numpy()),
    )


def chosen_rows(num_rows: int, sequence_length: int, max_tokens: int | None) -> list[int]:
    """All rows, or as many evenly spaced ones as `max_tokens` allow (at least one)."""
    count = num_rows if max_tokens is None else max(1, min(num_rows, max_tokens // sequence_length))
    return [index * num_rows // count for index in range(count)]


def forwards(rows: list[int], size: int, rank: int, ranks: int) -> list[tuple[list[int], int]]:
    """The rows of each forward of a rank, and how many of them count; every rank makes equally many forwards.

    Where rows run out, the first one is read without counting: under ZeRO-3 a rank with fewer forwards would hang.
    """
    result = []
    for begin in range(rank * size, -(-len(rows) // (size * ranks)) * size * ranks, size * ranks):
        mine = rows[begin : begin + size]
        result.append((mine or rows[:1], len(mine)))
    return result


def bytes_per_target(validation: Validation) -> float:
    """UTF-8 bytes of held-out text for each target."""
    return validation.num_bytes / sum(store.num_targets for store in validation.stores)
