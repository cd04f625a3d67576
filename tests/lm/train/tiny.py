"""An engine over a model so small that a step takes milliseconds, and a bare loop that does the same."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.linear_cross_entropy import CrossEntropy
from lm.model.decoder import Head
from lm.model.documents import Documents
from lm.train import distributed
from lm.train.deepspeed_options import DeepSpeedOptions
from lm.train.engine import Engine, StepResult
from lm.train.optimizer import parameter_groups
from lm.train.optimizer_options import OptimizerOptions
from lm.train.options import TrainOptions
from lm.train.sharing import MicroBatch

VOCAB, WIDTH, LR = 31, 12, 1e-2
STAGES = [(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")]


class TinyModel(nn.Module):
    """Predicts the next token from this one. A token 0 makes the loss infinite and the gradients NaN.

    Its names say nothing of what a parameter is for.
    """

    dropout = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, WIDTH)
        self.up = nn.Linear(WIDTH, 3 * WIDTH)
        self.down = nn.Linear(3 * WIDTH, 2 * WIDTH)
        self.norm = nn.RMSNorm(2 * WIDTH)
        self.scores = Head(2 * WIDTH, VOCAB)
        nn.init.normal_(self.scores.weight, std=0.2)

    def forward(self, tokens: Tensor, documents: Documents, targets: Tensor) -> CrossEntropy:
        hidden = self.norm(self.down(nn.functional.gelu(self.up(self.words(tokens)))))
        hidden = nn.functional.dropout(hidden, self.dropout, self.training)
        logits = self.scores(hidden).float() / (tokens != 0)[:, None]
        nll = nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
        return CrossEntropy(nll.sum(), nll.detach(), logits.argmax(1) == targets)


def micro_batches(step: int, poisoned: bool = False) -> list[MicroBatch]:
    """Three forwards with different numbers of targets."""
    generator = torch.Generator().manual_seed(step)
    batches = []
    for masked in (0, 5, 11):
        tokens = torch.randint(1, VOCAB, (2, 8), generator=generator)
        targets = (tokens * 7 + 3) % VOCAB
        targets.view(-1)[:masked] = -100
        batches.append(SimpleNamespace(tokens=tokens, targets=targets, lengths=[8, 8]))
    if poisoned:
        batches[1].tokens[1, 7] = 0
    return batches


def make_engine(
    stage: int,
    precision: str = "fp32",
    micro_batches: int = 3,
    *,
    train: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    **settings: Any,
) -> Engine:
    """`train`, `optimizer`: further keys of these sections; settings: of the deepspeed section."""
    torch.manual_seed(0)
    # Without a threshold of 0, ZeRO-3 never shards parameters as small as these.
    zero = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    options = DeepSpeedOptions.model_validate({"zero_stage": stage, "zero_optimization": zero} | settings)
    given = {"output_dir": "unused", "steps": 10, "global_batch_tokens": 48, "gradient_clipping": 0.5}
    return Engine(
        TinyModel(),
        TrainOptions.model_validate(given | {"precision": precision} | (train or {})),
        OptimizerOptions.model_validate({"lr": LR} | (optimizer or {})),
        options,
        distributed.start(),
        micro_batches,
    )


def steps(engine: Engine, first: int, last: int, forwards: int = 3) -> list[StepResult]:
    """Steps of so many micro-batches, the first ones of each."""
    return [engine.step(micro_batches(step)[:forwards], LR) for step in range(first, last)]


def plain_adamw(model: nn.Module) -> torch.optim.Optimizer:
    options = OptimizerOptions(lr=LR)
    groups = parameter_groups(model, options.weight_decay)
    return torch.optim.AdamW(groups, lr=LR, betas=options.betas, eps=options.eps)


def plain_steps(
    count: int,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = plain_adamw,
    forwards: Callable[[int], int] = lambda step: 3,
) -> list[tuple[float, float]]:
    """Loss and gradient norm of a bare PyTorch loop that sees each step's tokens as one batch.

    forwards: of a step, how many of its micro-batches are read.
    """
    torch.manual_seed(0)
    model = TinyModel()
    optimizer = make_optimizer(model)
    results = []
    for step in range(count):
        batches = micro_batches(step)[: forwards(step)]
        tokens, targets = (torch.cat([getattr(b, key).flatten() for b in batches]) for key in ("tokens", "targets"))
        loss = model(tokens, Documents.from_lengths([len(tokens)]), targets).loss / (targets != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        results.append((loss.item(), norm.item()))
    return results
