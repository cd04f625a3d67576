"""Results side by side: what is paired, on the terminal and on the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eval.compare import contrasts, labels, mean_rows, print_comparison, print_scores
from eval.page import render
from eval.results import ResultFolder, Results, SampleFile, cells, common_tasks
from lm.cli import main
from lm.train.json_lines import plain

HOSTILE = '</style><script>alert("&\'")</script>\x00'


def records(
    task: str, length: int, scores: list[float], prompt: str = "p", depths: bool = False
) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "length": length,
            "index": index,
            "id": f"{task}/{length}/{index}",
            "prompt": f"{prompt}{index}",
            "answers": ["1"],
            "prediction": HOSTILE,
            "score": score,
            "meta": {"depth": index / len(scores)} if depths else {},
        }
        for index, score in enumerate(scores)
    ]


def result(name: str, samples: list[dict[str, Any]], **more: Any) -> Results:
    model = {"name": name, "path": name, "fingerprint": "f", "parameters": 10, "context": 64, "dtype": "float32"}
    settings = {"model": model, "tokenizer": "t", "samples": 1, "seed": 0, "haystack": None}
    metrics = {record["task"]: "m" for record in samples}
    return Results(settings | {"tasks": metrics}, cells(metrics, samples), **more)


def save(found: Results, root: Path) -> Path:
    root.mkdir()
    folder = ResultFolder(root)
    folder.settings.write_text(json.dumps(plain(found.settings)))
    file = SampleFile(folder.samples)
    for cell in found.cells:
        for record in cell.samples:
            file.append(record)
    file.close()
    folder.save(found)
    return root


FIRST = result("one", [*records("key", 512, [0.0, 1.0, 1.0, 0.0]), *records("chain", 512, [0.5, 0.25])])
SECOND = result("two", [*records("key", 512, [1.0, 1.0, 1.0, 1.0]), *records("chain", 512, [0.5, 1.0], "other")])


def test_only_the_same_questions_are_paired() -> None:
    key, chain = contrasts(FIRST, SECOND)
    assert key.paired is not None
    assert (key.paired.test, key.paired.better, key.paired.worse, key.paired.p) == ("McNemar exact", 2, 0, 0.5)
    assert key.difference == 0.5
    assert chain.paired is None
    assert chain.words() == ("+37.5", "", "", "other prompts: not paired")


def test_models_of_one_name_are_told_apart() -> None:
    assert labels([FIRST, SECOND, FIRST]) == ["one (1)", "two", "one (2)"]
    placed = [replace(FIRST, folder="fp32"), SECOND, replace(FIRST, folder="bf16")]
    assert labels(placed) == ["one (fp32)", "two", "one (bf16)"]


def test_losses_are_told_per_byte_or_for_equal_tokens_only() -> None:
    def measured(nll: float, bits: float) -> list[dict[str, Any]]:
        shared = {"kind": "perplexity", "of": "text", "text": "text", "by": "strided", "protocol": "strided"}
        figures = {"nll": nll, "stderr": None, "perplexity": 1.0, "bits_per_byte": bits}
        curve = [{"first": 1, "end": 4, "loss": nll}, {"first": 4, "end": 8, "loss": nll}]
        return [*(shared | figures | {"length": n} for n in (4, 8)), shared | {"by_position": curve}]

    one, same, other = (result(name, [], measurements=measured(5.0, 1.0)) for name in ("one", "same", "other"))
    other = replace(other, settings=other.settings | {"tokenizer": "another"})
    text = Page(render([one, same, other])).text
    assert "text: stridedonesameother" in text.replace("\n", "")
    assert "bits per byte" in text
    assert "one, same: text" in text
    assert "other: text" in text


def test_the_command_prints_the_table_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(save(FIRST, tmp_path / "a")), str(save(SECOND, tmp_path / "b"))]
    page = tmp_path / "page.html"
    assert main(["eval", "compare", *folders, "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert "two against one: percent [95 % interval]" in said
    assert re.search(r"key +│ +512 │ +50\.0 │ +100\.0 │ +\+50\.0 \[\+0\.0, \+100\.0\] │ +0\.5 │ +2/0 │", said)
    assert re.search(r"chain +│ +512 │ +37\.5 │ +75\.0 │ +\+37\.5 │ +│ other prompts │", said)
    for part in ("50.0 [15.0, 85.0]", "100.0 [51.0, 100.0]", "+50.0", "0.5", "McNemar exact, 2 better, 0 worse"):
        assert part in page.read_text()


def test_the_table_fits_into_an_ordinary_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [*records("mqar_compositional", 131_072, [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])]
    monkeypatch.setattr("eval.compare.open_console", lambda: Console(width=100, highlight=False))
    print_comparison([result("SmolLM2-135M", long), result("smollm2-16k", long)])
    assert len([line for line in capsys.readouterr().out.splitlines() if "│" in line]) == 1


def test_the_terminal_has_the_differences_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def measured(name: str, bits: float) -> Results:
        shared = {"text": "text", "by": "disjoint", "protocol": "disjoint, window 4", "length": 4}
        loss = {"kind": "perplexity", "of": "x", "nll": 1.0, "stderr": None, "perplexity": 2.7, "bits_per_byte": bits}
        cost = {"kind": "efficiency", "of": "4", "length": 4, "prefill_tokens_per_second": 1.0}
        cost |= {"decode_tokens_per_second": 1.0, "cache_bytes": 1, "peak_bytes": None}
        none = {"kind": "perplexity", "of": "y", "text": "text", "by": "rolling", "protocol": "rolling", "length": 4}
        return result(name, [], measurements=[loss | shared, none | {"reason": "too short"}, cost])

    print_comparison([measured("one", 2.0), measured("two", 1.5)])
    said = capsys.readouterr().out
    assert re.search(r"text │ disjoint │ +4 │ +2\.0000 │ +1\.5000 │ +-0\.5000 │", said)
    assert len([line for line in said.splitlines() if "│" in line]) == 1
    assert "too short" not in said
    other = measured("two", 1.5)
    print_comparison([measured("one", 2.0), replace(other, settings=other.settings | {"texts": {"text": "another"}})])
    assert "one and two were asked nothing in common" in capsys.readouterr().out


def test_a_title_stands_on_one_line_and_notes_where_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"kind": "perplexity", "of": "x", "text": "t", "by": "b", "protocol": "b", "length": 4}
    figures = {"nll": 1.0, "stderr": None, "perplexity": 2.7, "bits_per_byte": 2.0}
    print_scores(result("a-model-with-a-name", records("key", 512, [1.0]), measurements=[measured | figures]))
    said = capsys.readouterr().out
    assert "a-model-with-a-name: percent [95 % interval], 1 samples each" in said
    assert "note" not in said
    print_scores(result("m", [], measurements=[measured | figures, measured | {"reason": "too short"}]))
    said = capsys.readouterr().out
    assert "note" in said
    assert "too short" in said


def test_what_is_no_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = save(FIRST, tmp_path / "good")
    begun = save(FIRST, tmp_path / "begun")
    (begun / "results.json").unlink()
    for other, reason in ((tmp_path / "none", "is not there"), (begun, "is not finished")):
        assert main(["eval", "compare", str(good), str(other)]) == 2
        assert f"the evaluation {reason}" in capsys.readouterr().err
    for place in (tmp_path, good / "results.json" / "page.html", tmp_path / "page.txt"):
        assert main(["eval", "compare", str(good), str(good), "--output", str(place)]) == 2
        assert "Name a .html file" in capsys.readouterr().err
    assert main(["eval", "compare", str(good)]) == 2
    assert "at least two" in capsys.readouterr().err
    assert main(["eval", "compare", str(good), str(begun), "--tasks", "key", "--limit", "3"]) == 2
    assert "--tasks, --limit is for evaluating a model" in capsys.readouterr().err
    assert main(["eval", "model", str(good)]) == 2
    assert "braid eval compare" in capsys.readouterr().err


class Page(HTMLParser):
    """Checks that tags nest, and keeps what is in them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href", "onload"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_figure_that_is_not_finite_is_said_to_be_so() -> None:
    found = {"kind": "perplexity", "of": "x", "text": "a", "by": "b", "protocol": "c", "length": 4}
    found |= {"nll": None, "stderr": None, "perplexity": None, "bits_per_byte": None}  # as JSON lines hold NaN
    broken = result("one", records("key", 512, [1.0]), measurements=[found])
    assert "not finite" in Page(render([broken, FIRST])).text


