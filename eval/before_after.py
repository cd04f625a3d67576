"""Before and after: what the extension of a pretrained model gained at each length, and what it cost.

Measured are the untouched base, the base with the new rotary positions but untrained, the trained result, and as a
control a run with full attention. Every figure is kept as soon as it is there, so that a kill costs one measurement.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from eval.length_figures import Bench
from eval.model import Model
from lm.data.fingerprint import digest
from lm.data.prepare import prepare
from lm.errors import UserError
from lm.export import read_run
from lm.extend import base
from lm.extend.export import base_model, merged_model
from lm.extend.options import ExtendOptions
from lm.extend.trainee import Extension
from lm.hf.positions import without_reminders
from lm.hf.tokenizer import fast_tokenizer
from lm.run_file import ExtensionFile, load_run_file
from lm.train import distributed
from lm.train.before_after import AFTER, BEFORE, CONTROL, ROPE_ONLY, BeforeAfter, Cost, Measured
from lm.train.claim import claimed_alone
from lm.train.file_names import METRICS_FILE
from lm.train.folder import RunFolder, chosen_leaves
from lm.train.log import read_metrics
from lm.train.progress import Progress
from lm.train.refusal import said_once
from lm.train.report import save_report_data, write_report
from lm.train.report.data import load_before_after

COMPARED = (
    *("base", "extend.target_length", "extend.rope", "lora", "data", "optimizer", "guard"),
    *(f"train.{key}" for key in ("steps", "stages", "global_batch_tokens", "batch_warmup", "seed")),
    *(f"train.{key}" for key in ("precision", "gradient_clipping")),
)
"""Sections and keys that decide what a step does, but for attention: a control shares them with what it is beside."""
NOT_COMPARED = ("data.cache_dir",)


@dataclass(frozen=True)
class Subject:
    """One of the models. state: names its weights. cost: of its training, where it is trained here."""

    name: str
    state: str
    build: Callable[[], PreTrainedModel]
    cost: Cost | None = None


class _Base:
    """An extension's base, loaded once for the models that are measured one after another."""

    def __init__(self, run: ExtensionFile) -> None:
        self._trainee = run.trainee
        self._planned = base.plan_config(run.trainee.config, run.extend, training=False)
        self._loaded: PreTrainedModel | None = None

    def untouched(self) -> PreTrainedModel:
        return self._under(self._trainee.config)

    def repositioned(self) -> PreTrainedModel:
        """With the new rotary positions."""
        return self._under(self._planned)

    def trained(self, root: Path) -> PreTrainedModel:
        """With what the run in `root` trained. The weights are changed in place, so that memory holds them once."""
        model = self.repositioned()
        self._loaded = None
        run = read_run(root)
        assert isinstance(run.trainee, Extension)
        return merged_model(run.trainee, run.weights, model)

    def _under(self, config: PreTrainedConfig) -> PreTrainedModel:
        if self._loaded is None:
            self._loaded = base_model(self._trainee, self._trainee.config)
        return base.reconfigured(self._loaded, config)


@said_once()
def measure_after_training(run: ExtensionFile) -> None:
    """What the run's `measure` section asks for and is not there yet; rank 0 measures, and the others wait."""
    if distributed.launched_size() == 1:
        measure(run, run.train.output_dir)
    else:
        distributed.start().on_rank_zero(lambda: measure(run, run.train.output_dir))


def measure(run: ExtensionFile, root: Path, control: Path | None = None, again: bool = False) -> None:
    """Measures what is missing in the finished run's folder `root`, and writes its report anew.

    control: the folder of a finished run with full attention that agrees in all of COMPARED, to be put beside it.
    again: measure anew what is there already. Raises UserError where a run is not finished or no control of the other.
    """
    extend = run.extend
    if run.measure is None or extend is None:
        raise UserError("measure: the run has no measure section, or no extension to measure")
    progress = Progress()
    prepared = prepare(run.data)
    context = base.context(run.trainee.config)
    tokenizer = fast_tokenizer(prepared.tokenizer, extend.target_length)
    bench = Bench(run.measure, context, extend.target_length, prepared, tokenizer)
    loaded = _Base(run)
    subjects = [*_subjects(run, extend, root, loaded), *(_control(run, control, loaded) if control is not None else ())]
    for missing in bench.left_out():
        progress.say(f"not measured: {missing}")
    with claimed_alone(root, "RUN", "at work"), without_reminders():
        found = _kept(root, bench, again, progress)
        for subject in subjects:
            found = _measure(subject, bench, found, root, run, progress)
        save_report_data(root, before_after=found)
    progress.say(f"report: {write_report(root)}")


