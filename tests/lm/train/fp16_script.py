"""What `test_loss_scaler.py` has two ranks run: `OUTPUT STAGE...`; each rank writes what it saw.

Three steps overflow, on rank 1 alone and in its gradients alone. Then the same without these steps.
"""

import json
import sys
from pathlib import Path

from lm.train import distributed
from lm.train.engine import StepResult
from tests.lm.train.tiny import LR, make_engine, micro_batches

OVERFLOWS = (1, 2, 3)


def main(output: Path, stages: list[str]) -> None:
    rank = distributed.start().rank
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    for stage in map(int, stages):
        found = {name: run(stage, rank, left_out) for name, left_out in (("all", ()), ("without", OVERFLOWS))}
        (output / f"stage-{stage}-rank-{rank}.json").write_text(json.dumps(found))
    distributed.leave_at_exit()


def run(stage: int, rank: int, left_out: tuple[int, ...]) -> dict[str, object]:
    """Scales before and after six steps but for those left out, and the results of these."""
    engine = make_engine(stage, "fp16")
    before, results = engine.loss_scaler["cur_scale"], []
    for step in (step for step in range(6) if step not in left_out):
        hook = None
        if step in OVERFLOWS and rank == 1:
            hook = engine.model.up.weight.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[union-attr]
        result: StepResult = engine.step(micro_batches(2 * step + rank), LR)
        if hook is not None:
            hook.remove()
        results.append([step, result.loss, result.applied])
    return {"scales": [before, engine.loss_scaler["cur_scale"]], "results": results}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
