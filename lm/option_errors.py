"""Turns what pydantic found wrong with an options tree into lines that say what to change, and where."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from lm.errors import UserError, did_you_mean
from lm.options import Options
from lm.yaml_tree import KeyPath, Tree, dotted, key_path


@contextmanager
def placing(tree: Tree) -> Iterator[None]:
    """Puts the place of its key before a mistake that is found within."""
    try:
        yield
    except UserError as error:
        raise UserError(placed(error, tree)) from None


def placed(error: UserError, tree: Tree) -> str:
    """The message behind the place of the key that it begins with."""
    key = str(error).partition(":")[0]
    return f"{tree.origin(key_path(key))}: {error}"


def explain(error: ValidationError, root: type[Options], tree: Tree) -> str:
    """One line per mistake: where it was written, the key path, the given value, what is allowed, the nearest name."""
    lines = []
    details = [(detail, *_locate(root, detail["loc"])) for detail in error.errors(include_url=False)]
    for detail, path, holder, expected in details:
        inside = any(len(other) > len(path) and other[: len(path)] == path for _, other, *_ in details)
        if detail["type"] == "too_short" and inside:
            continue  # short only because its entries are wrong, which is said elsewhere
        sentence = _sentence(detail, path, root, holder, expected)
        place = tree.origin((*path, "kind") if detail["type"] == "union_tag_invalid" else path)
        if detail["type"] == "value_error":
            place, path, sentence = _of_section(sentence, path, tree)
        said = not path or sentence.startswith(dotted(path))
        lines.append(f"{place}: {sentence}" if said else f"{place}: {dotted(path)}: {sentence}")
    return "\n".join(lines)


def _of_section(sentence: str, section: KeyPath, tree: Tree) -> tuple[str, KeyPath, str]:
    """Place, key path and sentence of a check that covers a whole section.

    The overrides inside it that the sentence speaks of are the place; without any it is the key named first.
    """
    words = set(re.findall(r"[\w-]+", sentence))
    path, shortened = _named_first(sentence, section, tree)
    blamed = {
        key: text
        for key, text in tree.overrides.items()
        if key[: len(section)] == section and len(key) > len(section) and str(key[-1]) in words
    }
    if not blamed or path in blamed:
        return tree.origin(path), path, shortened
    return f"command line, {' '.join(blamed.values())}", section, sentence


def _named_first(sentence: str, path: KeyPath, tree: Tree) -> tuple[KeyPath, str]:
    """The key that a check of a whole section names first (`layers: …`, `hidden_size 512 is …`): its line is the
    one to show."""
    word = re.match(r"[\w.-]*", sentence)[0]  # type: ignore[index]
    named = (*path, *word.rstrip(".").split("."))
    if not tree.knows(named):
        return path, sentence
    return named, sentence.removeprefix(f"{word}: ")


def _locate(root: type[Options], location: tuple[str | int, ...]) -> tuple[KeyPath, type[Options], Any]:
    """The key path of a pydantic location, the options class that holds its last key, and the type expected there.

    Pydantic's locations also name the chosen members of unions; those are no keys and are left out.
    """
    path: list[str | int] = []
    holder, expected = root, _bare(root)
    for part in location:
        if _is_union(expected):
            expected = _bare(_member(expected, part))
        elif _is_options(expected):
            holder, known = expected, expected.model_fields.get(str(part))
            path.append(part)
            expected = _bare(known.annotation) if known else Any
        elif get_origin(expected) in (dict, list, tuple):
            if part == "[key]":
                continue
            path.append(part)
            expected = _bare(_item(expected, part))
    return tuple(path), holder, expected


def _sentence(detail: Any, path: KeyPath, root: type[Options], holder: type[Options], expected: Any) -> str:
    kind, context, given = detail["type"], detail.get("ctx", {}), detail["input"]
    message = detail["msg"].removeprefix("Input ")
    if kind == "extra_forbidden":
        key = str(path[-1])
        return f"unknown key.{_nearest(key, holder, root)} Known here: {', '.join(holder.model_fields)}"
    if kind == "missing":
        known = holder.model_fields.get(str(path[-1]))  # none of an entry of a list
        described = None if known is None else known.description
        return f"missing, and it has no default. {described or ''}{_required(expected)}".rstrip()
    if kind == "value_error":
        return str(context["error"])
    if kind == "too_short":
        return f"given {given!r}; at least {_entries(context['min_length'])} needed"
    if kind == "too_long":
        return f"given {given!r}; at most {_entries(context['max_length'])} allowed"
    if kind == "literal_error":
        return f"given {given!r}; allowed: {context['expected']}.{_near_value(given, context['expected'])}"
    if kind == "union_tag_invalid":
        allowed = context["expected_tags"]
        return f"given kind {context['tag']!r}; allowed: {allowed}.{_near_kind(context['tag'], allowed, expected)}"
    if kind == "union_tag_not_found":
        return f"needs a kind: {', '.join(map(repr, _kinds(expected)))}"
    if _is_options(expected):
        return f"given {given!r}; a section is expected, with the keys {', '.join(expected.model_fields)}"
    return f"given {given!r}; {message}"


def _entries(count: int) -> str:
    return "1 entry is" if count == 1 else f"{count} entries are"


def _nearest(key: str, holder: type[Options], root: type[Options]) -> str:
    near = did_you_mean(key, holder.model_fields)
    if near:
        return near
    for section, info in root.model_fields.items():
        if _is_options(info.annotation) and key in info.annotation.model_fields:  # type: ignore[union-attr]
            return f" Did you mean {section}.{key}?"
    return ""


def _near_value(given: Any, allowed: str) -> str:
    """`allowed` is pydantic's list of quoted words."""
    return did_you_mean(str(given), re.findall(r"'([^']*)'", allowed))


