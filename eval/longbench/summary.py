"""LongBench's tables: scores out of 100, their means over categories, and the mean of those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from eval.longbench.tasks import BUCKETS, RULES
from eval.results import Results
from eval.terminal import titled_table

LANGUAGES = {"english": ("en", "code"), "chinese": ("zh", "code")}
"""What the benchmark's two tables count in: code is in both."""
CATEGORIES = tuple(dict.fromkeys(rules.category for rules in RULES.values()))
AVERAGE = "average"


def summary(scores: Mapping[str, float]) -> dict[str, Any]:
    """The benchmark's means of task scores from 0 to 1, by the task's name: `scores` and `means`, out of 100.

    `means` has `english` and `chinese`, for LongBench-E one entry for each bucket such as `4-8k`. An entry holds a
    category where all its tasks were run, and `average`, the mean of the six categories, where all of them are there.
    """
    known = {name: score for name, score in scores.items() if name in RULES}
    means = {table: _means(known, _wanted(languages)) for table, languages in LANGUAGES.items()}
    for bucket in BUCKETS:
        ending = f"_e/{bucket}"
        parts = {name.removesuffix(ending): score for name, score in scores.items() if name.endswith(ending)}
        means[bucket] = _means(parts, [name for name, rules in RULES.items() if rules.extended])
    return {
        "scores": {name: round(100 * score, 2) for name, score in scores.items()},
        "means": {table: found for table, found in means.items() if found},
    }


def _wanted(languages: tuple[str, ...]) -> list[str]:
    return [name for name, rules in RULES.items() if rules.language in languages]


def _means(scores: Mapping[str, float], wanted: list[str]) -> dict[str, float]:
    means = {}
    for category in CATEGORIES:
        names = [name for name in wanted if RULES[name].category == category]
        if all(name in scores for name in names):
            means[category] = 100 * sum(scores[name] for name in names) / len(names)
    if means.keys() == set(CATEGORIES):
        means[AVERAGE] = sum(means.values()) / len(means)
    return {name: round(mean, 2) for name, mean in means.items()}


def summaries(results: Results) -> dict[int, dict[str, Any]]:
    """The summary at each length that an evaluation asked LongBench at."""
    return {
        length: summary({cell.task: cell.estimate.mean for cell in results.cells if cell.length == length})
        for length in results.lengths
    }


def summary_table(length: int, means: Mapping[str, Mapping[str, float]]) -> Table:
    """The means of one summary, for a terminal."""
    table = titled_table(f"LongBench in {length:,} tokens: means of its categories")
    table.add_column("category")
    for name in means:
        table.add_column(name, justify="right")
    for category in (*CATEGORIES, AVERAGE):
        found = [f"{mean[category]:.1f}" if category in mean else "" for mean in means.values()]
        if any(found):
            table.add_row(category.replace("_", " "), *found)
    return table
