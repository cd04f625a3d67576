"""Which figures of a run are looked at together: one list for wandb, TensorBoard and the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """One chart. keys: a regular expression that the whole name of a metric matches.

    log: a logarithmic axis. from_zero: one that begins at 0.
    """

    title: str
    keys: str
    label: str = ""
    log: bool = False
    from_zero: bool = False

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Those of the names that it shows, in their order."""
        return [name for name in names if re.fullmatch(self.keys, name)]


def _per_layer(title: str, metric: str, label: str, log: bool = False) -> Panel:
    return Panel(title, rf"layers/{metric}/.*", label, log)


LAYERS = (
    _per_layer("Largest attention logit", "logit_max", "|q k| scaled", log=True),
    _per_layer("Attention entropy", "entropy", "nats"),
    _per_layer("Half-life of gates", "half_life", "tokens", log=True),
    _per_layer("Size of activations", "activation_rms", "root mean square", log=True),
    _per_layer("Size of gradients", "gradient_rms", "root mean square", log=True),
)
"""A series for each layer, or each head group of it."""

SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Training": (
        Panel("Loss", "loss|(average_)?validation_loss", "nats per token"),
        Panel("Gradient norm", "grad_norm", log=True),
        Panel("Learning rate", "learning_rate", from_zero=True),
        Panel("Held-out accuracy", "validation_accuracy", "share", from_zero=True),
        Panel("Layers against the original", r"layer_\d+", "distance"),
    ),
    "Speed": (
        Panel("Tokens per second", "tokens_per_second", from_zero=True),
        Panel("Model FLOPs utilisation", "mfu", "share of peak", from_zero=True),
        Panel("Seconds of a step", "step_seconds|data_seconds", "seconds", from_zero=True),
        Panel("Peak memory", "peak_memory", "bytes", from_zero=True),
    ),
    "Layers": LAYERS,
    "Context": (
        Panel("Loss by position", r"position_loss/\d+", "nats per token", log=True),
        Panel("Recall", r"recall/\d+", "share said again", from_zero=True),
        Panel("Recall, loss", r"recall/\d+/nll", "nats per token", log=True),
        Panel("Tasks", r"eval/.+@\d+", "score", from_zero=True),
        Panel("Tasks, loss of the answers", r"eval/.+@\d+/nll", "nats per token"),
    ),
}