def test_hostile_names_stay_text() -> None:
    measured = [
        {"kind": "perplexity", "of": HOSTILE, "text": HOSTILE, "protocol": "x", "length": 4, "reason": HOSTILE},
        *(
            {"kind": "perplexity", "of": HOSTILE, "text": HOSTILE, "by": HOSTILE, "protocol": HOSTILE, "length": n}
            | {"nll": 1.0, "stderr": None, "perplexity": 2.7, "bits_per_byte": 1.0}
            for n in (4, 8)
        ),
        {"kind": "perplexity", "of": HOSTILE, "by_position": [{"first": 1, "end": 4, "loss": 2.0, "tokens": 9}]},
        {
            "kind": "efficiency",
            "of": "512",
            "length": 512,
            "prefill_tokens_per_second": 10.0,
            "decode_tokens_per_second": 2.0,
            "cache_bytes": 2**20,
            "peak_bytes": None,
        },
    ]
    skipped = [{"task": HOSTILE, "length": 8, "reason": HOSTILE}]
    samples = [*records(HOSTILE, 512, [0.0, 1.0], depths=True), *records(HOSTILE, 1024, [1.0, 1.0], depths=True)]
    found = result(HOSTILE, samples, measurements=measured, skipped=skipped, environment={HOSTILE: HOSTILE})
    for results in ([found], [found, found]):
        html = render(results)
        page = Page(html)
        assert not {"script", "link", "img", "iframe"} & set(page.tags)
        assert "\x00" not in html
        assert page.text.count('alert("&\'")') >= 8
        assert "http" not in html.replace("http-equiv", "")


