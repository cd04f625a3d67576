"""What a run leaves behind when its steps are done: weights, a sample, comparisons, the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lm.data.prepare import Prepared
from lm.data.store import TokenStore
from lm.data.validation import Validation
from lm.errors import UserError
from lm.plan import Plan
from lm.train.checkpoint import read_counters
from lm.train.compressors import compressed_bits_per_byte
from lm.train.environment import describe_environment
from lm.train.evaluation import Evaluation
from lm.train.folder import Run, RunFolder
from lm.train.interrupt import Stopped, StopRequest
from lm.train.model_file import full_weights
from lm.train.progress import Progress
from lm.train.report import save_report_data, write_report
from lm.train.sample import Sample, SamplingSettings, sample_answer, sample_text
from lm.train.writing import NO_ROOM

PROMPT_CHARACTERS = 200


def finish(
    run: Run,
    folder: RunFolder,
    progress: Progress,
    prepared: Prepared,
    plan: Plan,
    evaluation: Evaluation | None,
    checkpoint: Path,
    ranks: int,
) -> None:
    """Writes the final trained weights and tokenizer, the report's files and the report. For one rank; needs no other.

    checkpoint: the last one, whose weights are the run's result.
    """
    with progress.phase("saving the model"):
        model = run.trainee.build().model
        weights = full_weights(checkpoint, model)
        model.load_state_dict(weights, strict=False)
        run.trainee.save(folder.model, weights, prepared.tokenizer, read_counters(checkpoint))
    if evaluation is not None and prepared.validation is not None and prepared.validation.stores:
        with progress.phase("compressing the held-out text with gzip and xz"):
            evaluation = replace(evaluation, baselines=baselines(prepared.validation))
    sample = None
    if run.train.sample_tokens:
        with progress.phase("writing a sample"):
            sample = write_sample(model, prepared, run.train.sample_tokens)
    save_report_data(
        folder.root, evaluation=evaluation, plan=plan, sample=sample, environment=describe_environment(ranks)
    )
    progress.say(f"report: {write_report(folder.root)}")


def finished(request: StopRequest, write: Callable[[], None]) -> bool:
    """Whether `write` came to its end, in one process; a signal leaves it. Raises UserError where the disk fails."""
    try:
        with request.at_once():
            write()
    except Stopped:
        return False
    except OSError as error:
        if error.errno is None:  # of transformers, about a base
            raise
        remedy = "make room" if error.errno in NO_ROOM else "mend that"
        raise UserError(f"train.output_dir: {error}. The training is done; {remedy}, then start again.") from None
    return True


def baselines(validation: Validation) -> dict[str, float]:
    """Bits per byte of the held-out text by simpler means."""
    assert validation.unigram_bits_per_byte is not None
    return compressed_bits_per_byte([validation.text()]) | {"token frequencies": validation.unigram_bits_per_byte}


def write_sample(model: nn.Module, prepared: Prepared, tokens: int) -> Sample:
    """What the model answers to a held-out prompt or, where there is none, writes after the beginning of a text."""
    settings = SamplingSettings(max_new_tokens=tokens)
    if torch.cuda.is_available():
        try:
            return _sample(model.to("cuda"), prepared, settings)
        except torch.OutOfMemoryError:  # the engine is there still, and a model that needs ZeRO-3 fits no single GPU
            pass
    return _sample(model.to("cpu"), prepared, settings)


def _sample(model: nn.Module, prepared: Prepared, settings: SamplingSettings) -> Sample:
    stores = prepared.validation.stores if prepared.validation is not None else ()
    if asked := next((store for store in stores if len(store.targets)), None):
        return sample_answer(model, prepared.tokenizer, *question(asked), settings)
    return sample_text(model, prepared.tokenizer, prompt(prepared.validation), settings)


def question(store: TokenStore) -> tuple[list[int], int]:
    """The shortest prompt of documents with targets of their own, and the token that ends its answer."""
    learned = np.flatnonzero(store.targets)
    answers = learned[np.searchsorted(learned, store.offsets[:-1])]
    shortest = int(np.argmin(answers - store.offsets[:-1]))
    begin = int(answers[shortest])
    following = store.targets[begin : store.offsets[shortest + 1]]
    length = int(np.argmin(following)) or len(following)
    return store.tokens[store.offsets[shortest] : begin].tolist(), int(store.tokens[begin + length - 1])


def prompt(validation: Validation | None) -> str:
    """The first lines of the held-out text, of about PROMPT_CHARACTERS; empty where nothing is held out."""
    if validation is None:
        return ""
    beginning = validation.text()[:PROMPT_CHARACTERS].decode(errors="ignore")
    whole_lines = beginning.rpartition("\n")[0]
    return whole_lines or beginning
