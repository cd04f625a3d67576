"""LongBench v1 and LongBench-E over a copy of their data."""

from __future__ import annotations

from eval.longbench.summary import summaries, summary_table
from eval.longbench.tasks import longbench_tasks, read_longbench

__all__ = ["longbench_tasks", "read_longbench", "summaries", "summary_table"]
