"""Results side by side: what differs between two models on the same questions, and the tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from eval.results import Cell, Record, Results, common_tasks
from eval.statistics import Paired, compare_paired, percent
from eval.terminal import open_console, titled_table
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
    if results.measured("perplexity"):
        console.print(_perplexity_table(results))
    if results.measured("efficiency"):
        console.print(_efficiency_table(results))


def print_comparison(results: Sequence[Results]) -> None:
    """What every later result differs in from the first, in scores and in perplexity, to standard output."""
    console, names = open_console(), labels(results)
    for name, other in zip(names[1:], results[1:], strict=True):
        tables = [
            _score_differences(names[0], name, contrasts(results[0], other)),
            _loss_differences(names[0], name, loss_pairs(results[0], other)),
        ]
        for table in tables:
            if table.row_count:
                console.print(table)
        if not any(table.row_count for table in tables):
            console.print(f"{names[0]} and {name} were asked nothing in common")


def _score_differences(first: str, second: str, found: Iterable[Contrast]) -> Table:
    table = titled_table(f"{second} against {first}: percent [95 % interval]", PAIRS)
    table.add_column("task", no_wrap=True)
    for column in ("tokens", first, second, "difference", "p", "pairs"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(*one.short_words())
    return table


def loss_pairs(first: Results, second: Results) -> Iterator[tuple[Record, Record]]:
    """What both measured of the same text by the same protocol at the same length, in the order of the first."""
    others = {_measured_as(second, found): found for found in perplexities(second) if "nll" in found}
    for found in perplexities(first):
        other = others.get(_measured_as(first, found))
        if "nll" in found and other is not None:
            yield found, other


def _measured_as(results: Results, found: Record) -> tuple[object, ...]:
    settings = results.settings
    # Which tokens are the last ones, of which pieces, the shortest and the longest length decide.
    decisive = settings.get("lengths") if found["by"] == "last-tokens" else None
    text = settings.get("texts", {}).get(found["text"], found["text"])
    return text, settings.get("text_tokens"), found["by"], found["length"], str(decisive)


def _loss_differences(first: str, second: str, found: Iterable[tuple[Record, Record]]) -> Table:
    table = titled_table(f"{second} against {first}: bits per byte")
    for column in ("text", "protocol"):
        table.add_column(column)
    for column in ("tokens", first, second, "difference"):
        table.add_column(column, justify="right")
    for pair in found:
        one, other = (record["bits_per_byte"] for record in pair)
        difference = None if one is None or other is None else other - one
        place = pair[0]["text"], pair[0]["by"], f"{pair[0]['length']:,}"
        table.add_row(*place, _said(one), _said(other), _said(difference, "+.4f"))
    return table


def _score_table(results: Results) -> Table:
    sizes = sorted({len(cell.samples) for cell in results.cells})
    count = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    table = titled_table(f"{results.name}: percent [95 % interval], {count} samples each")
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


def perplexity_table(found: Sequence[Record]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Columns and rows; without notes where there are none."""
    rows = [perplexity_row(one) for one in found]
    if any(note for *_, note in rows):
        return PERPLEXITY_COLUMNS, rows
    return PERPLEXITY_COLUMNS[:-1], [row[:-1] for row in rows]


def _said(value: float | None, form: str = ".4f") -> str:
    """None is what files hold for a figure that is not finite."""
    return "not finite" if value is None else format(value, form)


def perplexities(results: Results) -> list[Record]:
    """The perplexities, without the losses by position."""
    return [found for found in results.measured("perplexity") if "by_position" not in found]


def _perplexity_table(results: Results) -> Table:
    table = titled_table(f"{results.name}: perplexity, ± standard error")
    columns, rows = perplexity_table(perplexities(results))
    for column in columns:
        table.add_column(column, justify="left" if column in ("text", "protocol", "note") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def reasons(measured: Sequence[Record]) -> list[str]:
    """Why there is no figure, for those where there is none; each once."""
    return list(dict.fromkeys(one["reason"] for one in measured if "reason" in one))


def _efficiency_table(results: Results) -> Table:
    table = titled_table(f"{results.name}: one row of tokens")
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
