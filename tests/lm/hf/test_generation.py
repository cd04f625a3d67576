"""transformers' `generate` on hybrids, against the parallel forward."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, pipeline
from transformers.generation.streamers import BaseStreamer

from lm.hf import BraidCache

VOCABULARY = 23
PROMPT = torch.tensor([[3, 9, 4, 1, 7, 7, 2, 15, 20, 6]])
GREEDY = {"do_sample": False, "max_new_tokens": 9}


def greedy(model, tokens, count=9):
    """The text of one row by recomputing the parallel forward at every step."""
    for _ in range(count):
        tokens = torch.cat((tokens, model(tokens, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)), 1)
    return tokens


@pytest.mark.parametrize("length", [1, 3, 4, 5, 10])
def test_greedy_is_recomputation(model, length):
    assert torch.equal(model.generate(PROMPT[:, :length], **GREEDY), greedy(model, PROMPT[:, :length]))


def test_greedy_without_a_cache(model):
    assert torch.equal(model.generate(PROMPT, use_cache=False, **GREEDY), greedy(model, PROMPT))


def test_padded_rows_are_continued_as_if_alone(model):
    lengths = [10, 3, 1, 6]
    padded = torch.zeros(4, 10, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for row, length in enumerate(lengths):
        padded[row, 10 - length :], mask[row, 10 - length :] = PROMPT[0, :length], 1
    texts = model.generate(padded, attention_mask=mask, **GREEDY)
    for row, length in enumerate(lengths):
        assert torch.equal(texts[row, 10 - length :], greedy(model, PROMPT[:, :length])[0])


@pytest.mark.parametrize("cached", [True, False])
def test_beams_find_the_best_of_all_texts(new_model, pattern, cached):
    model = new_model(pattern, vocab_size=4)
    prompt = PROMPT[:, :5] % 4
    texts = torch.tensor([[*prompt[0].tolist(), *text] for text in itertools.product(range(4), repeat=4)])
    scores = model(texts).logits.log_softmax(-1)[:, 4:-1].gather(2, texts[:, 5:, None]).sum((1, 2))
    best = scores.argsort(descending=True)[:5]
    found = model.generate(
        prompt, num_beams=64, num_return_sequences=5, do_sample=False, max_new_tokens=4, use_cache=cached
    )
    assert torch.equal(found, texts[best])


@pytest.mark.parametrize("beams", [1, 3])
def test_drawn_texts_have_the_logits_of_the_parallel_forward(model, beams):
    torch.manual_seed(0)
    drawn = model.generate(
        PROMPT.repeat(2, 1),
        do_sample=True,
        num_beams=beams,
        num_return_sequences=3,
        max_new_tokens=9,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert len({tuple(row) for row in drawn.sequences.tolist()}) > 3
    logits = model(drawn.sequences).logits[:, 9:-1].float()
    if beams == 1:
        torch.testing.assert_close(torch.stack(drawn.logits, 1), logits, atol=1e-5, rtol=1e-5)
    else:  # the last beams' logits, in the order of the step that chose them
        for step, rows in enumerate(drawn.beam_indices.T):
            torch.testing.assert_close(drawn.logits[step][rows], logits[:, step], atol=1e-5, rtol=1e-5)


class Collector(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        self.pieces.append(value)

    def end(self):
        self.ended = True


def test_tokens_are_streamed_one_by_one(model):
    streamer = Collector()
    text = model.generate(PROMPT, streamer=streamer, **GREEDY)
    assert [piece.numel() for piece in streamer.pieces] == [10] + [1] * 9
    assert torch.equal(torch.cat([piece.flatten() for piece in streamer.pieces]), text[0])
    assert streamer.ended


class StopAt(StoppingCriteria):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


def test_stops_where_asked(model):
    whole = greedy(model, PROMPT)
    stop = whole[0, 13].item()
    end = 11 + whole[0, 10:].tolist().index(stop)
    assert torch.equal(model.generate(PROMPT, stopping_criteria=[StopAt(stop)], **GREEDY), whole[:, :end])
    assert torch.equal(model.generate(PROMPT, eos_token_id=stop, **GREEDY), whole[:, :end])


def test_rows_end_separately_and_are_filled_with_padding(model):
    rows = torch.stack((PROMPT[0], PROMPT[0].flip(0)))
    whole = [greedy(model, row[None])[0, 10:].tolist() for row in rows]
    eos = whole[0][1]
    expected = [text[: text.index(eos) + 1] if eos in text else text for text in whole]
    found = model.generate(rows, eos_token_id=eos, pad_token_id=22, **GREEDY)[:, 10:]
    for text, row in zip(expected, found.tolist(), strict=True):
        assert row == text + [22] * (len(row) - len(text))


def test_a_cache_goes_on_in_the_next_call(model):
    cache = BraidCache()
    first = model.generate(PROMPT, past_key_values=cache, **GREEDY)
    assert cache.get_seq_length() == first.shape[1] - 1
    longer = torch.cat((first, PROMPT[:, :4]), 1)
    second = model.generate(longer, past_key_values=cache, **GREEDY)
    assert torch.equal(second, greedy(model, longer))


@pytest.mark.parametrize("size", [1, 3, 4, 7, 10])
def test_a_prompt_read_in_chunks(model, size):
    rows = torch.stack((PROMPT[0], PROMPT[0].flip(0)))
    mask = torch.ones_like(rows)
    mask[1, :5] = 0
    prompt = {"input_ids": rows, "attention_mask": mask}
    assert torch.equal(model.generate(**prompt, prefill_chunk_size=size, **GREEDY), model.generate(**prompt, **GREEDY))


def test_the_cache_grows_as_its_mixers_state(model):
    cache = BraidCache()
    model.generate(PROMPT, past_key_values=cache, **GREEDY)
    tokens = cache.get_seq_length()
    assert cache.used_bytes == sum(layer.cache_bytes(tokens, torch.float64) for layer in model.model.blocks)


@pytest.mark.parametrize("draft", ["assistant_model", "prompt_lookup_num_tokens"])
def test_drafts_need_layers_that_can_forget(new_model, draft):
    # A short text that repeats itself, so that drafts are both taken and refused.
    prompt = PROMPT.repeat(1, 2)
    for pattern in ("global*2", "s2 global"):
        model = new_model(pattern)
        given = {draft: new_model("global", hidden_size=8) if draft == "assistant_model" else 3}
        assert torch.equal(model.generate(prompt, **given, **GREEDY), greedy(model, prompt))
    for pattern in ("rat global", "local", "ls", "conv"):
        model = new_model(pattern)
        with pytest.raises(ValueError, match="stateful"):
            model.generate(prompt, **given, **GREEDY)


def test_what_cannot_be_forgotten_names_its_layer(new_model):
    for pattern, message in (
        ("global rat", r"layer 1 \(rat\)"),
        ("local global", r"layer 0 \(attention\): a window of"),
        ("global conv", r"layer 1 \(attention\): a short convolution"),
    ):
        model, cache = new_model(pattern), BraidCache()
        model(PROMPT, past_key_values=cache)
        with pytest.raises(ValueError, match=message):
            cache.crop(-1)
        again = model(PROMPT[:, :2], past_key_values=cache).logits
        whole = model(torch.cat((PROMPT, PROMPT[:, :2]), 1)).logits[:, -2:]
        torch.testing.assert_close(again, whole, atol=1e-10, rtol=1e-10)


def test_what_can_be_forgotten_is(new_model):
    for pattern, removed in (("global", 7), ("(rat global)*2", 2), ("s2", 1)):
        model, cache = new_model(pattern), BraidCache()
        model(PROMPT, past_key_values=cache)
        cache.crop(-removed)
        again = model(PROMPT[:, -removed:], past_key_values=cache).logits
        torch.testing.assert_close(again, model(PROMPT).logits[:, -removed:], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("removed", [1, 2, 5, 7])
@pytest.mark.parametrize("layers", ["global*2", "s2 global"])
def test_padding_is_forgotten_as_columns_that_held_no_token(new_model, layers, removed):
    model, cache = new_model(layers), BraidCache()
    tokens = torch.cat((PROMPT, PROMPT.flip(1), PROMPT.roll(3, 1)))
    mask = torch.ones_like(tokens)
    mask[1, :7], mask[2, 8:] = 0, 0  # three tokens behind padding, and two columns of padding behind eight
    model(tokens[:, :6], attention_mask=mask[:, :6], past_key_values=cache)
    model(tokens[:, 6:], attention_mask=mask, past_key_values=cache)
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    tokens, mask = tokens[[2, 0, 1]], mask[[2, 0, 1]]
    cache.crop(-removed)
    kept = 10 - removed
    assert torch.equal(cache.decoder.seen, mask[:, :kept].sum(1))
    again = model(tokens[:, kept:], attention_mask=mask, past_key_values=cache).logits
    whole = model(tokens, attention_mask=mask).logits[:, kept:]
    real = mask[:, kept:].bool()
    torch.testing.assert_close(again[real], whole[real], atol=1e-10, rtol=1e-10)
    with pytest.raises(ValueError, match="the cache holds 10 columns"):
        cache.crop(-11)


def test_columns_of_padding_alone(model):
    tokens = PROMPT.repeat(2, 1)
    mask = torch.ones_like(tokens)
    mask[:, :5] = 0
    prompt = {"input_ids": tokens, "attention_mask": mask}
    whole = model.generate(**prompt, **GREEDY)
    assert torch.equal(model.generate(**prompt, prefill_chunk_size=4, **GREEDY), whole)
    out = model(tokens[:, :4], attention_mask=mask[:, :4], output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1


@pytest.mark.parametrize("implementation", ["static", "quantized", "offloaded"])
def test_other_caches_are_refused(model, implementation):
    with pytest.raises(ValueError, match=f"'{implementation}' does not fit a hybrid"):
        model.generate(PROMPT, cache_implementation=implementation, **GREEDY)
    assert torch.equal(model.generate(PROMPT, cache_implementation="dynamic", **GREEDY), greedy(model, PROMPT))


def test_a_copied_cache_goes_on_by_itself(model):
    """A prompt read once is continued twice."""
    ids = torch.tensor([[1, 5, 7, 3, 9]])
    cache = BraidCache()
    with torch.no_grad():
        model(ids, past_key_values=cache)
        copied = copy.deepcopy(cache)
        assert copied._model is cache._model
        for text, own in ((torch.tensor([[2, 4]]), cache), (torch.tensor([[8, 6]]), copied)):
            found = model(text, past_key_values=own).logits
            torch.testing.assert_close(found, model(torch.cat((ids, text), 1)).logits[:, -2:])


def test_a_sink_that_no_checkpoint_gave_is_initialised(new_model):
    mixer = new_model("global").model.mixers[0]
    sinking = type(mixer)(mixer.options.model_copy(update={"sink": True}), mixer.dimensions)
    with torch.no_grad():
        sinking.sink.logit.fill_(1e22)
    sinking.init_weights(0.02)
    assert sinking.sink.logit.eq(0).all()


def test_a_batch_of_another_size_does_not_fit_a_cache(model):
    cache = BraidCache()
    model(PROMPT, past_key_values=cache)
    with pytest.raises(ValueError, match="this cache holds 1 rows, the input has 2"):
        model(PROMPT[:, :1].repeat(2, 1), past_key_values=cache)


def test_the_pipeline(new_model, pattern, byte_tokenizer, tmp_path):
    new_model(pattern, vocab_size=256, pad_token_id=0).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer(padding_side="left", pad_token="\u0100")
    tokenizer.save_pretrained(tmp_path)
    generator = pipeline("text-generation", model=str(tmp_path))
    prompts = ["def f(x):", "if", "while True:  # for ever"]
    written = generator(prompts, batch_size=3, return_full_text=False, **GREEDY)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    for prompt, (result,) in zip(prompts, written, strict=True):
        tokens = tokenizer(prompt, return_tensors="pt").input_ids
        expected = tokenizer.decode(greedy(model, tokens)[0, tokens.shape[1] :], skip_special_tokens=True)
        assert result["generated_text"] == expected
