"""The local texts that tasks are made of: prose to hide things in, question-answer files where the user has them."""

from __future__ import annotations

import bisect
import hashlib
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from eval.options import SuiteOptions, on_command_line
from lm.errors import UserError

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(`*\[]*[A-Z0-9])")
"""White space behind a full stop, question or exclamation mark that a capital or a digit follows."""

RULER = re.compile(r"^\W{4,}$", re.MULTILINE)
"""A line under a heading."""


@dataclass(frozen=True)
class Haystack:
    """Running text, and the files of RULER's question answering (SQuAD v2.0 and HotpotQA distractor, as published).

    written: how the user writes the option of a name, for messages.
    """

    name: str
    text: str = field(repr=False)
    squad: Path | None = None
    hotpotqa: Path | None = None
    written: Callable[[str], str] = field(default=on_command_line, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.words:
            raise UserError(f"{self.written('haystack')}: '{self.name}' holds no words.")

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


def open_haystack(options: SuiteOptions | None = None) -> Haystack:
    """The text of a file, folder or glob (kinds as in `data.sources`); by default the documentation of the Python
    language that comes with the running interpreter, which differs from one Python version to the next.

    Raises:
        UserError: nothing that can be read is there, or not all of it can be.
    """
    topics = f"python-{platform.python_version()}-topics"
    if options is None:
        return Haystack(topics, _topics())
    if options.haystack is None:
        return Haystack(topics, _topics(), options.squad, options.hotpotqa, options.written)
    text = "\n\n".join(local_texts(options.haystack, "haystack", options))
    return Haystack(str(options.haystack), text, options.squad, options.hotpotqa, options.written)


def local_texts(path: Path, named_by: str, options: SuiteOptions) -> list[str]:
    """The documents of a file, folder or glob (kinds as in `data.sources`).

    named_by: the option that names the path. Left out are empty texts, and what cannot be read in a folder or glob.

    Raises:
        UserError: nothing that can be read is there, or not all of a file can be: figures are of all of it.
    """
    from lm.data.options import SourceOptions
    from lm.data.readers import Document
    from lm.data.sources import find_source  # the file formats come with it

    key, as_source = options.written(named_by), SourceOptions(path=str(path), text_field=options.text_field)
    try:
        source = find_source(as_source, key)
        texts, left_out = [], []
        for item in (item for shard in source.shards for part in shard for item in source.read(part)):
            if isinstance(item, Document):
                texts.append(item.text)
                continue
            said = str(item).replace("of max_document_bytes", "that a text may have")
            if source.named_by_user and item.kind != "empty":
                raise UserError(f"{said}. Repair the file, or name another.")
            left_out.append(said)
        if not texts:
            raise source.nothing((), *left_out)
    except UserError as error:  # the options of a source call it by their own keys
        said = str(error).removeprefix(f"{key}.path: ")
        if (of_field := said.removeprefix(f"{key}.text_field: ")) != said:
            raise UserError(f"{options.written('text_field')}: {of_field}") from None
        raise UserError(f"{key}: {said}") from None
    return texts


def _topics() -> str:
    from pydoc_data.topics import topics  # half a megabyte

    return RULER.sub("", "\n\n".join(topics[name] for name in sorted(topics)))
