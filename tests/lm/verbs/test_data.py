"""braid prepare and braid data on a small corpus: what they print, write and refuse."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from lm.cli import main

RUN = {
    "model": {"hidden_size": 32, "num_attention_heads": 2, "mixers": {"g": {"kind": "attention"}}, "layers": "g"},
    "optimizer": {"lr": 1.0e-3},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in range(30):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number} " * (20 + number))
    sources = [{"path": str(tmp_path / "one"), "weight": 3}, {"path": str(tmp_path / "two"), "max_epochs": 20}]
    data = {"tokenizer": {"kind": "bytes"}, "sources": sources, "sequence_length": 64, "packing": "best_fit"}
    data |= {"shard_bytes": 2000, "cache_dir": str(tmp_path / "cache")}
    train = {"output_dir": str(tmp_path / "run"), "steps": 50, "global_batch_tokens": 256, "micro_batch_size": 1}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN | {"data": data, "train": train}))
    return path


def test_a_batch_is_shown_as_text_with_its_documents(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    assert main(["data", str(config), "--batch", "2", "--rows", "8", "--pictures", str(pictures)]) == 0
    said = capsys.readouterr().out
    assert "one: 75.0% of what is read" in said.replace(f"{tmp_path}/", "")
    assert all(f"row {row}: " in said for row in range(8, 12))
    assert "row 12: " not in said
    assert f"{tmp_path}/one/" in said
    assert said.count("document ") >= 4
    assert {path.name for path in pictures.iterdir()} == {"mix.svg", "epochs.svg", "lengths.svg"}
    assert all(path.read_text().startswith("<svg ") for path in pictures.iterdir())


def test_nodes_prepare_their_part_and_the_whole_is_summed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(config), "--node", "2/2", "--processes", "1"]) == 0
    assert " shards are there" in capsys.readouterr().out
    assert main(["prepare", str(config), "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert "tokens to train on" in said
    assert "bytes per token" in said


@pytest.mark.parametrize("node", ["0/2", "3/2", "x"])
def test_a_node_that_is_none_is_refused(config: Path, node: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(config), "--node", node]) == 2
    assert "not a node of several" in capsys.readouterr().err


def test_a_batch_behind_the_end_of_the_sources_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capped = ["data.sources.0.max_epochs=0.1", "data.sources.1.max_epochs=0.1"]
    assert main(["data", str(config), "--batch", "40", *capped]) == 2
    assert "--batch 40: the sources end after" in capsys.readouterr().err


def test_a_batch_is_that_of_its_stage(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = 'train.stages=[{"steps": 10}, {"steps": 40, "sequence_length": 128, "weights": [0, 1]}]'
    assert main(["data", str(config), "--batch", "12", stages]) == 0
    said = capsys.readouterr().out
    assert "batch 12: rows 4 to 5 of 128 tokens (stage 1, mixed 0:1), 2 shown" in said
    assert said.count("/two, epoch") == 2
    assert "one: 15.0% of what is read" in said.replace(f"{config.parent}/", "")
    assert main(["data", str(config), "--batch", "50", stages]) == 2
    assert "--batch 50: the last of the run's 50 is 49" in capsys.readouterr().err


def test_pictures_of_a_source_with_a_hostile_name_are_pictures(config: Path, tmp_path: Path) -> None:
    hostile = (tmp_path / "one").rename(tmp_path / '<script>alert("&\')")<')
    pictures = tmp_path / "pictures"
    assert main(["data", str(config), f"data.sources.0.path={hostile}", "--pictures", str(pictures)]) == 0
    for path in pictures.iterdir():
        drawing = ElementTree.fromstring(path.read_text())
        assert not [element for element in drawing.iter() if element.tag.rpartition("}")[2] == "script"]
        assert path.stem != "mix" or "<script>alert" in "".join(drawing.itertext())
