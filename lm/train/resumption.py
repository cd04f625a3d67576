"""Whether a run may go on from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from lm.errors import UserError
from lm.train.checkpoint import Counters
from lm.train.folder import Run


def require_fit(found: Counters, now: Counters, run: Run, checkpoint: Path) -> None:
    """Raises UserError unless the checkpoint is of this data and these frozen weights, and not beyond the run's end.

    found: what the checkpoint says; now: of the run that is to go on from it.
    """
    root = run.train.output_dir
    common = found.data_parts.keys() & now.data_parts.keys()
    if found.data != now.data or any(found.data_parts[name] != now.data_parts[name] for name in common):
        raise UserError(
            f"{changed_data(found, now)} is not what the run in {root} was trained on. Bring it back to go on with "
            "the run, or choose another train.output_dir."
        )
    if found.frozen != now.frozen:
        raise UserError(
            f"base.path: the weights of {run.model_dump(mode='json')['base']['path']} are not those that the run in "
            f"{root} began with. Bring them back, or choose another train.output_dir."
        )
    if found.step > run.train.steps:
        raise UserError(
            f"train.steps: {checkpoint} is at step {found.step} already, beyond {run.train.steps}. "
            "Raise train.steps, or choose another train.output_dir."
        )


def changed_data(found: Counters, now: Counters) -> str:
    """What of the data is not as it was: the tokenizer, or else the sources whose tokens differ, by their keys."""
    names = {**found.data_parts, **now.data_parts}
    changed = [name for name in names if found.data_parts.get(name) != now.data_parts.get(name)]
    if not changed or not found.data_parts:
        return "data: the text or the tokenizer"
    if "data.tokenizer" in changed:  # a tokenizer is trained on the text, and the tokens follow from it
        return "data.tokenizer: the tokenizer, or the text that it was trained on,"
    if changed == ["data.packing"]:
        return "data.packing: the way in which rows go on from shard to shard"
    return f"{', '.join(changed)}: the text"
