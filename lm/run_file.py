"""The run file: every room's options joined into one strict tree, read from YAML and dotted overrides."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from eval.options import LiveOptions
from lm.data.recall_options import GeneratedOptions
from lm.data.tokenizers import declared_vocab_size
from lm.errors import UserError
from lm.extend.measure_options import MeasureOptions
from lm.extend.options import BaseOptions, ExtendOptions, LoraOptions
from lm.graft.options import GraftOptions
from lm.model.options import ModelOptions
from lm.option_errors import explain, placed, placing
from lm.options import Options
from lm.train.sections import Sections
from lm.yaml_tree import Tree, dump_tree, read_tree

if TYPE_CHECKING:
    import torch

    from lm.extend.trainee import Extension
    from lm.graft.trainee import Grafting
    from lm.train.trainee import Trainee

_log = logging.getLogger(__name__)


class _FromScratch(Options):
    """What a pretraining run trains."""

    model: ModelOptions = Field(description="The network: widths, mixers and the pattern of its layers.")


class _FromBase(Options):
    """What a run starts from that does not pretrain."""

    base: BaseOptions = Field(description="The model to start from.")


class _Extend(Options):
    """What becomes of the base's context."""

    extend: ExtendOptions | None = Field(
        default=None,
        description="How far, over which rotary positions, with which attention; left out: the context stays.",
    )


class _Graft(Options):
    """What becomes of the base's mixers."""

    graft: GraftOptions = Field(description="Other mixers in some layers, and how they are taught the old ones' part.")


class _Lora(Options):
    """What of the base is trained."""

    lora: LoraOptions | None = Field(
        default=None, description="Adapters, and what is trained whole beside them; left out: everything is trained."
    )


class _Measured(Options):
    """What is found out about an extension."""

    measure: MeasureOptions | None = Field(
        default=MeasureOptions(),
        description="What is compared before and after an extension, once it is trained; null leaves it out.",
    )


class _Evaluated(Options):
    """What is found out about the model on the way."""

    evaluations: LiveOptions | None = Field(
        default=None, description="Long-context tasks on the model while it trains; left out: none."
    )


# The base named last comes first in the file, in messages and in the schema.
class RunFile(_Evaluated, Sections, _FromScratch):
    """One pretraining run: the model, its text, how it is trained, and what is logged."""

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        longest = self.model.max_position_embeddings
        if longest is not None and longest < self.longest_row:
            raise ValueError(
                f"model.max_position_embeddings is {longest}, less than {self.longest_row_key} {self.longest_row}: "
                "leave it out to have it follow, or shorten the rows"
            )
        return self

    @model_validator(mode="after")
    def _width_can_be_carried_over(self) -> Self:
        if self.optimizer.base_width is not None and self.model.tie_word_embeddings:
            raise ValueError("optimizer.base_width needs a head of its own: set model.tie_word_embeddings to false")
        return self

    @property
    def trainee(self) -> Trainee:
        """The model, for the training loop."""
        from lm.train.trainee import FromScratch  # torch comes with it

        return FromScratch(self.model, self.optimizer, self.data.by_chat_template)


class ExtensionFile(_Evaluated, Sections, _Measured, _Lora, _Extend, _FromBase):
    """One run from a pretrained model, to a longer context if it is extended: `base`, `extend`, `lora`, no `model`."""

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if self.extend is not None and self.longest_row > self.extend.target_length:
            raise ValueError(
                f"{self.longest_row_key} {self.longest_row} exceeds extend.target_length "
                f"{self.extend.target_length}: shorten the rows, or extend further"
            )
        return self

    @model_validator(mode="after")
    def _an_extension_is_measured(self) -> Self:
        if self.measure is None:
            return self
        if self.extend is None:
            if "measure" in self.model_fields_set:
                raise ValueError("measure compares before and after an extension: remove it, or add an extend section")
            object.__setattr__(self, "measure", None)  # frozen for others
            return self
        if self.measure.longest > self.extend.target_length:
            raise ValueError(
                f"measure has a length of {self.measure.longest}, which exceeds extend.target_length "
                f"{self.extend.target_length}: lower it"
            )
        return self

    @cached_property
    def trainee(self) -> Extension:
        """The model, for the training loop."""
        from lm.extend.trainee import Extension  # transformers comes with it

        return Extension(self.base, self.extend, self.lora, _dtype(self.train.precision), self.optimizer.lr)


class GraftFile(_Evaluated, Sections, _Lora, _Graft, _FromBase):
    """One grafting: a pretrained model gets other mixers in some layers, learns them apart, and then as a whole."""

    @model_validator(mode="after")
    def _stage_one_fits(self) -> Self:
        self.graft.regress.check(self.data.sequence_length)
        return self

    @cached_property
    def trainee(self) -> Grafting:
        """The model of stage two, for the training loop."""
        from lm.graft.trainee import Grafting  # transformers comes with it

        dtype, folder = _dtype(self.train.precision), self.train.output_dir
        return Grafting(self.base, self.graft, self.lora, dtype, self.optimizer.lr, folder)


AnyRun = RunFile | ExtensionFile | GraftFile
FromBaseT = TypeVar("FromBaseT", ExtensionFile, GraftFile)


