from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pytest

from lm.hf.plain_options import Field, Options, field_validator, model_validator


class Scaling(Options):
    kind: Literal["linear"] = "linear"
    factor: float = Field(ge=1, description="ignored")


class Steep(Scaling):
    kind: Literal["steep"] = "steep"
    power: int = 2


class Model(Options):
    scaling: Annotated[Scaling | Steep, Field(discriminator="kind")] | None = None
    named: dict[str, Annotated[Scaling | Steep, Field(discriminator="kind")]] = Field(default_factory=dict)
    widths: tuple[int, ...] = (1,)
    double: int | None = Field(None, description="none: derived")
    limit: ClassVar[int] = 7

    @field_validator("widths")
    @classmethod
    def _ignored(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        raise AssertionError("values were validated before the export")

    @model_validator(mode="after")
    def _derive(self) -> Model:
        object.__setattr__(self, "double", 2 * self.widths[0])
        return self


def test_nested_options_are_built_by_their_discriminator() -> None:
    model = Model(
        scaling={"kind": "steep", "factor": 2.0}, named={"a": {"kind": "linear", "factor": 3.0}}, widths=[4, 5]
    )
    assert model.scaling == Steep(factor=2.0, power=2)
    assert model.named == {"a": Scaling(factor=3.0)}
    assert (model.widths, model.double) == ((4, 5), 8)
    assert Model(**model.model_dump()) == model
    assert model.model_dump()["named"] == {"a": {"kind": "linear", "factor": 3.0}}


def test_options_are_frozen_values() -> None:
    one, same, other = Steep(factor=2.0), Steep(factor=2.0), Steep(factor=2.0, power=3)
    assert {one: 1}[same] == 1
    assert one not in (other, Scaling(factor=2.0))
    with pytest.raises(AttributeError, match="power"):
        one.power = 4
    assert repr(one) == "Steep(kind='steep', factor=2.0, power=2)"


@pytest.mark.parametrize(
    ("values", "message"),
    [({"powr": 1, "factor": 1.0}, "powr"), ({}, "factor is missing")],
)
def test_unknown_and_missing_names(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Steep(**values)


def test_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown kind 'cubic'"):
        Model(scaling={"kind": "cubic"})
