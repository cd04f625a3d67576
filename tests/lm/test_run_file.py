"""Run files: what loads, what is derived, what is refused and in which words, and that nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast

from lm.errors import UserError
from lm.model.mixers.attention import AttentionOptions
from lm.run_file import ExtensionFile, RunFile, json_schema, load_run_file, missing_sources, to_yaml

MINIMAL = """\
model:
  hidden_size: 64
  num_attention_heads: 4
  mixers:
    rat: {kind: rat, chunk_size: 4}
    local: {kind: attention, window: 8}
  layers: "(rat local)*2"
data:
  tokenizer: {kind: bytes}
  sources:
  - {path: python-stdlib}
  sequence_length: 32
train:
  output_dir: runs/x
  steps: 10
  global_batch_tokens: 64
optimizer:
  lr: 1e-3
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_run_file(path, overrides)
    return str(caught.value).replace(str(path), "run.yaml")


def test_folders_may_be_named_from_the_home_folder(
    minimal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run files, and `train.output_dir=~/run` on a command line, are not expanded by a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    run = load_run_file(
        minimal,
        [
            "train.output_dir=~/run",
            "data.cache_dir=~/cache",
            "evaluations={tasks: [passkey], lengths: [64], every: 5, haystack: ~/hay}",
        ],
    )
    assert run.train.output_dir == tmp_path / "run"
    assert run.data.cache_dir == tmp_path / "cache"
    assert run.evaluations is not None
    assert run.evaluations.haystack == tmp_path / "hay"
    assert "~" not in to_yaml(run)


def test_numbers_are_finite(minimal: Path) -> None:
    for override in (
        "train.stages=[{steps: .inf}]",
        "optimizer.lr=.nan",
        "train.batch_warmup={tokens: 32, steps: .inf}",
    ):
        assert "a finite number" in refusal(minimal, override)


def test_what_follows_from_other_keys_is_filled_in(minimal: Path) -> None:
    run = load_run_file(minimal)
    assert run.model.vocab_size == 258  # the byte tokenizer's
    assert run.model.max_position_embeddings == 32
    assert run.model.layer_names == ["rat", "local", "rat", "local"]
    assert run.optimizer.lr == 1e-3
    given = load_run_file(minimal, ["model.vocab_size=320", "model.max_position_embeddings=64"])
    assert (given.model.vocab_size, given.model.max_position_embeddings) == (320, 64)


def test_no_default_stays_hidden_in_the_resolved_file(minimal: Path) -> None:
    resolved = yaml.safe_load(to_yaml(load_run_file(minimal)))

    def keys(schema: dict[str, Any]) -> set[str]:
        return set(schema.get("properties", {}))

    schema = json_schema()
    for section, reference in schema["$defs"]["RunFile"]["properties"].items():
        if section not in ("deepspeed", "evaluations"):  # the last is left out by default
            name = reference.get("$ref", "").rpartition("/")[2]
            assert keys(schema["$defs"][name]) == set(resolved[section])
    for key in ("vocab_size", "num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings"):
        assert resolved["model"][key] is not None


runs = st.fixed_dictionaries(
    {
        "model.hidden_size": st.sampled_from([64, 128]),
        "model.layers": st.sampled_from(["rat", "(rat local)*2", "local*3 rat"]),
        "model.mixers.rat.chunk_size": st.integers(1, 64),
        "model.tie_word_embeddings": st.booleans(),
        "model.rms_norm_eps": st.floats(1e-12, 1e-3),
        "data.tokenizer": st.sampled_from([{"kind": "bytes"}, {"kind": "sentencepiece", "vocab_size": 500}]),
        "data.sources.0.path": st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1),
        "data.sources.0.weight": st.floats(1e-6, 1e6),
        "train.gradient_clipping": st.none() | st.floats(0.01, 10),
        "train.output_dir": st.sampled_from(["runs/a", "off", "3e-4", "2020-01-01", "null"]),
        "optimizer.schedule": st.sampled_from([{"kind": "constant"}, {"kind": "wsd", "warmup_steps": 2}]),
        "deepspeed.zero_stage": st.integers(0, 3),
        "log.name": st.none() | st.text("abc: #-'\"{}[]é", min_size=1, max_size=8),
    }
)


