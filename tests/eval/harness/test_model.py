from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from eval.harness import BraidLM
from eval.model import Model
from lm.errors import UserError

Requests = Callable[..., list[Instance]]
NewModel = Callable[..., Model]
BeginWithBos = Callable[[PreTrainedTokenizerFast], None]
LONG = "The quick brown fox — über den faulen Hund — jumps. " * 6
PAIRS = [
    ("The quick", " brown fox"),
    ("The quick ", "brown fox"),
    ("", "alone"),
    ("a" * 150, " and the end"),
    ("Q: 1+1=", "2"),
    ("one\n\n", "two"),
]


@pytest.fixture(params=[False, True], ids=["plain", "adds_bos"])
def tiny(request: pytest.FixtureRequest, new_model: NewModel, begin_with_bos: BeginWithBos) -> Model:
    """A tiny Llama with a context of 64, whose tokenizer begins texts with bos or does not."""
    model = new_model("llama", max_position_embeddings=64)
    if request.param:
        begin_with_bos(model.tokenizer)
    return model


def hf(model: Model, **more: Any) -> HFLM:
    """The harness' own type over the same model."""
    return HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=3, max_length=64, **more)


def log_p(model: Model, ids: Sequence[int], first: int) -> float:
    """log p of ids[first:] after what precedes them, by a plain forward."""
    with torch.no_grad():
        logits = model.model(torch.tensor([list(ids)])).logits[0]
    scores = F.log_softmax(logits.double(), -1)
    return sum(float(scores[place - 1, ids[place]]) for place in range(first, len(ids)))


def test_loglikelihood_is_that_of_the_hf_type(tiny: Model, requests: Requests) -> None:
    # Its 150 letters are cut there, bos and all, and here keep their bos.
    pairs = [pair for pair in PAIRS if len(pair[0]) < 64 or not BraidLM(tiny).add_bos_token]
    ours = BraidLM(tiny).loglikelihood(requests("loglikelihood", *pairs))
    theirs = hf(tiny).loglikelihood(requests("loglikelihood", *pairs))
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    np.testing.assert_allclose([score for score, _ in ours], [score for score, _ in theirs], rtol=0, atol=1e-4)


def test_the_likeliest_continuation_is_found_out(tiny: Model) -> None:
    context = tiny.encode("abc")
    (written,) = tiny.generate([context], 5)
    rows = [(("", ""), context, written), (("", ""), context, [*written[:4], (written[4] + 1) % 256])]
    (_, greedy), (_, other) = BraidLM(tiny)._loglikelihood_tokens(rows)
    assert greedy
    assert not other


def test_rolling_is_an_independent_windowed_sum(tiny: Model, requests: Requests) -> None:
    """Every token once: 64 from bos on, then blocks of 64, the last filled up with tokens before it."""
    ids = tiny.encode(LONG)
    assert len(ids) > 3 * 64
    expected = log_p(tiny, [256, *ids[:64]], 1)
    for begin in range(64, len(ids), 64):
        end = min(begin + 64, len(ids))
        expected += log_p(tiny, ids[end - 65 : end], 65 - (end - begin))
    (found,) = BraidLM(tiny).loglikelihood_rolling(requests("loglikelihood_rolling", (LONG,)))
    assert found == pytest.approx(expected, abs=1e-4)


def test_bos_is_counted_once(tiny: Model, requests: Requests) -> None:
    """The `hf` type scores a tokenizer's own bos as a token of the text, unless it is told not to add it."""
    texts = [(LONG,), ("short",)]
    ours = BraidLM(tiny).loglikelihood_rolling(requests("loglikelihood_rolling", *texts))
    theirs = hf(tiny, add_bos_token=False).loglikelihood_rolling(requests("loglikelihood_rolling", *texts))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    doubled = hf(tiny, add_bos_token=True).loglikelihood_rolling(requests("loglikelihood_rolling", *texts))
    assert all(abs(one - two) > 0.1 for one, two in zip(ours, doubled, strict=True)) == (BraidLM(tiny).add_bos_token)


def test_a_text_that_begins_with_bos_gets_no_second_one(tiny: Model, requests: Requests) -> None:
    lm = BraidLM(tiny, add_bos_token=True)
    assert lm.tok_encode("<s>abc") == lm.tok_encode("abc") == [256, *tiny.encode("abc")]
    with_bos, without = lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("<s>abc",), ("abc",)))
    assert with_bos == without
    (one, _), (other, _) = lm.loglikelihood(requests("loglikelihood", ("<s>ab", "c"), ("ab", "c")))
    assert one == other
    tiny.tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = lm.apply_chat_template([{"role": "user", "content": "abc"}])
    assert lm.tok_encode(chat) == [256, *tiny.encode("abc")]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_neither_order_nor_batch_size_changes_a_result(
    new_model: NewModel, requests: Requests, batch_size: int
) -> None:
    model = new_model("hybrid")
    lm = BraidLM(model, batch_size=batch_size)
    contexts = ["b" * length for length in (1, 40, 7, 23, 90)]
    pairs = requests("loglikelihood", *((context, " ok") for context in contexts))
    settings = [{"until": [], "max_gen_toks": 4 + place % 2} for place in range(5)]
    prompts = requests("generate_until", *zip(contexts, settings, strict=True))
    texts = requests("loglikelihood_rolling", *((context * 3,) for context in contexts))
    alone = BraidLM(model)
    scores = [score for score, _ in lm.loglikelihood(pairs)]
    np.testing.assert_allclose(scores, [alone.loglikelihood([one])[0][0] for one in pairs], rtol=0, atol=1e-4)
    totals = lm.loglikelihood_rolling(texts)
    np.testing.assert_allclose(totals, [alone.loglikelihood_rolling([one])[0] for one in texts], rtol=0, atol=1e-4)
    assert lm.generate_until(prompts) == [alone.generate_until([one])[0] for one in prompts]


