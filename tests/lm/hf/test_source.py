from __future__ import annotations

import pytest

from lm.hf.source import ExternalImport, Module, Reference

TEXT = '''"""What it does."""

from __future__ import annotations

import os.path
from math import (
    pi,
    tau as turn,
)
from typing import TYPE_CHECKING

from lm.model.rope import rotate as _rotate
from pydantic import Field

if TYPE_CHECKING:
    from _typeshed import SupportsRead

__all__ = ["Thing"]

# Why it is so.
LIMIT: int = 3 if pi else 4


def _helper(x: Thing) -> int:
    from kernels.gated_scan import gated_scan

    return _rotate(x, gated_scan, "é") + LIMIT


class Thing:
    def _helper(self) -> int:
        return _helper(self)
'''


def module(text: str = TEXT) -> Module:
    return Module("lm.thing", text, {"pydantic": "lm.plain"})


def test_what_a_module_imports_and_defines() -> None:
    read = module()
    assert read.imported == {
        "_rotate": Reference("lm.model.rope", "rotate"),
        "Field": Reference("lm.plain", "Field"),
        "gated_scan": Reference("kernels.gated_scan", "gated_scan"),
    }
    assert set(read.needs) == {"lm.model.rope", "lm.plain", "kernels.gated_scan"}
    assert read.defines == ["LIMIT", "_helper", "Thing"]
    assert ExternalImport("turn", "math.tau", "from math import tau as turn") in read.external
    assert ExternalImport("os", "os", "import os.path") in read.external
    assert read.uses("pi")
    assert not read.uses("turn")


def test_rendered_without_imports_and_under_new_names() -> None:
    new = {"_rotate": "rotate", "_helper": "_helper_of_thing"}
    text = module().render(lambda name: new.get(name, name))
    assert (
        text
        == '''"""What it does."""


if TYPE_CHECKING:
    pass


# Why it is so.
LIMIT: int = 3 if pi else 4


def _helper_of_thing(x: Thing) -> int:
    pass

    return rotate(x, gated_scan, "é") + LIMIT


class Thing:
    def _helper(self) -> int:
        return _helper_of_thing(self)'''
    )


def test_a_name_that_is_also_local_cannot_be_changed() -> None:
    read = module("def size(): ...\n\n\ndef other(size: int) -> int:\n    return size\n")
    with pytest.raises(ValueError, match=r"lm\.thing: 'size' .* 'other'"):
        read.render(lambda name: f"new_{name}")


def test_modules_of_this_project_are_not_imported_whole() -> None:
    with pytest.raises(ValueError, match=r"lm\.thing, line 2"):
        module("import math\nimport lm.errors\n")
