"""Stage one as the training loop sees it: new mixers that learn what the original's mixers give.

Every grafted layer is a regression of its own (arXiv 2506.05340, section 3): the original runs once, each of its mixers
shows what went in and what came out, and the new mixer in its place is moved towards that. What a layer learns does not
depend on the others, since all of them read the original's hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lm.data.rows import IGNORED
from lm.data.tokenizers import Tokenizer
from lm.extend import base
from lm.extend.model import fingerprint
from lm.graft.operation import Operation
from lm.hf import BraidForCausalLM
from lm.hf.export import Training, export_model
from lm.model.block import Block
from lm.model.documents import Documents
from lm.model.options import ModelOptions
from lm.plan import ALONE, Plan, Shared, make_plan
from lm.train.checkpoint import Counters
from lm.train.trainee import Built


def _huber(found: Tensor, wanted: Tensor) -> Tensor:
    bound = wanted.square().mean(dim=1, keepdim=True).sqrt()
    error = (found - wanted).abs()
    return torch.where(error < bound, error.square() / 2, bound * (error - bound / 2))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda found, wanted: (found - wanted).abs(),
    "l2": lambda found, wanted: (found - wanted).square(),
    "huber": _huber,
}
"""Distances of outputs [N, hidden_size] float32, per channel. Huber's bound is the root mean square of a token."""


SINK = ".sink.logit"
"""The end of a learned sink's name."""


class Distances(NamedTuple):
    """In the form of `CrossEntropy`, as the engine reads it.

    loss: scalar, the sum over tokens with a target, layers and channels. token_nll: [N], the part of each token.
    """

    loss: Tensor
    token_nll: Tensor


class Branch(nn.Module):
    """The new mixer of one layer, with the convolution before it if it has one."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.short_conv, self.mixer = block.short_conv, block.mixer

    def forward(self, inputs: Tensor, documents: Documents) -> Tensor:
        """As `Block.mix`."""
        if self.short_conv is not None:
            inputs = self.short_conv(inputs, documents)
        mixed: Tensor = self.mixer(inputs, documents)
        return mixed


class RegressionModel(nn.Module):
    """The original up to its last grafted layer, frozen, and the new mixers beside it."""

    def __init__(self, original: BraidForCausalLM, grafted: BraidForCausalLM, layers: Sequence[int], loss: str) -> None:
        """layers: those that are grafted, first one first. loss: a name of LOSSES."""
        super().__init__()
        self.embed_tokens = original.model.embed_tokens
        self.blocks = nn.ModuleList(original.model.blocks[: layers[-1] + 1])
        self.requires_grad_(False)
        self.branches = nn.ModuleDict({str(layer): Branch(grafted.model.blocks[layer]) for layer in layers})
        self.branches.requires_grad_(True)
        self.layers = tuple(layers)
        self._loss = LOSSES[loss]
        self._sums = torch.zeros(2, len(layers), dtype=torch.float64)

    def train(self, mode: bool = True) -> RegressionModel:
        super().train(mode)
        self.embed_tokens.eval()
        self.blocks.eval()  # what is learned is how the original behaves when it is used
        return self

    def forward(self, tokens: Tensor, documents: Documents, targets: Tensor) -> Distances:
        """Distances of the new mixers' outputs from the original's, for tokens [N] int64 of the flat stream.

        targets: [N] int64, negative where a token does not count (padding, and the last of a document).
        """
        counted = targets != IGNORED
        total = torch.zeros(len(tokens), device=tokens.device)
        with torch.no_grad():
            x = self.embed_tokens(tokens)
        for place, block in enumerate(self.blocks):
            with torch.no_grad():
                inputs = block.input_layernorm(x)  # type: ignore[operator]
                wanted = block.mix(inputs, documents)  # type: ignore[operator]
                x = block.join(x, wanted)  # type: ignore[operator]
            if place in self.layers:
                # Recomputed in backward, so that of every layer only this pair is kept.
                found = checkpoint(self.branches[str(place)], inputs, documents, use_reentrant=False)
                distance = self._distance(found, wanted) * counted
                of_nothing = self._distance(torch.zeros_like(wanted), wanted) * counted
                sums = torch.stack((distance.detach(), of_nothing)).sum(dim=1, dtype=torch.float64)
                self._sums[:, self.layers.index(place)] += sums.cpu()
                total = total + distance
        return Distances(total.sum(), total.detach())

    def take_sums(self) -> Tensor:
        """For each layer, distances summed since the last call, and those of putting out nothing [2, layers] float64.

        On the CPU. Their quotient is 0 where the new mixer is the old one, and 1 where it is no better than none.
        """
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        return sums

    def _distance(self, found: Tensor, wanted: Tensor) -> Tensor:
        """[N] float32: per token, the sum over channels."""
        return self._loss(found.float(), wanted.float()).sum(dim=1)


@dataclass(frozen=True)
class Regression:
    """The new mixers of an operation, to be trained. seed: draws those weights that are new."""

    operation: Operation
    seed: int

    @property
    def options(self) -> ModelOptions:
        return self.operation.after

    def plan(self, sequence_length: int, dtype: torch.dtype, shared: Shared = ALONE) -> Plan:
        """The plan of the original, which runs forward once for all layers."""
        return make_plan(self.operation.before, sequence_length, dtype, shared)

    def build(self) -> Built:
        weights = self.operation.weights()
        original, grafted = self.operation.original(weights), self.operation.grafted(weights, self.seed)
        regress = self.operation.graft.regress
        model = RegressionModel(original, grafted, self.operation.layers, regress.loss)
        faster = regress.optimizer.sink_lr / regress.optimizer.lr
        factors = {name: faster for name, _ in model.branches.named_parameters("branches") if name.endswith(SINK)}
        return Built(model, factors, fingerprint(model))

    def trained(self, base_weights: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> BraidForCausalLM:
        """The grafted model in float32. weights: the trained ones, by their names in `build`'s model."""
        renamed = {name.replace("branches.", "model.layers.", 1): tensor for name, tensor in weights.items()}
        model = self.operation.grafted(base_weights, self.seed)
        _, unexpected = model.load_state_dict(renamed, strict=False)
        assert not unexpected, unexpected
        return model

    def save(self, folder: Path, weights: Mapping[str, Tensor], tokenizer: Tokenizer, counters: Counters) -> None:
        """Writes the grafted model as a Hugging Face folder."""
        model = self.trained(self.operation.weights(), weights)
        training = Training(counters.step, counters.tokens)
        generation = base.generation_config(self.operation.base, self.operation.config)
        export_model(
            folder, self.operation.after, dict(model.named_parameters()), tokenizer, training, generation=generation
        )
