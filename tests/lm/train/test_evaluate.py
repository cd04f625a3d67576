import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.prepare import prepare
from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.run_file import RunFile
from lm.train import distributed
from lm.train.engine import Engine
from lm.train.evaluate import bytes_per_target, chosen_rows, evaluate, forwards

MakeRun = Callable[..., RunFile]


@given(rows=st.integers(1, 40), size=st.integers(1, 6), ranks=st.integers(1, 5))
@settings(deadline=None)
def test_ranks_make_equally_many_forwards_and_read_every_row_once(rows: int, size: int, ranks: int) -> None:
    every = [forwards(list(range(rows)), size, rank, ranks) for rank in range(ranks)]
    assert len({len(mine) for mine in every}) == 1
    read = [row for mine in every for indices, real in mine for row in indices[:real]]
    assert sorted(read) == list(range(rows))
    assert all(indices and len(indices) <= size for mine in every for indices, _ in mine)


@given(rows=st.integers(1, 500), length=st.integers(1, 64), cap=st.one_of(st.none(), st.integers(1, 9999)))
@settings(deadline=None)
def test_a_cap_takes_different_rows_from_all_over(rows: int, length: int, cap: int | None) -> None:
    chosen = chosen_rows(rows, length, cap)
    assert chosen == sorted(set(chosen))
    assert all(0 <= row < rows for row in chosen)
    assert cap is None or len(chosen) * length <= max(cap, length)
    assert cap is None or len(chosen) == max(1, min(rows, cap // length))


@pytest.mark.parametrize("micro_batch_size", [1, 5])
def test_it_is_the_mean_over_all_held_out_targets(make_run: MakeRun, micro_batch_size: int) -> None:
    run = make_run()
    validation = prepare(run.data).validation
    assert validation is not None
    torch.manual_seed(0)
    model = LanguageModel(run.model)
    engine = Engine(model, run.train, run.optimizer, run.deepspeed, distributed.start())
    found = evaluate(engine, validation, 7, micro_batch_size)

    store = validation.stores[0]
    total, count, correct = 0.0, 0, 0
    with torch.no_grad():
        for row in range(validation.num_rows):
            batch = validation.batches.rows([row])
            targets = batch.targets.flatten()
            logits = model(batch.tokens.flatten(), Documents.from_lengths(batch.lengths))[targets != -100]
            targets = targets[targets != -100]
            total += torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum").item()
            count, correct = count + len(targets), correct + int((logits.argmax(1) == targets).sum())
    assert found.tokens == count == store.num_tokens - store.num_documents
    assert found.loss == pytest.approx(total / count, rel=1e-6)
    assert found.accuracy == pytest.approx(correct / count)
    assert found.bytes == validation.num_bytes
    assert sum(part.tokens for part in found.by_position) == count
    assert sum(part.tokens * part.loss for part in found.by_position) == pytest.approx(total, rel=1e-6)


def test_answers_count_the_same_packed_and_alone(make_run: MakeRun, tmp_path: Path) -> None:
    said = [{"prompt": "abc " * (number % 4), "response": f"{number} " * (1 + number % 3)} for number in range(40)]
    (tmp_path / "samples.json").write_text(json.dumps(said))
    sources = f"data.sources=[{{kind: sft, path: {tmp_path / 'samples.json'}, template: '{{prompt}}: '}}]"
    run = make_run(sources, f"data.cache_dir={tmp_path / 'cache'}")
    validation = prepare(run.data).validation
    assert validation is not None
    (store,) = validation.stores
    assert validation.num_rows < store.num_documents, "some rows hold several"
    model = LanguageModel(run.model)
    engine = Engine(model, run.train, run.optimizer, run.deepspeed, distributed.start())
    found = evaluate(engine, validation, 7, 2)

    total, answers = 0.0, b""
    with torch.no_grad():
        for start, stop in itertools.pairwise(store.offsets.tolist()):
            tokens = torch.from_numpy(store.tokens[start:stop].astype("int64"))
            learned = torch.from_numpy(store.targets[start + 1 : stop].copy())
            logits = model.eval()(tokens[:-1], Documents.from_lengths([len(tokens) - 1]))[learned]
            total += torch.nn.functional.cross_entropy(logits, tokens[1:][learned], reduction="sum").item()
            answers += bytes(tokens[1:][learned][:-1].tolist())
    assert found.tokens == store.num_targets
    assert found.loss * found.tokens == pytest.approx(total, rel=1e-5)
    assert found.bytes == len(answers)
    assert answers == validation.text()
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / len(answers), rel=1e-5)


def test_a_part_counts_bytes_in_proportion(make_run: MakeRun) -> None:
    run = make_run()
    validation = prepare(run.data).validation
    assert validation is not None
    engine = Engine(LanguageModel(run.model), run.train, run.optimizer, run.deepspeed, distributed.start())
    found = evaluate(engine, validation, 7, 2, max_tokens=3 * run.data.sequence_length)
    assert 0 < found.tokens <= 3 * run.data.sequence_length
    assert found.bytes == round(found.tokens * bytes_per_target(validation))
