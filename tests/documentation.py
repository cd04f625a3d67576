"""What the documentation says that a program can check: its commands, run files, links, paths and keys."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "docs" / "configuration.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [*sorted((ROOT / "configs").rglob("*.yaml")), *sorted((ROOT / "configs").glob("*.sbatch"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command line of a page, without its comment, its variables and where its output goes."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def fences(page: Path, language: str) -> list[str]:
    """The blocks of a page in one language."""
    return [text for kind, text in _FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose(page))]


def commands() -> list[Command]:
    """Every command that a page shows in a block, or a run file in its comment, once for each page."""
    found = []
    for page in PAGES:
        found += [Command(page.name, words) for text in fences(page, "sh") for words in _lines(text)]
    for script in SCRIPTS:
        comment = re.findall(r"^#  +(.*)$", script.read_text(encoding="utf-8"), re.MULTILINE)
        lines = [re.split(r" {3,}", line.partition("or: ")[2] or line)[0] for line in comment]
        programs = ("braid", "make", "sbatch", "python", "torchrun", "deepspeed")
        found += [Command(script.name, words) for words in _lines("\n".join(lines)) if words[0] in programs]
    return list(dict.fromkeys(found))


def _lines(text: str) -> Iterator[tuple[str, ...]]:
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split(" #")[0].split("&&"):
            words = shlex.split(part.split(" > ")[0])
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                del words[0]
            if words:
                yield tuple(words)


def keys_of(schema: dict[str, Any], path: list[str]) -> bool:
    """Whether a run file has the dotted key: names of its own choice and numbers of list entries may stand in it."""
    definitions = schema["$defs"]

    def known(part: dict[str, Any], rest: list[str]) -> bool:
        if "$ref" in part:
            return known(definitions[part["$ref"].rpartition("/")[2]], rest)
        choices = [*part.get("anyOf", ()), *part.get("oneOf", ())]
        if choices:
            return any(known(choice, rest) for choice in choices)
        if not rest:
            return True
        if rest[0] in part.get("properties", {}):
            return known(part["properties"][rest[0]], rest[1:])
        inner = part.get("additionalProperties", False) if part.get("type") == "object" else part.get("items", False)
        if inner in (True, {}):
            return True
        return isinstance(inner, dict) and known(inner, rest[1:])

    return known(schema, path)