@given(changes=runs)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_resolved_run_loads_back_equal(minimal: Path, changes: dict[str, Any]) -> None:
    run = load_run_file(minimal, [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()])
    resolved = minimal.with_name("resolved.yaml")
    resolved.write_text(to_yaml(run), encoding="utf-8")
    again = load_run_file(resolved)
    assert again == run
    assert to_yaml(again) == to_yaml(run)


def test_a_run_with_an_existing_tokenizer_loads_back_equal(minimal: Path) -> None:
    model = minimal.with_name("some.model")
    with model.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some words"] * 20), model_writer=file, vocab_size=12, minloglevel=2
        )
    run = load_run_file(minimal, [f"data.tokenizer={{kind: sentencepiece, path: {model}}}"])
    assert run.model.vocab_size == 12
    resolved = minimal.with_name("resolved.yaml")
    resolved.write_text(to_yaml(run))
    assert load_run_file(resolved) == run


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.stesp=3", "train.stesp: unknown key. Did you mean 'steps'?"),
        ("steps=3", "steps: unknown key. Did you mean train.steps?"),
        ("train.steps=many", "train.steps: given 'many'; should be a valid integer"),
        ("train.steps=0", "train.steps: given 0; should be greater than or equal to 1"),
        (
            "train.precision=bf61",
            "train.precision: given 'bf61'; allowed: 'fp32', 'bf16' or 'fp16'. Did you mean 'bf16'?",
        ),
        ("train.global_batch_tokens=65", "train.global_batch_tokens is 65, which is not a multiple of"),
        ("train.global_batch_tokens=120", "data.sequence_length 32: use 128"),
        ("model.num_attention_heads=5", "hidden_size 64 is not divisible by num_attention_heads 5"),
        ("model.mixers.local.window=-3", "model.mixers.local.window: given -3; should be greater than or equal to 1"),
        ("model.mixers.rat.chunk=3", "model.mixers.rat.chunk: unknown key. Did you mean 'chunk_size'?"),
        ("model.mixers.rat.kind=rta", "model.mixers.rat: given kind 'rta'; allowed: "),
        ("model.layers=(rat local", "this '(' is never closed (column 1)\n  (rat local\n  ^"),
        (
            "model.layers=rat glob",
            "'glob' is not a mixer. Defined under mixers: local, rat (column 5)\n  rat glob\n      ^",
        ),
        ("model.vocab_size=100", "model.vocab_size: given 100; the tokenizer has 258 tokens, so 258 or more"),
        ("model.max_position_embeddings=16", "model.max_position_embeddings is 16, less than data.sequence_length 32"),
        ("data.tokenizer.kind=byte", "data.tokenizer: given kind 'byte'; allowed: "),
        ("data.sources=[]", "data.sources: given [];"),
        ("data.tokenizer={kind: huggingface, path: nowhere}", "data.tokenizer.path: 'nowhere"),
        ("deepspeed.zero_stage=4", "deepspeed.zero_stage: given 4; allowed: 0, 1, 2 or 3"),
        (
            "log.wandb=onlin",
            "log.wandb: given 'onlin'; allowed: 'disabled', 'offline' or 'online'. Did you mean 'online'?",
        ),
        ("optimizer.schedule={kind: wsd, warmup_steps: 9, decay_steps: 5}", "take 14 steps, but train.steps is 10"),
        ("train=", "train: given None; a section is expected, with the keys output_dir, steps"),
    ],
)
def test_what_cannot_work_is_refused_in_one_readable_line(minimal: Path, override: str, says: str) -> None:
    message = refusal(minimal, override)
    assert says in message
    assert "Traceback" not in message
    assert "pydantic" not in message
    assert len(message.split("\n")) <= 3


