"""The base of every room's options: strict, frozen, no unknown keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _expanded(path: Path) -> Path:
    return Path(os.path.expanduser(path))


LocalPath = Annotated[Path, AfterValidator(_expanded)]
"""A file or folder of this machine; a `~` in front is the user's home, also where no shell has read it."""


class Options(BaseModel):
    """A frozen node of the run file. Unknown keys are errors, defaults are validated like values, numbers are finite.

    Every field carries a `Field(description=...)`: the JSON schema and the configuration reference print it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
