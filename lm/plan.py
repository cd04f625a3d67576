"""What a configuration costs before it runs: parameters, FLOPs, caches, reach and memory, layer by layer.

Nothing here is a second description of the model: the model itself is built on the meta device, its linear layers
are counted, and every mixer is asked which query-key pairs it scores, what its cache keeps and how far it reaches.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from types import UnionType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.mixers import Mixer
from lm.model.options import ModelOptions
from lm.model.shares import layer_exchange
from lm.model.short_conv import ShortConvolution

BACKWARD_TO_FORWARD = 2  # each product of the forward has two in the backward
LOGITS_CHUNK = 512  # tokens whose logits the loss holds at a time
NF4_BYTES = (4 + 0.127) / 8  # of a weight, with its doubly quantized scale (arXiv 2305.14314, section 3)


@dataclass(frozen=True)
class Shared:
    """Ranks that hold each micro-batch, of so many rows, together."""

    ranks: int = 1
    rows: int = 1


ALONE = Shared()


@dataclass(frozen=True)
class LayerPlan:
    """One layer.

    Attributes:
        mixer: Its name in the run file; `kind` is its mechanism and `extent` how far it looks.
        heads, kv_heads: Query heads, and key/value heads that attention really uses.
        parameters: Of mixer, MLP and norms.
        flops_per_token: Forward FLOPs of the linear layers, of attention and of short convolutions, averaged over the
            tokens of one document of the training length. Norms, activations, rotations and scans are left out.
        cache_bytes: What decoding keeps for this layer and one row after the training length.
        cache_bytes_per_token: What each further token adds to that, averaged over as many tokens again.
        linear_flops_per_token: Those of `flops_per_token` that are linear layers'.
        reach: Tokens, itself included, from which the farthest-seeing token can know through all layers up to here.
        exchange: Where ranks hold rows together: `heads` if tokens are traded for heads, `neighbours` if ranks ask for
            what those before them hold (see `lm.model.shares`); else empty.
        exchange_bytes: What the rank that receives most receives of a micro-batch in forward, and as much in backward.
    """

    mixer: str
    kind: str
    extent: str
    heads: int
    kv_heads: int
    parameters: int
    flops_per_token: float
    cache_bytes_per_token: float
    cache_bytes: int
    reach: int
    exchange: str = ""
    exchange_bytes: int = 0
    linear_flops_per_token: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A model at a training length: its layers, and its totals with embedding, final norm and output head.

    frozen_parameters: those that are not trained. frozen_flops_per_token: forward FLOPs of linear layers among them.
    layer_input_bytes_per_token, linear_output_bytes_per_token: of `activation_bytes_per_token`, the input of one layer
    and what all linear layers put out. recomputed_flops_per_token: what the backward computes once more.
    head_gradient_parameters: weights of a trained output head, whose gradient the loss makes in forward.
    quantized_parameters: frozen weights kept in 4 bits.
    base_cache_bytes: of the model that this one was grafted onto, for one row at the training length; 0: of none.
    shared: how many ranks hold how many rows together.
    """

    sequence_length: int
    layers: tuple[LayerPlan, ...]
    parameters: int
    embedding_parameters: int
    flops_per_token: float
    activation_bytes_per_token: float
    vocab_size: int
    frozen_parameters: int = 0
    frozen_flops_per_token: float = 0.0
    head_gradient_parameters: int = 0
    quantized_parameters: int = 0
    base_cache_bytes: int = 0
    layer_input_bytes_per_token: float = 0.0
    linear_output_bytes_per_token: float = 0.0
    recomputed_flops_per_token: float = 0.0
    shared: Shared = ALONE

    @property
    def training_flops_per_token(self) -> float:
        """Forward and backward, without recomputation: three times the forward, twice where weights are frozen."""
        return self.flops_per_token * (1 + BACKWARD_TO_FORWARD) - self.frozen_flops_per_token

    @property
    def cache_bytes(self) -> int:
        """Of all layers, for one row at the training length."""
        return sum(layer.cache_bytes for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the derived totals."""
        totals = {"training_flops_per_token": self.training_flops_per_token, "cache_bytes": self.cache_bytes}
        return asdict(self) | totals


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank while it trains. Activations are an estimate; buffers of communication are left out."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


def make_plan(
    options: ModelOptions, sequence_length: int, dtype: torch.dtype = torch.float32, shared: Shared = ALONE
) -> Plan:
    """The plan of a model with vocab_size filled in, trained on documents of `sequence_length` tokens in `dtype`."""
    assert options.vocab_size is not None
    with torch.device("meta"), _NoInitialisers():
        model = LanguageModel(options)
    layers = _layer_plans(model, options, sequence_length, dtype, shared)
    head = options.embedding_rows * options.hidden_size
    return Plan(
        sequence_length=sequence_length,
        layers=layers,
        parameters=_parameters(model),
        embedding_parameters=head * (1 if options.tie_word_embeddings else 2),
        flops_per_token=sum(layer.flops_per_token for layer in layers) + 2 * head,
        activation_bytes_per_token=_activations_per_token(model, options) * dtype.itemsize,
        layer_input_bytes_per_token=options.hidden_size * dtype.itemsize,
        linear_output_bytes_per_token=_linear_outputs(model) * dtype.itemsize,
        vocab_size=options.embedding_rows,
        head_gradient_parameters=head,
        shared=shared,
    )


def rank_memory(
    plan: Plan, *, zero_stage: int, world_size: int, micro_batch_size: int, dtype: torch.dtype, average: bool = False
) -> Memory:
    """Memory of one rank under DeepSpeed's AdamW with fp32 master weights (arXiv 1910.02054, section 3).

    The two moments and, except for fp32 without ZeRO, a separate fp32 copy of the weights count as the optimizer's, and
    so does the moving average of the weights, where there is one.
    ZeRO 1 divides these over the ranks, 2 the gradients too, 3 the weights too. With the activations go a chunk of
    logits and the head's gradient, both fp32.
    """
    shares = [world_size if zero_stage >= stage else 1 for stage in (3, 2, 1)]
    master = 0 if dtype == torch.float32 and zero_stage == 0 else 4
    trained = plan.parameters - plan.frozen_parameters
    kept = (plan.parameters - plan.quantized_parameters) * dtype.itemsize + plan.quantized_parameters * NF4_BYTES
    sizes = (kept, trained * dtype.itemsize, trained * (8 + master + 4 * average))
    weights, gradients, optimizer = (math.ceil(size / share) for size, share in zip(sizes, shares, strict=True))
    tokens = -(-micro_batch_size * plan.sequence_length // plan.shared.ranks)
    loss = 4 * (min(tokens, LOGITS_CHUNK) * plan.vocab_size + plan.head_gradient_parameters)
    return Memory(weights, gradients, optimizer, round(tokens * plan.activation_bytes_per_token) + loss)


class _NoInitialisers(TorchFunctionMode):
    """Skips `torch.nn.init`: meta tensors hold nothing, and its first call on one imports the compiler, for 2 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def exchange_of(
    mixer: Mixer[Any], convolution: ShortConvolution | None, length: int, dtype: torch.dtype, shared: Shared
) -> tuple[str, int]:
    """`exchange` and `exchange_bytes` of a layer, for rows of one document of `length` tokens."""
    if shared.ranks == 1:
        return "", 0
    return layer_exchange(mixer, convolution, [length] * shared.rows, shared.ranks, dtype)


def _layer_plans(
    model: LanguageModel, options: ModelOptions, length: int, dtype: torch.dtype, shared: Shared
) -> tuple[LayerPlan, ...]:
    documents = Documents.from_lengths([length])
    earliest = documents.position
    pairs: dict[str, int] = {}
    exchanges: dict[str, tuple[str, int]] = {}
    plans = []
    for name, layer in zip(options.layer_names, model.model.blocks, strict=True):
        mixer = layer.mixer
        if name not in pairs:
            pairs[name] = mixer.scored_pairs(documents)
            exchanges[name] = exchange_of(mixer, layer.short_conv, length, dtype, shared)
        earliest = layer.earliest(documents, earliest)
        attention = 4 * mixer.dimensions.head_dim * pairs[name] / length
        now, later = (layer.cache_bytes(tokens, dtype) for tokens in (length, 2 * length))
        plans.append(
            LayerPlan(
                mixer=name,
                kind=mixer.options.kind,
                extent=mixer.options.sees,
                heads=mixer.dimensions.num_attention_heads,
                kv_heads=sum(mixer.visible(documents).kv_heads),
                parameters=_parameters(layer),
                flops_per_token=2 * _multiplied_weights(layer, nn.Linear | ShortConvolution) + attention,
                cache_bytes_per_token=(later - now) / length,
                cache_bytes=now,
                reach=int((documents.position - earliest).max()) + 1,
                linear_flops_per_token=2 * _multiplied_weights(layer, nn.Linear),
                exchange=exchanges[name][0],
                exchange_bytes=exchanges[name][1],
            )
        )
    return tuple(plans)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _multiplied_weights(module: nn.Module, kinds: type | UnionType) -> int:
    """Weights of parts of these kinds, with which each token is multiplied, and added up, once."""
    parts: list[Any] = [part for part in module.modules() if isinstance(part, kinds)]
    return sum(part.weight.numel() for part in parts)


def _linear_outputs(module: nn.Module) -> int:
    return sum(part.out_features for part in module.modules() if isinstance(part, nn.Linear))


def _activations_per_token(model: LanguageModel, options: ModelOptions) -> int:
    """Values that the backward needs per token, roughly: what every linear layer put out, each norm's scaled input and
    output, what goes into and comes out of a short convolution, attention's output, and the MLP's activation and
    product. What a mixer keeps beyond that is left out."""
    dimensions = options.dimensions
    assert options.intermediate_size is not None
    norms = sum(2 * part.weight.numel() for part in model.modules() if isinstance(part, nn.RMSNorm))
    convolutions = sum(2 * part.weight.shape[1] for part in model.modules() if isinstance(part, ShortConvolution))
    attention = dimensions.num_attention_heads * dimensions.head_dim
    mlp = options.intermediate_size * (1 if options.mlp == "gelu" else 2)
    return _linear_outputs(model) + norms + convolutions + options.num_hidden_layers * (attention + mlp)
