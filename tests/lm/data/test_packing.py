"""Packing: every target once, none across documents, documents whole where they fit, and rows that are full."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.options import DataOptions
from lm.data.packing import PackedRows, Packing, PackingPlan, make_plan, shortest_of_longest
from lm.data.prepare import prepare
from lm.data.rows import IGNORED, PADDING_DOCUMENT
from lm.data.store import Stores, StoreWriter, TokenStore
from lm.data.tokenizers import BytesTokenizer

PLANNED: tuple[Packing, ...] = ("best_fit", "document")
PACKINGS = ("concat", *PLANNED)


class Store(TokenStore):
    """Documents of these lengths in memory: token i of all is i."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.offsets = np.append(0, np.cumsum(lengths))
        self.tokens = np.arange(self.offsets[-1], dtype=np.uint32)
        self.num_documents, self.num_tokens = len(lengths), len(self.tokens)


def require_each_target_once(lengths: np.ndarray, plan: PackingPlan, sequence_length: int) -> float:
    """Reads an epoch, and returns how full its rows are."""
    store = Store(lengths)
    rows = PackedRows(Stores([store]), plan, sequence_length)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    seen = np.zeros(len(store.tokens), dtype=np.int64)
    tokens, targets = np.empty((2, sequence_length), dtype=np.int64)
    for row in range(len(rows)):
        pieces = rows.fill(row, tokens, targets)
        assert sum(piece.length for piece in pieces) == sequence_length
        predicted = targets != IGNORED
        assert (targets[predicted] == tokens[predicted] + 1).all()
        assert (document_of[targets[predicted]] == document_of[tokens[predicted]]).all(), "a target crosses a boundary"
        seen[targets[predicted]] += 1
    expected = np.ones_like(seen)
    expected[store.offsets[:-1]] = 0  # the first token of a document is only read
    assert (seen == expected).all()
    return expected.sum() / (len(rows) * sequence_length)


@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=40),
    sequence_length=st.integers(1, 40),
    packing=st.sampled_from(PLANNED),
)
@settings(deadline=None, max_examples=150)
def test_every_target_is_in_one_row_once(lengths: list[int], sequence_length: int, packing: Packing) -> None:
    documents = np.array(lengths)
    plan = make_plan(documents - 1, packing, sequence_length)
    require_each_target_once(documents, plan, sequence_length)
    pieces = np.bincount(plan.documents, minlength=len(lengths))
    assert pieces.tolist() == [-(-(length - 1) // sequence_length) for length in lengths]
    if packing == "document":
        assert len(plan.rows) - 1 == len(plan.documents)


def best_fit_by_definition(places: list[int], sequence_length: int) -> int:
    """How many rows one by one best fit, longest first, needs."""
    room: list[int] = []
    for length in sorted(places, reverse=True):
        fitting = [row for row in range(len(room)) if room[row] >= length]
        if fitting:
            room[min(fitting, key=lambda row: room[row])] -= length
        else:
            room.append(sequence_length - length)
    return len(room)


@given(places=st.lists(st.integers(1, 30), min_size=1, max_size=60), longer=st.integers(0, 30))
@settings(deadline=None, max_examples=80)
def test_best_fit_is_what_it_is_by_definition(places: list[int], longer: int) -> None:
    plan = make_plan(np.array(places), "best_fit", 30 + longer)
    assert len(plan.rows) - 1 == best_fit_by_definition(places, 30 + longer)


def test_thousands_of_documents_fill_their_rows() -> None:
    lengths = np.random.default_rng(0).integers(2, 100_001, 5000)
    plan = make_plan(lengths - 1, "best_fit", 8192)
    order = np.lexsort((plan.offsets, plan.documents))
    documents, offsets, taken = plan.documents[order], plan.offsets[order], plan.lengths[order]
    begins = np.append(True, np.diff(documents) > 0)
    assert (offsets[begins] == 0).all()
    assert (offsets[~begins] == (offsets + taken)[:-1][~begins[1:]]).all(), "pieces overlap, or leave something out"
    assert np.bincount(documents, taken).tolist() == (lengths - 1).tolist()
    assert (np.add.reduceat(plan.lengths, plan.rows[:-1]) <= 8192).all()
    assert (lengths - 1).sum() / (8192 * (len(plan.rows) - 1)) > 0.98


def test_the_longest_documents_hold_their_share() -> None:
    lengths = [np.array([2, 30, 3, 30, 5]), np.array([20, 10])]
    stores: list[TokenStore] = [Store(part) for part in lengths]
    assert shortest_of_longest(stores, 0.3) == 30
    assert shortest_of_longest(stores, 0.6) == 30
    assert shortest_of_longest(stores, 0.61) == 20
    assert shortest_of_longest(stores, 1) == 2


def options_for(folder: Path, packing: str, **source: object) -> DataOptions:
    return DataOptions.model_validate(
        {
            "tokenizer": {"kind": "bytes"},
            "sources": [{"path": str(folder / "corpus"), **source}],
            "sequence_length": 64,
            "packing": packing,
            "validation": {"fraction": 0},
            "cache_dir": folder / "cache",
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    for number in range(40):
        (tmp_path / "corpus" / f"{number:02}.txt").write_text(chr(ord("a") + number % 26) * (5 + 5 * number))
    return tmp_path


def test_a_run_is_packed_as_its_options_say(folder: Path) -> None:
    found = {packing: prepare(options_for(folder, packing)) for packing in PACKINGS}
    assert len({prepared.fingerprint for prepared in found.values()}) == 3
    rows = {packing: prepared.train.order.rows[0] for packing, prepared in found.items()}
    assert rows["best_fit"] < rows["document"]
    for row in range(rows["document"]):
        ids = [id for id in found["document"].train.rows([row]).document_ids if id != PADDING_DOCUMENT]
        assert len(ids) == 1
    again = found["best_fit"].stage(1, 32)
    assert again.rows([0]).tokens.shape == (1, 32)


@pytest.mark.parametrize("packing", PACKINGS)
def test_long_documents_are_chosen_by_length(folder: Path, packing: str) -> None:
    for chosen, least in (({"min_tokens": 150}, 150), ({"longest": 0.5}, 147)):
        prepared = prepare(options_for(folder, packing, **chosen))
        ids = {
            id
            for row in range(prepared.train.order.rows[0])
            for id in prepared.train.rows([row]).document_ids
            if id != PADDING_DOCUMENT
        }
        expected = {number for number in range(40) if 5 + 5 * number + 2 >= least}
        assert ids == expected


def test_a_written_store_is_packed_like_one_in_memory(tmp_path: Path) -> None:
    from lm.data.readers import Document

    with StoreWriter(tmp_path / "store", BytesTokenizer(), keep_text=False) as writer:
        writer.add([Document(text, text.encode()) for text in ("abc", "defghij", "k")])
    store = TokenStore(tmp_path / "store")
    rows = PackedRows(Stores([store]), make_plan(np.diff(store.offsets) - 1, "best_fit", 8), 8)
    tokens, targets = np.empty((2, 8), dtype=np.int64)
    rows.fill(0, tokens, targets)
    assert bytes(tokens[1:].tolist()) == b"defghij"
    assert targets.tolist() == [*b"defghij", 257]
