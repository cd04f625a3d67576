"""A run file as plain values, with the place that each value came from.

The YAML read here is the JSON-like core: `true`, `false`, `null`, numbers (`3e-4` and `1_000_000` too), strings, lists
and mappings. The surprises of YAML 1.1 are left out: `off` and `no` are strings, `12:30` is no number, dates are text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lm.errors import UserError, did_you_mean

KeyPath = tuple[str | int, ...]

_NO_YAML = ("*", "@", "%", "`")
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML keeps this table on the class

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be a plain word"
            elif key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                problem = f"the key '{key.value}' stands twice in this section"
            else:
                seen.add(key.value)
                continue
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that either this reader or a YAML 1.1 reader would take for something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _tag, (_regex, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_regex})$"), list(_first))


@dataclass
class Tree:
    """The values of a run file after its overrides, and where each was written.

    Attributes:
        values: The nested mapping.
        file: The run file.
        lines: Line in the file, from 1, by key path.
        overrides: The override text, as typed, by the key path it set.
    """

    values: dict[str, Any]
    file: Path
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overrides: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Where to look for a key path: `command line` or `FILE:LINE`, from its nearest parent that was written."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.overrides:
                return f"command line, {self.overrides[path[:end]]}"
            if path[:end] in self.lines:
                return f"{self.file}:{self.lines[path[:end]]}"
        return str(self.file)

    def knows(self, path: KeyPath) -> bool:
        """Whether this key path was written, in the file or on the command line."""
        return path in self.lines or path in self.overrides

    def forget_below(self, path: KeyPath) -> None:
        """Forgets where the keys below one were written, which has got another value."""
        for written in (self.lines, self.overrides):
            for key in [key for key in written if len(key) > len(path) and key[: len(path)] == path]:
                del written[key]  # type: ignore[attr-defined]


def read_tree(file: Path, overrides: Sequence[str] = ()) -> Tree:
    """The run file with dotted overrides such as `train.steps=10` applied in order.

    Raises UserError if the file cannot be read or is not YAML with a mapping at its top, and for an override that
    is not `key=value` or does not fit the tree.
    """
    values, node = _parse(_text(file), str(file))
    if not isinstance(values, dict) or node is None:
        raise UserError(f"{file}: a run file is a mapping with sections such as `model:` and `data:`")
    tree = Tree(values, file)
    for path, line in _lines(node, (), set()):
        tree.lines.setdefault(path, line)
    for override in overrides:
        _apply(tree, override)
    return tree


def dump_tree(values: Any) -> str:
    """YAML text which `read_tree` reads back as equal values; sections in the given order."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, indent=2)
    return text


def dotted(path: KeyPath) -> str:
    """`("data", "sources", 0)` as the user types it: `data.sources.0`."""
    return ".".join(map(str, path))


def key_path(dotted_key: str) -> KeyPath:
    """What `dotted` wrote, as a path again."""
    return tuple(int(key) if key.isdecimal() else key for key in dotted_key.split("."))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = file.parent
        near = [str(other) for other in folder.glob("*.y*ml")] if folder.is_dir() else []
        raise UserError(f"{file}: there is no such run file.{did_you_mean(str(file), near) or _shipped()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: a run file is UTF-8 text, and this is not") from None
    except OSError as error:
        raise UserError(f"{file}: the run file cannot be read: {error.strerror}") from None


def _shipped() -> str:
    """Where run files to start from lie, in a source tree."""
    folder = Path(__file__).resolve().parents[1] / "configs"
    return f" There are some to start from in {folder}." if folder.is_dir() else ""


def _parse(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return (None if node is None else loader.construct_object(node, deep=True)), node
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}: not readable as YAML{place}: {problem}") from None
    finally:
        loader.dispose()


def _lines(node: yaml.Node, path: KeyPath, seen: set[int]) -> Iterator[tuple[KeyPath, int]]:
    yield path, node.start_mark.line + 1
    if id(node) in seen:  # an anchor used again
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines(value, (*path, key.value), seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*path, index), seen)


def _apply(tree: Tree, override: str) -> None:
    where = f"command line, {override}"
    dotted_key, equals, text = override.partition("=")
    keys = dotted_key.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"{where}: an override is written key=value, for example train.steps=10")
    # Nothing on a command line can be referred to, so such words are globs and names.
    value = text if text.startswith(_NO_YAML) else _parse(text, where)[0]
    path: list[str | int] = []
    place: Any = tree.values
    for key in keys[:-1]:
        step = _step(place, key, where, path)
        path.append(step)
        if isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place[step] = copy.copy(place[step])  # by an alias it may stand elsewhere, too
        place = place[step]
    last = _step(place, keys[-1], where, path)
    place[last] = value
    path.append(last)
    tree.forget_below(tuple(path))
    tree.overrides[tuple(path)] = override


def _step(place: Any, key: str, where: str, path: list[str | int]) -> str | int:
    """The key under which `key` is found in `place`: itself, or a list index; the next free one appends a section."""
    parent = dotted(tuple(path)) or "the run file"
    if isinstance(place, dict):
        return key
    if not isinstance(place, list):
        raise UserError(f"{where}: {parent} is the value {place!r}, not a section that holds '{key}'")
    if not key.isdecimal() or int(key) > len(place):
        raise UserError(
            f"{where}: {parent} is a list of {len(place)}; its entries count from 0, and '{key}' is none "
            f"({len(place)} appends one)"
        )
    if int(key) == len(place):
        place.append({})
    return int(key)
