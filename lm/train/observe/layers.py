"""What goes on in the layers of a model during one training step, seen from outside.

Nothing in a model or a mixer knows of this. The operations of `kernels` show their calls, so attention and gates of any
mixer are seen, a pretrained model's too; activations pass through hooks, and their gradients through tensor hooks. All
of that is the same at every ZeRO stage and costs no forward of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kernels.gated_scan import Chunks, scan_calls
from kernels.interval_attention import Intervals, attention_calls
from kernels.linear_cross_entropy import CrossEntropy
from lm.data.rows import IGNORED
from lm.model.documents import Documents
from lm.train.observe.attention import head_groups, labels, sample_of
from lm.train.observe.figures import Figure, Largest, Mean, RootMean

LONGEST_HALF_LIFE = 1e6
"""Tokens; a gate that is 1 in floating point has none."""


def layers_of(model: nn.Module, count: int) -> list[nn.Module]:
    """The `count` layers of a decoder, in order; [] where the model has no such list."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((list(found) for found in lists if len(found) == count), [])


class LayerStatistics:
    """Figures of the layers during the first forward of a step and its backward, and of the losses of all forwards.

    Layers are told of as `layers/NAME/NN`, `/FIRST-LAST` behind it for query heads where a layer has several groups:

        logit_max        largest |score| of a sampled query before softmax
        entropy          of a sampled query's attention, nats
        half_life        tokens after which a gate has halved a state: the median over channels, each with the geometric
                         mean of its gates; half_life_low and half_life_high are the 10th and 90th percentile
        activation_rms   root mean square of the layer's output, all tokens
        gradient_rms     of the gradient at that output, of the loss summed over tokens in nats

    and `position_loss/P`, for P of 0 and the powers of 2, is the mean loss of targets at positions P to 2P - 1 of their
    document, counted from 0.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], queries: int) -> None:
        """`layers`: those of `model`, in order. `queries`: tokens whose attention and gates are read."""
        self._model = model
        self._layers = layers
        self._queries = queries
        self._begin()

    def _begin(self) -> None:
        self._layer: int | None = None
        self._first_forward = True
        self._largest: dict[str, Tensor] = {}
        self._means: dict[str, tuple[Tensor, Tensor | int]] = {}
        self._squares: dict[str, tuple[Tensor, Tensor | int]] = {}
        self._loss_scale: Tensor | None = None
        self._positions: Tensor | None = None  # [2, 64]: summed losses and counts

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Looks at one step's forwards and backwards, all of them inside."""
        self._begin()
        with ExitStack() as stack:
            for index, layer in enumerate(self._layers):
                for handle in (
                    layer.register_forward_pre_hook(partial(self._enter, index)),
                    layer.register_forward_hook(self._leave),
                ):
                    stack.callback(handle.remove)
            stack.callback(self._model.register_forward_hook(self._end_of_forward).remove)
            stack.enter_context(attention_calls.shown_to(self._attention))
            stack.enter_context(scan_calls.shown_to(self._scan))
            yield

    def figures(self) -> dict[str, Figure]:
        """What was seen on this rank."""
        found: dict[str, Figure] = {name: Largest(float(value)) for name, value in self._largest.items()}
        found |= {name: Mean(float(total), float(count)) for name, (total, count) in self._means.items()}
        scale = 1.0 if self._loss_scale is None else float(self._loss_scale)
        for name, (total, count) in self._squares.items():
            unit = scale**2 if name.startswith("layers/gradient_rms") else 1.0
            found[name] = RootMean(float(total) / unit, float(count))
        if self._positions is not None:
            for octave, (total, count) in enumerate(self._positions.t().tolist()):
                if count:
                    found[f"position_loss/{2**octave // 2}"] = Mean(total, count)
        return found

    @property
    def _active(self) -> bool:
        """Not while a backward computes a layer again, for one."""
        return self._first_forward and self._layer is not None

    def _enter(self, index: int, module: nn.Module, inputs: Any) -> None:
        if self._first_forward:
            self._layer = index

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self._active:
            return
        index, self._layer = self._layer, None
        hidden = output[0] if isinstance(output, tuple) else output
        self._squares[f"layers/activation_rms/{index:02d}"] = _squares(hidden)
        if hidden.requires_grad:
            name = f"layers/gradient_rms/{index:02d}"
            hidden.register_hook(lambda gradient: self._squares.update({name: _squares(gradient)}))

    def _end_of_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        loss = getattr(output, "loss", None)
        if self._first_forward and loss is not None and loss.requires_grad:
            loss.register_hook(self._take_scale)
        self._first_forward, self._layer = False, None
        if isinstance(output, CrossEntropy):  # and not what a grafting regresses, which is in no nats
            self._add_positions(inputs[1], inputs[2], output.token_nll)

    def _take_scale(self, gradient: Tensor) -> None:
        # The engine divides by targets and multiplies by ranks and, with fp16, by its loss scale.
        self._loss_scale = gradient.detach()

    @torch.no_grad()
    def _add_positions(self, documents: Documents, targets: Tensor, token_nll: Tensor) -> None:
        counted = targets != IGNORED
        octave = torch.frexp(documents.position.double()).exponent.long()  # 0, 1, 2 to 3, 4 to 7, ...
        sums = torch.zeros(2, 64, dtype=torch.float64, device=targets.device)
        sums[0].index_add_(0, octave, token_nll.double() * counted)
        sums[1].index_add_(0, octave, counted.double())
        self._positions = sums if self._positions is None else self._positions + sums

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        intervals: Intervals,
        scale: float,
        extra_score: Tensor | None,
        extra_value: Tensor | None,
    ) -> None:
        if not self._active:
            return
        sample = intervals.memo("observed", lambda: sample_of(len(q), self._queries, q.device))
        groups = head_groups(q, k, intervals, scale, extra_score, extra_value is not None, sample)
        for label, group in labels(groups):
            self._largest[f"layers/logit_max/{self._layer:02d}{label}"] = group.largest
            self._means[f"layers/entropy/{self._layer:02d}{label}"] = (group.entropy[0], group.entropy[1])

    @torch.no_grad()
    def _scan(self, gate: Tensor, inputs: Sequence[Tensor], chunks: Chunks) -> None:
        if not self._active:
            return
        logs = gate[sample_of(len(gate), self._queries, gate.device)].float().log().mean(dim=0).flatten()
        half_lives = logs.new_tensor(0.5).log() / logs.clamp(max=-1 / LONGEST_HALF_LIFE)
        shares = logs.new_tensor([0.1, 0.5, 0.9])
        for suffix, value in zip(("_low", "", "_high"), torch.quantile(half_lives, shares), strict=True):
            self._means[f"layers/half_life{suffix}/{self._layer:02d}"] = (value, 1)


@torch.no_grad()
def _squares(values: Tensor) -> tuple[Tensor, int]:
    """The sum of squares, and of how many."""
    return torch.linalg.vector_norm(values, dtype=torch.float32).square(), values.numel()
