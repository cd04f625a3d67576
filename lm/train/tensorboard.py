"""TensorBoard's files of a run, an extra: scalars, and a layout with the charts of `lm.train.dashboard`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.train.dashboard import SECTIONS
from lm.train.json_lines import Record

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Raises UserError where the package is missing."""
    if find_spec("tensorboard") is None:
        raise UserError("log.tensorboard needs a package: pip install 'braid-lm[tensorboard]', or set it to false.")


class TensorBoard:
    """The files in `tensorboard/` of a run's folder."""

    def __init__(self, output: Path, step: int) -> None:
        """`step`: the last finished step; what was written of later ones, by whatever start, is hidden."""
        self._folder = str(output / FOLDER)
        self._writer: Any = None
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Goes on after `step`, and hides what was written of later ones."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(self._folder, purge_step=step + 1)
        self._writer.add_custom_scalars(
            {
                section: {panel.title: ["Multiline", [f"^({panel.keys})$"]] for panel in panels}
                for section, panels in SECTIONS.items()
            }
        )

    def write(self, record: Record) -> None:
        for key, value in record.items():
            if isinstance(value, int | float) and key != "step":
                self._writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
        self._writer.close()
