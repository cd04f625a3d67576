"""Text and tables as HTML, with everything escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

# HTML has no way to write most control characters, and UTF-8 none to write half a surrogate pair.
_UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def text(value: object) -> str:
    """`value` as HTML text or attribute content; characters that HTML cannot hold become U+FFFD."""
    return escape(_UNWRITABLE.sub("\ufffd", str(value)))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], words: frozenset[str] = frozenset()) -> str:
    """A table whose columns are set as numbers, except those named in `words`."""
    kinds = ["word" if column in words else "number" for column in columns]
    head = "".join(f'<th class="{kind}">{text(name)}</th>' for kind, name in zip(kinds, columns, strict=True))
    body = "".join(f"<tr>{_cells(kinds, row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(kinds: Sequence[str], row: Sequence[object]) -> str:
    return "".join(f'<td class="{kind}">{text(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))


def definitions(items: Iterable[tuple[object, object]]) -> str:
    """Names and values, one pair a line."""
    rows = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in items)
    return f"<dl>{rows}</dl>"
