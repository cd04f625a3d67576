"""From a run's folder to a Hugging Face folder: `braid export RUN DIR`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm.data.options import DataOptions
from lm.data.prepare import prepare
from lm.data.templates import answer_ends
from lm.data.tokenizers import Tokenizer, existing_tokenizer, load_tokenizer
from lm.errors import UserError
from lm.extend import export as extension_export
from lm.extend.trainee import Extension
from lm.hf.export import Training, end_generation_at, export_model, in_memory
from lm.hf.loading import whole_weights
from lm.hf.tokenizer import fast_tokenizer
from lm.model.options import ModelOptions
from lm.run_file import ExtensionFile, GraftFile
from lm.train import manifest
from lm.train.average import AVERAGE
from lm.train.checkpoint import read_counters
from lm.train.folder import RunFolder
from lm.train.model_file import full_weights
from lm.train.optimizer_options import OptimizerOptions
from lm.train.options import TrainOptions
from lm.train.tensor_file import replace_text
from lm.train.timeline import Timeline
from lm.train.trainee import FromScratch

EXPORTED = "braid_export.json"
"""Marks a folder as an export, which a later one may replace, and says how far the model was trained."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """What a run's folder holds of its model.

    weights: the trained ones, by the names of a checkpoint. ends: ids that end generation beside the tokenizer's eos.
    """

    trainee: FromScratch | Extension
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    training: Training
    ends: list[int]


def read_run(run_folder: Path, average: bool = False) -> TrainedRun:
    """The model of a run, finished or not.

    A finished run gives its final weights; one that goes on, or was stopped, those of its newest good checkpoint.
    average: the moving average of the weights instead, from the newest good checkpoint of either.

    Raises:
        UserError: no run or no weights are there.
    """
    folder = RunFolder(run_folder)
    if not folder.config.is_file():
        raise UserError(f"{run_folder} is not a run's folder: it has no {folder.config.name}")
    run = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    with _readable(folder.config):
        trainee, data = _read_trainee(folder.config, run), DataOptions.model_validate(run["data"])
    checkpoint = _newest_good(folder.checkpoints)
    done = folder.completed_steps
    if done and not average and (checkpoint is None or manifest.step_of(checkpoint) <= done):
        training, tokenizer = Training(done, _timeline(run).tokens), load_tokenizer(folder.model)
        ends = answer_ends(tokenizer, data.by_chat_template)
        return TrainedRun(trainee, _final_weights(folder.model), tokenizer, training, ends)
    if checkpoint is not None:
        counters = read_counters(checkpoint)
        tokenizer = _tokenizer(data, counters.data)
        weights = full_weights(checkpoint, _shapes(trainee), AVERAGE if average else "weight")
        ends = answer_ends(tokenizer, data.by_chat_template)
        return TrainedRun(trainee, weights, tokenizer, Training(counters.step, counters.tokens), ends)
    raise UserError(f"{run_folder} has no weights yet: the run has not written a checkpoint")


def export_run(run_folder: Path, target: Path, adapter_only: bool = False, average: bool = False) -> Training:
    """Writes the model of a run (see `read_run`) into `target`, and returns how far it was trained.

    Adapters on a base are merged into it in fp32, or with `adapter_only` written alone, as peft reads them.

    Raises:
        UserError: no run or no weights are there, or `target` holds something that is not an earlier export.
    """
    _require_free(target)
    run = read_run(run_folder, average)
    if isinstance(run.trainee, Extension):
        if adapter_only:
            extension_export.export_adapter(target, run.trainee, run.weights, [run.tokenizer.eos_id, *run.ends])
        else:
            extension_export.export_merged(target, run.trainee, run.weights, run.tokenizer, run.training, run.ends)
    elif adapter_only:
        raise UserError(f"--adapter-only: the run in {run_folder} has no adapter: it trained a whole model")
    else:
        export_model(target, run.trainee.options, run.weights, run.tokenizer, run.training, run.ends)
    replace_text(target / EXPORTED, json.dumps(asdict(run.training)) + "\n")
    return run.training


def model_of_run(run: TrainedRun) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that an export would hold, in memory."""
    if isinstance(run.trainee, Extension):
        length = run.trainee.context
        model: PreTrainedModel = extension_export.merged_model(run.trainee, run.weights)
        end_generation_at(model, [run.tokenizer.eos_id, *run.ends])
    else:
        model = in_memory(run.trainee.options, run.weights, run.tokenizer, run.ends)
        length = model.config.max_position_embeddings
    return model, fast_tokenizer(run.tokenizer, length)


def _require_free(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: name a new folder")
    earlier = any((target / name).is_file() for name in (EXPORTED, "modeling_braid.py"))
    if target.exists() and any(target.iterdir()) and not earlier:
        raise UserError(f"{target} is not empty, and not an earlier export: name a new folder")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValidationError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a run file: {error}") from None


def _read_trainee(path: Path, run: Any) -> FromScratch | Extension:
    if "graft" in run and "evaluated_length" in run:
        raise UserError(
            f"{path.parent} is the first stage of a graft, which has no whole model: name the run's folder, "
            f"{path.parent.parent}"
        )
    if "graft" in run:  # what stage two started from lies in the run's folder, wherever that is now
        moved = run | {"train": run["train"] | {"output_dir": path.parent}}
        return GraftFile.model_validate(moved).trainee.tuning
    if "base" in run:
        return ExtensionFile.model_validate(run).trainee
    return FromScratch(ModelOptions.model_validate(run["model"]))


def _timeline(run: Any) -> Timeline:
    train, optimizer = TrainOptions.model_validate(run["train"]), OptimizerOptions.model_validate(run["optimizer"])
    return Timeline(train, optimizer, run["data"]["sequence_length"])


def _shapes(trainee: FromScratch | Extension) -> nn.Module:
    """A model with the parameters that a checkpoint of the run holds; their values do not matter."""
    if isinstance(trainee, Extension):
        return trainee.build().model
    with torch.device("meta"):
        return trainee.build().model


def _newest_good(root: Path) -> Path | None:
    for folder in manifest.checkpoints(root):
        fault = manifest.damage(folder)
        if fault is None:
            return folder
        _log.warning("checkpoint %s is damaged: %s. Going on with the one before it.", folder, fault)
    return None


def _final_weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(f"{folder} no longer holds the weights of the finished run")
    with whole_weights(folder):
        return {name: tensor for path in files for name, tensor in load_file(path).items()}


def _tokenizer(options: DataOptions, trained_on: str) -> Tokenizer:
    """The tokenizer of a run that has saved none yet.

    trained_on: the fingerprint of the data that the checkpoint was trained on.
    """
    tokenizer = existing_tokenizer(options.tokenizer)
    if tokenizer is not None:
        return tokenizer
    prepared = prepare(options)
    if prepared.fingerprint != trained_on:
        raise UserError(
            "data.sources have changed since the run began, so its tokenizer cannot be trained again: bring them back, "
            "or let the run end, which saves it"
        )
    return prepared.tokenizer
