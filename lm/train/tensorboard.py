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
        """`step`: the last finished step; what earlier starts of the run wrote of later ones is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(output / FOLDER), purge_step=step + 1 if step else None)
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