def test_a_needle_map_has_a_row_for_each_depth_and_a_column_for_each_length() -> None:
    samples = [
        record | {"meta": {"depth": depth}}
        for length, score in ((512, 1.0), (1024, 0.0))
        for depth in (0.0, 0.5)
        for record in records("needle", length, [score])
    ]
    html = render([result("one", [record | {"index": place} for place, record in enumerate(samples)])])
    for hint in ("0 %, 512: 100.0%", "50 %, 512: 100.0%", "0 %, 1,024: 0.0%", "50 %, 1,024: 0.0%"):
        assert f"<title>{hint}</title>" in html


def test_depths_that_are_not_even_are_put_into_tenths() -> None:
    samples = [record | {"meta": {"depth": depth}} for depth in (0.04, 0.97) for record in records("passkey", 9, [1.0])]
    html = render([result("one", [record | {"index": place} for place, record in enumerate(samples)])])
    for hint in ("0-10 %, 9: 100.0%", "10-20 %, 9: not measured", "90-100 %, 9: 100.0%"):
        assert f"<title>{hint}</title>" in html


def test_means_are_of_the_tasks_that_all_were_asked_at_every_length() -> None:
    one = result("one", [*records("a", 8, [1.0]), *records("b", 8, [0.0]), *records("a", 16, [0.0, 1.0])])
    two = result("two", [*records("b", 8, [1.0]), *records("a", 8, [0.0]), *records("a", 16, [1.0])])
    assert one.to_json()["means"] == {"8": 1.0, "16": 0.5}
    assert mean_rows(one) == [["mean of the 1 at every length", "100.0", "50.0"]]
    assert mean_rows(FIRST) == [["mean of the tasks", "43.8"]]
    assert common_tasks([one, two]) == ["a"]
    assert common_tasks([one, result("three", records("b", 8, [1.0]))]) == []
    none = result("four", [*records("a", 8, [1.0]), *records("b", 16, [1.0])])
    assert none.to_json()["means"] == {}
    assert "mean of" not in Page(render([none])).text
    assert "43.8 %" in Page(render([FIRST])).text


def test_a_result_without_tasks_has_a_page_too() -> None:
    assert "What fixes one" in Page(render([result("one", [])])).text
