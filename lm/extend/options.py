"""The run file's `base`, `extend` and `lora` sections: what is extended, how far, and which weights are trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lm.options import Options

LONGLORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


class BaseOptions(Options):
    """The pretrained model."""

    path: str = Field(min_length=1, description="A Hugging Face folder, a Hub id, or a .gguf file.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hub id; none: its main branch.")
    quantization: Literal["none", "nf4"] = Field(
        default="none",
        description="Keep frozen weights in 4 bits while training (QLoRA); needs a GPU and bitsandbytes.",
    )


class RopeOptions(Options):
    """How rotary positions reach the new context."""

    kind: Literal["linear", "ntk", "yarn", "theta", "none"] = Field(
        default="linear",
        description="linear: position interpolation; ntk: a larger base by the NTK-aware rule; yarn; theta: the base "
        "given below; none: angles stay as they are.",
    )
    factor: float | None = Field(
        default=None,
        gt=1,
        description="Growth of the context that angles are made for; none: just enough for target_length.",
    )
    theta: float | None = Field(default=None, gt=0, description="The new base of kind theta.")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.kind == "theta") != (self.theta is not None):
            raise ValueError(f"kind is {self.kind}: give theta for kind theta, and only there")
        if self.factor is not None and self.kind in ("theta", "none"):
            raise ValueError(f"kind {self.kind} takes no factor: remove it, or choose linear, ntk or yarn")
        return self


class ExtendOptions(Options):
    """The new context and what attention does while training for it."""

    target_length: int = Field(
        ge=2,
        description="The new context in tokens, exported as max_position_embeddings; with rope kind none also the one "
        "that the base reaches already, for a further stage.",
    )
    rope: RopeOptions = Field(default=RopeOptions(), description="What the angles of rotary positions become.")
    attention: Literal["shifted_short", "full"] = Field(
        default="shifted_short",
        description="Attention while training: inside shifted groups (LongLoRA's S2), or full. Evaluation is full.",
    )
    group_size: int | None = Field(
        default=None,
        ge=2,
        description="Tokens per group, even; none: a quarter of target_length, in 128s where it can be.",
    )

    @model_validator(mode="after")
    def _derive_group(self) -> Self:
        if self.attention == "full":
            if self.group_size is not None:
                raise ValueError("attention full has no groups: remove group_size, or choose shifted_short")
            return self
        if self.group_size is None:
            object.__setattr__(self, "group_size", default_group(self.target_length))  # frozen for others
        elif self.group_size % 2:
            raise ValueError(f"group_size {self.group_size} must be even: half of the heads shift by half a group")
        return self


def default_group(target_length: int) -> int:
    """A quarter of the target: a multiple of 128, which suits block kernels, or at least even."""
    quarter = target_length // 4
    return quarter // 128 * 128 if quarter >= 128 else max(2, quarter // 2 * 2)


class LearningRates(Options):
    """Peak learning rates of the kinds of trained weights; none: optimizer.lr."""

    a: float | None = Field(default=None, gt=0, description="LoRA's A matrices, which read.")
    b: float | None = Field(default=None, gt=0, description="LoRA's B matrices, which write, and DoRA's magnitudes.")
    embeddings: float | None = Field(
        default=None, gt=0, description="The input embedding, and the head where it is tied."
    )
    norms: float | None = Field(default=None, gt=0, description="Norm weights.")


class LoraOptions(Options):
    """Low-rank adapters (arXiv 2106.09685) on linear layers of the frozen base, and what is trained whole beside them.

    The preset is LongLoRA's recipe: rank 8, alpha 16 on q, k, v and o, with embeddings and norms trained whole.
    """

    preset: Literal["longlora"] | None = Field(default=None, description="longlora: turns `embeddings` and `norms` on.")
    rank: int = Field(default=8, ge=1, description="Rank r of every adapter.")
    alpha: float = Field(default=16.0, gt=0, description="Adapters are multiplied by alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout of what enters an adapter.")
    targets: tuple[str, ...] | Literal["all-linear"] = Field(
        default=LONGLORA_TARGETS, min_length=1, description="Last names of the linear layers that get an adapter."
    )
    rslora: bool = Field(default=False, description="Multiply by alpha / sqrt(rank) instead (arXiv 2312.03732).")
    dora: bool = Field(default=False, description="Train magnitudes beside the directions (DoRA, arXiv 2402.09353).")
    embeddings: bool = Field(default=False, description="Train the input embedding whole.")
    norms: bool = Field(default=False, description="Train every norm whole.")
    learning_rates: LearningRates = Field(default=LearningRates(), description="Peak learning rates by kind.")

    @model_validator(mode="after")
    def _preset_fits(self) -> Self:
        if self.preset == "longlora":
            refused = [
                key for key in ("embeddings", "norms") if key in self.model_fields_set and not getattr(self, key)
            ]
            if refused:
                raise ValueError(f"preset longlora trains {' and '.join(refused)}: remove the preset to leave them out")
            for key in ("embeddings", "norms"):
                object.__setattr__(self, key, True)  # frozen for others
        for key in ("embeddings", "norms"):
            if getattr(self.learning_rates, key) is not None and not getattr(self, key):
                raise ValueError(f"learning_rates.{key} is set, but {key} are not trained: set lora.{key} too")
        return self
