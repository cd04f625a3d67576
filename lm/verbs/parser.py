"""The command's parser: whatever is wrong with the words of a verb is one `UserError`, with what to write instead."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from lm.errors import UserError, did_you_mean

_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


class Parser(argparse.ArgumentParser):
    """argparse with the house's errors: exit code 2 by way of `UserError`, which only the first rank prints."""

    def __init__(self, *, example: str = "", **settings: Any) -> None:
        """example: a whole command line, shown below the help and with every mistake."""
        self.example = example
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"example: {example}" if example else None,
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        lines = [f"{self.prog}: {message}", self.format_usage().strip()]
        raise UserError("\n".join([*lines, f"example: {self.example}"] if self.example else lines))


class VerbParser(Parser):
    """The parser of one verb. Options that it does not have are refused before anything that may be missing."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """What argparse does; left over are only overrides that stand behind options. Raises UserError."""
        words = list(args or ())
        for place, word in enumerate(words[: words.index("--")] if "--" in words else words):
            if self._looks_like_an_option(word) and not (place and self._takes_a_value(words[place - 1])):
                self._refuse_option(word, words[place + 1 : place + 2])
        chosen, rest = super().parse_known_args(words, namespace)
        given = getattr(chosen, "overrides", None)
        if given is not None:
            chosen.overrides, rest = [*given, *rest], []
            for word in chosen.overrides:
                if word.startswith("-"):  # with a blank in it: argparse takes it for no option
                    self._refuse_option(word, ())
        if rest:
            self.error(f"'{rest[0]}' is one word too many")
        return chosen, []

    def _looks_like_an_option(self, word: str) -> bool:
        name = word.partition("=")[0]
        known = name in self._option_string_actions
        return word.startswith("-") and word != "-" and not known and " " not in word and not _NUMBER.fullmatch(word)

    def _takes_a_value(self, word: str) -> bool:
        action = self._option_string_actions.get(word)
        return action is not None and action.nargs is None

    def _refuse_option(self, word: str, following: Sequence[str]) -> NoReturn:
        name = word.partition("=")[0]
        key, equals, value = word.lstrip("-").partition("=")
        if "." in key and any(action.dest == "overrides" for action in self._actions):
            if not equals:
                value = next((other for other in following if not other.startswith("-") and "=" not in other), "VALUE")
            raise UserError(f"{self.prog}: {word} is no option: write {key}={value} without dashes")
        shown = (action for action in self._actions if action.help != argparse.SUPPRESS)
        options = [max(action.option_strings, key=len) for action in shown if action.option_strings]
        nearest = did_you_mean(name, options)
        raise UserError(f"{self.prog} has no option '{name}'.{nearest} Options: {', '.join(options)}")
