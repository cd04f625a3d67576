"""Token mixers, one file each. Every module of this package that defines a `Mixer` is found by its kind."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

from lm.model.mixers.base import Dimensions, Mixer, MixerOptions
from lm.model.mixers.softmax import SoftmaxMixer

__all__ = ["MIXERS", "Dimensions", "Mixer", "MixerOptions", "SoftmaxMixer", "build_mixer"]


def _find_mixers() -> dict[str, type[Mixer[Any]]]:
    found: dict[str, type[Mixer[Any]]] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for member in vars(module).values():
            if inspect.isclass(member) and issubclass(member, Mixer) and "options_class" in vars(member):
                found[member.options_class.model_fields["kind"].default] = member
    return found


MIXERS: dict[str, type[Mixer[Any]]] = _find_mixers()


def build_mixer(options: MixerOptions, dimensions: Dimensions) -> Mixer[Any]:
    """The mixer module that `options.kind` names."""
    return MIXERS[options.kind](options, dimensions)
