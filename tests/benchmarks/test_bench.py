"""`braid bench`: what is timed is the mixers themselves, ratios are of one run, mistakes are told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import mixers
from benchmarks.measure import Clock, forward_and_backward, interleaved, peak_bytes
from kernels.gated_scan import Chunks, gated_scan
from lm.cli import main


@pytest.mark.parametrize("name", mixers.kinds(64))
def test_the_core_is_the_mixer(name: str) -> None:
    """It depends on all its leaves, and its pairs are what a dense count finds."""
    length = 64
    core = mixers.core(mixers.kinds(length)[name], length)
    core.call().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.ne(0).any() for leaf in core.leaves)
    assert core.call().shape == (length, mixers.HEADS, mixers.HEAD_DIM)
    i, j = torch.arange(length)[:, None], torch.arange(length)
    causal = int((j <= i).sum())
    window = int(((j <= i) & (j > i - 64)).sum())
    groups = int(((j <= i) & (j // 16 == i // 16)).sum()), int(((j <= i) & ((j + 8) // 16 == (i + 8) // 16)).sum())
    finals = int((j[: length // 16] < i // 16).sum()) + length
    pairs = {
        "rat 16": 8 * finals,
        "shifted-short T/4": 4 * sum(groups),
        "long-short 4 x 64": 4 * window + 4 * causal,
    }
    assert core.pairs == pairs.get(name, 8 * causal)


def test_the_core_of_rat_is_scan_and_attention() -> None:
    """One chunk: its output is the running state of the values."""
    core = mixers.core({"kind": "rat", "chunk_size": 16, "qk_groups": 2}, 16)
    _, _, v, gate = core.leaves
    (states,) = gated_scan(gate, [v], Chunks(torch.tensor([0, 16])))
    torch.testing.assert_close(core.call(), states)


def test_peers_agree_with_the_mixers() -> None:
    ours = mixers.core({"kind": "attention", "window": 7}, 30)
    peer = mixers.sliding(30, 7)
    with torch.no_grad():
        for leaf, other in zip(ours.leaves, peer.leaves, strict=True):
            other.copy_(leaf.transpose(0, 1)[None])
    torch.testing.assert_close(ours.call(), peer.call()[0])


def test_medians_of_runs_in_turn() -> None:
    order: list[str] = []
    medians = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, 60.0)
    assert order == ["a", "b"] * 3
    assert all(seconds >= 0 for seconds in medians.values())


def test_where_the_warm_up_used_the_budget_short_runs_are_timed_once_more() -> None:
    times = iter([0.0, 50.0, 60.0, 61.0, 70.0, 70.5])
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    medians = interleaved(runs, rounds=0, budget=20.0, clock=Clock(lambda: next(times)))
    assert (order, medians) == (["a", "b", "b"], {"a": 50.0, "b": 0.5})


def test_peak_memory_is_that_of_the_run() -> None:
    count = peak_bytes(lambda: torch.ones(2**23).sum())
    assert count is None or 0.9 * 2**25 < count < 2**26


def test_peak_memory_holds_the_gradients_however_often_it_was_run() -> None:
    leaf = torch.ones(2**22, requires_grad=True)
    run = forward_and_backward(lambda: leaf * 2, [leaf])
    peaks = []
    for _ in range(3):
        run()
        peaks.append(peak_bytes(run))
    assert None in peaks or all(2.9 * 2**24 < peak < 3.6 * 2**24 for peak in peaks)  # result, its gradient, the leaf's


def test_ratios_are_of_one_run_and_curves_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, length in zip(files, ("32", "64"), strict=True):
        arguments = ["bench", "mixers", "--quick", "--lengths", length, "--only", "rat 16,local 64"]
        assert main([*arguments, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(files[1].read_text())
    assert "torch" in found["machine"]
    seconds = {(figure["name"], figure["backward"]): figure["seconds"] for figure in found["mixers"]}
    assert len(seconds) == len(found["mixers"]) == 6
    for figure in found["mixers"]:
        if figure["name"] != mixers.SDPA:
            assert figure["ratio"] == seconds[mixers.SDPA, figure["backward"]] / figure["seconds"]
            assert f"{figure['ratio']:.2f} x SDPA causal" in printed
    assert main(["bench", "report", *map(str, files), "--output", str(tmp_path / "drawn")]) == 0
    drawing = (tmp_path / "drawn" / "mixers-time-narrow.svg").read_text()
    assert drawing.count("<circle") == 6
    assert "rat 16" in drawing


def test_lengths_that_are_done_outlive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = mixers.measure

    def until_64(length: int, *rest: Any) -> list[mixers.Figure]:
        if length == 64:
            raise KeyboardInterrupt
        return measure(length, *rest)

    monkeypatch.setattr(mixers, "measure", until_64)
    words = ["bench", "mixers", "--quick", "--lengths", "32,64", "--only", "local 64", "--json"]
    assert main([*words, str(tmp_path / "a.json")]) == 130
    assert {figure["length"] for figure in json.loads((tmp_path / "a.json").read_text())["mixers"]} == {32}


def test_the_other_benchmarks_tell_their_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.loss.VOCAB", 50)
    monkeypatch.setattr("benchmarks.loss.WIDTH", 16)
    monkeypatch.setattr("benchmarks.train.TOKENS", 32)
    for what, length in (("loss", "40"), ("train", "16")):
        assert main(["bench", what, "--quick", "--lengths", length, "--json", str(tmp_path / what)]) == 0
    loss = json.loads((tmp_path / "loss").read_text())["loss"]
    ours, theirs = loss["seconds"].values()
    assert loss["time_ratio"] == theirs / ours
    train = json.loads((tmp_path / "train").read_text())["train"]
    assert train[-1]["ratio"] == 1
    assert all(f["ratio"] == pytest.approx(f["tokens_per_second"] / train[-1]["tokens_per_second"]) for f in train)
    assert {figure["rows"] for figure in train} == {2}
    sizes = [figure["parameters"] for figure in train]
    assert max(sizes[1:]) == min(sizes[1:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mixers", "--only", "local 65"], "no mixer 'local 65'. Did you mean 'local 64'?"),
        (["train", "--only", "rat"], "no model 'rat'"),
        (["report"], "no figures"),
        (["report", "missing.json"], "missing.json holds no figures"),
        (["loss", "some.json"], "reads no files"),
        (["loss", "--only", "x"], "braid bench: --only is for mixers, train"),
        (["train", "--forward"], "--forward is for mixers"),
        (["decode", "--lengths", "32,64"], "--lengths takes one length here"),
        (["mixers", "--output", "x"], "--output is for report"),
    ],
)
def test_mistakes_are_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("native", [False, True], ids=["plain", "cpp"])
@pytest.mark.parametrize("name", mixers.kinds(64))
def test_no_mixer_holds_tokens_by_tokens(
    name: str, native: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Forward and backward need less than one mask of a byte per pair, and a bounded number of tensors like a query."""
    if native:
        request.getfixturevalue("cpp_kernels")
    monkeypatch.setattr(mixers, "HEADS", 4)
    monkeypatch.setattr(mixers, "HEAD_DIM", 16)
    length, width = 12288, 64
    peak = peak_bytes(mixers.core(mixers.kinds(length)[name], length).run(backward=True))
    if peak is None:
        pytest.skip("this system does not tell the peak of a process")
    assert 2 * length * width * 4 < peak < 30 * length * width * 4 < length**2
