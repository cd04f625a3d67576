"""What every source that is read may say: where it lies, what is left out, how often it is read."""

from __future__ import annotations

import string
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lm.options import Options

Scalar = str | int | float | bool


class HubOptions(Options):
    """What to load of a dataset of the Hugging Face Hub, or of a folder laid out as one, by `datasets`."""

    config: str | None = Field(
        default=None, min_length=1, description="Configuration; left out: the dataset's default."
    )
    split: str = Field(
        default="train",
        min_length=1,
        description="Split, or a slice of one as `datasets` writes it, such as train[:10%].",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        description="Branch, tag or commit; tokens are kept by the commit that it stands for.",
    )
    streaming: bool = Field(
        default=False,
        description="Read while it is tokenized, without a copy of the text on this disk; a part that breaks off is "
        "read again from its beginning.",
    )

    @model_validator(mode="after")
    def _streamed_whole(self) -> HubOptions:
        if self.streaming and "[" in self.split:
            raise ValueError(f"a slice of a split cannot be streamed: remove streaming, or the slice of {self.split!r}")
        return self


class RangeOptions(Options):
    """Numbers from `min` to `max`, both included."""

    min: float | None = Field(default=None, description="The least value that is kept.")
    max: float | None = Field(default=None, description="The greatest value that is kept.")

    @model_validator(mode="after")
    def _says_something(self) -> RangeOptions:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}, so nothing would be kept")
        return self

    def holds(self, value: object) -> bool:
        """Whether a value is a number in the range."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class FilterOptions(Options):
    """Which documents are kept."""

    min_characters: int | None = Field(default=None, ge=1, description="Leave out shorter texts.")
    max_characters: int | None = Field(default=None, ge=1, description="Leave out longer texts.")
    where: dict[str, Scalar | tuple[Scalar, ...] | RangeOptions] = Field(
        default={},
        description="Keep records of which every field named here has the value, one of the values, or a number in the "
        "range {min, max}: {language: [en, de], score: {min: 3}}.",
    )

    @model_validator(mode="after")
    def _something_is_kept(self) -> FilterOptions:
        low, high = self.min_characters, self.max_characters
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_characters {low} is more than max_characters {high}, so nothing would be kept")
        return self

    def refusal(self, text: str) -> str | None:
        """Which filter a text does not pass."""
        if self.min_characters is not None and len(text) < self.min_characters:
            return "filtered: min_characters"
        if self.max_characters is not None and len(text) > self.max_characters:
            return "filtered: max_characters"
        return None

    def wrong_field(self, values: dict[str, object]) -> str | None:
        """The field, if any, by which a record is left out; every field of `where` must be there."""
        return next((name for name, wanted in self.where.items() if not _fits(values[name], wanted)), None)


def _fits(value: object, wanted: Scalar | tuple[Scalar, ...] | RangeOptions) -> bool:
    if isinstance(wanted, RangeOptions):
        return wanted.holds(value)
    return any(_same(value, one) for one in (wanted if isinstance(wanted, tuple) else (wanted,)))


def _same(value: object, wanted: Scalar) -> bool:
    # True == 1 in Python, and not in anybody's data.
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def template_fields(template: str) -> list[str]:
    """The fields that a template such as `{title}: {text}` names; braces are doubled to stand for themselves.

    Raises:
        ValueError: it names none, or is no such template.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template: {error}; write {{{{ and }}}} for braces that are text") from None
    fields = [name for _, name, _, _ in parsed if name is not None]
    plain = all(not (extra or conversion) for _, name, extra, conversion in parsed if name is not None)
    if not fields or not plain or any(not name or set(name) & set(".[") for name in fields):
        raise ValueError(
            f"template: given {template!r}; name fields in braces, such as {{title}}, and nothing else there"
        )
    return fields


Weight = Annotated[
    float,
    Field(
        gt=0,
        allow_inf_nan=False,
        description="Share of the training rows, relative to the other sources' weights. A source that runs out "
        "begins its next epoch.",
    ),
]
MaxEpochs = Annotated[
    float | None,
    Field(
        gt=0,
        allow_inf_nan=False,
        description="How often its rows are read at most, such as 4 or 0.5; left out: any number. After that the "
        "others share its part, and a run without others must end. Stages count each for itself.",
    ),
]
BadRecords = Annotated[
    Literal["skip", "refuse"] | None,
    Field(
        description="What becomes of input that cannot be used (not UTF-8, no JSON, a damaged file, a missing field, "
        "an empty or too long text): skip and count it, or refuse to go on, naming file and row. Left out: refuse it "
        "in a file that is named, skip it in files that are found, refuse missing fields, skip empty texts.",
    ),
]
MaxDocumentBytes = Annotated[
    int,
    Field(
        ge=1,
        description="A text of more bytes than this is bad input, and so is a line of .jsonl; of text files and lines "
        "no more than this is held in memory.",
    ),
]