def test_a_mistake_in_the_file_has_its_line(minimal: Path) -> None:
    minimal.write_text(MINIMAL.replace("window: 8", "windw: 8").replace("steps: 10", "steps: ten"))
    assert refusal(minimal) == (
        "run.yaml:6: model.mixers.local.windw: unknown key. Did you mean 'window'? "
        f"Known here: {', '.join(AttentionOptions.model_fields)}\n"
        "run.yaml:15: train.steps: given 'ten'; should be a valid integer, unable to parse string as an integer"
    )


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.num_attention_heads=5"], "command line, model.num_attention_heads=5: model: hidden_size 64 is not"),
        (["model.hidden_size=66"], "command line, model.hidden_size=66: model.hidden_size: hidden_size 66 is not"),
        (
            ["model.mixers.rat.kind=ratt"],
            "command line, model.mixers.rat.kind=ratt: model.mixers.rat: given kind 'ratt'",
        ),
        (
            ["model.mixers.rat.qk_groups=3"],
            "command line, model.mixers.rat.qk_groups=3: model: mixers.rat: qk_groups 3",
        ),
        (
            ["optimizer.schedule.kind=cosine", "optimizer.schedule.warmup_steps=400"],
            "command line, optimizer.schedule.warmup_steps=400: optimizer.schedule's warmup_steps take 400 steps",
        ),
        (
            ["data.sequence_length=48", "train.global_batch_tokens=100"],
            "command line, train.global_batch_tokens=100: train.global_batch_tokens is 100, which",
        ),
        (["data.sequence_length=48"], "command line, data.sequence_length=48: train.global_batch_tokens is 64, which"),
    ],
)
def test_a_check_across_keys_points_at_the_override_that_broke_it(
    minimal: Path, overrides: list[str], says: str
) -> None:
    assert refusal(minimal, *overrides).startswith(says)


def test_a_choice_taken_for_a_kind_is_told_where_it_belongs(minimal: Path) -> None:
    assert "Did you mean kind sentencepiece with model_type: bpe?" in refusal(minimal, "data.tokenizer={kind: bpe}")


def test_a_missing_section_lists_what_it_requires(minimal: Path) -> None:
    minimal.write_text(MINIMAL.partition("train:")[0] + "optimizer: {lr: 1}")
    assert refusal(minimal).endswith("Required in it: output_dir, steps, global_batch_tokens")