def _near_kind(tag: str, allowed: str, union: Any) -> str:
    """The nearest kind; for a word that is no kind but a choice within one, how that is written."""
    for member in map(_bare, get_args(union)):
        for name, known in member.model_fields.items() if _is_options(member) else ():
            choice = _bare(known.annotation)
            if name != "kind" and get_origin(choice) is Literal and tag in get_args(choice):
                return f" Did you mean kind {next(_kinds(member))} with {name}: {tag}?"
    return _near_value(tag, allowed)


def _required(expected: Any) -> str:
    keys = [key for key, known in expected.model_fields.items() if known.is_required()] if _is_options(expected) else []
    return f" Required in it: {', '.join(keys)}" if keys else ""


def _bare(annotation: Any) -> Any:
    """The annotation without `Annotated` and without `None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if _is_union(annotation):
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        return _bare(members[0]) if len(members) == 1 else Union[tuple(members)]  # noqa: UP007
    return annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _is_options(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Options)


def _member(union: Any, label: str | int) -> Any:
    """The member of a union that pydantic calls `label`: by its kind, else by its class name."""
    for member in get_args(union):
        bare = _bare(member)
        if _is_options(bare) and label in list(_kinds(bare)):
            return bare
        if getattr(bare, "__name__", None) == label:
            return bare
    return Any


def _kinds(annotation: Any) -> Iterator[str]:
    """The values of `kind` that choose this options class, or any member of this union."""
    for member in get_args(annotation) if _is_union(annotation) else (annotation,):
        bare = _bare(member)
        kind = bare.model_fields.get("kind") if _is_options(bare) else None
        if kind is not None and get_origin(kind.annotation) is Literal:
            yield from get_args(kind.annotation)


def _item(container: Any, key: str | int) -> Any:
    """The annotation of one entry of a dict, list or tuple annotation."""
    arguments = get_args(container) or (Any,)
    if get_origin(container) is dict:
        return arguments[-1]
    if get_origin(container) is tuple and isinstance(key, int) and Ellipsis not in arguments:
        return arguments[min(key, len(arguments) - 1)]
    return arguments[0]
