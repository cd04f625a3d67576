"""Muon: momentum whose matrices are orthogonalised before they are applied, beside AdamW for everything else.

Keller Jordan's Muon (kellerjordan.github.io/posts/muon), with updates scaled to the size of AdamW's (arXiv 2502.16982,
equation 4), so that one learning rate serves both. ZeRO hands an optimizer flat pieces, after it has clipped the
gradient. So what is clipped is the gradient, and pieces are put together here: each matrix has an owner among the
ranks, who is sent its pieces, orthogonalises it and sends them back.

DeepSpeed's own Muon is not used. From stage 1 on it orthogonalises before it clips, so that a clip of 1 scales every
update down by a factor that grows with the model, and what is not called `embed` or `lm_head` it takes for a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lm.train.distributed import World

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: the steepest at 0 whose singular values end between about 0.7 and 1.2."""
GROUP = "muon"
"""The name of parameter groups that Muon updates."""


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: the same singular vectors, singular values near 1.

    matrix: [rows, columns]. Computed in bf16 on a GPU, where that is fast, and in the matrix's own dtype elsewhere.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    x = x.mT if matrix.shape[0] > matrix.shape[1] else x
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
    return out


@dataclass(frozen=True)
class Piece:
    """Elements [offset, offset + numel) of a flattened parameter, which stand at `begin` of a flat buffer."""

    name: str
    offset: int
    numel: int
    begin: int


class Exchange:
    """The matrices of one flat buffer, of which every rank holds pieces."""

    def __init__(self, pieces: Sequence[Sequence[Piece]], shapes: Mapping[str, torch.Size], world: World) -> None:
        """pieces: of each rank. shapes: of all matrices among them, in the same order on every rank."""
        self._world = world
        self._shapes = shapes
        self._held = [{piece.name: piece for piece in held} for held in pieces]
        self.mine = self._held[world.rank]
        names = [name for name in shapes if any(name in held for held in self._held)]
        # Where every rank holds all of everything, none need ask the others.
        self._whole = all(
            name in held and held[name].numel == shapes[name].numel() for held in self._held for name in names
        )
        self._owned: list[list[str]] = [[] for _ in pieces]
        loads = [0] * len(pieces)
        for name in sorted(names, key=lambda name: shapes[name].numel(), reverse=True):
            owner = loads.index(min(loads))
            loads[owner] += shapes[name].numel()
            self._owned[owner].append(name)

    def __call__(self, parts: Mapping[str, Tensor], transform: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """This rank's pieces of all matrices after `transform`, from its pieces of them before. Collective.

        parts: 1-D, by name.
        """
        if self._whole:
            return {name: transform(part.view(self._shapes[name])).flatten() for name, part in parts.items()}
        ranks, own = range(self._world.size), self._owned[self._world.rank]
        out = [[self.mine[name] for name in self._owned[to] if name in self.mine] for to in ranks]
        back = [[held[name] for name in own if name in held] for held in self._held]
        received = self._swap([parts[piece.name] for row in out for piece in row], out, back)
        whole = {name: received.new_empty(self._shapes[name].numel()) for name in own}
        pieces = [piece for row in back for piece in row]
        for piece, part in zip(pieces, received.split([piece.numel for piece in pieces]), strict=True):
            whole[piece.name][piece.offset : piece.offset + piece.numel] = part
        done = {name: transform(flat.view(self._shapes[name])).flatten() for name, flat in whole.items()}
        answers = [done[piece.name][piece.offset : piece.offset + piece.numel] for piece in pieces]
        returned = self._swap(answers, back, out)
        mine = [piece for row in out for piece in row]
        return {p.name: part for p, part in zip(mine, returned.split([p.numel for p in mine]), strict=True)}

    def _swap(self, parts: list[Tensor], out: list[list[Piece]], back: list[list[Piece]]) -> Tensor:
        """Sends the parts, listed by receiver as `out` has them, and returns what `back` lists by sender, joined."""
        sent, counts = ([sum(piece.numel for piece in row) for row in rows] for rows in (out, back))
        device = self._world.device
        empty = torch.empty(0, device=device)
        buffer = torch.cat([empty, *(part.to(device) for part in parts)])
        result = buffer.new_empty(sum(counts))
        dist.all_to_all_single(result, buffer, counts, sent)
        return result


class MuonAdamW(torch.optim.AdamW):
    """Muon for the groups named GROUP, AdamW for the others."""

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        self._momentum = momentum
        self._exchanges: dict[Tensor, Exchange] = {}

    def place(self, exchanges: Mapping[Tensor, Exchange]) -> None:
        """Says which matrices each tensor of the groups named GROUP holds; before the first step that has gradients."""
        self._exchanges = dict(exchanges)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update. Collective where matrices are in pieces: on all ranks, with gradients in the same groups."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["name"] != GROUP]
        super().step(closure)
        self.param_groups = groups
        for group in groups:
            for flat in group["params"] if group["name"] == GROUP else ():
                if flat.grad is not None and flat in self._exchanges:
                    self._update(flat, flat.grad, group["lr"], group["weight_decay"])

    def _update(self, flat: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        exchange, state = self._exchanges[flat], self.state[flat]
        state["step"] += 1
        momentum = state["exp_avg"].lerp_(gradient, 1 - self._momentum)
        ahead = gradient.lerp(momentum, self._momentum).flatten()  # Nesterov's
        weights = flat.view(-1)
        parts = {name: ahead[piece.begin : piece.begin + piece.numel] for name, piece in exchange.mine.items()}
        for name, update in exchange(parts, self._direction).items():
            piece = exchange.mine[name]
            weight = weights[piece.begin : piece.begin + piece.numel]
            weight.mul_(1 - lr * weight_decay).add_(update.to(weight.device), alpha=-lr)

    def _direction(self, matrix: Tensor) -> Tensor:
        """Of the update: a semi-orthogonal matrix with elements of root mean square 0.2, as AdamW's have."""
        return orthogonalised(matrix).mul_(0.2 * math.sqrt(max(matrix.shape)))
