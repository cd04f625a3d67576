"""The local texts that tasks are made of: prose to hide things in, question-answer files where the user has them."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(`*\[]*[A-Z0-9])")


@dataclass(frozen=True)
class Haystack:
    """Running text, and the files of RULER's question answering (SQuAD v2.0 and HotpotQA distractor, as published)."""

    name: str
    text: str
    squad: Path | None = None
    hotpotqa: Path | None = None

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
        """The text cut behind full stops, question and exclamation marks, white space collapsed."""
        return tuple(split_sentences(" ".join(self.words)))


def split_sentences(text: str) -> list[str]:
    """Cuts behind a full stop, question or exclamation mark that white space and a capital or digit follow."""
    return SENTENCE_END.split(text)


def open_haystack(path: Path | None = None, squad: Path | None = None, hotpotqa: Path | None = None) -> Haystack:
    """The text of a file, folder or glob (kinds as in `data.sources`); by default the documentation of Python's
    language that comes with the running interpreter, which differs from one Python version to the next.

    Raises:
        UserError: nothing that can be read is there.
    """
    if path is None:
        return Haystack(f"python-{platform.python_version()}-topics", _topics(), squad, hotpotqa)
    from lm.data.options import SourceOptions
    from lm.data.sources import find_source  # the file formats come with it

    source = find_source(SourceOptions(path=str(path)), "haystack")
    return Haystack(str(path), "\n\n".join(document.text for document in source.documents()), squad, hotpotqa)


def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
