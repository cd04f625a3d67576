"""One optimizer step over all ranks, through DeepSpeed: ZeRO 0 to 3, in fp32, bf16 and fp16.

What DeepSpeed does differently from stage to stage is made the same here: gradients are normalised by the real target
tokens of the whole step, the gradient norm is known, and a step that is not finite is skipped on all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from kernels.linear_cross_entropy import CrossEntropy
from lm.data.rows import IGNORED
from lm.errors import UserError
from lm.train.average import WeightAverage
from lm.train.compilation import compile_layers
from lm.train.deepspeed_options import DeepSpeedOptions
from lm.train.distributed import World
from lm.train.loss_scaler import LossScaler
from lm.train.nvme import in_own_folders, keep_misaligned_gradients, require_exact_parameters
from lm.train.optimizer import build_optimizer
from lm.train.optimizer_options import OptimizerOptions
from lm.train.options import TrainOptions
from lm.train.recompute import recompute_layers
from lm.train.shards import (
    Fragment,
    adam_step,
    buffers,
    initialise_moments,
    place_matrices,
    publish,
    set_adam_step,
)
from lm.train.sharing import MicroBatch, forward_all, forward_own
from lm.train.veto import Accept, Veto


@dataclass(frozen=True)
class StepResult:
    """What one step did, over all ranks.

    loss: mean negative log-likelihood in nats per target. targets: how many there were. grad_norm: before clipping.
    applied: False where loss or gradient was not finite or not accepted, so that nothing was changed.
    """

    loss: float
    targets: int
    grad_norm: float
    applied: bool

    @property
    def finite(self) -> bool:
        """Whether loss and gradient were."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Engine:
    """A model under DeepSpeed, with its optimizer."""

    def __init__(
        self,
        model: nn.Module,
        train: TrainOptions,
        optimizer: OptimizerOptions,
        settings: DeepSpeedOptions,
        world: World,
        micro_batches: int = 1,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        """`micro_batches`: forwards of one step on one rank. `lr_factors`: see `parameter_groups`.

        Raises UserError for settings that DeepSpeed refuses, or would not do as it is told.
        """
        import deepspeed
        from deepspeed.runtime.config import DeepSpeedConfigError
        from deepspeed.runtime.zero.utils import ZeRORuntimeException

        self.world = world
        self.model = model
        recompute_layers(model, train.activation_checkpointing)
        compile_layers(model, train.compile)
        self.clip = train.gradient_clipping
        # DeepSpeed clips at this stage but forgets the norm, and would step on NaN.
        self._unguarded = settings.effective_stage(train.precision) == 0
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        config = deepspeed_config(train, settings, micro_batches, size, self._unguarded)
        config["zero_optimization"] = in_own_folders(config["zero_optimization"], self)
        config["zero_allow_untested_optimizer"] = optimizer.kind != "adamw"  # DeepSpeed's name for any that it lacks
        built = build_optimizer(model, optimizer, lr_factors)
        # A refusal is one of these; a RuntimeError is memory, a lost rank, or a fault, and keeps its traceback.
        refusals = (ValueError, AssertionError, NotImplementedError, DeepSpeedConfigError, ZeRORuntimeException)
        try:
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=built, config=config, dist_init_required=False
            )
        except refusals as error:
            raise UserError(f"deepspeed: DeepSpeed refuses these settings: {type(error).__name__}: {error}") from error
        require_exact_parameters(model, train.precision)
        keep_misaligned_gradients(self._engine)
        initialise_moments(self._engine)
        if not self._unguarded:
            self._veto = Veto(self._engine)
        place_matrices(self._engine, model, world)
        self.average: WeightAverage | None = None
        if train.average_decay is not None:
            self.average = WeightAverage(self.fragments(), train.average_decay)
        self._loss_scaler = LossScaler(self._engine) if train.precision == "fp16" else None

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        lr: float,
        accept: Callable[[float, float], bool] = lambda loss, grad_norm: True,
    ) -> StepResult:
        """One optimizer step over the micro-batches of all ranks, equally many on each. Collective.

        accept: told loss and gradient norm of a step that is finite, whether it is to be applied; all ranks alike.
        """
        engine, device = self._engine, self.world.device
        for group in engine.basic_optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        engine.train()
        targets = int(self.world.sum_once(torch.stack([(b.targets != IGNORED).sum() for b in micro_batches]).sum()))
        # DeepSpeed averages gradients over ranks, so the sum over targets needs the rank count back. Ranks that share a
        # sequence need nothing more: each has the gradients of its own tokens' way through the weights.
        scale = self.world.size / max(1, targets)
        nll = torch.zeros((), dtype=torch.float64, device=device)
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            engine.set_gradient_accumulation_boundary(last)
            out = forward_own(engine, batch, self.world)
            nll += out.token_nll.sum(dtype=torch.float64)
            engine.backward(out.loss * scale, scale_wrt_gas=False)
            if not last:
                engine.step()
        loss = float(self.world.sum(nll)) / max(1, targets)
        grad_norm, applied = self._update(lambda norm: math.isfinite(loss) and accept(loss, norm))
        if self.average is not None and applied:
            self.average.update(self.adam_step)
        return StepResult(loss, targets, grad_norm, applied)

    def forward(self, batch: MicroBatch) -> CrossEntropy:
        """The summed loss, and what it was for each target [N], without gradients."""
        return forward_all(self._engine, batch, self.world)

    def eval(self) -> None:
        """Evaluation mode, until the next step."""
        self._engine.eval()

    def _update(self, accept: Accept) -> tuple[float, bool]:
        """Clips and applies the accumulated gradients; returns their norm and whether they were applied."""
        engine = self._engine
        if self._unguarded:
            norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or math.inf))
            applied = math.isfinite(norm) and accept(norm)
            if not applied:
                engine.zero_grad()  # without gradients the step below changes nothing
            engine.step()
            return norm, applied
        scale = self.loss_scaler
        result = self._veto.step(engine, accept)
        if self._loss_scaler is not None and self._veto.refused:
            self._loss_scaler.restore(scale)  # DeepSpeed took it for an overflow
        return result

    @property
    def adam_step(self) -> int:
        """How many updates the optimizer has made."""
        return adam_step(self._engine)

    def fragments(self) -> Iterator[Fragment]:
        """This rank's pieces of the training state, as views."""
        return chain.from_iterable(self.buffers())

    def buffers(self) -> Iterator[list[Fragment]]:
        """The same, by what is in memory together (`shards.buffers`)."""
        if self.average is not None:
            return iter([self.average.fragments()])
        return buffers(self._engine, self.model, self.world.rank, self.world.size)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights in place of its own. Collective; there must be an average."""
        assert self.average is not None
        self.average.swap()
        publish(self._engine)
        try:
            yield
        finally:
            self.average.swap()
            publish(self._engine)

    @property
    def loss_scaler(self) -> dict[str, float]:
        """The state of fp16's loss scale; empty in other precisions."""
        return {} if self._loss_scaler is None else self._loss_scaler.state

    def restored(self, adam_step: int, loss_scaler: Mapping[str, float] | None = None) -> None:
        """To be called after the fragments were written: the forward pass follows them. Collective.

        loss_scaler: as it was; a run that had another precision has none.
        """
        set_adam_step(self._engine, adam_step)
        if self._loss_scaler is not None:
            self._loss_scaler.restore(loss_scaler or {})
        publish(self._engine)


def deepspeed_config(
    train: TrainOptions, settings: DeepSpeedOptions, micro_batches: int, parameters: int, unguarded: bool
) -> dict[str, Any]:
    """The configuration that DeepSpeed is given: ours, and what the user passes through."""
    passed = settings.passed_through
    stage = settings.effective_stage(train.precision)
    # Buckets are allocated whole, and the default size holds half a billion numbers.
    bucket = {"reduce_bucket_size": min(500_000_000, parameters), "stage": stage}
    return {
        **passed,
        "data_types": {"grad_accum_dtype": "fp32"},
        # The optimizer is PyTorch's AdamW wherever its state lies, so that one checkpoint serves all settings.
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": 0.0 if unguarded else train.gradient_clipping or 0.0,
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},  # the loss scale begins at 2^16
        "zero_optimization": {**bucket, **passed.get("zero_optimization", {})},
        "steps_per_print": 1_000_000_000,
    }
