import math

import pytest
import torch
from torch import Tensor, nn

from lm.data.tokenizers import BytesTokenizer
from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.options import ModelOptions
from lm.train.sample import SamplingSettings, draw, generate, sample_text

GREEDY = SamplingSettings(max_new_tokens=6, temperature=0)


class Successor(nn.Module):
    """Likes the token after the last one best, the one after that second best; remembers how it was called."""

    def __init__(self, vocab_size: int = 10) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(vocab_size))
        self.modes: list[bool] = []
        self.lengths: list[int] = []

    def forward(self, tokens: Tensor, documents: Documents) -> Tensor:
        self.modes.append(self.training)
        self.lengths.append(documents.num_tokens)
        assert documents.num_documents == 1
        size = len(self.logits)
        best = torch.nn.functional.one_hot((tokens + 1) % size, size) * 4.0
        return self.logits + best + torch.nn.functional.one_hot((tokens + 2) % size, size) * 3.0


class Letters:
    """Token 0 begins, 1 ends, the rest are letters from 'a'."""

    bos_id = 0
    eos_id = 1

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 2 for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token - 2 + ord("a")) for token in ids)


def test_greedy_sampling_follows_the_likeliest_token() -> None:
    assert generate(Successor(), [3], GREEDY) == [4, 5, 6, 7, 8, 9]


def test_the_stop_token_ends_the_sample_and_is_not_part_of_it() -> None:
    assert generate(Successor(), [3], GREEDY, stop_id=6) == [4, 5]


def test_the_same_seed_gives_the_same_sample_and_leaves_the_training_alone() -> None:
    model = Successor(50).train()
    settings = SamplingSettings(max_new_tokens=30, temperature=1.5, top_p=1.0, seed=1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = generate(model, [0], settings)
    assert torch.equal(torch.rand(3), expected)
    assert generate(model, [0], settings) == first
    assert generate(model, [0], SamplingSettings(max_new_tokens=30, temperature=1.5, top_p=1.0, seed=2)) != first
    assert model.training
    assert not any(model.modes)
    assert model.lengths[:30] == list(range(1, 31))


def test_time_is_bounded() -> None:
    assert generate(Successor(), [0], SamplingSettings(max_seconds=0.0)) == []


def test_draws_have_the_probabilities_that_temperature_and_top_p_say() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)

    def shares(temperature: float, top_p: float) -> Tensor:
        settings = SamplingSettings(temperature=temperature, top_p=top_p)
        drawn = torch.tensor([draw(logits, settings, generator) for _ in range(4000)])
        return torch.bincount(drawn, minlength=4) / 4000

    def close(found: Tensor, expected: list[float]) -> bool:
        return torch.allclose(found, torch.tensor(expected), atol=4 * math.sqrt(0.25 / 4000))

    assert close(shares(1.0, 1.0), [0.5, 0.3, 0.15, 0.05])
    assert close(shares(1.0, 0.75), [0.625, 0.375, 0, 0])
    assert shares(1.0, 0.75)[2:].sum() == 0
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert close(shares(0.5, 1.0), (squared / squared.sum()).tolist())
    assert shares(1.0, 1e-9)[0] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_logits_of_any_precision_are_served(dtype: torch.dtype) -> None:
    assert draw(torch.tensor([0.0, 90.0, -90.0], dtype=dtype), SamplingSettings(), torch.Generator()) == 1


def test_text_in_and_text_out() -> None:
    sample = sample_text(Successor(), Letters(), "ab", GREEDY)
    assert (sample.prompt, sample.text) == ("ab", "cdefgh")
    assert sample_text(Successor(), Letters(), "", SamplingSettings(temperature=0)).text == ""


def test_a_real_model_continues_a_text_the_same_way_every_time() -> None:
    torch.manual_seed(0)
    tokenizer = BytesTokenizer()
    model = LanguageModel(
        ModelOptions.model_validate(
            {
                "vocab_size": tokenizer.vocab_size,
                "hidden_size": 32,
                "num_attention_heads": 2,
                "max_position_embeddings": 32,
                "mixers": {"rat": {"kind": "rat", "chunk_size": 4}, "local": {"kind": "attention", "window": 8}},
                "layers": "rat local",
            }
        )
    )
    settings = SamplingSettings(max_new_tokens=12)
    sample = sample_text(model, tokenizer, "def ", settings)
    assert sample == sample_text(model, tokenizer, "def ", settings)
    assert 0 < len(sample.text) <= 12
