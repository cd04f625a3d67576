"""`report.html`: what a run did, on one page that needs no other file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.train.report.data import ReportData, load_report_data, save_report_data

REPORT_FILE = "report.html"

__all__ = ["REPORT_FILE", "ReportData", "load_report_data", "save_report_data", "write_report"]


def write_report(output: Path) -> Path:
    """Writes `report.html` from the files of an output folder, replacing an older one; returns its path.

    May be called at any time, during training too. Raises UserError as `load_report_data` does.
    """
    from lm.train.report.data import load_report_data
    from lm.train.report.page import render

    path = output / REPORT_FILE
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(render(load_report_data(output)), encoding="utf-8")
    temporary.replace(path)
    return path


def __getattr__(name: str) -> Any:
    """The data's names when they are asked for: they need torch, and the curves that `braid watch` draws do not."""
    if name in __all__:
        from lm.train.report import data

        return getattr(data, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
