"""Options without pydantic: what takes the place of `lm.options` and of pydantic in the code of an exported model.

An exported model's options were validated when it was trained, so here values are taken as they come: constraints and
field validators are ignored. Defaults, nested options, unknown names and validators of a whole model work alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints


class Field:
    """Default and discriminator of an option; everything else pydantic's `Field` takes is ignored."""

    def __init__(
        self,
        default: Any = ...,
        *,
        default_factory: Callable[[], Any] | None = None,
        discriminator: str | None = None,
        **ignored: Any,
    ) -> None:
        self.default, self.default_factory, self.discriminator = default, default_factory, discriminator

    def value(self, name: str) -> Any:
        """The value of an option that was left out."""
        if self.default_factory is not None:
            return self.default_factory()
        if self.default is ...:
            raise ValueError(f"{name} is missing")
        return self.default


def model_validator(*, mode: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Has the method called when all options are set, where mode is "after"; others are ignored."""

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        method.validates = mode == "after"  # type: ignore[attr-defined]
        return method

    return mark


def field_validator(*names: str, mode: str = "after") -> Callable[[Any], Any]:
    """Leaves the method uncalled."""
    return lambda method: method


class Options:
    """A frozen set of named values. Subclasses declare them as annotations, with values or `Field`s as defaults."""

    model_fields: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {}
        for name, hint in inspect.get_annotations(cls).items():
            if not str(hint).startswith(("ClassVar", "typing.ClassVar")):
                given = cls.__dict__.get(name, ...)
                own[name] = given if isinstance(given, Field) else Field(given)
        cls.model_fields = {**cls.model_fields, **own}

    def __init__(self, **values: Any) -> None:
        if unknown := sorted(values.keys() - self.model_fields.keys()):
            raise ValueError(f"{type(self).__name__} has no option {', '.join(unknown)}")
        hints = get_type_hints(type(self), include_extras=True)
        for name, field in self.model_fields.items():
            value = values[name] if name in values else field.value(name)
            object.__setattr__(self, name, _build(value, hints[name]))
        methods = {name: method for cls in reversed(type(self).__mro__) for name, method in vars(cls).items()}
        for method in methods.values():
            if getattr(method, "validates", False):
                method(self)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be set")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._values() == self._values()

    def __hash__(self) -> int:
        return hash((type(self), *self._values().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values().items())})"

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """The values as plain dicts and lists."""
        return {name: _dump(value) for name, value in self._values().items()}

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields}


def _dump(value: Any) -> Any:
    if isinstance(value, Options):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: _dump(item) for key, item in value.items()}
    return [_dump(item) for item in value] if isinstance(value, list | tuple) else value


def _build(value: Any, hint: Any) -> Any:
    """The value with options in place of plain dicts wherever the annotation says so."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        fields = [extra for extra in arguments[1:] if isinstance(extra, Field)]
        discriminator = next((field.discriminator for field in fields if field.discriminator), None)
        return _build_one_of(value, arguments[0], discriminator)
    if origin is dict and isinstance(value, dict):
        return {key: _build(item, arguments[1]) for key, item in value.items()}
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(_build(item, arguments[0]) for item in value)
    return _build_one_of(value, hint, None)


def _build_one_of(value: Any, hint: Any, discriminator: str | None) -> Any:
    if not isinstance(value, dict):
        return value
    members = get_args(hint) or (hint,)
    options = [member for member in members if inspect.isclass(member) and issubclass(member, Options)]
    if discriminator is not None:
        options = [o for o in options if o.model_fields[discriminator].default == value.get(discriminator)]
        if not options:
            raise ValueError(f"unknown {discriminator} {value.get(discriminator)!r}")
    if options:
        return options[0](**value)
    nested = [member for member in members if get_origin(member) is not None and member is not hint]
    return _build(value, nested[0]) if nested else value