def test_an_unused_mixer_is_remarked_once(minimal: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_run_file(minimal, ["model.layers=rat"])
    (record,) = caplog.records
    assert record.getMessage() == f"{minimal}:6: model.mixers: local: not used in model.layers"
    caplog.clear()
    load_run_file(minimal)
    assert caplog.records == []


def test_a_source_can_be_appended(minimal: Path) -> None:
    run = load_run_file(
        minimal, ["data.sources.1.path=more.txt", "data.sources.1.weight=3", "data.sources.2={path: x}"]
    )
    assert [(source.path, source.weight) for source in run.data.sources[1:]] == [("more.txt", 3), ("x", 1)]
    assert "a list of 1; its entries count from 0, and '2' is none (1 appends one)" in refusal(
        minimal, "data.sources.2.path=x"
    )


def test_a_mistake_in_the_pattern_is_pointed_at(minimal: Path) -> None:
    minimal.write_text(MINIMAL.replace("(rat local)*2", "(rat locl)*2"))
    message = refusal(minimal)
    assert "'locl' is not a mixer. Did you mean 'local'? Defined under mixers: local, rat (column 6)" in message
    assert message.endswith("\n  (rat locl)*2\n       ^")


def test_every_option_is_described_in_the_schema() -> None:
    schema = json_schema()
    json.dumps(schema)
    for name, definition in schema["$defs"].items():
        assert definition.get("description"), f"{name} needs a docstring"
        for key, value in definition["properties"].items():
            assert value.get("description") or "const" in value, f"{name}.{key} needs a description"


def test_an_editor_refuses_a_section_without_its_kind() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "Braid run file"
    for name in ("RatOptions", "AttentionOptions", "BytesOptions", "SentencePieceOptions", "ConstantSchedule"):
        assert "kind" in schema["$defs"][name]["required"]
    for name, definition in schema["$defs"].items():
        assert set(definition.get("required", ())) <= set(definition["properties"]), name
    assert "kind" not in schema["$defs"]["OptimizerOptions"]["required"]  # nothing to choose among


def test_the_tree_is_frozen(minimal: Path) -> None:
    run = load_run_file(minimal)
    assert isinstance(run, RunFile)
    with pytest.raises(ValueError, match="frozen"):
        run.train.steps = 3  # type: ignore[misc]


EXTENSION = """\
base: {{path: "{base}"}}
extend: {{target_length: 256}}
lora: {{preset: longlora, learning_rates: {{a: 1.0e-3}}}}
data:
  tokenizer: {{kind: bytes}}
  sources: [{{path: python-stdlib}}]
  sequence_length: 128
train: {{output_dir: out, steps: 10, global_batch_tokens: 256}}
optimizer: {{lr: 1.0e-3}}
"""


@pytest.fixture
def extension(tmp_path: Path) -> Path:
    """An extension of a Llama of which only the configuration is there."""
    LlamaConfig(
        vocab_size=258, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64
    ).save_pretrained(tmp_path / "base")
    path = tmp_path / "run.yaml"
    path.write_text(EXTENSION.format(base=tmp_path / "base"))
    return path


def test_an_extension_resolves_to_a_file_that_loads_back_equal(extension: Path, tmp_path: Path) -> None:
    run = load_run_file(extension)
    assert isinstance(run, ExtensionFile)
    assert run.extend.group_size == 64
    assert run.lora is not None
    assert run.lora.embeddings
    saved = tmp_path / "resolved.yaml"
    saved.write_text(to_yaml(run))
    assert to_yaml(load_run_file(saved)) == to_yaml(run)


def test_an_extension_takes_its_tokenizer_from_the_base(extension: Path, tmp_path: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=Backend(WordLevel({"<s>": 0, "x": 1}, "x")), bos_token="<s>"
    ).save_pretrained(tmp_path / "base")
    extension.write_text(extension.read_text().replace("  tokenizer: {kind: bytes}\n", ""))
    for source in ("{path: python-stdlib}", "{kind: chat, path: talk}"):
        tokenizer = load_run_file(extension, [f"data.sources=[{source}]"]).data.tokenizer
        assert (tokenizer.kind, tokenizer.path) == ("huggingface", tmp_path / "base")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model={hidden_size: 8}", "model: base names a pretrained model, which brings its own: remove one of the two"),
        (
            "extend.rope.kind=ntkk",
            "extend.rope.kind: given 'ntkk'; allowed: 'linear', 'ntk', 'yarn', 'theta' or 'none'. Did you mean 'ntk'?",
        ),
        ("extend.group_size=33", "group_size 33 must be even"),
        ("extend.target_length=64", "data.sequence_length 128 exceeds extend.target_length 64"),
        ("lora.rnk=4", "lora.rnk: unknown key. Did you mean 'rank'?"),
        ("lora.learning_rates.b=0", "lora.learning_rates.b: given 0"),
    ],
)
def test_mistakes_in_an_extension_are_named(extension: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_run_file(extension, [override])
    assert message in str(error.value)


def test_a_tokenizer_that_is_not_there_has_its_line(minimal: Path) -> None:
    minimal.write_text(MINIMAL.replace("{kind: bytes}", "\n    kind: sentencepiece\n    path: none.model"))
    assert refusal(minimal).startswith("run.yaml:11: data.tokenizer.path: 'none.model' cannot be read")


def test_a_chat_without_a_template_is_refused_at_the_kind_of_tokenizer(minimal: Path) -> None:
    """Before the keys that a tokenizer of that kind lacks."""
    tokenizer = MINIMAL.replace("{kind: bytes}", "\n    kind: sentencepiece")
    minimal.write_text(tokenizer.replace("- {path: python-stdlib}", "- {kind: chat, path: talk}"))
    assert refusal(minimal).startswith("run.yaml:10: data.tokenizer.kind: sentencepiece has no chat template, which ")


def test_sources_that_are_not_there_have_their_places_in_words_that_work_as_overrides(minimal: Path) -> None:
    minimal.write_text(MINIMAL.replace("- {path: python-stdlib}", "- {path: python-stdlib}\n  - {path: nowhere}"))
    (problem,) = missing_sources(load_run_file(minimal), minimal)
    assert problem.startswith(f"{minimal}:12: data.sources.1.path: 'nowhere' does not exist.")
    override = "data.sources.1.path=elsewhere"
    (problem,) = missing_sources(load_run_file(minimal, [override]), minimal, [override])
    assert problem.startswith(f"command line, {override}: data.sources.1.path: 'elsewhere' does not exist.")
    override = "data.sources.1.path=python-stdlib"
    assert missing_sources(load_run_file(minimal, [override]), minimal, [override]) == []


@pytest.mark.parametrize("config", ["extend-smollm2", "graft-smollm2"])
@pytest.mark.parametrize("missing", ["/no/such/folder", "no-such-file.gguf"])
def test_a_base_that_is_not_there_is_named_with_its_place(config: str, missing: str) -> None:
    with pytest.raises(UserError) as caught:
        load_run_file(Path(__file__).parents[2] / "configs" / f"{config}.yaml", [f"base.path={missing}"])
    place = f"command line, base.path={missing}"
    assert str(caught.value) == f"{place}: base.path: {missing}: there is no such file or folder."