def test_generation_stops_as_asked(tiny: Model, requests: Requests) -> None:
    lm = BraidLM(tiny)
    free, short = {"until": [], "max_gen_toks": 12}, {"max_new_tokens": 3}
    whole, cut = lm.generate_until(requests("generate_until", ("Hello", free), ("Hello", short)))
    theirs = hf(tiny).generate_until(requests("generate_until", ("Hello", free), ("Hello", short)))
    assert [whole, cut] == theirs
    word = whole[1:3]
    (stopped,) = lm.generate_until(requests("generate_until", ("Hello", {"until": [word], "max_gen_toks": 12})))
    assert stopped == whole.split(word)[0]


@pytest.mark.parametrize(("side", "kept"), [("left", "c" * 54), ("middle", "a" * 27 + "c" * 27)])
def test_a_prompt_that_does_not_fit_is_cut_and_counted(
    new_model: NewModel, requests: Requests, side: Any, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = new_model("llama", max_position_embeddings=64)
    lm = BraidLM(model, truncation=side)
    long = "a" * 60 + "b" * 60 + "c" * 60
    asked = {"until": [], "max_gen_toks": 10}
    cut, whole = lm.generate_until(requests("generate_until", (long, asked), (kept, asked)))
    assert cut == whole
    assert len(lm.truncation.shortened) == 1
    assert f"lost their {'beginning' if side == 'left' else 'middle'}: 1" in caplog.text


@pytest.mark.parametrize("ending", [" the end", " and more than half of what the model takes"])
@pytest.mark.parametrize("side", ["left", "middle"])
def test_a_context_is_cut_but_never_its_continuation(
    new_model: NewModel, requests: Requests, side: Any, ending: str
) -> None:
    model = new_model("llama", max_position_embeddings=64)
    lm = BraidLM(model, truncation=side)
    (score, _), (endless, _) = lm.loglikelihood(requests("loglikelihood", ("a" * 100, ending), ("ab", "c" * 200)))
    kept = 65 - len(ending)
    row = model.encode("a" * kept + ending)
    assert score == pytest.approx(log_p(model, row, kept), abs=1e-4)
    first, *windows = ["b" + "c" * 64] + ["c" * 65] * 2 + ["c" * 65]
    expected = log_p(model, model.encode(first), 1) + 2 * log_p(model, model.encode(windows[0]), 1)
    expected += log_p(model, model.encode(windows[0]), 65 - (200 - 3 * 64))
    assert endless == pytest.approx(expected, abs=1e-4)


def test_a_token_over_the_border_is_scored_whole(new_model: NewModel) -> None:
    lm = BraidLM(new_model("llama"))
    cuts = {"ab": [1, 2], "abcd": [1, 5]}
    lm.tok_encode = lambda text, **_: cuts[text]  # type: ignore[method-assign]
    assert lm._encode_pair("ab", "cd") == ([1], [5])


def test_what_it_cannot_do_is_said_by_name(tiny: Model, requests: Requests) -> None:
    lm = BraidLM(tiny)
    for given, word in (
        ({"do_sample": True, "temperature": 0.7}, "do_sample"),
        ({"temperature": 0.7}, "do_sample"),
        ({"num_beams": 4}, "num_beams"),
        ({"max_gen_toks": 64}, "max_gen_toks"),
    ):
        with pytest.raises(UserError, match=word):
            lm.generate_until(requests("generate_until", ("Hello", given)))
    with pytest.raises(UserError, match="Did you mean 'max_length'"):
        BraidLM(tiny, max_lenght=12)
    sizes = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 1}
    learned = Model(GPT2LMHeadModel(GPT2Config(vocab_size=258, **sizes)), tiny.tokenizer, "gpt2")
    assert BraidLM(learned, max_length=32).max_length == 32
    with pytest.raises(UserError, match="max_length: 33 is beyond the 32 positions that gpt2 has"):
        BraidLM(learned, max_length=33)
    with pytest.raises(UserError, match="chat template"):
        lm.apply_chat_template([{"role": "user", "content": "abc"}])
    tiny.tokenizer.bos_token = tiny.tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a bos nor an eos"):
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("abc",)))
