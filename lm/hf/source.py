"""A module of this project as text that can stand in one file with others: its imports, its names, and new names."""

from __future__ import annotations

import ast
import importlib.util
import re
import symtable
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

OURS = ("kernels", "lm")


@dataclass(frozen=True)
class Reference:
    """A name that a module of this project holds."""

    module: str
    name: str


@dataclass(frozen=True)
class ExternalImport:
    """An import from another package: the name it binds, what that is, and the statement."""

    bound: str
    origin: str
    statement: str


class Module:
    """One source file.

    imported: what its local names of this project's things refer to. external: its imports of other packages.
    defines: the names it gives at its top level, in order.
    """

    def __init__(self, name: str, text: str, stand_ins: Mapping[str, str]) -> None:
        """stand_ins: modules of this project that take the place of others in imports, by name."""
        self.name, self.text = name, text
        self.imported: dict[str, Reference] = {}
        self.external: list[ExternalImport] = []
        self._tree = ast.parse(text)
        self._line_starts = [0, *accumulate(len(line.encode()) + 1 for line in text.split("\n"))]
        self._stand_ins = stand_ins
        self._top = [node for node in self._tree.body if not _is_dropped(node)]
        self._read_imports()
        self.defines = list(dict.fromkeys(name for node in self._top for name in _bound_names(node)))

    @property
    def needs(self) -> list[str]:
        """The modules of this project that it imports from, in order."""
        return list(dict.fromkeys(reference.module for reference in self.imported.values()))

    def uses(self, name: str) -> bool:
        """Whether its code mentions a name at all."""
        return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(self._tree))

    def render(self, names: Callable[[str], str]) -> str:
        """The text without imports of this project and top-level imports, its names called what `names` says."""
        edits = [*self._without_imports(), *self._renamed(names)]
        text = self.text.encode()
        for begin, end, replacement in sorted(edits, reverse=True):
            text = text[:begin] + replacement.encode() + text[end:]
        return re.sub(r"\n{4,}", "\n\n\n", text.decode()).strip("\n")

    def _read_imports(self) -> None:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ImportFrom) and (source := self._ours(node)):
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = Reference(source, alias.name)
            elif isinstance(node, ast.Import) and any(self._is_ours(alias.name) for alias in node.names):
                raise ValueError(
                    f"{self.name}, line {node.lineno}: import names from modules of this project, not them"
                )
        for node in self._top:
            if isinstance(node, ast.Import | ast.ImportFrom) and not self._ours(node):
                self.external += _external(node)

    def _ours(self, node: ast.stmt) -> str | None:
        """The module of this project that the statement imports from."""
        if not isinstance(node, ast.ImportFrom) or node.module is None or not self._is_ours(node.module):
            return None
        return self._stand_ins.get(node.module, node.module)

    def _is_ours(self, module: str) -> bool:
        return module in self._stand_ins or module.partition(".")[0] in OURS

    def _without_imports(self) -> Iterator[tuple[int, int, str]]:
        for node in ast.iter_child_nodes(self._tree):
            if isinstance(node, ast.stmt) and (isinstance(node, ast.Import | ast.ImportFrom) or _is_dropped(node)):
                begin, end = self._span(node)
                yield begin, end + 1, ""  # with the end of its line
            else:
                type_checking = isinstance(node, ast.If) and _mentions(node.test, "TYPE_CHECKING")
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Import | ast.ImportFrom) and (type_checking or self._ours(inner)):
                        yield *self._span(inner), "pass"

    def _renamed(self, names: Callable[[str], str]) -> Iterator[tuple[int, int, str]]:
        new = {name: names(name) for name in (*self.defines, *self.imported) if names(name) != name}
        for name in new:
            self._require_unshadowed(name)
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Name) and node.id in new:
                yield *self._span(node), new[node.id]
        for node in self._top:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in new:
                begin = self._offset(node.lineno, node.col_offset)
                begin = self.text.encode().index(node.name.encode(), begin)
                yield begin, begin + len(node.name.encode()), new[node.name]

    def _require_unshadowed(self, name: str) -> None:
        scopes = [symtable.symtable(self.text, self.name, "exec")]
        while scopes:
            scope = scopes.pop()
            scopes += scope.get_children()
            if scope.get_type() == "function" and name in scope.get_identifiers() and scope.lookup(name).is_local():
                raise ValueError(
                    f"{self.name}: '{name}' must be renamed for the exported file, but is also a local name in "
                    f"'{scope.get_name()}': give one of them another name"
                )

    def _span(self, node: ast.stmt | ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno, node.end_col_offset)

    def _offset(self, line: int, column: int) -> int:
        """Bytes before a place that ast names by line and byte."""
        return self._line_starts[line - 1] + column


def source_of(name: str) -> str:
    """The text of a module of this project."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _is_dropped(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__"
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(_mentions(target, "__all__") for target in targets)


def _mentions(node: ast.AST, name: str) -> bool:
    return any(isinstance(inner, ast.Name) and inner.id == name for inner in ast.walk(node))


def _bound_names(node: ast.AST) -> Iterator[str]:
    """The names a top-level statement binds, those inside functions and classes left out."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        for child in ast.iter_child_nodes(node):
            yield from _bound_names(child)


def _external(node: ast.Import | ast.ImportFrom) -> Iterator[ExternalImport]:
    for alias in node.names:
        renamed = f" as {alias.asname}" if alias.asname else ""
        if isinstance(node, ast.ImportFrom):
            origin, statement = f"{node.module}.{alias.name}", f"from {node.module} import {alias.name}{renamed}"
        else:
            origin = alias.name if alias.asname else alias.name.partition(".")[0]
            statement = f"import {alias.name}{renamed}"
        bound = alias.asname or (origin if isinstance(node, ast.Import) else alias.name)
        yield ExternalImport(bound, origin, statement)
