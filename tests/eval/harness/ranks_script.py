"""One rank of a launcher: runs the options in a folder on the model in it, and rank 0 writes the results there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from eval.harness import HarnessOptions, run_harness
from eval.opening import open_model
from lm.train.distributed import leave_at_exit

folder = Path(sys.argv[1])
options = HarnessOptions.model_validate_json((folder / "options.json").read_text())
results = run_harness(open_model(folder / "model"), options)
assert (results is None) == (dist.get_rank() > 0)
if results is not None:
    found = {"results": results["results"], "shortened": results["shortened_prompts"]}
    (folder / "results.json").write_text(json.dumps(found))
leave_at_exit()  # as `braid eval` does: threads left behind could abort the interpreter on its way out
