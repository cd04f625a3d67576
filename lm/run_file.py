"""The run file: every room's options joined into one strict tree, read from YAML and dotted overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from lm.data.options import DataOptions
from lm.data.tokenizers import declared_vocab_size
from lm.errors import UserError
from lm.model.options import ModelOptions
from lm.option_errors import explain
from lm.options import Options
from lm.train.options import DeepSpeedOptions, LogOptions, OptimizerOptions, TrainOptions, check_run
from lm.yaml_tree import Tree, dump_tree, read_tree


class RunFile(Options):
    """One pretraining run: the model, its text, how it is trained, and what is logged."""

    model: ModelOptions = Field(description="The network: widths, mixers and the pattern of its layers.")
    data: DataOptions = Field(description="The text, its tokenizer, and how it is cut into rows.")
    train: TrainOptions = Field(description="Length, batch, precision, evaluation and checkpoints of the run.")
    optimizer: OptimizerOptions = Field(description="The optimizer and its learning-rate schedule.")
    deepspeed: DeepSpeedOptions = Field(
        default=DeepSpeedOptions(), description="ZeRO stage, and any other DeepSpeed setting, passed through."
    )
    log: LogOptions = Field(default=LogOptions(), description="What is shown, and what goes to Weights & Biases.")

    @model_validator(mode="after")
    def _rooms_fit(self) -> RunFile:
        check_run(self.train, self.optimizer, self.data.sequence_length)
        longest = self.model.max_position_embeddings
        if longest is not None and longest < self.data.sequence_length:
            raise ValueError(
                f"model.max_position_embeddings is {longest}, less than data.sequence_length "
                f"{self.data.sequence_length}: leave it out to have it follow, or shorten the rows"
            )
        return self


def load_run_file(path: Path | str, overrides: Sequence[str] = ()) -> RunFile:
    """The run file with `key=value` overrides applied, and with what follows from other keys filled in.

    model.vocab_size left out becomes the tokenizer's size, model.max_position_embeddings data.sequence_length.
    Raises UserError that lists every mistake with its place, key, value and remedy.
    """
    tree = read_tree(Path(path), overrides)
    run = _validated(tree.values, tree)
    size = declared_vocab_size(run.data.tokenizer)
    given = run.model.vocab_size
    if given is not None and given < size:
        place = tree.origin(("model", "vocab_size"))
        raise UserError(f"{place}: model.vocab_size: given {given}; the tokenizer has {size} tokens, so {size} or more")
    derived = {
        "vocab_size": given or size,
        "max_position_embeddings": run.model.max_position_embeddings or run.data.sequence_length,
    }
    return _validated(tree.values | {"model": tree.values["model"] | derived}, tree)


def to_yaml(run: RunFile) -> str:
    """The resolved run file, every default written out; it loads back equal."""
    return dump_tree(run.model_dump(mode="json"))


def json_schema() -> dict[str, Any]:
    """The JSON schema of run files, for editors."""
    return RunFile.model_json_schema()


def _validated(values: dict[str, Any], tree: Tree) -> RunFile:
    try:
        return RunFile.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, RunFile, tree)) from None
