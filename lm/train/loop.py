"""Training from start to finish: `train(run)` begins a run, goes on with it, or finds it complete."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from lm.data.prepare import Prepared
from lm.plan import Plan
from lm.train import distributed
from lm.train.attempt import Attempt
from lm.train.checkpoint import Counters
from lm.train.data_phase import prepare_on_all_ranks
from lm.train.distributed import World
from lm.train.engine import Engine
from lm.train.finish import finish, finished
from lm.train.flops import StepFlops
from lm.train.folder import Run, RunFolder
from lm.train.guard import Decision, SkippedSteps
from lm.train.held_out import HeldOut
from lm.train.hook import Hook
from lm.train.interrupt import Interruptible, Stopped, StopRequest
from lm.train.launcher import Launcher
from lm.train.log import RunLog, require_log
from lm.train.manifest import checkpoints, folder_of
from lm.train.memory import keep_freed_memory, peak_memory, saying_that_memory_is_full
from lm.train.observe.observation import Observation
from lm.train.observe.recall import RecallProbes
from lm.train.own_folder import require_own_folder
from lm.train.peak import peak_of_all
from lm.train.periodic import HookCalls, Periodic, findings
from lm.train.precision import DTYPES
from lm.train.progress import Progress
from lm.train.refusal import said_once
from lm.train.rows_read import Reading, RunRows, hash_text, step_hash
from lm.train.saving import Saving
from lm.train.spikes import Spikes
from lm.train.start import start_ranks
from lm.train.trainee import Built
from lm.train.watchdog import Watchdog
from lm.train.writing import saying_that_the_disk_is_full


@said_once()
@saying_that_the_disk_is_full()
@saying_that_memory_is_full()
def train(run: Run, kind: type[Training] | None = None, hook: Hook | None = None) -> None:
    """Trains to `train.steps`, from the newest good checkpoint of `train.output_dir` if it holds one.

    kind: a training that records or leaves behind something else. hook: called at its own interval. Works alone, under
    torchrun and under the deepspeed launcher. Raises UserError; see `said_once`.
    """
    launcher = Launcher()  # one that ends while data is prepared is missed afterwards
    kind = kind or Training
    folder = RunFolder(run.train.output_dir)
    progress = Progress(rank=distributed.launched_rank(), every=run.log.every)
    if folder.is_complete(run):
        unused = folder.without_effect(run) if kind is Training else []
        note = f"; without effect: {'; '.join(unused)}" if unused else ""
        progress.say(f"the run in {folder.root} is complete: {run.train.steps} of {run.train.steps} steps{note}")
        return
    world = start_ranks(run, progress.say, kind.section)
    world.on_rank_zero(lambda: require_own_folder(folder.root, run.data))
    world.on_rank_zero(lambda: require_log(folder.root, run.log.wandb, run.log.tensorboard))
    with folder.claimed(world):
        prepared = prepare_on_all_ranks(run, world, progress)
        if hook is not None:
            hook.prepare(prepared.tokenizer, progress)
        with StopRequest(world, launcher) as request:
            training = kind(run, folder, world, progress, prepared, request)
            training.resume()
            training.finish_steps(hook)
            training.finish()
            if request.agreed():  # too late for this training, but something may follow it
                raise SystemExit(0)
    distributed.leave_at_exit()


class Training:
    """One run under way."""

    section = "train"
    """Where a person sets the steps and the batch of this training."""
    optimizer_section = "optimizer"

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        world: World,
        progress: Progress,
        prepared: Prepared,
        request: StopRequest,
    ) -> None:
        """`request`: asked whether to stop."""
        self.run = run
        self.folder = folder
        self.world = world
        self.progress = progress
        self.prepared = prepared
        self.timeline = run.timeline
        self.rows = RunRows(prepared, self.timeline)
        self.plan: Plan = run.trainee.plan(run.longest_row, DTYPES[run.train.precision])
        self.peak_flops = peak_of_all(world, DTYPES[run.train.precision])
        torch.manual_seed(run.train.seed)
        if world.device.type == "cpu":
            keep_freed_memory()
        with progress.phase("building the model"):
            built = run.trainee.build()
            self.engine = self._engine(built)
        self.counters = Counters(
            data=prepared.fingerprint, data_parts={**prepared.parts, **self.rows.parts}, frozen=built.fingerprint
        )
        self.step_flops = StepFlops(self.engine.model, self.plan, built.mixers)
        self.observation = Observation(
            run.observe, run.train, self.engine.model, len(self.plan.layers), world, folder.root
        )
        self.watchdog = Watchdog(world, run.train.rank_timeout)
        self.request = request
        self.watched = Interruptible(self.engine, self.request, self._pulse)
        averaged = None if self.engine.average is None else self.engine.averaged
        self.held_out = HeldOut(self.watched, prepared.validation, run.train, folder, progress, averaged)
        self.saving = Saving(run, folder, self.engine, progress.say, self._pulse)
        self.spikes = Spikes(run.guard, folder.root, self.saving, world, progress.say)
        self.reading = Reading(self.timeline, world.reader, world.readers)
        self.skipped_steps = SkippedSteps(f"{self.optimizer_section}.lr")

    def _pulse(self) -> None:
        """Tells that this rank goes on."""
        self.watchdog.pulse(self.counters.step)

    def _engine(self, built: Built) -> Engine:
        return Engine(
            built.model.to(self.world.device),
            self.run.train,
            self.run.optimizer,
            self.run.deepspeed,
            self.world,
            micro_batches=self.timeline.most_micro_batches(self.world.readers),
            lr_factors=built.lr_factors,
        )

    def resume(self) -> None:
        """Puts everything where the newest good checkpoint left it; without one, begins."""
        self.spikes.drop_abandoned()
        self.counters = self.spikes.restore(self.saving.restore(self.counters))
        self.spikes.require_rows(self.rows, f"{self.section}.steps")
        self.world.on_rank_zero(self._reopen)

    @saying_that_the_disk_is_full()
    def _reopen(self) -> None:
        self.folder.reopen()
        self.folder.save_config(self.run)

    def restore_from(self, found: Path) -> None:
        """Puts everything where a checkpoint, whose files are good, left it."""
        self.counters = self.spikes.restore(self.saving.restore_from(found, self.counters))

    def periodic(self, hook: Hook | None) -> list[Periodic]:
        """The work between steps, in its order, whose findings go into the step's record."""
        hooks = [] if hook is None else [HookCalls(hook, self.watched, self.progress, self.run.train.steps)]
        recall = RecallProbes(self.run.observe, self.run.train.steps, self.prepared, self.watched)
        return [self.held_out, recall, *hooks]

    def finish_steps(self, hook: Hook | None = None) -> None:
        """All steps that are left, each with the work and the checkpoint that are due after it."""
        periodic, steps = self.periodic(hook), self.run.train.steps
        with (
            self._log() as log,
            self.progress.training(steps, self.counters.step) as bar,
            self.watchdog,
            closing(self.observation),
        ):
            if self.counters.unfinished:
                log.write({"step": self.counters.step} | self._between_steps(periodic))
            if stop := self.request.agreed():
                self._stop(stop, self.saving.kept())
            while self.counters.step < steps:
                self.watchdog.pulse(self.counters.step)
                record = self.step()
                if record is None:
                    log.rewind({"step": self.counters.step, "spikes": self.counters.spikes, "guard": "rewind"})
                    continue
                record |= self._between_steps(periodic)
                log.write(record)
                bar.update(record)
                self.saving.poll()
                stop = self.request.agreed()
                if stop or self.counters.step == steps:
                    kept = self.saving.save_now(self.counters, log.sync)
                elif self.saving.due(self.counters.step):
                    self.saving.save(self.counters, log.sync)
                if stop:
                    self._stop(stop, kept)

    def _between_steps(self, periodic: list[Periodic]) -> dict[str, Any]:
        """Does what is due, or leaves it for the next start where the run is to stop; what it found."""
        found = findings(periodic, self.counters.step, self.watchdog.pulse)
        held_out = None if found is None else found.get("validation_loss")
        self.counters = replace(
            self.counters,
            unfinished=found is None,
            validation_loss=held_out,
            validation_tokens=self.held_out.tokens(self.counters.step),
        )
        return found or {}

    def _log(self) -> RunLog:
        settings = self.run.log.model_dump(include={"wandb", "tensorboard", "project", "name"})
        settings |= {"rank": self.world.rank, "step": self.counters.step, "config": self.run.model_dump(mode="json")}
        return self.world.agree(saying_that_the_disk_is_full()(lambda: RunLog(self.folder.root, **settings)))

    def _stop(self, sent: signal.Signals, kept: str) -> NoReturn:
        """Ends the program: nothing is wrong, and there is more to do."""
        then = "goes on from there" if checkpoints(self.folder.checkpoints) else "begins anew"
        self.progress.say(f"stopped by {sent.name} after step {self.counters.step}: {kept}; the same command {then}")
        distributed.leave_at_exit()
        raise SystemExit(0)

    def step(self) -> dict[str, Any] | None:
        """One optimizer step: its record for the log; None where a spike put the run back to a checkpoint instead."""
        made = self.attempt()
        decision = self.spikes.settle(self.counters.step + 1, made.result, self.rows, self.reading.all)
        if decision is not None and decision.checkpoint is not None:
            self.restore_from(folder_of(self.folder.checkpoints, decision.checkpoint))
            return None
        self._count(made, decision)
        record = {**self.record(made), **made.figures}
        return record if decision is None else record | {"guard": decision.action}

    def attempt(self) -> Attempt:
        """Makes the next step; nothing is written but the trace that it may be chosen for. Collective."""
        start = time.perf_counter()
        step, now = self.counters.step, self.timeline[self.counters.step]
        rows = self.reading.mine(step, self.spikes.row)
        micro_batches = [self.rows.batch(numbers) for numbers in rows]
        loaded = time.perf_counter()
        with self.observation.step(step + 1) as seen:
            result = self.engine.step(micro_batches, now.lr, self.spikes.accept(step + 1, self.reading.all(step)))
        read = [self.step_flops([batch.lengths for batch in micro_batches]), *step_hash(rows, micro_batches)]
        flops, *halves = self.world.sum_once(torch.tensor(read, dtype=torch.float64)).tolist()
        figures = seen | {"batch_hash": hash_text(halves)}
        return Attempt(now, result, flops, time.perf_counter() - start, loaded - start, figures)

    def _count(self, made: Attempt, decision: Decision | None) -> None:
        """Counts a step as done."""
        self.skipped_steps.note(made.result.finite)
        self.counters = replace(
            self.counters,
            step=self.counters.step + 1,
            skipped=self.counters.skipped + (not made.result.finite),
            spikes=self.counters.spikes + (decision is not None),
            tokens=self.counters.tokens + made.step.tokens,
            guard=self.spikes.guard.memory.to_json(),
        )

    def record(self, made: Attempt) -> dict[str, Any]:
        """What the log says of a step that was counted. Collective."""
        step, result = made.step, made.result
        return {
            "step": self.counters.step,
            "loss": result.loss,
            "learning_rate": step.lr,
            "grad_norm": result.grad_norm,
            "tokens": self.counters.tokens,
            "targets": result.targets,
            "skipped": self.counters.skipped,
            "spikes": self.counters.spikes,
            "stage": step.stage,
            "sequence_length": step.source.sequence_length,
            "step_tokens": step.tokens,
            "tokens_per_second": step.tokens / made.seconds,
            "mfu": made.flops / made.seconds / self.peak_flops,
            "step_seconds": made.seconds,
            "data_seconds": made.data_seconds,
            "peak_memory": peak_memory(self.world.device),
        }

    def finish(self) -> None:
        """Writes what the run leaves behind, and marks it as complete; a signal leaves that to the next start."""

        def write() -> None:
            newest, last, ranks = checkpoints(self.folder.checkpoints)[0], self.held_out.last, self.world.size
            finish(self.run, self.folder, self.progress, self.prepared, self.plan, last, newest, ranks)
            self.folder.complete(self.counters.step)

        try:
            if self.held_out.last is None:
                self.held_out(self.counters.step)  # the run was stopped between its last step and here
            if self.world.on_rank_zero(lambda: finished(self.request, write)):
                return
        except Stopped:
            pass
        self._stop(self.request.noted or signal.SIGTERM, self.saving.kept())
