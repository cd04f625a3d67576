"""Reading run files: which YAML is accepted, where a value came from, and what the command line may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.yaml_tree import dump_tree, read_tree

keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
    | st.sampled_from(
        ["off", "no", "3e-4", "1_000", "12:30", "2020-01-01", "null", "~", "", "01", "0x1f", "<<", "1.", "."]
    )
)
trees = st.dictionaries(
    keys, st.recursive(scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=3), max_leaves=8)
)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


@given(tree=trees)
@settings(deadline=None, max_examples=200)
def test_a_dumped_tree_reads_back_equal(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(dump_tree(tree), encoding="utf-8")
    back = read_tree(path).values
    assert back == tree
    assert repr(back) == repr(tree)  # 1 == 1.0 == True would pass the line above


def test_scalars_mean_what_people_write(write: Any) -> None:
    text = "{lr: 3e-4, big: 1E6, tokens: 1_000_000, wandb: off, time: 12:30, day: 2020-01-01, on: true, none: null}"
    assert read_tree(write(text)).values == {
        "lr": 3e-4,
        "big": 1e6,
        "tokens": 1_000_000,
        "wandb": "off",
        "time": "12:30",
        "day": "2020-01-01",
        "on": True,
        "none": None,
    }


def test_every_value_knows_its_line(write: Any) -> None:
    tree = read_tree(write("train:\n  steps: 3\n\ndata:\n  sources:\n  - path: a\n  - {path: b}\n"))
    assert tree.origin(("train", "steps")) == f"{tree.file}:2"
    assert tree.origin(("data", "sources", 1, "path")) == f"{tree.file}:7"
    assert tree.origin(("data", "sequence_length")) == f"{tree.file}:4"  # absent: its section


def test_overrides_change_the_tree_in_order_and_are_remembered(write: Any) -> None:
    path = write("train: {steps: 3}\ndata:\n  sources: [{path: a}, {path: b}]\nlog:\n")
    tree = read_tree(
        path, ["train.steps=4", "train.steps=5", "data.sources.1.path=c=d", "log.name=x", "model.m.w={a: 1e-3}", "e="]
    )
    assert tree.values == {
        "train": {"steps": 5},
        "data": {"sources": [{"path": "a"}, {"path": "c=d"}]},
        "log": {"name": "x"},
        "model": {"m": {"w": {"a": 1e-3}}},
        "e": None,
    }
    assert tree.origin(("train", "steps")) == "command line, train.steps=5"
    assert tree.origin(("model", "m", "w", "a")) == "command line, model.m.w={a: 1e-3}"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.steps", "written key=value"),
        ("=3", "written key=value"),
        ("train..steps=3", "written key=value"),
        ("train.steps.more=3", "train.steps is the value 3"),
        ("data.sources.2.path=x", "data.sources is a list of 1"),
        ("data.sources.-1=x", "data.sources is a list of 1"),
        ("data.sources.path=x", "'path' is none"),
        ("train.steps=[1", "not readable as YAML"),
    ],
)
def test_an_override_that_does_not_fit_is_explained(write: Any, override: str, says: str) -> None:
    path = write("train: {steps: 3}\ndata: {sources: [{path: a}]}")
    with pytest.raises(UserError) as caught:
        read_tree(path, [override])
    assert str(caught.value).startswith(f"command line, {override}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train:\n  steps: 3\n  steps: 4\n", "at line 3, column 3: the key 'steps' stands twice"),
        ("train: [1, 2\n", "not readable as YAML"),
        ("train: *undefined\n", "undefined alias"),
        ("train: &loop {again: *loop}\n", "recursive"),
        ("train: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("? [a]\n: 1\n", "a key must be a plain word"),
        ("- a\n- b\n", "a run file is a mapping"),
        ("", "a run file is a mapping"),
        ("a: " + "[" * 5000, "not readable as YAML"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(write: Any, text: str, says: str) -> None:
    path = write(text)
    with pytest.raises(UserError) as caught:
        read_tree(path)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)


def test_an_override_changes_one_place_of_what_an_alias_shares(write: Any) -> None:
    path = write("a: &a {x: 1, y: {z: 1}}\nb: *a\nc:\n  <<: *a\nd: [*a, *a]\n")
    values = read_tree(path, ["b.x=2", "c.y.z=3", "d.1.y.z=4"]).values
    plain = {"x": 1, "y": {"z": 1}}
    assert values["a"] == plain
    assert values["b"] == plain | {"x": 2}
    assert values["c"] == plain | {"y": {"z": 3}}
    assert values["d"] == [plain, plain | {"y": {"z": 4}}]


def test_what_an_override_replaces_is_written_nowhere_any_more(write: Any) -> None:
    tree = read_tree(write("a:\n- {b: 1}\n"), ["a.0.b=2", "a=[{c: 3}]"])
    assert tree.origin(("a", 0, "c")) == tree.origin(("a", 0, "b")) == "command line, a=[{c: 3}]"


@pytest.mark.parametrize("text", ["*.jsonl", "*/x.txt", "@home", "%s"])
def test_globs_need_no_quotes_on_a_command_line(write: Any, text: str) -> None:
    assert read_tree(write("a: 1\n"), [f"a={text}"]).values == {"a": text}


def test_a_missing_file_suggests_its_neighbour(write: Any) -> None:
    path = write("a: 1")
    with pytest.raises(UserError, match=r"no such run file\. Did you mean '.*run\.yaml'\?"):
        read_tree(path.with_name("runn.yaml"))
    with pytest.raises(UserError, match="cannot be read"):
        read_tree(path.parent)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        read_tree(path)