def _kept(root: Path, bench: Bench, again: bool, progress: Progress) -> BeforeAfter:
    """The figures of an earlier measurement that are comparable with those to come."""
    found = load_before_after(root)
    if found is None or again:
        return BeforeAfter(bench.settings)
    if dict(found.settings) != bench.settings:
        progress.say("measuring anew: the settings or the held-out text are not those of the figures that are there")
        return BeforeAfter(bench.settings)
    wanted = set(bench.wanted)
    kept = {
        name: replace(model, figures=tuple(figure for figure in model.figures if figure.key in wanted))
        for name, model in found.models.items()
    }
    return replace(found, models=kept)


def _measure(
    subject: Subject, bench: Bench, found: BeforeAfter, root: Path, run: ExtensionFile, progress: Progress
) -> BeforeAfter:
    """The findings with all that is wanted of one model, written after each figure."""
    known = found.models.get(subject.name)
    if known is None or known.state != subject.state:
        known = Measured(subject.state)
    known = replace(known, cost=subject.cost)
    found = found.with_model(subject.name, known)
    save_report_data(root, before_after=found)
    todo = known.lacks(bench.wanted)
    if not todo:
        return found
    with progress.phase(f"measuring: {subject.name}", sum(map(bench.tokens, todo))) as phase:
        model = _under_evaluation(subject, run, bench)
        for key in todo:
            kind, length, depth = key
            phase.update(note=f"{kind.replace('_', ' ')} at {length:,}" + ("" if depth is None else f", {depth:.0%}"))
            known = replace(known, figures=(*known.figures, bench.measure(model, key)))
            found = found.with_model(subject.name, known)
            save_report_data(root, before_after=found)
            phase.advance(bench.tokens(key))
        phase.update(note=f"{len(todo)} figures")
    del model
    gc.collect()
    return found


def _under_evaluation(subject: Subject, run: ExtensionFile, bench: Bench) -> Model:
    """The model on the GPU in the run's precision, or on a CPU in fp32."""
    model = subject.build()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        model.to("cuda", run.trainee.dtype)
    return Model(model, bench.tokenizer, subject.name)


def _subjects(run: ExtensionFile, extend: ExtendOptions, root: Path, loaded: _Base) -> Iterator[Subject]:
    """Untouched base, positions alone (where they change), result."""
    trainee = run.trainee
    state = digest([trainee.base.path, trainee.base.revision, trainee.config.to_json_string()])
    yield Subject(BEFORE, state, loaded.untouched)
    if extend.rope.kind != "none":
        planned = base.plan_config(trainee.config, extend, training=False)
        yield Subject(ROPE_ONLY, digest([state, planned.to_json_string()]), loaded.repositioned)
    yield _trained(AFTER, run, root, loaded)


def _trained(name: str, run: ExtensionFile, root: Path, loaded: _Base) -> Subject:
    steps = RunFolder(root).completed_steps
    if not steps:
        raise UserError(f"{root}: the run is not finished, so there is nothing to measure yet: train it to its end")
    records = read_metrics(root / METRICS_FILE)
    assert run.extend is not None
    plan = run.trainee.plan(run.data.sequence_length, run.trainee.dtype)
    speeds = [record["tokens_per_second"] for record in records if record.get("tokens_per_second") is not None]
    peaks = [record["peak_memory"] for record in records if record.get("peak_memory") is not None]
    cost = Cost(
        attention=run.extend.attention,
        steps=steps,
        trained_parameters=plan.parameters - plan.frozen_parameters,
        parameters=plan.parameters,
        tokens_per_second=median(speeds) if speeds else None,
        peak_memory=max(peaks, default=None),
    )
    last = {key: records[-1].get(key) for key in ("step", "loss", "grad_norm")} if records else {}
    return Subject(name, digest(last), lambda: loaded.trained(root), cost)


def _control(run: ExtensionFile, root: Path, loaded: _Base) -> Iterator[Subject]:
    """The run that shows what full attention would have given. Raises UserError for one whose steps differ in more."""
    folder = RunFolder(root)
    if not folder.config.is_file():
        raise UserError(f"--control: {root} is not a run's folder: it has no {folder.config.name}")
    other = load_run_file(folder.config)
    if not isinstance(other, ExtensionFile) or other.extend is None or other.extend.attention != "full":
        raise UserError(f"--control: the run in {root} is not an extension with extend.attention full")
    here, there = (chosen_leaves(one.model_dump(mode="json"), COMPARED, NOT_COMPARED) for one in (run, other))
    if differing := [key for key in {**here, **there} if here.get(key) != there.get(key)]:
        said = [f"{key} is {there.get(key)} there and {here.get(key)} here" for key in differing]
        raise UserError(f"--control: the run in {root} differs in more than attention: {'; '.join(said)}")
    yield _trained(CONTROL, other, root, loaded)
