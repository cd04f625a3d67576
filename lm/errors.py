"""The one error a user's mistake raises. Entries print it without a traceback and exit with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

USER_ERROR = 2
"""The exit code of a mistake of the user's."""


class UserError(Exception):
    """What the user must change: the file, the key, the value, what is allowed, the nearest valid name.

    The message stands alone: it is all the user sees.
    """


class RankError(UserError):
    """One that a rank other than 0 is to say, since rank 0 has not met it. The message names the rank."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`" Did you mean 'window'?"` for a near miss of a known word, else an empty string.

    cutoff: how alike they are at least, from 0 to 1 (`difflib.SequenceMatcher.ratio`).
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" Did you mean '{close[0]}'?" if close else ""
