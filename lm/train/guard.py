"""What ends a run that has gone wrong."""

from __future__ import annotations

from lm.errors import UserError

MAX_SKIPPED_IN_A_ROW = 20


class SkippedSteps:
    """Counts the steps in a row whose loss or gradient was not finite."""

    def __init__(self, lr_key: str) -> None:
        """`lr_key`: where a person sets the learning rate."""
        self._lr_key = lr_key
        self._in_a_row = 0

    def note(self, applied: bool) -> None:
        """To be told of every step. Raises UserError when too many were skipped."""
        self._in_a_row = 0 if applied else self._in_a_row + 1
        if self._in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"the last {MAX_SKIPPED_IN_A_ROW} steps had a loss or gradient that is not finite and were skipped. "
                f"Lower {self._lr_key}, or look for what is wrong in the data; then start again."
            )
