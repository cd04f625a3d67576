"""What an evaluation runs: the options of `braid eval`, and the run file's `evaluations` section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from lm.options import LocalPath, Options

PYTHON_DOCUMENTATION = Path("python-docs")
"""Stands for the text that every Python brings."""

BATCH_TOKENS = 16_384
Length = Annotated[int, Field(ge=1)]


def on_command_line(name: str) -> str:
    """`cache_dir` as it is typed: `--cache-dir`."""
    return f"--{name.replace('_', '-')}"


class SuiteOptions(Options):
    """Tasks of the offline suite, and how long and how many their samples are."""

    tasks: tuple[str, ...] = Field(default=(), description="Names of tasks, or of suites of them.")
    lengths: tuple[Length, ...] = Field(
        min_length=1, description="Lengths of the samples in tokens of the model's tokenizer, the answer included."
    )
    samples: int = Field(default=50, ge=1, description="Samples of each task at each length.")
    seed: int = Field(default=42, ge=0, description="Decides the samples, together with task, length and tokenizer.")
    haystack: LocalPath | None = Field(
        default=None, description="Text that tasks hide things in; null is the documentation that comes with Python."
    )
    text_field: str = Field(
        default="text", min_length=1, description="Field that holds the text, where such a text is a file of records."
    )
    squad: LocalPath | None = Field(default=None, description="SQuAD v2.0's dev file, for RULER's qa_1.")
    hotpotqa: LocalPath | None = Field(default=None, description="HotpotQA's distractor dev file, for RULER's qa_2.")
    cache_dir: LocalPath = Field(
        default=Path(".cache/braid/questions"), description="Folder that keeps written samples."
    )

    def written(self, name: str) -> str:
        """How the user writes the option of this name, which is what messages call it."""
        return on_command_line(name)

    @model_validator(mode="after")
    def _named_once(self) -> SuiteOptions:
        for key in ("tasks", "lengths"):
            values = getattr(self, key)
            if doubled := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
                raise ValueError(f"{key} names {', '.join(map(str, doubled))} more than once: once is enough")
        return self


class LongBenchOptions(Options):
    """LongBench v1 or LongBench-E over a copy of their data."""

    data: str = Field(description="LongBench's data.zip or its folder, a folder of parquet files, or a Hub id.")
    tasks: tuple[str, ...] = Field(default=(), description="Names of its tasks; all of them where none is named.")
    extended: bool = Field(default=False, description="LongBench-E, in its three groups of lengths.")
    apply_chat_template: bool = Field(default=False, description="Prompts in the tokenizer's chat template.")


class EvaluationOptions(SuiteOptions):
    """One call of `braid eval`."""

    lengths: tuple[Length, ...] = Field(
        default=(512, 1024, 2048, 4096), min_length=1, description="Lengths of the samples in tokens, and of windows."
    )
    perplexity: tuple[LocalPath, ...] = Field(
        default=(), description="Texts to measure perplexity on: files, folders, globs; python-docs comes with Python."
    )
    protocols: tuple[str, ...] = Field(
        default=("strided", "disjoint", "last-tokens", "by-position"), description="Ways to measure it."
    )
    evaluator: str | None = Field(
        default=None, description="The model by which key-tokens finds what needs context; null is the evaluated one."
    )
    longbench: LongBenchOptions | None = Field(
        default=None, description="Asked like other tasks; all samples and the model's context where these are not set."
    )
    text_tokens: int = Field(default=32_768, ge=2, description="Tokens of each text that are read, from its beginning.")
    batch_tokens: int = Field(
        default=BATCH_TOKENS, ge=1, description="Padded tokens of one forward; changes no result."
    )


class LiveOptions(SuiteOptions):
    """Tasks scored on the model while it trains: are the answers what it would write, word for word?

    Every answer is read behind its prompt and counts where each of its tokens is the likeliest one, so a sample costs
    one forward.
    """

    tasks: tuple[str, ...] = Field(min_length=1, description="Names of tasks, or of suites of them.")
    every: int = Field(ge=1, description="Steps between evaluations; one more follows the last step.")
    seconds: float = Field(
        default=60.0, gt=0, description="Time after which an evaluation ends with the samples that it has scored."
    )
    samples: int = Field(default=20, ge=1, description="Samples of each task at each length.")

    def written(self, name: str) -> str:
        return f"evaluations.{name}"
