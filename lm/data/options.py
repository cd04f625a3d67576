"""What the run file may say about text: its sources, its tokenizer, its rows and its held-out part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from lm.data.recall_options import CopyOptions, GeneratedOptions, MqarOptions, ParityOptions
from lm.data.source_options import (
    BadRecords,
    FilterOptions,
    HubOptions,
    MaxDocumentBytes,
    MaxEpochs,
    Weight,
    template_fields,
)
from lm.data.tokenizer_options import NumbersOptions, TokenizerOptions
from lm.options import LocalPath, Options

_Path = Annotated[
    str,
    Field(
        min_length=1,
        description="A file, a folder (searched recursively), or a glob without braces; with `hub`, a dataset of the "
        "Hub or a folder laid out as one. Files of other kinds below a folder are ignored and counted.",
    ),
]
_Hub = Annotated[HubOptions | None, Field(description="Load `path` from the Hugging Face Hub; {} takes every default.")]
_TooLong = Annotated[
    Literal["drop", "refuse"],
    Field(
        description="What becomes of a sample whose answers alone are longer than a row. Prompts are cut in the middle "
        "to fit; answers never are.",
    ),
]


class SourceOptions(Options):
    """Texts, all of which is learned. A .txt, .md or .py file is one document; a .jsonl, .parquet or .arrow file holds
    one per record. Files but .parquet and .arrow may be compressed (.gz, .zst).

    The path `python-stdlib` stands for the .py files of this Python.
    """

    kind: Literal["text"] = Field(default="text", description="Texts; may be left out.")
    path: _Path
    hub: _Hub = None
    weight: Weight = 1.0
    max_epochs: MaxEpochs = None
    bad_records: BadRecords = None
    max_document_bytes: MaxDocumentBytes = 100_000_000
    text_field: str = Field(default="text", min_length=1, description="Field that holds the text of a record.")
    template: str | None = Field(
        default=None,
        description="How a record becomes a text, where that is more than one field: `# {title}\\n\\n{body}`. Excludes "
        "text_field.",
    )
    filters: FilterOptions = Field(
        default=FilterOptions(), description="Leaves out documents by their length, or records by a field."
    )
    min_tokens: int | None = Field(
        default=None, ge=2, description="Train on documents of at least so many tokens, bos and eos included."
    )
    longest: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Train on the longest documents, as many as hold this share of the source's tokens, such as 0.2. "
        "Name the path twice to mix them with all.",
    )
    drop_duplicates: bool | Literal["across"] = Field(
        default=False,
        description="Keep one of several equal texts, the first: of this source (true), or of this one and all text "
        "sources before it in the list (across). What is compared is read twice, since equal texts may stand anywhere.",
    )

    @model_validator(mode="after")
    def _one_way_to_the_text(self) -> SourceOptions:
        if self.template is not None:
            template_fields(self.template)
            if "text_field" in self.model_fields_set and self.text_field != "text":
                raise ValueError("template says which fields make the text: remove text_field, or template")
        return self

    @property
    def fields(self) -> list[str]:
        """The fields of a record that are read."""
        text = [self.text_field] if self.template is None else template_fields(self.template)
        return list(dict.fromkeys([*text, *self.filters.where]))


class PairsOptions(Options):
    """Prompts with an answer each, the only part that is learned: records of .json (a list), .jsonl,
    .parquet or .arrow files.

    A sample is one document, never divided; a row holds as many as fit.
    """

    kind: Literal["sft"] = Field(description="Prompts and answers, for supervised fine-tuning.")
    path: _Path
    hub: _Hub = None
    weight: Weight = 1.0
    max_epochs: MaxEpochs = None
    bad_records: BadRecords = None
    max_document_bytes: MaxDocumentBytes = 100_000_000
    prompt_field: str | None = Field(
        default=None,
        min_length=1,
        description="Field that holds the prompt; null looks for `instruction` (joined by `input` if there is one) "
        "or `prompt`.",
    )
    answer_field: str | None = Field(
        default=None,
        min_length=1,
        description="Field that holds the answer; null looks for `output`, `answer`, `response` or `completion`.",
    )
    template: str = Field(
        default="[INST]{prompt}[/INST]",
        description="What stands before an answer, `{prompt}` in it once; or `chat`: the tokenizer's chat template.",
    )
    too_long: _TooLong = "drop"

    @model_validator(mode="after")
    def _prompt_has_its_place(self) -> PairsOptions:
        if self.template != "chat" and self.template.count("{prompt}") != 1:
            raise ValueError(f"template: given {self.template!r}; write {{prompt}} once where the prompt goes, or chat")
        return self

    @property
    def by_chat_template(self) -> bool:
        """Whether samples are written by the tokenizer's chat template."""
        return self.template == "chat"


class ChatOptions(Options):
    """Conversations, of which the assistant's messages are learned: records of .json (a list), .jsonl,
    .parquet or .arrow files.

    They are written by the chat template of a Hugging Face tokenizer. A conversation is one document, never divided.
    """

    kind: Literal["chat"] = Field(description="Conversations, for supervised fine-tuning.")
    path: _Path
    hub: _Hub = None
    weight: Weight = 1.0
    max_epochs: MaxEpochs = None
    bad_records: BadRecords = None
    max_document_bytes: MaxDocumentBytes = 100_000_000
    messages_field: str = Field(
        default="messages",
        min_length=1,
        description="Field that holds the list of messages, each with `role` (system, user, assistant) and `content`.",
    )
    too_long: _TooLong = "drop"

    @property
    def by_chat_template(self) -> bool:
        """Whether samples are written by the tokenizer's chat template: always."""
        return True


