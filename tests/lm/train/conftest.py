"""A run so small that it takes a second: four mixers, bytes for tokens, a corpus of a few words."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lm.run_file import RunFile, load_run_file

WORDS = ("seven", "quick", "brown", "foxes", "jump", "over", "a", "lazy", "dog", "while", "wizards", "box", "jugs")
RUN_FILE = """\
model:
  hidden_size: 16
  num_attention_heads: 4
  mixers:
    rat: {{kind: rat, chunk_size: 4}}
    local: {{kind: attention, window: 8}}
    ls: {{kind: long_short, short_heads: 2, window: 4}}
    s2: {{kind: shifted_short, group_size: 8}}
  layers: rat local ls s2
data:
  tokenizer: {{kind: bytes}}
  sources: [{{path: "{corpus}"}}]
  sequence_length: 32
  validation: {{fraction: 0.3}}
  cache_dir: "{cache}"
train:
  output_dir: "{output}"
  steps: 20
  global_batch_tokens: 256
  micro_batch_size: 4
  checkpoint_every: 4
  sample_tokens: 5
optimizer: {{lr: 1.0e-2, schedule: {{kind: wsd, warmup_steps: 0.2}}}}
log: {{wandb: disabled}}
"""

MakeRun = Callable[..., RunFile]


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run file; its `train.output_dir` is `out` beside it."""
    root = tmp_path_factory.mktemp("run")
    corpus = root / "corpus"
    corpus.mkdir()
    for number in range(16):
        text = " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 40))
        (corpus / f"{number}.txt").write_text(f"document {number}: {text}\n")
    path = root / "run.yaml"
    path.write_text(RUN_FILE.format(corpus=corpus, cache=root / "cache", output=root / "out"))
    return path


@pytest.fixture
def make_run(run_path: Path, tmp_path: Path) -> MakeRun:
    """`make_run("train.steps=8", ...)`: the run file with overrides, in an output folder of the test's own."""

    def make(*overrides: str) -> RunFile:
        return load_run_file(run_path, [f"train.output_dir={tmp_path / 'out'}", *overrides])

    return make
