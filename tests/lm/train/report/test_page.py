import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.plan import LayerPlan, Plan
from lm.train.evaluation import Evaluation, PositionLoss
from lm.train.log import MetricsFile
from lm.train.report import ReportData, load_report_data, save_report_data, write_report
from lm.train.report.page import render, smoothed
from lm.train.sample import Sample, SamplingSettings

HOSTILE = '</pre></style><script>alert("&\'")</script>\x00\ud800'
VOID = {"meta", "link", "br", "hr", "img", "input"}

EVALUATION = Evaluation(
    step=30,
    loss=2.0,
    accuracy=0.625,
    tokens=1000,
    bytes=4000,
    by_position=(PositionLoss(0, 1, 4.0, 10), PositionLoss(1, 8, 2.5, 70)),
    baselines={"unigram entropy": 2.345, "gzip -9": 1.987, "xz -9": 1.876},
)


def plan(mixer: str = "local") -> Plan:
    layer = LayerPlan(
        mixer=mixer,
        kind="attention",
        extent="window 64",
        heads=8,
        kv_heads=2,
        parameters=12_345,
        flops_per_token=67_800.0,
        cache_bytes_per_token=0.0,
        cache_bytes=1536,
        reach=64,
    )
    return Plan(
        sequence_length=512,
        layers=(layer, layer),
        parameters=98_765,
        embedding_parameters=4_321,
        flops_per_token=1e6,
        activation_bytes_per_token=1e3,
        vocab_size=256,
    )


class Page(HTMLParser):
    """Checks that tags nest, and keeps tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    metrics = MetricsFile(folder / "metrics.jsonl")
    for step in range(1, 31):
        record = {"step": step, "loss": 5 - step / 10, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens": step * 1000}
        record |= {"tokens_per_second": 1234.0, "mfu": 0.375, "step_seconds": 2.0}
        metrics.append(record | ({"validation_loss": 3.0, "validation_accuracy": 0.5} if step % 10 == 0 else {}))
    metrics.close()
    sample = Sample("def f", "oo(x):\n    return x < 1 & 2\n", SamplingSettings(temperature=0.7, seed=5))
    save_report_data(
        folder, evaluation=EVALUATION, plan=plan(), sample=sample, environment={"torch": "2.99", "ranks": "4"}
    )
    (folder / "run.yaml").write_text("train:\n  steps: 30\n")
    return folder


def test_the_page_shows_every_figure_of_the_run(output: Path) -> None:
    page = Page(write_report(output).read_text())
    figures = ["my-run", "7.389", "0.721", "62.5%", "2.345", "1.987", "1.876", "30K", "1.23K", "37.5%", "1:00"]
    figures += ["98,765", "12,345", "67.8K", "1.5 KiB", "8 on 2", "window 64", "local (attention)"]
    figures += ["def foo(x):\n    return x < 1 & 2", "Temperature 0.7", "seed 5", "2.99", "steps: 30"]
    for figure in figures:
        assert figure in page.text, figure
    assert page.tags.count("svg") == 8


def test_the_page_needs_nothing_but_itself(output: Path) -> None:
    html = write_report(output).read_text()
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "onload", "xlink:href")]
    assert not re.search(r"https?://|url\(|@import", html)


def test_saved_data_comes_back_as_it_was(output: Path) -> None:
    data = load_report_data(output)
    assert data.evaluation == EVALUATION
    assert data.plan == plan()
    assert data.sample == Sample("def f", "oo(x):\n    return x < 1 & 2\n", SamplingSettings(temperature=0.7, seed=5))
    assert json.loads((output / "evaluation.json").read_text())["perplexity"] == EVALUATION.perplexity
    assert not list(output.glob("*.tmp"))


def test_what_a_run_began_with_stands_beside_what_it_came_to(output: Path) -> None:
    drawn = Page(write_report(output).read_text()).tags.count("svg")
    began = {"original": replace(EVALUATION, loss=1.75), "grafted": replace(EVALUATION, loss=8.25)}
    save_report_data(output, before=began, plan=replace(plan(), base_cache_bytes=7 * 1024))
    assert load_report_data(output).before == began
    page = Page(write_report(output).read_text())
    for figure in ("original", "1.75", "grafted", "8.25", "this model", "the same of its base", "7 KiB"):
        assert figure in page.text, figure
    assert page.tags.count("svg") == drawn + 1


def test_hostile_text_stays_text() -> None:
    metrics = [{"step": 1, "loss": 1.0}]
    found = Evaluation(1, 1.0, 0.5, 1, 1, baselines={HOSTILE: 1.0})
    html = render(
        ReportData(
            HOSTILE,
            metrics,
            found,
            plan(HOSTILE),
            Sample(HOSTILE, HOSTILE, SamplingSettings()),
            {HOSTILE: HOSTILE},
            HOSTILE,
        )
    )
    html.encode()
    page = Page(html)
    assert "script" not in page.tags
    assert "\x00" not in html
    assert page.text.count('alert("&\'")') >= 8


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 1, "loss": None, "grad_norm": None}],
        [{"step": 1, "loss": 2.5}],
        [{"step": 1, "validation_loss": 2.5}, {"step": 2, "loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0}],
    ],
)
def test_a_young_or_broken_run_has_a_page_too(metrics: list[dict[str, float | None]]) -> None:
    for found in (
        None,
        Evaluation(0, float("nan"), 0.0, 1, 1),
        Evaluation(0, 1e6, 0.0, 1, 1, (PositionLoss(0, 1, 9.0, 1),)),
    ):
        page = Page(render(ReportData("run", metrics, found)))
        assert "run" in page.text
        assert "nan" not in "".join(value or "" for _, value in page.attributes).lower()


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["evaluation.json", "plan.json", "sample.json", "environment.json"])
@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: "[]"])
def test_a_file_that_is_no_json_object_is_named(output: Path, name: str, damage: Callable[[str], str]) -> None:
    path = output / name
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_report_data(output)


@pytest.mark.parametrize("name", ["evaluation.json", "plan.json", "sample.json"])
def test_a_file_with_missing_fields_is_named(output: Path, name: str) -> None:
    (output / name).write_text('{"step": 3}')
    with pytest.raises(UserError, match=re.escape(str(output / name))):
        load_report_data(output)


def test_smoothing_keeps_a_straight_line_and_both_ends() -> None:
    line = [(float(step), 3.0 - step / 50) for step in range(100)]
    assert smoothed(line, 0.2) == [(step, pytest.approx(value)) for step, value in line]
    noisy = [(float(step), float(step % 2)) for step in range(100)]
    assert all(abs(value - 0.5) < 0.06 for _, value in smoothed(noisy, 0.2)[10:-10] if value is not None)
    assert smoothed([(1.0, None), (2.0, None)]) == [(1.0, None), (2.0, None)]
    assert smoothed([]) == []
