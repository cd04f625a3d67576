"""What a rank reads of a micro-batch, all of it or its share, and what all of it gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kernels.linear_cross_entropy import CrossEntropy
from lm.model.documents import Documents
from lm.train import distributed
from lm.train.distributed import World
from lm.train.options import TrainOptions
from lm.train.precision import DTYPES


class MicroBatch(Protocol):
    """What one forward reads: see `lm.data.batches.Batch`."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def lengths(self) -> Sequence[int]: ...


def start_sharing(train: TrainOptions, lengths: Sequence[int]) -> World:
    """Joins the ranks, as `distributed.start` does; those that hold rows together know of one another.

    lengths: of the rows of a forward, for which exchanges are chosen.
    """
    return distributed.start().sharing_sequences(train.sequence_parallel, lengths, DTYPES[train.precision])


def forward_own(model: nn.Module, batch: MicroBatch, world: World) -> CrossEntropy:
    """The summed loss of this rank's part of a micro-batch, and what it was for each of its targets [n]."""
    documents = Documents.from_lengths(batch.lengths, device=world.device)
    tokens, targets = batch.tokens.flatten(), batch.targets.flatten()
    if world.sequence is not None:
        part, documents = world.sequence.part(len(tokens)), world.sequence.share(documents)
        tokens, targets = tokens[part], targets[part]
    out: CrossEntropy = model(tokens.to(world.device), documents, targets.to(world.device))
    return out


def forward_all(model: nn.Module, batch: MicroBatch, world: World) -> CrossEntropy:
    """The summed loss of a micro-batch, and what it was for each target [N], on every rank that holds a part of it.

    Without gradients.
    """
    with torch.no_grad():
        own = forward_own(model, batch, world)
        if world.sequence is None:
            return own
        found = own.token_nll.new_zeros(2, batch.tokens.numel())
        found[:, world.sequence.part(batch.tokens.numel())] = torch.stack((own.token_nll, own.correct.to(found.dtype)))
        loss = own.loss.clone()
        for values in (found, loss):
            dist.all_reduce(values, group=world.sequence.ranks.group)
        return CrossEntropy(loss, found[0], found[1] > 0)
