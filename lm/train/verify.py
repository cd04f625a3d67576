"""Replaying a step of a run from a checkpoint: whether it is, to the bit, what the run itself did."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lm.errors import UserError
from lm.train import checkpoint, distributed, manifest
from lm.train.data_phase import prepare_on_all_ranks
from lm.train.file_names import METRICS_FILE
from lm.train.folder import Run, RunFolder
from lm.train.interrupt import StopRequest
from lm.train.log import read_metrics
from lm.train.loop import Training
from lm.train.progress import Progress
from lm.train.refusal import said_once
from lm.train.start import start_ranks

COMPARED = ("batch_hash", "loss", "grad_norm")
TOLERANCE = 1e-5
"""Relative, between different numbers of ranks, which add up in another order."""


@dataclass(frozen=True)
class Figure:
    """One figure of the step, as the run stored it and as the replay found it."""

    name: str
    stored: Any
    replayed: Any

    @property
    def identical(self) -> bool:
        return bool(self.stored == self.replayed)

    def holds(self, exact: bool) -> bool:
        """Whether they agree: to the bit, or, for numbers, within TOLERANCE."""
        if exact or isinstance(self.stored, str):
            return self.identical
        return math.isclose(self.stored, self.replayed, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


@dataclass(frozen=True)
class Verdict:
    """What a replay found. step: the one replayed, from the checkpoint before it, which `ranks` ranks wrote."""

    step: int
    ranks: int
    exact: bool
    figures: tuple[Figure, ...]

    @property
    def holds(self) -> bool:
        return all(figure.holds(self.exact) for figure in self.figures)

    def __str__(self) -> str:
        need = "to the bit" if self.exact else f"within {TOLERANCE:g}, since {self.ranks} ranks wrote the checkpoint"
        lines = [f"step {self.step} replayed from the checkpoint before it; to agree {need}:"]
        for figure in self.figures:
            same = "identical" if figure.identical else "agrees" if figure.holds(self.exact) else "DIFFERS"
            lines.append(f"  {figure.name:<10} stored {figure.stored}  replayed {figure.replayed}  {same}")
        return "\n".join(lines)


@said_once()
def verify(run: Run, step: int | None = None) -> Verdict:
    """Replays the step after the checkpoint of `step`, or after the newest whose next step is in the metrics.

    Nothing in the run's folder is changed. Collective; works under launchers. Raises UserError where there is nothing
    to compare, and where data, tokenizer or weights are not those of the run.
    """
    folder = RunFolder(run.train.output_dir)
    folder.require_same(run)
    stored = {
        record["step"]: record
        for record in read_metrics(folder.root / METRICS_FILE)
        if all(record.get(key) is not None for key in COMPARED)
    }
    steps = [manifest.step_of(path) for path in manifest.checkpoints(folder.checkpoints)]
    usable = [found for found in steps if found + 1 in stored]
    chosen = step if step is not None else next(iter(usable), None)
    if chosen is None or chosen not in usable:
        asked = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise UserError(
            f"{folder.root} has {asked} whose next step is in {METRICS_FILE}. Checkpoints: "
            f"{', '.join(map(str, steps)) or 'none'}; of those can be verified: {', '.join(map(str, usable)) or 'none'}"
        )
    path = manifest.folder_of(folder.checkpoints, chosen)
    if (damage := manifest.damage(path)) is not None:
        raise UserError(f"checkpoint {path} is damaged: {damage}")
    wrote = checkpoint.read_counters(path).world
    progress = Progress(rank=distributed.launched_rank())
    world = start_ranks(run, progress.say)
    prepared = prepare_on_all_ranks(run, world, progress)
    with StopRequest(world) as request:
        training = Training(_looking_only(run), folder, world, progress, prepared, request)
        training.restore_from(path)
        made = training.attempt()
    replayed = {"loss": made.result.loss, "grad_norm": made.result.grad_norm, **made.figures}
    figures = tuple(Figure(key, stored[chosen + 1][key], replayed[key]) for key in COMPARED)
    return Verdict(chosen + 1, wrote, wrote == world.size, figures)


def _looking_only(run: Run) -> Run:
    """The run without traces, and a guard that leaves out only the rows that the run itself left out."""
    train = run.train.model_copy(update={"profile": ()})
    return run.model_copy(update={"train": train, "guard": run.guard.model_copy(update={"action": "warn"})})
