"""Tokenizers with a chat template, as Hugging Face folders."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import tokenizers

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace(
    "{{ m['content'] }}",
    "{% if loop.last and m['role'] == 'assistant' %}{{ '[thought]' }}{% endif %}{{ m['content'] }}",
).replace("assistant\n{% endif", "assistant\n[thought]{% endif")
"""Drops what was thought before earlier answers."""
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant are known') }}{% endif %}{% endfor %}"
)


def save_tokenizer(folder: Path, template: str | None) -> Path:
    """A byte-level tokenizer whose messages end with <|im_end|>, or for INST one that marks spaces as Llama's does."""
    code = Path(logging.__file__).read_text()
    spaces = template == INST
    specials = ["<unk>", "<s>", "</s>"] if spaces else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>" if spaces else None))
    if spaces:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
        alphabet = [chr(code) for code in range(32, 127)]
    else:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([code], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if spaces else {"eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(ends | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="session")
def chatml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with the ChatML template."""
    return save_tokenizer(tmp_path_factory.mktemp("chatml"), CHATML)


@pytest.fixture(scope="session")
def inst_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a template in the manner of Llama 2."""
    return save_tokenizer(tmp_path_factory.mktemp("inst"), INST)
