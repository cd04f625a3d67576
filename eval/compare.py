"""Results side by side: what differs between two models on the same questions, and the tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from eval.results import Cell, Record, Results, common_tasks
from eval.statistics import Paired, compare_paired, percent
from lm.train.format import byte_size, short_number

NOT_PAIRED = "other prompts: not paired"
PAIRS = "pairs: better/worse on the same prompts; p: of their exact test"


@dataclass(frozen=True)
class Contrast:
    """A task at a length that two models were asked. paired: None where their prompts differ."""

    first: Cell
    second: Cell
    paired: Paired | None

    @property
    def difference(self) -> float:
        return self.second.estimate.mean - self.first.estimate.mean

    def words(self) -> tuple[str, str, str, str]:
        """Difference in points, its interval, p, and the test."""
        difference = f"{100 * self.difference:+.1f}"
        if self.paired is None:
            return difference, "", "", NOT_PAIRED
        low, high = f"{100 * self.paired.low:+.1f}", f"{100 * self.paired.high:+.1f}"
        test = f"{self.paired.test}, {self.paired.better} better, {self.paired.worse} worse"
        return difference, f"[{low}, {high}]", f"{self.paired.p:.2g}", test

    def short_words(self) -> tuple[str, ...]:
        """Task, length, both scores, difference with its interval, p, pairs: a row that fits into a terminal."""
        difference, interval, p, _ = self.words()
        means = (f"{100 * cell.estimate.mean:.1f}" for cell in (self.first, self.second))
        pairs = "other prompts" if self.paired is None else f"{self.paired.better}/{self.paired.worse}"
        return self.first.task, f"{self.first.length:,}", *means, f"{difference} {interval}".rstrip(), p, pairs


def contrasts(first: Results, second: Results) -> Iterator[Contrast]:
    """Every task and length that both were asked, in the order of the first."""
    for cell in first.cells:
        other = second.cell(cell.task, cell.length)
        if other is not None:
            paired = compare_paired(cell.scores, other.scores) if cell.prompts == other.prompts else None
            yield Contrast(cell, other, paired)


def labels(results: Sequence[Results]) -> list[str]:
    """A name for each result: its model's; with its folder's or a number behind it where models share one."""
    names = [result.name for result in results]
    if len({(result.name, result.folder) for result in results}) == len(results):
        behind = [result.folder for result in results]
    else:
        behind = [f"{names[: place + 1].count(name)}" for place, name in enumerate(names)]
    return [f"{name} ({more})" if names.count(name) > 1 else name for name, more in zip(names, behind, strict=True)]


def print_scores(results: Results) -> None:
    """The scores of one evaluation, its perplexities, and what its lengths cost, to standard output."""
    console = open_console()
    if results.cells:
        console.print(_score_table(results))
    _print_measurements(results, results.name, console)


def _print_measurements(results: Results, name: str, console: Console) -> None:
    if results.measured("perplexity"):
        console.print(_perplexity_table(results, name))
    if results.measured("efficiency"):
        console.print(_efficiency_table(results, name))


def print_comparison(results: Sequence[Results]) -> None:
    """Every later result beside the first, then what was measured of each, to standard output."""
    console, names = open_console(), labels(results)
    for name, other in zip(names[1:], results[1:], strict=True):
        table = Table(title=f"{name} against {names[0]}: percent [95 % interval]", caption=PAIRS)
        table.add_column("task", no_wrap=True)
        for column in ("tokens", names[0], name, "difference", "p", "pairs"):
            table.add_column(column, justify="right")
        for found in contrasts(results[0], other):
            table.add_row(*found.short_words())
        console.print(table)
        if table.row_count == 0:
            console.print(f"{names[0]} and {name} were asked nothing in common")
    for name, result in zip(names, results, strict=True):
        _print_measurements(result, name, console)


def open_console() -> Console:
    """Standard output, wide where it is a file."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    return console


def _score_table(results: Results) -> Table:
    sizes = sorted({len(cell.samples) for cell in results.cells})
    count = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    table = Table(title=f"{results.name}: percent [95 % interval], {count} samples each")
    table.add_column("task")
    for length in results.lengths:
        table.add_column(f"{length:,}", justify="right")
    for task in results.tasks:
        found = [results.cell(task, length) for length in results.lengths]
        table.add_row(task, *("" if cell is None else percent(cell.estimate) for cell in found))
    if len(results.tasks) > 1:
        table.add_section()
        for row in mean_rows(results):
            table.add_row(*row)
    return table


def mean_rows(results: Results) -> list[list[str]]:
    """The mean of the tasks at every length, in percent, behind its name; no row where no task was asked at each."""
    tasks = common_tasks([results])
    if not tasks:
        return []
    name = "mean of the tasks" if len(tasks) == len(results.tasks) else f"mean of the {len(tasks)} at every length"
    return [[name, *(f"{100 * mean:.1f}" for mean in results.means(tasks).values())]]


PERPLEXITY_COLUMNS = ("text", "protocol", "tokens", "perplexity", "nats per token", "bits per byte", "note")


def perplexity_row(found: Record) -> tuple[str, ...]:
    """One measurement in words, by `PERPLEXITY_COLUMNS`; the note says why there is none, where there is none."""
    place = found["text"], found["protocol"], f"{found['length']:,}"
    if "nll" not in found:
        return *place, "", "", "", found["reason"]
    error = "" if found["stderr"] is None else f" ± {found['stderr']:.4f}"
    return *place, _said(found["perplexity"], ".4g"), _said(found["nll"]) + error, _said(found["bits_per_byte"]), ""


def _said(value: float | None, form: str = ".4f") -> str:
    """None is what files hold for a figure that is not finite."""
    return "not finite" if value is None else format(value, form)


def perplexities(results: Results) -> list[Record]:
    """The perplexities, without the losses by position."""
    return [found for found in results.measured("perplexity") if "by_position" not in found]


def _perplexity_table(results: Results, name: str) -> Table:
    table = Table(title=f"{name}: perplexity, ± standard error")
    for column in PERPLEXITY_COLUMNS:
        table.add_column(column, justify="left" if column in ("text", "protocol", "note") else "right")
    for found in perplexities(results):
        table.add_row(*perplexity_row(found))
    return table


def reasons(measured: Sequence[Record]) -> list[str]:
    """Why there is no figure, for those where there is none; each once."""
    return list(dict.fromkeys(one["reason"] for one in measured if "reason" in one))


def _efficiency_table(results: Results, name: str) -> Table:
    table = Table(title=f"{name}: one row of tokens")
    for column in ("tokens", "read, tokens/s", "written, tokens/s", "cache", "peak memory"):
        table.add_column(column, justify="right")
    measured = results.measured("efficiency")
    table.caption = "\n".join(reasons(measured)) or None
    for found in measured:
        if "reason" in found:
            continue
        peak = found["peak_bytes"]
        table.add_row(
            f"{found['length']:,}",
            short_number(found["prefill_tokens_per_second"]),
            short_number(found["decode_tokens_per_second"]),
            byte_size(found["cache_bytes"]),
            "unknown" if peak is None else byte_size(peak),
        )
    return table
