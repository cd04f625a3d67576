from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from eval.model import Model

NewModel = Callable[..., Model]


def rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def direct(model: Model, row: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """By the whole logits of one row alone."""
    with torch.no_grad():
        logits = model.model(torch.tensor([row]), use_cache=False).logits[0, :-1].double()
    targets = torch.tensor(row[1:], dtype=torch.int64)
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return nll.numpy(), (logits.argmax(1) == targets).numpy()


def test_scores_are_those_of_the_whole_logits_in_any_batch_and_order(model: Model) -> None:
    given_rows = rows([9, 1, 70, 2, 33, 70, 700])
    for tokens in (1, 150, 10_000):
        model.batch_tokens = tokens
        found = model.token_scores(given_rows)
        for row, scores in zip(given_rows, found, strict=True):
            nll, greedy = direct(model, row)
            assert scores.nll.dtype == np.float64
            np.testing.assert_allclose(scores.nll, nll, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(scores.greedy, greedy)
    assert found[1].nll.shape == (0,)


def test_the_likeliest_tokens_are_greedy(model: Model) -> None:
    (prompt,) = rows([12])
    (written,) = model.generate([prompt], 6)
    scores = model.token_scores([prompt + written])[0]
    assert scores.greedy[len(prompt) - 1 :].all()


def test_a_uniform_model_pays_the_logarithm_of_its_vocabulary(new_model: NewModel) -> None:
    uniform = new_model("llama", tie_word_embeddings=False)
    torch.nn.init.zeros_(uniform.model.lm_head.weight)
    for nll in uniform.token_nll(rows([5, 40])):
        np.testing.assert_allclose(nll, np.log(258), rtol=1e-6)


def test_a_row_may_end_behind_the_last_position_that_a_model_knows(model: Model) -> None:
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=258, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    (row,) = rows([17])
    found = Model(gpt, model.tokenizer, "gpt").token_nll([row, row[:5]])
    logits = gpt(torch.tensor([row[:-1]])).logits[0].log_softmax(-1)
    np.testing.assert_allclose(found[0], -logits[range(16), row[1:]].detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(found[1], found[0][:4], rtol=1e-5)


def test_logits_that_are_more_than_the_head_are_taken_whole(caplog: pytest.LogCaptureFixture, model: Model) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, final_logit_softcapping=2.0))
    gemma = Model(capped, model.tokenizer, "gemma")
    given_rows = rows([20, 30])
    with caplog.at_level(logging.WARNING):
        found = gemma.token_nll(given_rows) + gemma.token_nll(given_rows)
    assert caplog.text.count("gemma: its logits are more than an output head") == 1
    for row, nll in zip(given_rows * 2, found, strict=True):
        np.testing.assert_allclose(nll, direct(gemma, row)[0], rtol=1e-5)
    caplog.clear()
    model.token_nll(given_rows)
    assert not caplog.text


def test_logits_of_many_positions_never_exist_at_once(new_model: NewModel) -> None:
    model = new_model("llama")
    widest = 0

    def note(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal widest
        widest = max(widest, output.numel() // 258)

    model.token_nll(rows([4]))
    model.model.lm_head.register_forward_hook(note)
    model.token_nll(rows([2000, 1500]))
    assert widest == 512


def test_each_prompt_is_continued_as_if_it_were_alone(model: Model) -> None:
    prompts = rows([5, 17, 1, 30, 9])
    for tokens in (1, 60, 10_000):
        model.batch_tokens = tokens
        found = model.generate(prompts, 8)
        for prompt, written in zip(prompts, found, strict=True):
            alone = model.model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
            assert written == [id for id in alone.tolist() if id != 257]


def test_a_model_that_a_batch_confuses_is_asked_one_by_one(caplog: pytest.LogCaptureFixture, model: Model) -> None:
    """HF's RWKV knows no attention mask."""
    torch.manual_seed(0)
    blind = RwkvForCausalLM(RwkvConfig(vocab_size=258, hidden_size=32, num_hidden_layers=2, eos_token_id=257))
    rwkv = Model(blind, model.tokenizer, "rwkv")
    prompts = rows([5, 17, 5, 1])
    assert rwkv.generate(prompts, 8) == [rwkv.generate([prompt], 8)[0] for prompt in prompts]
    assert rwkv._generate(prompts, 8, ()) != [rwkv._generate([prompt], 8, ())[0] for prompt in prompts]
    assert caplog.text.count("rwkv: it writes another text in a batch than alone") == 1
    caplog.clear()
    assert model.generate(prompts, 2)
    assert not caplog.text


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 3.0, 9.0, 27.0],
    "original_max_position_embeddings": 32,
    "factor": 4.0,
}


@pytest.mark.parametrize(("rope", "context"), [(DYNAMIC, 32), (LONGROPE, 128)])
def test_longer_rows_change_no_angles_of_others(
    new_model: NewModel, caplog: pytest.LogCaptureFixture, rope: dict[str, object], context: int
) -> None:
    def fresh() -> Model:
        return new_model("llama", rope_parameters=dict(rope), max_position_embeddings=context)

    given_rows = rows([20, 33, 90, 32, 60])
    alone = [fresh().token_nll([row])[0] for row in given_rows]
    written = [fresh().generate([row], 8)[0] for row in given_rows]
    model = fresh()
    for _ in range(2):
        for found, expected in zip(model.token_nll(given_rows), alone, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert model.generate(given_rows, 8) == written
    for row, expected in zip(given_rows, alone, strict=True):
        np.testing.assert_allclose(model.token_nll([given_rows[2], row])[1], expected, rtol=1e-5, atol=1e-5)
    made = 1 + 2 * len(given_rows)
    assert caplog.text.count("beyond 32 tokens its rotary angles depend on the longest row") == made  # once each


def test_a_context_is_what_the_model_or_its_tokenizer_says(model: Model) -> None:
    assert model.context == 128
    silent = MambaForCausalLM(MambaConfig(vocab_size=258, hidden_size=16, num_hidden_layers=1, state_size=2))
    assert Model(silent, model.tokenizer, "mamba").context == model.tokenizer.model_max_length
    model.tokenizer.model_max_length = VERY_LARGE_INTEGER
    assert Model(silent, model.tokenizer, "mamba").context is None


def test_the_models_own_wish_to_sample_is_not_followed(new_model: NewModel) -> None:
    plain, wishing = new_model("llama"), new_model("llama").model
    wishing.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    other = Model(wishing, plain.tokenizer, "wishing")
    prompts = rows([8, 8])
    assert other.generate(prompts, 12) == plain.generate(prompts, 12)


def test_text_ends_before_eos_and_before_a_stop_string(new_model: NewModel) -> None:
    model = new_model("llama")
    prompts = rows([7, 19, 40])
    whole = model.generate(prompts, 20)
    texts = [model.decode(ids) for ids in whole]
    stop = texts[0][3:5]
    assert stop
    for text, ids in zip(texts, model.generate(prompts, 20, stop=[stop, "never written"]), strict=True):
        assert model.decode(ids) == text.partition(stop)[0]

    ending = Model(model.model, model.tokenizer, "ending")
    ending._eos = {whole[1][4]}
    ending.model.generation_config.eos_token_id = [whole[1][4]]
    expected = whole[1][: whole[1].index(whole[1][4])]
    assert ending.generate(prompts, 20)[1] == expected


def test_a_stop_string_may_be_a_special_token(new_model: NewModel) -> None:
    model = new_model("llama")
    prompts = rows([7])
    (whole,) = model.generate(prompts, 20)
    word = model.tokenizer.convert_ids_to_tokens(whole[4])
    model.tokenizer.add_special_tokens({"additional_special_tokens": [word]})
    assert model.generate(prompts, 20, stop=[word]) == [whole[: whole.index(whole[4])]]
    assert model.generate(prompts, 20) == [whole]


def test_bos_is_there_where_asked_and_once(model: Model) -> None:
    text = "naïve text"
    ids = list(model.encode(text))
    assert len(ids) == len(text.encode())
    assert model.encode(text, bos=True) == [256, *ids]
    assert model.encode("<s>" + text, bos=True) == [256, *ids]
    assert model.decode([256, *ids, 257]) == text
    model.tokenizer.bos_token = None
    assert model.encode(text, bos=True) == ids


@pytest.mark.parametrize("adds", [True, False])
def test_a_prompt_has_the_bos_that_the_tokenizer_gives_it(model: Model, adds: bool) -> None:
    if adds:
        bos = ("<s>", model.tokenizer.bos_token_id)
        model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    assert model.begins_with_bos is adds
    assert model.encode_prompt("ab") == model.tokenizer("ab").input_ids == model.encode("ab", bos=adds)


def test_a_fingerprint_names_weights_and_configuration(new_model: NewModel) -> None:
    first, same, other = new_model("llama"), new_model("llama"), new_model("llama", rope_theta=5e5)
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()
    changed = new_model("llama")
    with torch.no_grad():
        changed.model.lm_head.weight[3, 4] += 1e-3
    assert changed.fingerprint() != first.fingerprint()
    assert first.context == 128
    assert first.device == torch.device("cpu")


def test_rows_without_a_token_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="no first token"):
        model.token_nll([[1, 2], []])
    with pytest.raises(ValueError, match="no last token"):
        model.generate([[]], 3)
