"""The layer-pattern language: which mixer sits in which layer, written as one line.

    "(rat local)*3 ls global"   ->   rat local rat local rat local ls global

A pattern is a row of mixer names and bracketed groups; `*n` repeats what stands before it. White space is free.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lm.errors import did_you_mean

MAX_LAYERS = 10_000
_TOKEN = re.compile(
    r"""(?P<name>[A-Za-z_][A-Za-z0-9_-]*) | (?P<repeat>\*\s*(?P<count>[0-9]*))
        | (?P<open>\() | (?P<close>\)) | (?P<other>\S)""",
    re.VERBOSE,
)


class PatternError(ValueError):
    """A mistake in a layer pattern. `column` counts from 1 and points at the character to change."""

    def __init__(self, problem: str, pattern: str, column: int) -> None:
        self.column = column
        line = re.sub(r"\s", " ", pattern)  # one character for one, so that the caret stays under its column
        super().__init__(f"{problem} (column {column})\n  {line}\n  {' ' * (column - 1)}^")


def expand(pattern: str, names: Iterable[str]) -> list[str]:
    """The mixer name of every layer, first layer first.

    `names` are the mixers that the pattern may use. Raises PatternError for anything that is not a pattern over
    them, and for more than `MAX_LAYERS` layers.
    """
    return _Parser(pattern, frozenset(names)).parse()


class _Parser:
    """One pass over the tokens with a stack of open groups (no recursion: depth is the user's)."""

    def __init__(self, pattern: str, names: frozenset[str]) -> None:
        self.pattern = pattern
        self.names = names
        # Each open group: the column of its bracket and its items so far, every item a list of layers.
        self.groups: list[tuple[int, list[list[str]]]] = [(1, [])]

    def parse(self) -> list[str]:
        for token in _TOKEN.finditer(self.pattern):
            column = token.start() + 1
            if token["name"]:
                self._name(token["name"], column)
            elif token["open"]:
                self.groups.append((column, []))
            elif token["close"]:
                self._close(column)
            elif token["repeat"]:
                self._repeat(token["count"], column, token.start("count") + 1)
            else:
                raise self._error(f"a mixer name, '(', ')' or '*' is expected here, not '{token['other']}'", column)
        opened, items = self.groups[-1]
        if len(self.groups) > 1:
            raise self._error("this '(' is never closed", opened)
        if not items:
            raise self._error(f"the pattern is empty; it names one mixer per layer out of {self._known()}", 1)
        return self._joined(items, opened)

    def _name(self, name: str, column: int) -> None:
        if name not in self.names:
            hint = did_you_mean(name, self.names)
            raise self._error(f"'{name}' is not a mixer.{hint} Defined under mixers: {self._known()}", column)
        self.groups[-1][1].append([name])

    def _close(self, column: int) -> None:
        if len(self.groups) == 1:
            raise self._error("this ')' closes nothing", column)
        opened, items = self.groups.pop()
        if not items:
            raise self._error("this group is empty", opened)
        self.groups[-1][1].append(self._joined(items, opened))

    def _repeat(self, count: str, column: int, count_column: int) -> None:
        items = self.groups[-1][1]
        if not items:
            raise self._error("'*' repeats the mixer or group before it, and there is none", column)
        if not count:
            raise self._error("'*' needs a number of repeats after it, as in (rat local)*3", column)
        if not count.strip("0"):
            raise self._error("a repeat count is 1 or more", count_column)
        # The number of digits is checked first: int() itself refuses absurdly long ones.
        if len(count.lstrip("0")) > len(str(MAX_LAYERS)) or int(count) * len(items[-1]) > MAX_LAYERS:
            raise self._error(f"this repeat gives more than {MAX_LAYERS:,} layers", count_column)
        items[-1] = items[-1] * int(count)

    def _joined(self, items: list[list[str]], column: int) -> list[str]:
        if sum(map(len, items)) > MAX_LAYERS:
            raise self._error(f"this gives more than {MAX_LAYERS:,} layers", column)
        return [name for item in items for name in item]

    def _known(self) -> str:
        return ", ".join(sorted(self.names)) or "nothing"

    def _error(self, problem: str, column: int) -> PatternError:
        return PatternError(problem, self.pattern, column)
