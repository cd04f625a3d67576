"""The decoder and the language model on top of it: flat tokens in, hidden states, logits or loss out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

from kernels.linear_cross_entropy import CrossEntropy, linear_cross_entropy
from lm.model.block import Block
from lm.model.cache import DecoderCache
from lm.model.documents import Documents
from lm.model.mixers import Mixer, build_mixer
from lm.model.options import ModelOptions


class DecoderLayers(nn.Module):
    """Embedding, layers and final norm, to be inherited beside any module class that needs its own constructor."""

    embed_tokens: nn.Embedding
    layers: nn.ModuleList
    norm: nn.RMSNorm
    wrap: Callable[[int, Block], Callable[..., Tensor]] | None = None
    """What `run` replaces the call of layer i by where it is not told."""

    def build(self, options: ModelOptions) -> None:
        """Adds the modules; called once, at the end of the constructor."""
        assert options.vocab_size is not None, "vocab_size is taken from the tokenizer before a model is built"
        assert options.intermediate_size is not None
        self.embed_tokens = nn.Embedding(options.embedding_rows, options.hidden_size)
        self.layers = nn.ModuleList(
            Block(
                build_mixer(options.mixers[name], options.dimensions),
                options.hidden_size,
                options.intermediate_size,
                options.mlp,
                options.rms_norm_eps,
                options.output_norms,
            )
            for name in options.layer_names
        )
        self.norm = nn.RMSNorm(options.hidden_size, eps=options.rms_norm_eps)

    def run(
        self,
        x: Tensor,
        documents: Documents,
        cache: DecoderCache | None = None,
        wrap: Callable[[int, Block], Callable[..., Tensor]] | None = None,
    ) -> Tensor:
        """Final hidden states [N, hidden_size] of embedded tokens x; a cache is read, then extended in place.

        wrap: replaces the call of layer i, for activation checkpointing or to look at what goes in.
        """
        wrap = wrap or self.wrap
        for index, layer in enumerate(self.blocks):
            call = layer if wrap is None else wrap(index, layer)
            x = call(x, documents, None if cache is None else cache.layers[index])
        if cache is not None:
            cache.seen = documents.total
        out: Tensor = self.norm(x)
        return out

    @property
    def blocks(self) -> list[Block]:
        """The layers, for type checkers too."""
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def mixers(self) -> list[Mixer[Any]]:
        """The mixer of each layer."""
        return [layer.mixer for layer in self.blocks]

    def new_cache(self, rows: int, dtype: torch.dtype, device: torch.device) -> DecoderCache:
        """An empty cache for `rows` documents."""
        layers = [layer.new_cache(rows, dtype, device) for layer in self.blocks]
        return DecoderCache(layers, torch.zeros(rows, dtype=torch.int64, device=device))

    def crop(self, cache: DecoderCache, seen: Tensor) -> None:
        """Cuts every row back to `seen` [rows] tokens; raises ValueError, naming the layer, where that is impossible.

        A refused cut leaves the cache usable: nothing is overwritten, and `cache.seen` moves last.
        """
        for index, (layer, kept) in enumerate(zip(self.blocks, cache.layers, strict=True)):
            try:
                layer.crop(kept, cache.seen, seen)
            except ValueError as error:
                raise ValueError(f"layer {index} ({layer.mixer.options.kind}): {error}") from None
        cache.seen = seen


class Decoder(DecoderLayers):
    """The decoder of a language model."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.build(options)

    def forward(self, tokens: Tensor, documents: Documents, cache: DecoderCache | None = None) -> Tensor:
        """Hidden states [N, hidden_size] of tokens [N] int64; a cache is read, then extended in place."""
        return self.run(self.embed_tokens(tokens), documents, cache)


class Head(nn.Module):
    """Output projection to the vocabulary, and the loss that never holds all its logits.

    Rows of the weight beyond the vocabulary are padding, for speed: nothing is predicted by them.
    """

    def __init__(self, hidden_size: int, vocab_size: int, rows: int | None = None) -> None:
        super().__init__()
        self.padding = 0 if rows is None else rows - vocab_size
        self.weight: nn.Parameter = nn.Parameter(torch.empty(rows or vocab_size, hidden_size))

    def forward(self, hidden: Tensor, targets: Tensor | None = None, z_loss: float = 0.0) -> Tensor | CrossEntropy:
        vocab_size = self.weight.shape[0] - self.padding
        if targets is None:
            return nn.functional.linear(hidden, self.weight)[..., :vocab_size]
        return linear_cross_entropy(hidden, self.weight, targets, z_loss=z_loss, num_classes=vocab_size)


class LanguageModel(nn.Module):
    """A decoder with an output head. Parameter names follow Hugging Face's Llama, with `mixer` for `self_attn`."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        assert options.vocab_size is not None
        self.options = options
        self.model = Decoder(options)
        self.lm_head = Head(options.hidden_size, options.vocab_size, options.embedding_rows)
        if options.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight  # type: ignore[assignment]
        if not self.lm_head.weight.is_meta:
            self.init_weights()

    def init_weights(self) -> None:
        """Draws weights from N(0, initializer_range) with torch's global generator; norms start at 1."""
        std = self.options.initializer_range
        nn.init.normal_(self.model.embed_tokens.weight, std=std)
        if not self.options.tie_word_embeddings:
            nn.init.normal_(self.lm_head.weight, std=std)
        for layer in self.model.blocks:
            layer.mixer.init_weights(std)
            if layer.short_conv is not None:
                layer.short_conv.init_weights()
            for projection in layer.mlp.children():
                nn.init.normal_(projection.weight, std=std)  # type: ignore[arg-type]

    @overload
    def forward(self, tokens: Tensor, documents: Documents, *, cache: DecoderCache | None = None) -> Tensor: ...
    @overload
    def forward(self, tokens: Tensor, documents: Documents, targets: Tensor) -> CrossEntropy: ...
    def forward(
        self,
        tokens: Tensor,
        documents: Documents,
        targets: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor | CrossEntropy:
        """Logits [N, vocab_size], or the summed loss where targets [N] int64 (-100: none) are given.

        tokens: [N] int64, the flat stream that `documents` divides. A cache holds what came before them, one row
        per document, and is extended in place.
        """
        hidden = self.model(tokens, documents, cache)
        out: Tensor | CrossEntropy = self.lm_head(hidden, targets, self.options.z_loss)
        return out
