"""`braid import`, `braid generate` and `braid chat` as a user types them."""

from __future__ import annotations

import io
import json
import re
import shutil
from logging import Handler

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import logging

from lm.cli import main
from lm.data.tokenizers import HuggingFaceTokenizer
from lm.errors import UserError
from lm.hf import generate as module
from lm.hf.generate import Stream
from lm.hf.tokenizer import fast_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory, byte_tokenizer):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, vocab_size=256, initializer_range=0.3, eos_token_id=None, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def imported(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    assert main(["import", str(llama), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def chatty(imported, tmp_path_factory, byte_tokenizer):
    folder = tmp_path_factory.mktemp("chatty")
    AutoModelForCausalLM.from_pretrained(imported).save_pretrained(folder)
    byte_tokenizer(chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def expected_text(folder, prompt, count):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    for _ in range(count):
        tokens = torch.cat((tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)), 1)
    return tokenizer.decode(tokens[0, -count:])


@pytest.mark.parametrize("model", ["llama", "imported"])
def test_greedy_text_is_streamed_and_its_speed_told(request, model, capsys):
    folder = request.getfixturevalue(model)
    capsys.readouterr()
    assert main(["generate", str(folder), "--prompt", "def f(x):", "--greedy", "--max-new-tokens", "12"]) == 0
    captured = capsys.readouterr()
    assert captured.out == expected_text(folder, "def f(x):", 12) + "\n"
    assert captured.err.startswith("9 tokens read in ")
    assert ", 12 written, " in captured.err
    assert captured.err.rstrip().endswith("tokens/s")


def test_a_seed_repeats_the_draw(imported, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        draw = ["--seed", seed, "--temperature", "1.5", "--top-p", "1", "--max-new-tokens", "20"]
        assert main(["generate", str(imported), "--prompt", "abc", *draw]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_a_tiny_top_p_is_greedy(imported, capsys):
    choices = (["--top-p", "1e-6"], ["--greedy"])
    for choice in choices:
        assert main(["generate", str(imported), "--prompt", "abc", "--max-new-tokens", "8", *choice]) == 0
    lines = capsys.readouterr().out
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_text_comes_before_the_end(imported, capsys):
    tokenizer = AutoTokenizer.from_pretrained(imported)
    stream = Stream(tokenizer)
    stream.put(torch.zeros(1, 3))
    for token in tokenizer("one two three").input_ids:
        stream.put(torch.tensor([token]))
    assert capsys.readouterr().out == "one two "
    stream.end()
    assert capsys.readouterr().out == "three\n"


class Interrupted(Stream):
    """Presses Ctrl-C when the fifth token comes."""

    def put(self, value):
        super().put(value)
        if len(self.tokens) == 5:
            raise KeyboardInterrupt


def test_ctrl_c_ends_the_text_and_tells_the_speed(imported, capsys, monkeypatch):
    monkeypatch.setattr(module, "Stream", Interrupted)
    assert main(["generate", str(imported), "--prompt", "abc", "--greedy"]) == 130
    captured = capsys.readouterr()
    assert captured.out == expected_text(imported, "abc", 5) + "\n"
    assert "5 written" in captured.err


def test_a_conversation_keeps_what_was_said(chatty, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\nso?\n"))
    assert main(["chat", str(chatty), "--greedy", "--max-new-tokens", "6"]) == 0
    first = expected_text(chatty, "[user]hi[a]", 6)
    second = expected_text(chatty, f"[user]hi[assistant]{first}[user]so?[a]", 6)
    assert capsys.readouterr().out == f"> {first}\n> {second}\n> \n"


def test_ctrl_c_in_a_conversation_ends_the_answer_only(chatty, capsys, monkeypatch):
    monkeypatch.setattr(module, "Stream", Interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert main(["chat", str(chatty), "--greedy"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"> {expected_text(chatty, '[user]hi[a]', 5)}\n> \n"
    assert "(interrupted)" in captured.err


@pytest.mark.parametrize("word", ["/quit", " /exit "])
def test_a_word_ends_a_conversation(chatty, capsys, monkeypatch, word):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"hi\n{word}\nmore\n"))
    assert main(["chat", str(chatty), "--greedy", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out == f"> {expected_text(chatty, '[user]hi[a]', 2)}\n> "


@pytest.fixture
def short(tmp_path, byte_tokenizer):
    """Makes a folder with a model for 32 tokens: of rotary positions (llama) or of learned ones (gpt2)."""

    def make(kind):
        torch.manual_seed(0)
        if kind == "llama":
            sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
            ends = {"bos_token_id": None, "eos_token_id": None}
            model = LlamaForCausalLM(LlamaConfig(**sizes, **ends, vocab_size=256, max_position_embeddings=32))
        else:
            sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32}
            model = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=256, bos_token_id=None, eos_token_id=None))
        model.save_pretrained(tmp_path / kind)
        byte_tokenizer(chat_template=TEMPLATE, model_max_length=32).save_pretrained(tmp_path / kind)
        return str(tmp_path / kind)

    return make


FITS = "23 tokens at most: the model's context of 32 ends there"
BEYOND = "the model is made for 32 tokens: a longer text extrapolates"


@pytest.mark.parametrize(
    ("kind", "asked", "written", "said"),
    [
        ("llama", None, 23, FITS),
        ("llama", 23, 23, None),
        ("llama", 40, 40, BEYOND),
        ("gpt2", None, 23, FITS),
        ("gpt2", 40, 23, FITS),
    ],
)
def test_a_text_ends_with_the_context_unless_more_is_asked_of_a_model_that_can(
    short, capsys, reminders, kind, asked, written, said
):
    more = [] if asked is None else ["--max-new-tokens", str(asked)]
    folder = short(kind)
    capsys.readouterr()
    assert main(["generate", folder, "--prompt", "def f(x):", "--greedy", *more]) == 0
    *notes, speed = capsys.readouterr().err.splitlines()
    assert notes == ([] if said is None else [said])
    assert f" {written} written" in speed
    assert reminders == []


@pytest.fixture
def reminders():
    """What transformers logs."""
    logging.warning_once.cache_clear()
    found = []
    handler = Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logging.add_handler(handler)
    yield found
    logging.remove_handler(handler)


def test_a_prompt_beyond_the_context(short, capsys, reminders):
    prompt, folder = ["--prompt", "x" * 40, "--greedy"], short("llama")
    capsys.readouterr()
    assert main(["generate", folder, *prompt]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{BEYOND}\n")
    assert " 256 written" in captured.err
    assert main(["generate", short("gpt2"), *prompt]) == 2
    assert "--prompt: 40 tokens leave no room in the 32 positions of the model" in capsys.readouterr().err
    assert reminders == []


def test_a_conversation_that_grows_beyond_the_context_says_so_once(short, capsys, monkeypatch, reminders):
    said = "hi\nwell, then\nand so on\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert main(["chat", short("llama"), "--greedy", "--max-new-tokens", "20"]) == 0
    assert capsys.readouterr().err.count(BEYOND) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert main(["chat", short("gpt2"), "--greedy", "--max-new-tokens", "20"]) == 2
    assert re.search(r"the conversation: \d+ tokens leave no room in the 32 positions", capsys.readouterr().err)
    assert reminders == []


def test_an_adapter_goes_onto_its_base(llama, tmp_path, capsys):
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "merged")
    assert main(["generate", str(tmp_path / "adapter"), "--prompt", "abc", "--greedy", "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == expected_text(tmp_path / "merged", "abc", 12) + "\n"


def test_an_adapter_whose_base_is_not_here_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lama").mkdir()
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "llama"}')
    (tmp_path / "adapter_model.safetensors").touch()
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 2
    assert f"{tmp_path}, an adapter on llama: llama: there is no such folder here. Did you" in capsys.readouterr().err


def test_a_folder_without_a_model_is_said(tmp_path, capsys):
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 2
    assert f"the folder {tmp_path} holds no config.json" in capsys.readouterr().err


def test_import_tells_what_is_new(llama, tmp_path, capsys):
    mixers = tmp_path / "mixers.yaml"
    mixers.write_text("r: {kind: rat, chunk_size: 4}")
    assert main(["import", str(llama), str(tmp_path / "a"), "--layers", "r global", "--mixers", str(mixers)]) == 0
    out = capsys.readouterr().out
    assert "parameters in float32: r global" in out
    assert "layer   0 r: new q_proj.weight, k_proj.weight, forget_proj.weight" in out
    assert "kept v_proj.weight, o_proj.weight" in out
    assert "layer   1 global: all kept" in out
    inline = ["--layers", "r r", "--mixers", "{r: {kind: rat, chunk_size: 4}}"]
    assert main(["import", str(llama), str(tmp_path / "b"), *inline]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "IMPORTED"], "has no chat template"),
        (["generate", "IMPORTED", "--prompt", ""], "--prompt: it is empty"),
        (["generate", "nowhere/at/all", "--prompt", "x"], "nowhere/at/all: "),
        (["generate", "IMPORTED", "--prompt", "x", "--greedy", "--top-p", "0.5", "--seed", "1"], "--seed, --top-p"),
        (["import", "IMPORTED", "new", "--layers", "global global"], "it is a Braid model already"),
        (["import", "LLAMA", "new", "--layers", "rat rat", "--mixers", "[rat"], "--mixers: "),
        (["import", "LLAMA", "new", "--layers", "rat rat", "--mixers", "rat"], "--mixers: mixers by name"),
        (["import", "LLAMA", "new", "--layers", "rat rat", "--mixers", "{1: {kind: rat}}"], "--mixers: mixers by name"),
    ],
)
def test_mistakes_are_told_in_a_sentence(llama, imported, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    places = {"IMPORTED": str(imported), "LLAMA": str(llama)}
    assert main([places.get(word, word) for word in arguments]) == 2
    assert message in capsys.readouterr().err


def test_missing_weights_are_said_by_whatever_reads_the_model(llama, tmp_path, capsys):
    """Not drawn at random: the text would look like a bad model's."""
    folder = tmp_path / "llama"
    shutil.copytree(llama, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 3}))
    for words in (["generate", str(folder), "--prompt", "x"], ["import", str(folder), str(tmp_path / "new")]):
        assert main(words) == 2
        assert f"{folder}: it lacks the weights model.layers.2." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": 1}, "no place for the weights model.layers.1."),
        ({"intermediate_size": 1000}, "mlp.down_proj.weight is ["),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": 33}, "not a multiple"),
        ({"hidden_act": "nonsense"}, "nonsense"),
        ({"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}}, "nonsense"),
        ({"num_key_value_heads": 3, "num_attention_heads": 4}, "num_key_value_heads"),
    ],
)
def test_configurations_that_do_not_fit_are_told_with_the_folder(llama, tmp_path, capsys, changed, message):
    folder = tmp_path / "llama"
    shutil.copytree(llama, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changed))
    assert main(["import", str(folder), str(tmp_path / "new")]) == 2
    told = capsys.readouterr().err
    assert str(folder) in told
    assert message in told
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_that_is_code_is_left_behind_and_never_asked_about(llama, tmp_path, capsys):
    folder = tmp_path / "llama"
    shutil.copytree(llama, folder)
    coded = {"eos_token": "a", "tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(coded))
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    assert main(["import", str(folder), str(tmp_path / "new")]) == 0
    assert "no tokenizer was copied" in capsys.readouterr().out
    assert (tmp_path / "new" / "model.safetensors").is_file()
    with pytest.raises(UserError, match="does not run"):
        fast_tokenizer(HuggingFaceTokenizer(folder), 64)


def test_a_file_is_no_folder_for_an_import(llama, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["import", str(llama), str(tmp_path / "file")]) == 2
    assert "file: a file; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("changed", [{"hidden_act": "nonsense"}, {"rope_parameters": {"rope_type": "nonsense"}}])
def test_names_that_transformers_does_not_know_are_told_with_the_folder(llama, tmp_path, capsys, changed):
    folder = tmp_path / "llama"
    shutil.copytree(llama, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changed))
    assert main(["generate", str(folder), "--prompt", "x"]) == 2
    assert f"{folder}: its configuration cannot be used: KeyError" in capsys.readouterr().err
