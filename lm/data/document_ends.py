"""Which tokens stand around a text in a document: a tokenizer's own, or those that the run file names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lm.data.fingerprint import content_digest, digest
from lm.data.tokenizer_options import EndsOptions
from lm.errors import UserError


class Ending(Protocol):
    """What a tokenizer says of the ends of documents; see `lm.data.tokenizers.Tokenizer`."""

    bos_id: int
    eos_id: int
    ends_texts: bool


def ends_of(
    own: Sequence[int | None], ends: EndsOptions, control_id: Callable[[str], int | None], origin: str
) -> tuple[int, int]:
    """The ids that begin and end a document.

    own: the tokenizer's bos and eos; None where it has none. control_id: of a token by its name; None for one that text
    may spell. origin: what the tokenizer is called.

    Raises:
        UserError: a token that is named is no control token, or there is none at all.
    """
    bos_id, eos_id = own
    for key, token in (("bos_token", ends.bos_token), ("eos_token", ends.eos_token)):
        if token is not None and control_id(token) is None:
            raise UserError(f"data.tokenizer.{key}: '{token}' is no control token of {origin}, so text could spell it.")
    bos_id = bos_id if ends.bos_token is None else control_id(ends.bos_token)
    eos_id = eos_id if ends.eos_token is None else control_id(ends.eos_token)
    first = eos_id if bos_id is None else bos_id
    last = bos_id if eos_id is None else eos_id
    if first is None or last is None:
        raise UserError(
            f"{origin} has neither a bos nor an eos token, so documents could not be told apart: name one in "
            "data.tokenizer.bos_token."
        )
    return first, last


def fingerprint_of(contents: Sequence[bytes], own: Sequence[int | None], tokenizer: Ending) -> str:
    """Of a tokenizer's files and, where documents do not begin and end in its own way, of how they do."""
    bos_id, eos_id = own
    usual = (eos_id if bos_id is None else bos_id, bos_id if eos_id is None else eos_id, True)
    chosen = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.ends_texts)
    files = content_digest(contents)
    return files if chosen == usual else digest([files, *chosen])


def ends_only(options: EndsOptions) -> dict[str, Any]:
    """What the options say of the ends of documents, and nothing else, as JSON."""
    return options.model_dump(include={*EndsOptions.model_fields})
