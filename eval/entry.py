"""What `braid eval` does: evaluates a model and shows the result, or sets results side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

from eval.compare import print_comparison, print_scores
from eval.longbench import longbench_tasks, read_longbench, summaries, summary_table
from eval.model import Model
from eval.opening import model_name, open_model
from eval.options import EvaluationOptions
from eval.page import write_page
from eval.reading import require_protocols
from eval.results import ResultFolder, Results, load_results
from eval.runner import Evaluation, open_texts
from eval.selection import chosen_tasks
from eval.terminal import open_console
from lm.errors import UserError
from lm.train import distributed
from lm.train.memory import keep_freed_memory
from lm.train.progress import Progress
from lm.train.refusal import said_once
from lm.train.tensor_file import replace_text

if TYPE_CHECKING:
    from eval.harness import HarnessOptions

EVALUATIONS = Path("runs", "evaluations")
LONGBENCH_FILE = "longbench.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelChoice:
    """A model as the user names it; see `open_model`."""

    path: str
    adapter: str | None = None
    revision: str | None = None
    dtype: str | None = None

    @property
    def place(self) -> str:
        """Where it lies, in words."""
        return self.path if self.adapter is None else f"{self.path} with {self.adapter}"

    @property
    def folder(self) -> Path:
        """Where its evaluation goes, unless the user says."""
        return EVALUATIONS / Path(model_name(self.path, self.adapter)).name


@said_once()
def evaluate(choice: ModelChoice, options: EvaluationOptions, output: Path | None = None) -> None:
    """Evaluates into `output` (left out: the folder of the model's name), going on where an earlier call stopped. Works
    alone and under torchrun."""
    output = output or choice.folder
    tasks = chosen_tasks(options)
    require_protocols(options)
    folder = ResultFolder(output)
    folder.require_place()
    texts = open_texts(options)
    rows = None if options.longbench is None else read_longbench(options.longbench)
    progress, world, model = _open(choice)
    if options.longbench is not None and rows is not None:
        if model.context is None and "lengths" not in options.model_fields_set:
            raise UserError(f"--lengths: {model.name} does not say what length it is made for; name one")
        asked = longbench_tasks(model, rows, options.longbench)
        unsaid = {"lengths": (model.context,), "samples": max(len(task.rows) for task in asked)}
        tasks = [*tasks, *asked]
        options = options.model_copy(update={key: unsaid[key] for key in unsaid.keys() - options.model_fields_set})
    evaluation = Evaluation(
        model, choice.place, tasks, options, texts, world, progress, _open_evaluator(options.evaluator, progress)
    )
    results = evaluation.run(folder)
    if results is not None:
        print_scores(results)
        if options.longbench is not None:
            _write_longbench(results, output / LONGBENCH_FILE)
        write_page([results], folder.page)
        progress.say(f"results: {folder.results}, {folder.page}")
    distributed.leave_at_exit()


@said_once()
def harness(choice: ModelChoice, options: HarnessOptions, output: Path | None = None) -> None:
    """Runs tasks of lm-evaluation-harness, whose own files go to `output`. Works alone and under torchrun."""
    from eval.harness import run_harness, table

    output = output or choice.folder
    ResultFolder(output).require_place()
    progress, world, model = _open(choice)
    results = run_harness(model, options, output, world)
    if results is not None:
        open_console().print(table(results))
        progress.say(f"results: {output}")
    distributed.leave_at_exit()


def _open(choice: ModelChoice) -> tuple[Progress, distributed.World, Model]:
    logging.set_verbosity_error()  # what it warns of, lengths beyond the context say, is said here once
    progress = Progress(rank=distributed.launched_rank())
    world = distributed.join()
    if world.device.type == "cpu":
        keep_freed_memory()
    with progress.phase(f"opening {choice.path}"):
        model = open_model(
            choice.path,
            adapter=choice.adapter,
            revision=choice.revision,
            dtype=None if choice.dtype is None else DTYPES[choice.dtype],
        )
    return progress, world, model


def _open_evaluator(path: str | None, progress: Progress) -> Model | None:
    if path is None:
        return None
    with progress.phase(f"opening {path}"):
        return open_model(path)


def _write_longbench(results: Results, path: Path) -> None:
    """The benchmark's own means, on the screen and in a file."""
    found = summaries(results)
    for length, one in found.items():
        if one["means"]:
            open_console().print(summary_table(length, one["means"]))
    replace_text(path, json.dumps(found, indent=1) + "\n")


def compare(folders: Sequence[Path], page: Path) -> None:
    """Prints each later result beside the first, and writes the page of all. Raises UserError for what is no result,
    and for a page that is no .html file."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output: {page}: what is written is a page. Name a .html file")
    results = [load_results(folder) for folder in folders]
    try:
        write_page(results, page)
    except OSError as error:
        raise UserError(f"--output: {page} cannot be written: {error.strerror}. Name a .html file") from None
    print_comparison(results)
    print(f"page: {page}")
