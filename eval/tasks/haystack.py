"""The local texts that tasks are made of: prose to hide things in, question-answer files where the user has them."""

from __future__ import annotations

import bisect
import hashlib
import platform
import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from lm.errors import UserError

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(`*\[]*[A-Z0-9])")
"""White space behind a full stop, question or exclamation mark that a capital or a digit follows."""

RULER = re.compile(r"^\W{4,}$", re.MULTILINE)
"""A line under a heading."""


@dataclass(frozen=True)
class Haystack:
    """Running text, and the files of RULER's question answering (SQuAD v2.0 and HotpotQA distractor, as published)."""

    name: str
    text: str = field(repr=False)
    squad: Path | None = None
    hotpotqa: Path | None = None

    def __post_init__(self) -> None:
        if not self.words:
            raise UserError(f"haystack: '{self.name}' holds no words.")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text: what a result must state, since scores depend on it."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The text cut at white space."""
        return tuple(self.text.split())

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The text cut into sentences, white space collapsed."""
        return tuple(SENTENCE_END.split(" ".join(self.words)))

    def beginning(self, words: int) -> list[str]:
        """The first so many words, as sentences, of which the last may be cut; the text starts over where it ends."""
        rounds, rest = divmod(words, len(self.words))
        whole = bisect.bisect_right(self._ends, rest)
        cut = self.words[self._ends[whole - 1] if whole else 0 : rest]
        return [*self.sentences * rounds, *self.sentences[:whole], *([" ".join(cut)] if cut else [])]

    @cached_property
    def _ends(self) -> list[int]:
        """Words up to the end of each sentence."""
        return list(accumulate(len(sentence.split()) for sentence in self.sentences))


def open_haystack(path: Path | None = None, squad: Path | None = None, hotpotqa: Path | None = None) -> Haystack:
    """The text of a file, folder or glob (kinds as in `data.sources`); by default the documentation of the Python
    language that comes with the running interpreter, which differs from one Python version to the next.

    Raises:
        UserError: nothing that can be read is there.
    """
    if path is None:
        return Haystack(f"python-{platform.python_version()}-topics", _topics(), squad, hotpotqa)
    return Haystack(str(path), "\n\n".join(local_texts(path, "haystack")), squad, hotpotqa)


def local_texts(path: Path, key: str) -> list[str]:
    """The documents of a file, folder or glob (kinds as in `data.sources`); key: what the user named it under.

    Raises:
        UserError: nothing that can be read is there.
    """
    from lm.data.options import SourceOptions
    from lm.data.sources import find_source  # the file formats come with it

    try:
        return [document.text for document in find_source(SourceOptions(path=str(path)), key).documents()]
    except UserError as error:  # the options of a source name it by their own key `path`
        raise UserError(f"{key}: {str(error).removeprefix(f'{key}.path: ')}") from None


def _topics() -> str:
    from pydoc_data.topics import topics  # half a megabyte

    return RULER.sub("", "\n\n".join(topics[name] for name in sorted(topics)))
