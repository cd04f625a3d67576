"""Leaving out an update whose gradient norm is known but not wanted, by DeepSpeed's own way of leaving one out.

Each of DeepSpeed's optimizers computes the global norm when all gradients are there, and drops them, on all ranks,
where it is infinite. So a veto is an infinite norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

Accept = Callable[[float], bool]
"""Told the gradient norm before clipping; whether the update is to be made."""


class Veto:
    """Asks before DeepSpeed applies gradients."""

    def __init__(self, engine: Any) -> None:
        self._optimizer = engine.optimizer
        self._accept: Accept | None = None
        self._refused: float | None = None
        name, norms = next((name, norms) for name, norms in _NORMS.items() if hasattr(self._optimizer, name))
        found = getattr(self._optimizer, name)
        setattr(self._optimizer, name, lambda *args, **named: norms(found(*args, **named), self._judged, named))

    def step(self, engine: Any, accept: Accept | None) -> tuple[float, bool]:
        """Applies the gradients if they are finite and accepted: their norm, and whether that was so."""
        self._accept, self._refused = accept, None
        engine.step()
        norm = float(engine.get_global_grad_norm()) if self._refused is None else self._refused
        return norm, bool(engine.was_step_applied())

    @property
    def refused(self) -> bool:
        """Whether the newest step was finite and left out all the same."""
        return self._refused is not None

    def _judged(self, scaled: Any) -> bool:
        """Whether the gradients are to be applied whose norm, times the loss scale, is `scaled`."""
        norm = float(scaled) / float(getattr(self._optimizer, "loss_scale", 1.0))
        if self._accept is None or not math.isfinite(norm) or norm < 0 or self._accept(norm):
            return True
        self._refused = norm
        return False


Judge = Callable[[Any], bool]


def _groups(norms: Any, judged: Judge, named: Any) -> Any:
    """Stage 3: one norm for each group of parameters."""
    from deepspeed.runtime.utils import combine_grad_norm_groups

    norm = combine_grad_norm_groups(norms)
    return norms if judged(norm) else [torch.full_like(norm, math.inf)]


def _whole(norm: Any, judged: Judge, named: Any) -> Any:
    """Stages 1 and 2: the norm."""
    return norm if judged(norm) else torch.full_like(torch.as_tensor(norm), math.inf)


def _gradients(gradients: Any, judged: Judge, named: Any) -> Any:
    """Stage 1 in bf16: the gradients, from which the norm is computed; asked for once more to be clipped."""
    from deepspeed.runtime.utils import get_global_norm_of_tensors

    if named.get("for_clipping"):
        return gradients
    dense, experts = gradients
    if judged(get_global_norm_of_tensors(input_tensors=dense)):
        return gradients
    return [torch.full_like(dense[0], math.inf)], experts


_NORMS: dict[str, Callable[[Any, Judge, Any], Any]] = {
    "_get_norm_groups": _groups,
    "scaled_global_norm": _whole,
    "get_grads_for_norm": _gradients,
}
"""What each optimizer computes the norm with, the more particular first."""
