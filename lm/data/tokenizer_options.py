"""What the run file may say about how text becomes tokens, and which of them stand around it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lm.options import LocalPath, Options

_AddEos = Annotated[
    bool,
    Field(description="End every text with the eos token. Answers of samples always end with what ends them."),
]
_TRAINED_ENDS = (None, "<s>", "</s>")


class EndsOptions(Options):
    """Which tokens begin and end a document of text.

    There is always one that begins it: a document's first token is read and never predicted, so that without it a token
    of every text would be lost to training and to bits per byte.
    """

    bos_token: str | None = Field(
        default=None,
        min_length=1,
        description="Control token that begins every document. Left out: the tokenizer's own bos token, or its eos "
        "token where it has no other.",
    )
    eos_token: str | None = Field(
        default=None,
        min_length=1,
        description="Control token that ends every document. Left out: the tokenizer's own eos token, or its bos token "
        "where it has no other.",
    )
    add_eos_token: _AddEos = True


class SentencePieceOptions(EndsOptions):
    """An existing SentencePiece model (`path`), or one trained on the sources (`vocab_size`)."""

    kind: Literal["sentencepiece"] = Field(default="sentencepiece", description="SentencePiece subwords.")
    path: LocalPath | None = Field(
        default=None, description="An existing .model file, used as it is; excludes the keys that say how to train."
    )
    vocab_size: int | None = Field(
        default=None, ge=260, description="Pieces to train, the 256 byte pieces and unk, bos and eos included."
    )
    model_type: Literal["unigram", "bpe"] = Field(
        default="unigram", description="What to train: unigram encodes three times faster, bpe trains ten times faster."
    )
    byte_fallback: bool = Field(
        default=True,
        description="Spell characters outside the vocabulary as bytes, so that any text round-trips exactly.",
    )
    split_digits: bool = Field(default=True, description="Make every digit its own piece.")
    sample_bytes: int = Field(
        default=2_000_000, ge=1_000, description="Bytes of training text to train on, drawn evenly from all sources."
    )

    @model_validator(mode="after")
    def _either_path_or_training(self) -> SentencePieceOptions:
        if self.path is None and self.vocab_size is None:
            raise ValueError("set vocab_size to train a SentencePiece model, or path to use an existing one")
        fields = type(self).model_fields
        training = fields.keys() - {"path", *EndsOptions.model_fields}
        surplus = sorted(name for name in training if getattr(self, name) != fields[name].default)
        if self.path is not None and surplus:
            raise ValueError(f"path names a trained model, so remove {', '.join(surplus)} (or remove path to train)")
        if self.path is None and not {self.bos_token, self.eos_token} <= {*_TRAINED_ENDS}:
            raise ValueError("a model that is trained has no control tokens but <s> and </s>: bos_token, eos_token")
        return self


class BytesOptions(Options):
    """UTF-8 bytes as tokens 0..255, with 256 as bos and 257 as eos."""

    kind: Literal["bytes"] = Field(default="bytes", description="One token per UTF-8 byte.")
    add_eos_token: _AddEos = True


class HuggingFaceOptions(EndsOptions):
    """A folder with `tokenizer.json` and `tokenizer_config.json`, as `save_pretrained` writes it."""

    kind: Literal["huggingface"] = Field(default="huggingface", description="A Hugging Face fast tokenizer.")
    path: LocalPath = Field(description="The folder that holds tokenizer.json.")


class NumbersOptions(Options):
    """Whole numbers as tokens, for generated sources. In text they are decimal, with spaces between."""

    kind: Literal["numbers"] = Field(default="numbers", description="One token per number.")
    size: int = Field(ge=4, description="Numbers are 0 .. size - 1; bos and eos are two tokens more.")


TokenizerOptions = Annotated[
    SentencePieceOptions | BytesOptions | HuggingFaceOptions | NumbersOptions, Field(discriminator="kind")
]
