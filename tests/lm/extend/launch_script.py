"""What `test_launched.py` has the launcher run: `RUN_FILE...`, each under ZeRO-3 with every parameter sharded.

Then the first once more with rows that both ranks hold together.
"""

import sys
from pathlib import Path

from lm.run_file import load_run_file
from lm.train.loop import train

# Without a threshold of 0, parameters as small as these are not sharded.
OVERRIDES = ("deepspeed.zero_stage=3", "deepspeed.zero_optimization.stage3_param_persistence_threshold=0")

if __name__ == "__main__":
    for run_file in sys.argv[1:]:
        train(load_run_file(run_file, OVERRIDES))
    shared = ("train.sequence_parallel=2", f"train.output_dir={Path(sys.argv[1]).with_name('shared')}")
    train(load_run_file(sys.argv[1], [*OVERRIDES, *shared]))
