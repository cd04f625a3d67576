"""The configuration reference: the JSON schema of run files as tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_INTRODUCTION = """\
# Configuration

Every key of a run file, written by `braid schema --markdown` from the options themselves. `NAME` stands for a name of
your choice, `0` for an entry of a list counted from 0. On the command line a key is set as `train.steps=10`.
A run file has the section `model`, or, to start from a pretrained model, `base` in its place, with `extend` or `graft`.
"""
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def reference(schema: Schema) -> str:
    """Markdown with a table for each section of the run files that `schema` (`lm.run_file.json_schema`) describes."""
    definitions = schema["$defs"]
    sections: dict[str, Schema] = {}
    for run in schema["anyOf"]:
        for key, section in _definition(run, definitions)["properties"].items():
            sections.setdefault(key, section)
    seen: dict[str, str] = {}
    blocks = [block for key, section in sections.items() for block in _sections(key, section, definitions, seen)]
    return "\n".join([_INTRODUCTION, *blocks])


def _sections(path: str, schema: Schema, definitions: Schema, seen: dict[str, str]) -> Iterator[str]:
    """A block for each section at or below a key, each options class once; `seen` holds where each was shown."""
    for place, name in _references(path, schema):
        if name in seen:
            continue
        seen[name] = place
        section = definitions[name]
        chosen = next(
            (f", {key} `{value['const']}`" for key, value in section["properties"].items() if "const" in value), ""
        )
        rows = [
            _row(key, value, key in section.get("required", ()), seen) for key, value in section["properties"].items()
        ]
        table = ["| key | value | default | meaning |", "|---|---|---|---|", *rows]
        yield "\n".join([f"## `{place}`{chosen}", "", section["description"], "", *table, ""])
        for key, value in section["properties"].items():
            yield from _sections(f"{place}.{key}", value, definitions, seen)


def _references(path: str, schema: Schema) -> Iterator[tuple[str, str]]:
    """The options classes that a value may be made of, each under the key path of one."""
    if "$ref" in schema:
        yield path, _name(schema)
    for member in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        yield from _references(path, member)
    if isinstance(schema.get("items"), dict):
        yield from _references(f"{path}.0", schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _references(f"{path}.NAME", schema["additionalProperties"])


def _row(key: str, schema: Schema, required: bool, seen: dict[str, str]) -> str:
    default = "required" if required else f"`{json.dumps(schema.get('default'), ensure_ascii=False)}`"
    if isinstance(schema.get("default"), dict):
        default = "its defaults"
    meaning = schema.get("description", "Chooses this section.")
    cells = (f"`{key}`", _value(schema, seen), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(schema: Schema, seen: dict[str, str]) -> str:
    """The allowed values in words."""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return f"section, as `{seen[_name(schema)]}`" if _name(schema) in seen else "section"
    if members := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_value(member, seen) for member in members))
    if schema["type"] == "array":
        items = schema.get("items") or schema["prefixItems"][0]
        return f"list of: {_value(items, seen)}"
    if schema["type"] == "object":
        return f"by name: {_value(schema['additionalProperties'], seen)}"
    kind = "path" if schema.get("format") == "path" else schema["type"]
    limits = [f"{sign} {schema[limit]}" for limit, sign in _LIMITS.items() if limit in schema]
    return " ".join([kind, " and ".join(limits)]).rstrip()


def _definition(schema: Schema, definitions: Schema) -> Schema:
    found: Schema = definitions[_name(schema)]
    return found


def _name(schema: Schema) -> str:
    return str(schema["$ref"].rpartition("/")[2])
