"""Looks into steps: statistics of the layers at their interval, and profiler traces of chosen steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from lm.train.distributed import World
from lm.train.observe.figures import joined
from lm.train.observe.layers import LayerStatistics, layers_of
from lm.train.observe.options import ObserveOptions
from lm.train.observe.profile import StepProfiler
from lm.train.options import TrainOptions
from lm.train.periodic import at_interval


class Observation:
    """What the loop puts around the forwards and backwards of every step."""

    def __init__(
        self,
        options: ObserveOptions,
        train: TrainOptions,
        model: nn.Module,
        num_layers: int,
        world: World,
        output: Path,
    ) -> None:
        """model: as it is trained, of `num_layers`. output: the run's folder."""
        self._every = options.every
        self._last = train.steps
        self._world = world
        self._layers = LayerStatistics(model, layers_of(model, num_layers), options.queries)
        self._profiler = StepProfiler(output, train.profile, world.rank)

    @contextmanager
    def step(self, step: int) -> Iterator[dict[str, float]]:
        """Around one step, counted from 1; the figures for its record are there when it ends. Collective."""
        figures: dict[str, float] = {}
        with self._profiler.step(step):
            if not self._due(step):
                yield figures
                return
            with self._layers.watching():
                yield figures
            figures |= joined(self._world.gather(self._layers.figures()))

    def close(self) -> None:
        """Writes the trace that is under way, where no further step comes."""
        self._profiler.close()

    def _due(self, step: int) -> bool:
        return self._every is not None and (step == 1 or at_interval(step, self._every, self._last))