def _given(section: Any, key: str) -> Any:
    """A key of a section that may not have been checked yet."""
    return section.get(key) if isinstance(section, dict) else getattr(section, key, None)


def _kind(source: Any) -> Any:
    """A source that names no kind is text."""
    return source.get("kind", "text") if isinstance(source, dict) else getattr(source, "kind", "text")


FileSourceOptions = SourceOptions | PairsOptions | ChatOptions
SamplesOptions = PairsOptions | ChatOptions
AnySourceOptions = Annotated[
    Annotated[SourceOptions, Tag("text")]
    | Annotated[PairsOptions, Tag("sft")]
    | Annotated[ChatOptions, Tag("chat")]
    | Annotated[MqarOptions, Tag("mqar")]
    | Annotated[CopyOptions, Tag("copy")]
    | Annotated[ParityOptions, Tag("parity")],
    Discriminator(_kind),
]


class ValidationOptions(Options):
    """What is held out of training: whole documents, chosen by a hash of their content.

    Every source gives at least one; of a source that is a single text, the end is held out from a line break on. A
    document is on the same side in all sources that hold it, so no source trains on what another holds out.
    """

    fraction: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Chance of a document to be held out, or the share of a source's only document; 0 trains on "
        "everything and validates nothing.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Another seed holds out other documents.")
    max_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Held-out text kept from each source, whole documents; held-out documents beyond it are not "
        "used at all.",
    )


class DataOptions(Options):
    """Everything that decides which tokens the model sees, and in which order."""

    tokenizer: TokenizerOptions = Field(description="How text becomes tokens.")
    sources: tuple[AnySourceOptions, ...] = Field(min_length=1, description="Where documents come from, and their mix.")
    sequence_length: int = Field(ge=1, description="Tokens per row. Texts are cut at row ends, samples never.")
    packing: Literal["concat", "best_fit", "document"] = Field(
        default="concat",
        description="How texts fill rows: concat cuts one long stream; best_fit cuts only documents longer than a row "
        "and leaves a little of some rows empty; document gives each a row of its own.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the order of rows.")
    validation: ValidationOptions = Field(default=ValidationOptions(), description="The held-out documents.")
    shard_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Bytes on disk, about, that are tokenized as one piece: what a kill loses at most, and what nodes "
        "share out. Left out: 4 MB to 1 GB, by the size of the source.",
    )
    shards: int | None = Field(
        default=None,
        ge=1,
        description="Train on the first so many shards of each source: a run may begin on those while `braid prepare` "
        "without this key makes the others. A tokenizer that is trained and drop_duplicates still read all of the text "
        "first. Left out: all.",
    )
    cache_dir: LocalPath = Field(
        default=Path(".cache/braid/data"), description="Folder that keeps trained tokenizers and tokenized documents."
    )

    @property
    def generated(self) -> list[GeneratedOptions]:
        """The sources whose rows are made as they are read: all of them, or none."""
        return [source for source in self.sources if isinstance(source, GeneratedOptions)]

    @property
    def by_chat_template(self) -> bool:
        """Whether any samples are written by the tokenizer's chat template."""
        return any(isinstance(source, SamplesOptions) and source.by_chat_template for source in self.sources)

    @model_validator(mode="before")
    @classmethod
    def _chat_has_a_template(cls, values: Any) -> Any:
        """Said before what else the tokenizer's section lacks, since another kind of it has other keys."""
        kind = _given(_given(values, "tokenizer"), "kind")
        sources = _given(values, "sources")
        for index, source in enumerate(sources if isinstance(sources, list | tuple) else ()):
            key = {"chat": "kind", "sft": "template"}.get(str(_given(source, "kind")))
            if key and _given(source, key) == "chat" and kind in ("sentencepiece", "bytes", "numbers"):
                raise ValueError(
                    f"tokenizer.kind: {kind} has no chat template, which sources.{index}.{key}: chat asks for: set it "
                    "to huggingface, and tokenizer.path to the folder of a tokenizer that has one"
                )
        return values

    @model_validator(mode="after")
    def _generated_or_read(self) -> DataOptions:
        generated = self.generated
        if not generated and not isinstance(self.tokenizer, NumbersOptions):
            return self
        if len(generated) < len(self.sources):
            raise ValueError("sources: text and generated rows do not mix, nor does text with the tokenizer numbers")
        if not isinstance(self.tokenizer, NumbersOptions):
            raise ValueError(f"tokenizer: kind {self.tokenizer.kind} is for text; generated sources need kind numbers")
        if self.validation != ValidationOptions(seed=self.validation.seed):
            raise ValueError("validation: only its seed is for generated sources, which say held_out_rows themselves")
        for key in ("shards", "shard_bytes"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: generated sources have none: remove it")
        for index, source in enumerate(generated):
            try:
                source.check(self.sequence_length, self.tokenizer.size)
            except ValueError as error:
                raise ValueError(f"sources.{index}: {error}") from None
        return self
