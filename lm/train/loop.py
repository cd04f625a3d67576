"""Training from start to finish: `train(run)` begins a run, goes on with it, or finds it complete."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from typing import Any

import torch

from lm.data.batches import Batch
from lm.data.prepare import Prepared
from lm.errors import UserError
from lm.plan import Plan
from lm.train import checkpoint, distributed
from lm.train.backends import prefer_backends
from lm.train.checkpoint import Counters
from lm.train.data_phase import prepare_on_all_ranks, rows_per_rank
from lm.train.distributed import World
from lm.train.engine import Engine, StepResult
from lm.train.finish import finish
from lm.train.flops import StepFlops
from lm.train.folder import Run, RunFolder
from lm.train.guard import SkippedSteps
from lm.train.held_out import HeldOut
from lm.train.hook import Hook
from lm.train.interrupt import StopRequest
from lm.train.log import RunLog, require_wandb_login
from lm.train.memory import peak_memory
from lm.train.observe.observation import Observation
from lm.train.observe.recall import RecallProbes
from lm.train.peak import device_peak
from lm.train.periodic import HookCalls, Periodic
from lm.train.progress import Progress
from lm.train.saving import Saving
from lm.train.schedule import learning_rate
from lm.train.trainee import Built

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train(run: Run, kind: type[Training] | None = None, hook: Hook | None = None) -> None:
    """Trains to `train.steps`, from the newest good checkpoint of `train.output_dir` if it holds one.

    kind: a training that records or leaves behind something else. hook: called at its own interval. Works alone, under
    torchrun and under the deepspeed launcher. Raises UserError; on other ranks than 0, which have nothing to add to its
    message, SystemExit.
    """
    try:
        _train(run, kind or Training, hook)
    except UserError:
        if distributed.launched_rank() != 0:
            raise SystemExit(2) from None
        raise


def _train(run: Run, kind: type[Training], hook: Hook | None) -> None:
    folder = RunFolder(run.train.output_dir)
    progress = Progress(rank=distributed.launched_rank(), every=run.log.every)
    if folder.is_complete(run):
        progress.say(f"the run in {folder.root} is complete: {run.train.steps} of {run.train.steps} steps")
        return
    rows = rows_per_rank(run, distributed.launched_size(), kind.section)
    prefer_backends(run.train)
    world = distributed.start().sharing_sequences(
        run.train.sequence_parallel,
        [run.data.sequence_length] * min(rows, run.train.micro_batch_size),
        DTYPES[run.train.precision],
    )
    if run.log.wandb == "online":
        world.on_rank_zero(require_wandb_login)
    with folder.claimed(world):
        prepared = prepare_on_all_ranks(run, world, progress)
        if hook is not None:
            hook.prepare(prepared.tokenizer, progress)
        training = kind(run, folder, world, progress, prepared, rows)
        training.resume()
        training.finish_steps(hook)
        training.finish()
    distributed.leave_at_exit()


class Training:
    """One run under way."""

    section = "train"
    """Where a person sets the steps and the batch of this training."""
    optimizer_section = "optimizer"

    def __init__(
        self, run: Run, folder: RunFolder, world: World, progress: Progress, prepared: Prepared, rows: int
    ) -> None:
        """`rows`: rows that a rank, or a group of ranks that share theirs, reads in one step."""
        self.run = run
        self.folder = folder
        self.world = world
        self.progress = progress
        self.prepared = prepared
        self.rows = rows
        self.plan: Plan = run.trainee.plan(run.data.sequence_length, DTYPES[run.train.precision])
        self.peak_flops = self._peak_flops()
        torch.manual_seed(run.train.seed)
        with progress.phase("building the model"):
            built = run.trainee.build()
            self.engine = self._engine(built)
        self.counters = Counters(data=prepared.fingerprint, frozen=built.fingerprint)
        self.step_flops = StepFlops(self.engine.model, self.plan)
        self.observation = Observation(
            run.observe, run.train, self.engine.model, len(self.plan.layers), world, folder.root
        )
        self.held_out = HeldOut(self.engine, prepared.validation, run.train, folder, progress)
        self.saving = Saving(run, folder, self.engine, progress.say)
        self.skipped_steps = SkippedSteps(f"{self.optimizer_section}.lr")

    def _engine(self, built: Built) -> Engine:
        return Engine(
            built.model.to(self.world.device),
            self.run.train,
            self.run.optimizer,
            self.run.deepspeed,
            self.world,
            micro_batches=-(-self.rows // self.run.train.micro_batch_size),
            lr_factors=built.lr_factors,
        )

    def _peak_flops(self) -> float:
        """FLOP/s of all devices together."""
        self.world.barrier()  # so that ranks which share a processor measure their share of it
        peak = device_peak(self.world.device, DTYPES[self.run.train.precision])
        return float(self.world.sum(torch.tensor(peak.flops)))

    def resume(self) -> None:
        """Puts everything where the newest good checkpoint left it; without one, begins."""
        self.counters = self.saving.restore(self.counters)
        if self.world.rank == 0:
            self.folder.reopen()
            self.folder.save_config(self.run)

    def periodic(self, hook: Hook | None) -> list[Periodic]:
        """The work between steps, in its order, whose findings go into the step's record."""
        hooks = [] if hook is None else [HookCalls(hook, self.engine, self.progress, self.run.train.steps)]
        recall = RecallProbes(self.run.observe, self.run.train.steps, self.prepared, self.engine)
        return [self.held_out, recall, *hooks]

    def finish_steps(self, hook: Hook | None = None) -> None:
        """All steps that are left, each with the work and the checkpoint that are due after it."""
        periodic, steps = self.periodic(hook), self.run.train.steps
        with (
            self._log() as log,
            self.progress.training(steps, self.counters.step) as bar,
            StopRequest() as request,
        ):
            while self.counters.step < steps:
                record, applied = self._step()
                for work in periodic:
                    if work.due(self.counters.step):
                        record |= work(self.counters.step)
                log.write(record)
                bar.update(record)
                self.skipped_steps.note(applied)
                stop = request.agreed(self.world)
                if stop or self.saving.due(self.counters.step):
                    log.sync()
                    self.saving.save(self.counters)
                if stop:
                    self._stop(stop)

    def _log(self) -> RunLog:
        log = self.run.log
        return RunLog(
            self.folder.root,
            rank=self.world.rank,
            step=self.counters.step,
            wandb=log.wandb,
            project=log.project,
            name=log.name,
            config=self.run.model_dump(mode="json"),
        )

    def _stop(self, sent: signal.Signals) -> None:
        """Ends the program as the shell expects of one that was sent a signal."""
        self.progress.say(
            f"stopped by {sent.name} after step {self.counters.step}: {self.saving.kept()}; "
            "the same command goes on from there"
        )
        distributed.leave_at_exit()
        raise SystemExit(128 + sent)

    def _step(self) -> tuple[dict[str, Any], bool]:
        """One optimizer step: its record for the log, and whether it was applied."""
        start = time.perf_counter()
        step, optimizer = self.counters.step, self.run.optimizer
        micro_batches = self._micro_batches(step)
        loaded = time.perf_counter()
        lr = learning_rate(optimizer.lr, optimizer.schedule, step, self.run.train.steps)
        with self.observation.step(step + 1) as seen:
            result = self.engine.step(micro_batches, lr)
        self.counters = replace(
            self.counters,
            step=step + 1,
            skipped=self.counters.skipped + (not result.applied),
            tokens=self.counters.tokens + self.run.train.global_batch_tokens,
        )
        flops = float(self.world.sum_once(torch.tensor(self.step_flops([batch.lengths for batch in micro_batches]))))
        record = self.record(result, lr, flops, time.perf_counter() - start, loaded - start)
        return record | seen, result.applied

    def _micro_batches(self, step: int) -> list[Batch]:
        """This rank's rows of a step: a pure function of the step."""
        first = (step * self.world.readers + self.world.reader) * self.rows
        size = self.run.train.micro_batch_size
        indices = range(first, first + self.rows)
        return [self.prepared.train.rows(indices[begin : begin + size]) for begin in range(0, self.rows, size)]

    def record(
        self, result: StepResult, lr: float, flops: float, seconds: float, data_seconds: float
    ) -> dict[str, Any]:
        """What the log says of a step that took `seconds`, `data_seconds` of them for reading. Collective."""
        return {
            "step": self.counters.step,
            "loss": result.loss,
            "learning_rate": lr,
            "grad_norm": result.grad_norm,
            "tokens": self.counters.tokens,
            "targets": result.targets,
            "skipped": self.counters.skipped,
            "tokens_per_second": self.run.train.global_batch_tokens / seconds,
            "mfu": flops / seconds / self.peak_flops,
            "step_seconds": seconds,
            "data_seconds": data_seconds,
            "peak_memory": peak_memory(self.world.device),
        }

    def finish(self) -> None:
        """Writes what the run leaves behind, and marks it as complete."""
        if self.held_out.last is None:
            self.held_out(self.counters.step)  # the run was killed between its last step and here
        found = checkpoint.newest(self.folder.checkpoints, self.world, self.progress.say)
        assert found is not None

        def work() -> None:
            finish(
                self.run,
                self.folder,
                self.progress,
                self.prepared,
                self.plan,
                self.held_out.last,
                found,
                self.world.size,
            )
            self.folder.complete(self.counters.step)

        self.world.on_rank_zero(work)
