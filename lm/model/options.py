"""What fixes a model: its widths, its named mixers, and the pattern that puts them into layers."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lm.model.mixers import MIXERS, Dimensions, MixerOptions
from lm.options import Options
from lm.pattern import PatternError, expand

if TYPE_CHECKING:
    AnyMixer = MixerOptions
else:
    AnyMixer = Annotated[reduce(or_, (m.options_class for m in MIXERS.values())), Field(discriminator="kind")]


class ModelOptions(Options):
    """A pre-norm RMSNorm decoder. Names are Hugging Face's; fields left at none are derived and written back."""

    vocab_size: int | None = Field(None, ge=2, description="Rows of the embedding; none takes the tokenizer's size.")
    pad_vocab_to_multiple_of: int = Field(
        1,
        ge=1,
        description="Round the rows of the embedding up to a multiple, such as 128 for fast GPU kernels. They predict "
        "nothing, and are left out of an export.",
    )
    hidden_size: int = Field(ge=1, description="Width of the residual stream.")
    num_attention_heads: int = Field(ge=1, description="Query heads of every mixer.")
    num_key_value_heads: int | None = Field(None, ge=1, description="Key/value heads; none: one per query head.")
    head_dim: int | None = Field(None, ge=2, description="Width of a head; none: hidden_size / num_attention_heads.")
    intermediate_size: int | None = Field(
        None, ge=1, description="Width of the MLP; none: 8/3 of hidden_size rounded up to 64s, or 4 times for gelu."
    )
    mlp: Literal["swiglu", "geglu", "gelu"] = Field("swiglu", description="Gated with SiLU or GELU, or plain GELU.")
    rms_norm_eps: float = Field(1e-6, gt=0, description="Added to the mean square in every RMSNorm.")
    output_norms: bool = Field(False, description="RMSNorm on what mixers and MLPs put out, too (Gemma's sandwich).")
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary angles where a mixer names no own.")
    max_position_embeddings: int | None = Field(
        None, ge=1, description="Longest trained context; none takes data.sequence_length."
    )
    tie_word_embeddings: bool = Field(True, description="Use the embedding as the output projection.")
    initializer_range: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")
    z_loss: float = Field(0.0, ge=0, description="Weight of logsumexp^2 in the training loss.")
    mixers: dict[str, AnyMixer] = Field(min_length=1, description="Token mixers, named once and used in `layers`.")
    layers: str = Field(min_length=1, description="Pattern of mixer names, e.g. (rat local)*3 global.")

    @model_validator(mode="after")
    def _derive(self) -> Self:
        derived: dict[str, Any] = {}
        if self.num_key_value_heads is None:
            derived["num_key_value_heads"] = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                    f"{self.num_attention_heads}: change one of them, or give head_dim"
                )
            derived["head_dim"] = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            wide = 4 * self.hidden_size
            derived["intermediate_size"] = wide if self.mlp == "gelu" else -(-wide * 2 // (3 * 64)) * 64
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # frozen for others; a derived field is set once, here
        self._check()
        return self

    def _check(self) -> None:
        dimensions = self.dimensions
        if dimensions.num_attention_heads % dimensions.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {dimensions.num_attention_heads} is not divisible by num_key_value_heads "
                f"{dimensions.num_key_value_heads}"
            )
        if dimensions.head_dim % 2:
            raise ValueError(f"head_dim {dimensions.head_dim} must be even: rotary positions turn pairs of channels")
        for name, mixer in self.mixers.items():
            try:
                mixer.check(dimensions)
            except ValueError as error:
                raise ValueError(f"mixers.{name}: {error}") from None
        try:
            expand(self.layers, self.mixers)
        except PatternError as error:
            raise ValueError(f"layers: {error}") from None

    @property
    def dimensions(self) -> Dimensions:
        """The widths that every mixer shares."""
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        return Dimensions(
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            rope_theta=self.rope_theta,
            rms_norm_eps=self.rms_norm_eps,
        )

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding, padding included; vocab_size must be known."""
        assert self.vocab_size is not None
        return -(-self.vocab_size // self.pad_vocab_to_multiple_of) * self.pad_vocab_to_multiple_of

    @property
    def layer_names(self) -> list[str]:
        """The mixer's name in each layer."""
        return expand(self.layers, self.mixers)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layer_names)
