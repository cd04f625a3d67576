"""What a user reads after a mistake in a run file: place, key path, given value, what is allowed, nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, ValidationError, model_validator

from lm.option_errors import explain
from lm.options import Options
from lm.yaml_tree import read_tree


class Circle(Options):
    kind: Literal["circle"]
    radius: float = Field(gt=0, description="Half its width.")


class Box(Options):
    kind: Literal["box"]
    sides: tuple[int, int] = (1, 1)
    colour: Literal["red", "green"] | None = None


class Drawing(Options):
    shapes: dict[str, Annotated[Circle | Box, Field(discriminator="kind")]] = Field(default={})
    layers: tuple[Box, ...] = Field(default=(Box(kind="box"),), min_length=1)
    width: int = Field(default=8, ge=1)
    title: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % 2:
            raise ValueError(f"width {self.width} must be even")
        if self.title == "bad":
            raise ValueError("title: another one, please")
        return self


class Page(Options):
    drawing: Drawing = Drawing()
    height: int | Literal["auto"] = Field(default=1, description="Lines.")


def complaint(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "page.yaml"
    path.write_text(text)
    tree = read_tree(path, overrides)
    with pytest.raises(ValidationError) as caught:
        Page.model_validate(tree.values)
    return explain(caught.value, Page, tree).replace(str(tmp_path) + "/", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "drawing:\n  widht: 3",
            "page.yaml:2: drawing.widht: unknown key. Did you mean 'width'? Known here: shapes, layers, width, title",
        ),
        ("width: 3", "page.yaml:1: width: unknown key. Did you mean drawing.width? Known here: drawing, height"),
        ("qqq: 3", "page.yaml:1: qqq: unknown key. Known here: drawing, height"),
        (
            "drawing:\n  shapes:\n    a: {kind: circle, raduis: 2}",
            "page.yaml:3: drawing.shapes.a.radius: missing, and it has no default. Half its width.\n"
            "page.yaml:3: drawing.shapes.a.raduis: unknown key. Did you mean 'radius'? Known here: kind, radius",
        ),
        (
            "drawing: {shapes: {circle: {kind: circle, radius: -1}}}",
            "page.yaml:1: drawing.shapes.circle.radius: given -1; should be greater than 0",
        ),
        (
            "drawing: {shapes: {a: {kind: circel}}}",
            "page.yaml:1: drawing.shapes.a: given kind 'circel'; allowed: 'circle', 'box'. Did you mean 'circle'?",
        ),
        ("drawing: {shapes: {a: {radius: 1}}}", "page.yaml:1: drawing.shapes.a: needs a kind: 'circle', 'box'"),
        (
            "drawing: {shapes: {a: {kind: box, colour: rde}}}",
            "page.yaml:1: drawing.shapes.a.colour: given 'rde'; allowed: 'red' or 'green'. Did you mean 'red'?",
        ),
        (
            "drawing: {shapes: {a: {kind: box, sides: [1, x]}}}",
            "page.yaml:1: drawing.shapes.a.sides.1: given 'x'; "
            "should be a valid integer, unable to parse string as an integer",
        ),
        (
            "drawing:\n  layers:\n  - {kind: box}\n  - {kind: box, side: 1}",
            "page.yaml:4: drawing.layers.1.side: unknown key. Did you mean 'sides'? Known here: kind, sides, colour",
        ),
        (
            "drawing: 3",
            "page.yaml:1: drawing: given 3; a section is expected, with the keys shapes, layers, width, title",
        ),
        (
            "drawing: {layers: [{kind: bx}]}",
            "page.yaml:1: drawing.layers.0.kind: given 'bx'; allowed: 'box'. Did you mean 'box'?",
        ),
        ("drawing: {layers: []}", "page.yaml:1: drawing.layers: given []; at least 1 entry is needed"),
        (
            "drawing: {shapes: {a: {kind: box, sides: [1, 2, 3]}}}",
            "page.yaml:1: drawing.shapes.a.sides: given [1, 2, 3]; at most 2 entries are allowed",
        ),
        (
            "drawing: {shapes: {a: {kind: box, sides: [1]}}}",
            "page.yaml:1: drawing.shapes.a.sides.1: missing, and it has no default.",
        ),
        ("drawing:\n  title: x\n  width: 3", "page.yaml:3: drawing.width: width 3 must be even"),
        ("drawing:\n  title: bad", "page.yaml:2: drawing.title: another one, please"),
    ],
)
def test_a_mistake_in_the_file(tmp_path: Path, text: str, expected: str) -> None:
    assert complaint(tmp_path, text) == expected


def test_a_mistake_on_the_command_line(tmp_path: Path) -> None:
    assert complaint(tmp_path, "height: 2", "drawing.width=0") == (
        "command line, drawing.width=0: drawing.width: given 0; should be greater than or equal to 1"
    )


def test_a_value_that_fits_no_member_of_a_union_is_shown_under_its_own_key(tmp_path: Path) -> None:
    lines = complaint(tmp_path, "height: atuo").split("\n")
    assert all(line.startswith("page.yaml:1: height: given 'atuo'; ") for line in lines)
    assert "allowed: 'auto'. Did you mean 'auto'?" in lines[-1]