def _dtype(precision: str) -> torch.dtype:
    from lm.train.precision import DTYPES  # torch comes with it

    return DTYPES[precision]


def load_run_file(path: Path | str, overrides: Sequence[str] = ()) -> AnyRun:
    """The run file with `key=value` overrides applied, and with what follows from other keys filled in.

    Of a model: model.vocab_size left out becomes the tokenizer's size, model.max_position_embeddings the length of the
    longest rows. Of a base: data.tokenizer left out becomes the base's own.
    Raises UserError that lists every mistake with its place, key, value and remedy.
    """
    tree = read_tree(Path(path), overrides)
    if "base" not in tree.values:
        if "graft" in tree.values:
            raise UserError(f"{tree.origin(('graft',))}: graft: name the model to graft onto under base")
        return _pretraining(tree)
    if "model" in tree.values:
        place = tree.origin(("model",))
        raise UserError(f"{place}: model: base names a pretrained model, which brings its own: remove one of the two")
    if "graft" not in tree.values:
        return _from_base(ExtensionFile, tree)
    if tree.values.get("extend") is not None:
        raise UserError(
            f"{tree.origin(('extend',))}: extend: a graft keeps the base's context. Remove extend, export the graft "
            "when it is done, and extend that"
        )
    return _from_base(GraftFile, tree)


def _pretraining(tree: Tree) -> RunFile:
    run = _validated(RunFile, tree.values, tree)
    with placing(tree):
        size = declared_vocab_size(run.data.tokenizer)
    given = run.model.vocab_size
    if given is not None and given < size:
        place = tree.origin(("model", "vocab_size"))
        raise UserError(f"{place}: model.vocab_size: given {given}; the tokenizer has {size} tokens, so {size} or more")
    derived = {
        "vocab_size": given or size,
        "max_position_embeddings": run.model.max_position_embeddings or run.longest_row,
    }
    unused = [name for name in run.model.mixers if name not in run.model.layer_names]
    if unused and os.environ.get("RANK", "0") == "0":
        place = tree.origin(("model", "mixers", unused[0]))
        _log.warning("%s: model.mixers: %s: not used in model.layers", place, ", ".join(unused))
    return _validated(RunFile, tree.values | {"model": tree.values["model"] | derived}, tree)


def _from_base(kind: type[FromBaseT], tree: Tree) -> FromBaseT:
    values, data = tree.values, tree.values.get("data")
    if isinstance(data, dict) and "tokenizer" not in data:
        # A stand-in: the base's tokenizer is looked for once everything else is known to be right.
        values = values | {"data": data | {"tokenizer": {"kind": "huggingface", "path": "."}}}
        run = _validated(kind, values, tree)
        from lm.extend.base import read_config, tokenizer_folder

        with placing(tree):
            read_config(run.base)  # where there is no base, its tokenizer is not what to complain of
            folder = tokenizer_folder(run.base, run.data.cache_dir)
        values = values | {"data": data | {"tokenizer": {"kind": "huggingface", "path": str(folder)}}}
    run = _validated(kind, values, tree)
    with placing(tree):
        run.trainee.check(declared_vocab_size(run.data.tokenizer), run.longest_row)
        if isinstance(run, ExtensionFile) and run.extend is not None and run.measure is not None:
            run.measure.check(run.trainee.base_context, run.extend.target_length)
        if isinstance(run, GraftFile):
            from lm.graft.regression_run import RegressionRun

            RegressionRun.of(run)
    return run


def missing_sources(run: AnyRun, path: Path | str, overrides: Sequence[str] = ()) -> list[str]:
    """One message, with its place, per entry of data.sources that leads to no file of a kind that can be read.

    Only names are looked at, so this is quick. Not part of loading: a run can be planned where its text is not.
    """
    from lm.data.sources import find_source  # the file formats come with it

    tree = read_tree(Path(path), overrides)
    problems = []
    for index, source in enumerate(run.data.sources):
        if isinstance(source, GeneratedOptions) or source.hub is not None:
            continue
        try:
            find_source(source, f"data.sources.{index}")
        except UserError as error:
            problems.append(placed(error, tree))
    return problems


def to_yaml(run: AnyRun) -> str:
    """The resolved run file, every default written out; it loads back equal."""
    return dump_tree(run.model_dump(mode="json"))


def json_schema() -> dict[str, Any]:
    """The JSON schema of run files, for editors."""
    schema = TypeAdapter(AnyRun).json_schema()
    _require_kinds(schema, schema["$defs"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Braid run file"} | schema


def _require_kinds(schema: Any, definitions: dict[str, Any]) -> None:
    """Makes the key that chooses among classes required: as pydantic reads it, its default never applies there."""
    if isinstance(schema, dict) and isinstance(schema.get("discriminator"), dict):
        key = schema["discriminator"]["propertyName"]
        for reference in schema["discriminator"]["mapping"].values():
            required = definitions[reference.rpartition("/")[2]].setdefault("required", [])
            if key not in required:
                required.insert(0, key)
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _require_kinds(inner, definitions)


RunT = TypeVar("RunT", bound=Sections)


def _validated(kind: type[RunT], values: dict[str, Any], tree: Tree) -> RunT:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, kind, tree)) from None
