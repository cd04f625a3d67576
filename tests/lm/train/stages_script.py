"""What two ranks are launched with: `RUN_FILE OUTPUT STAGE... [KEY=VALUE...]`, one run for each ZeRO stage."""

import sys
from pathlib import Path

from lm.run_file import load_run_file
from lm.train.loop import train

OVERRIDES = ("train.evaluate_tokens=512", "train.checkpoint_every=10")


def main(arguments: list[str]) -> None:
    run_file, output, *words = [word for word in arguments if not word.startswith("--local_rank")]
    further = [word for word in words if "=" in word]
    for stage in [word for word in words if "=" not in word]:
        overrides = [f"train.output_dir={Path(output) / f'stage-{stage}'}", f"deepspeed.zero_stage={stage}"]
        if stage == "3":  # without it, parameters as small as these are not sharded
            overrides.append("deepspeed.zero_optimization.stage3_param_persistence_threshold=0")
        train(load_run_file(run_file, [*overrides, *OVERRIDES, *further]))


if __name__ == "__main__":
    main(sys.argv[1:])
