"""The configuration of a Braid model in Hugging Face's form: the fields of `ModelOptions`, and token ids."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from lm.model.options import ModelOptions

# Options that say how a model is trained, and nothing of what is exported.
_OF_TRAINING = ("pad_vocab_to_multiple_of",)


@strict
class BraidConfig(PreTrainedConfig):
    """A hybrid decoder: `mixers` names the token mixers, `layers` is the pattern that puts them into layers."""

    model_type = "braid"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - the name and form transformers reads

    vocab_size: int = 32_000
    hidden_size: int = 512
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    mlp: str = "swiglu"
    rms_norm_eps: float = 1e-6
    output_norms: bool = False
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    z_loss: float = 0.0
    mixers: dict[str, Any] | None = None
    layers: str = "global*8"
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.mixers is None:
            self.mixers = {"global": {"kind": "attention"}}
        options = self.to_options()
        if self.num_hidden_layers not in (None, options.num_hidden_layers):
            raise ValueError(
                f"num_hidden_layers is {self.num_hidden_layers}, but the pattern layers='{self.layers}' has "
                f"{options.num_hidden_layers}: leave num_hidden_layers out"
            )
        for name in ("num_key_value_heads", "head_dim", "intermediate_size", "num_hidden_layers"):
            setattr(self, name, getattr(options, name))
        super().__post_init__(**kwargs)

    def to_options(self) -> ModelOptions:
        """The model these fields describe. Raises ValueError where they cannot work together."""
        names = (name for name in ModelOptions.model_fields if name not in _OF_TRAINING)
        return ModelOptions(**{name: getattr(self, name) for name in names})

    @classmethod
    def from_options(cls, options: ModelOptions, **token_ids: Any) -> BraidConfig:
        """The configuration of a model with these options; the options must be resolved (no vocab_size of none)."""
        values = {name: value for name, value in options.model_dump(mode="json").items() if name not in _OF_TRAINING}
        return cls(**values, **token_ids)
