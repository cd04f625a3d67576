"""Stage one of a graft as a run of its own, whose sections follow from the whole run's."""

from __future__ import annotations

import re
from typing import Protocol

from pydantic import Field, ValidationError

from lm.errors import UserError
from lm.extend.options import BaseOptions
from lm.graft.operation import Operation
from lm.graft.options import GraftOptions, RegressOptions
from lm.graft.regression import Regression
from lm.graft.trainee import Grafting
from lm.train.file_names import REGRESSION
from lm.train.folder import Run
from lm.train.optimizer_options import OptimizerOptions
from lm.train.sections import Sections


class GraftRun(Run, Protocol):
    """What grafting reads of a run file (`lm.run_file.GraftFile`, a floor above)."""

    @property
    def base(self) -> BaseOptions: ...
    @property
    def graft(self) -> GraftOptions: ...
    @property
    def trainee(self) -> Grafting: ...


class RegressionRun(Sections):
    """Stage one of a run, as a run of its own below the other's folder."""

    base: BaseOptions = Field(description="The original.")
    graft: GraftOptions = Field(description="The new mixers.")
    evaluated_length: int = Field(description="Tokens per held-out row, which are those of the whole run.")

    @classmethod
    def of(cls, run: GraftRun) -> RegressionRun:
        """The first stage of a run. Batches, steps and optimizer are the graft section's.

        Raises UserError where that is no run that can be.
        """
        regress, train, folder = run.graft.regress, run.train, run.train.output_dir
        own = {
            "output_dir": folder / REGRESSION,
            "steps": regress.steps,
            "global_batch_tokens": regress.global_batch_tokens,
            "gradient_clipping": None,  # layers learn apart from each other, and a norm over all would join them
            "evaluate_every": None,
            "keep_best": False,
            "profile": tuple(step for step in train.profile if step <= regress.steps),
            "stages": (),
            "batch_warmup": None,
        }
        length = regress.sequence_length or run.data.sequence_length
        name = f"{run.log.name or folder.name}-{REGRESSION}"
        sections = {
            "base": run.base,
            "graft": run.graft,
            "evaluated_length": run.data.sequence_length,
            "data": run.data.model_copy(update={"sequence_length": length}),
            "train": train.model_copy(update=own),
            "optimizer": OptimizerOptions.model_validate(regress.optimizer.model_dump(exclude={"sink_lr"})),
            "deepspeed": run.deepspeed,
            "guard": run.guard,
            "log": run.log.model_copy(update={"name": name}),
        }
        try:
            return cls.model_validate(sections)
        except ValidationError as error:
            raise UserError(f"graft.regress: {_in_its_words(error, regress)}") from None

    @property
    def trainee(self) -> Regression:
        """The new mixers, for the training loop."""
        return Regression(Operation(self.base, self.graft), self.train.seed)


def _in_its_words(error: ValidationError, regress: RegressOptions) -> str:
    """The mistake with the keys that stage one has in the run file."""
    said = re.sub(r"(?<![\w.])optimizer\.", "graft.regress.optimizer.", str(error.errors()[0]["ctx"]["error"]))
    own_length = "data.sequence_length" if regress.sequence_length is None else "graft.regress.sequence_length"
    return said.replace("data.sequence_length", own_length)
