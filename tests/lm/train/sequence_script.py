"""What `test_sequence_parallel.py` has two ranks run: `RUN_FILE LEG...`, one run in legs `STEPS:SHARED:STAGE`.

The leg `verify` is `braid verify` of what the legs before have left.
"""

import sys

from lm import cli
from lm.run_file import load_run_file
from lm.train.loop import train


def main(run_file: str, legs: list[str]) -> None:
    for leg in legs:
        if leg == "verify":
            assert cli.main(["verify", str(load_run_file(run_file).train.output_dir)]) == 0
            continue
        steps, shared, stage = leg.split(":")
        overrides = [f"train.steps={steps}", f"train.sequence_parallel={shared}", f"deepspeed.zero_stage={stage}"]
        if stage == "3":  # without it, parameters as small as these are not sharded
            overrides.append("deepspeed.zero_optimization.stage3_param_persistence_threshold=0")
        train(load_run_file(run_file, overrides))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
