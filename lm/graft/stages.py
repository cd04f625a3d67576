"""Grafting from start to finish: `graft(run)` regresses the new mixers, then trains the model that has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from kernels.linear_cross_entropy import CrossEntropy
from lm.data.prepare import prepare
from lm.data.validation import Validation
from lm.extend.model import ExtendedModel
from lm.graft.regression import RegressionModel
from lm.graft.regression_run import GraftRun, RegressionRun
from lm.hf import BraidForCausalLM
from lm.train import checkpoint, distributed
from lm.train.attempt import Attempt
from lm.train.distributed import World
from lm.train.evaluate import evaluate
from lm.train.evaluation import Evaluation
from lm.train.file_names import GRAFTED
from lm.train.folder import RunFolder
from lm.train.hook import Hook
from lm.train.loop import Training, train
from lm.train.model_file import full_weights
from lm.train.own_folder import require_own_folder
from lm.train.periodic import Periodic
from lm.train.precision import DTYPES
from lm.train.progress import Progress
from lm.train.report import load_report_data, save_report_data
from lm.train.sharing import MicroBatch, forward_all


class RegressionTraining(Training):
    """Stage one under way."""

    section = "graft.regress"
    optimizer_section = "graft.regress.optimizer"
    run: RegressionRun

    def attempt(self) -> Attempt:
        """With distances in units of what putting out nothing would have: `layer_NN` of layers, `loss` their mean."""
        model = self.engine.model
        assert isinstance(model, RegressionModel)
        made = super().attempt()
        distance, of_nothing = self.world.sum(model.take_sums())
        shares = (distance / of_nothing).tolist()
        layers = {f"layer_{layer:02d}": share for layer, share in zip(model.layers, shares, strict=True)}
        return replace(made, figures={**made.figures, "loss": sum(shares) / len(shares), **layers})

    def record(self, made: Attempt) -> dict[str, Any]:
        """Without the utilisation: the plan's FLOPs are those of training the original."""
        record = super().record(made)
        del record["mfu"]
        return record

    def periodic(self, hook: Hook | None) -> list[Periodic]:
        """Nothing: the grafted model as a whole is evaluated once, when stage one is done."""
        return []

    def finish(self) -> None:
        """Writes the grafted model, and the held-out losses of the original, an untaught graft and this one."""
        found = checkpoint.newest(self.folder.checkpoints, self.world, self.progress.say)
        assert found is not None
        regression, root = self.run.trainee, self.folder.root.parent
        operation, regress = regression.operation, self.run.graft.regress
        with self.progress.phase("putting the new mixers into the model"):
            base_weights = operation.weights()
            original, untouched = operation.original(base_weights), operation.grafted(base_weights, regression.seed)
            model = RegressionModel(original, untouched, operation.layers, regress.loss)
            weights = full_weights(found, model)
            self.world.on_rank_zero(
                lambda: regression.save(root / GRAFTED, weights, self.prepared.tokenizer, self.counters)
            )
        models = {
            "original": original,
            "grafted": untouched,
            "grafted and regressed": regression.trained(base_weights, weights),
        }
        rows = self.run.data.model_copy(update={"sequence_length": self.run.evaluated_length})
        validation = prepare(rows).validation
        before = {} if validation is None else {name: self._held_out(name, models[name], validation) for name in models}
        if self.world.rank == 0:
            save_report_data(root, before=before)
            self.folder.complete(self.counters.step)

    def _held_out(self, name: str, model: BraidForCausalLM, validation: Validation) -> Evaluation:
        train = self.run.train
        scorer = Scorer(ExtendedModel(model).to(self.world.device, DTYPES[train.precision]), self.world)
        with self.progress.phase(f"held-out loss: {name}") as phase:
            found = evaluate(scorer, validation, self.counters.step, train.micro_batch_size)
            phase.update(note=f"{found.loss:.4f}")
        return found


@dataclass(frozen=True)
class Scorer:
    """A model that every rank holds whole, to be evaluated."""

    model: nn.Module
    world: World

    def eval(self) -> None:
        self.model.eval()

    def forward(self, batch: MicroBatch) -> CrossEntropy:
        """The summed loss, and what it was for each target [N]."""
        return forward_all(self.model, batch, self.world)


def graft(run: GraftRun, hook: Hook | None = None) -> None:
    """Both stages, each from where it stands; the hook is stage two's.

    Works alone, under torchrun and under the deepspeed launcher. Raises UserError; see `said_once`.
    """
    first = RegressionRun.of(run)
    require_own_folder(run.train.output_dir, run.data)
    folder = RunFolder(first.train.output_dir)
    grafted = (run.train.output_dir / GRAFTED / "config.json").is_file()
    if not grafted:
        folder.reopen()
    if not grafted or folder.config.exists():  # a folder that was cleared away behind its result is not missed
        train(first, RegressionTraining)
    train(run, hook=hook)
    if distributed.launched_rank() == 0:
        _say_losses(run)


def _say_losses(run: GraftRun) -> None:
    data = load_report_data(run.train.output_dir)
    losses = {name: found.loss for name, found in data.before.items()}
    if data.evaluation is not None:
        losses["after the run"] = data.evaluation.loss
    length, progress = run.data.sequence_length, Progress()
    if losses:
        figures = "; ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        progress.say(f"held-out loss at {length:,} tokens: {figures}")
