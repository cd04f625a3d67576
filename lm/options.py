"""The base of every room's options: strict, frozen, no unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A frozen node of the run file. Unknown keys are errors, defaults are validated like values.

    Every field carries a `Field(description=...)`: the JSON schema and the configuration reference print it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
