"""Tokenizing: Braid's prepare against `datasets.map`, the same text, tokenizer and processes, in one run.

    python -m benchmarks.prepare [--processes 2] [--copies 1] [--vocab-size 8192] [--only NAME] [--skip-kills]

The text is the Python standard library and the documentation that comes with it, one document a file, as jsonl. Each
side runs in a fresh process and gets to the same end: every document as `[bos] ids [eos]` on disk. For `datasets` the
time of `map` alone counts, and beside it that of loading the file before it; for Braid everything from start to end,
reading and checksums included. With SentencePiece `map` calls the library's own batch encoding; with a Hugging Face
tokenizer the tokenizer itself, as its documentation has it. Then Braid is killed twice on the way: what was finished
must stay untouched, and the result must be the same tokens. CPU time of all processes is compared, too, for machines
that are busy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer

from lm.arguments import positive
from lm.data.options import DataOptions, SourceOptions
from lm.data.sentencepiece_training import sample_passages, train_sentencepiece
from lm.data.sources import find_source
from lm.data.tokenizer_options import SentencePieceOptions

TOKENIZERS = ("sentencepiece", "huggingface-unigram", "huggingface-bpe")
CPU = """
import resource
def cpu():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
"""
PREPARE = (
    CPU
    + """
import sys, time
from lm.data.options import DataOptions
from lm.data.prepare import prepare
if __name__ == "__main__":
    begin, used = time.perf_counter(), cpu()
    prepared = prepare(DataOptions.model_validate_json(sys.argv[1]), processes=int(sys.argv[2]))
    print(time.perf_counter() - begin, cpu() - used, prepared.statistics.tokens, prepared.fingerprint)
"""
)
MAP = (
    CPU
    + """
import sys, time
import datasets
corpus, kind, tokenizer, cache, processes = sys.argv[1:]
datasets.disable_progress_bars()
if kind == "sentencepiece":
    import sentencepiece
    processor = sentencepiece.SentencePieceProcessor(model_file=tokenizer + "/tokenizer.model")
    def encode(batch):
        return {"input_ids": processor.encode(batch["text"], add_bos=True, add_eos=True, num_threads=1)}
else:
    from transformers import AutoTokenizer
    fast = AutoTokenizer.from_pretrained(tokenizer)
    def encode(batch):
        ids = fast(batch["text"], add_special_tokens=False)["input_ids"]
        return {"input_ids": [[fast.bos_token_id, *document, fast.eos_token_id] for document in ids]}
if __name__ == "__main__":
    begin = time.perf_counter()
    loaded = datasets.load_dataset("json", data_files=corpus, split="train", cache_dir=cache)
    middle, used = time.perf_counter(), cpu()
    mapped = loaded.map(encode, batched=True, remove_columns=loaded.column_names, num_proc=int(processes))
    end, used = time.perf_counter(), cpu() - used
    tokens = sum(len(ids) for batch in mapped.with_format("numpy").iter(1000) for ids in batch["input_ids"])
    print(middle - begin, end - middle, used, tokens)
"""
)


def write_corpus(path: Path, copies: int) -> int:
    """One record for each file of the standard library and each topic of its documentation; returns bytes of text."""
    from pydoc_data.topics import topics

    modules = (document.text for document in find_source(SourceOptions(path="python-stdlib"), "").documents())
    texts = [*modules, *(topics[name] for name in sorted(topics))]
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            file.writelines(json.dumps({"text": f"# {copy}\n{text}" if copy else text}) + "\n" for text in texts)
    return copies * sum(len(text.encode()) for text in texts)


def write_tokenizers(corpus: Path, folder: Path, vocab_size: int) -> dict[str, Path]:
    """The same unigram pieces for SentencePiece and for Hugging Face, and a byte-level BPE in the way of GPT-2."""
    from lm.hf.tokenizer import save_fast_tokenizer

    documents = find_source(SourceOptions(path=str(corpus)), "").documents()
    options = SentencePieceOptions(vocab_size=vocab_size)
    passages = sample_passages(documents, options.sample_bytes).passages
    tokenizer = train_sentencepiece(options, passages)
    folders = {name: folder / name for name in TOKENIZERS}
    for kind in folders.values():
        kind.mkdir()
    tokenizer.save(folders["sentencepiece"])
    save_fast_tokenizer(tokenizer, folders["huggingface-unigram"], 1024)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(passages, vocab_size, show_progress=False, special_tokens=["<s>", "</s>"])
    bpe.save(os.fspath(folders["huggingface-bpe"] / "tokenizer.json"))
    # In text its special tokens are text, on both sides.
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
    config |= {"bos_token": "<s>", "eos_token": "</s>"}
    (folders["huggingface-bpe"] / "tokenizer_config.json").write_text(json.dumps(config))
    return folders


def run(program: str, arguments: Sequence[str]) -> list[str]:
    """What a program prints in its last line; it is a file, since it starts processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "program.py"
        script.write_text(program)
        found = subprocess.run(
            [sys.executable, os.fspath(script), *arguments],
            env=environment(),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return found.stdout.splitlines()[-1].split()


def environment() -> dict[str, str]:
    """One thread in each process, on both sides."""
    root = os.fspath(Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def options_for(corpus: Path, kind: str, tokenizer: Path, cache: Path, processes: int) -> DataOptions:
    path = tokenizer / "tokenizer.model" if kind == "sentencepiece" else tokenizer
    values: dict[str, Any] = {
        "tokenizer": {"kind": kind.partition("-")[0], "path": path},
        "sources": [{"path": str(corpus)}],
        "sequence_length": 1024,
        "validation": {"fraction": 0},
        "shard_bytes": max(1_000_000, corpus.stat().st_size // (4 * processes)),
        "cache_dir": cache,
    }
    return DataOptions.model_validate(values)


def shards(cache: Path) -> dict[str, int]:
    """When each finished shard was made."""
    return {path.parent.name: path.stat().st_mtime_ns for path in cache.glob("tokens-*/shard-*/manifest.json")}


def kill_twice(options: DataOptions, processes: int, fingerprint: str) -> str:
    """Kills two preparations on the way and lets a third end; says what became of the shards."""
    before: dict[str, int] = {}
    kept = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", PREPARE, options.model_dump_json(), str(processes)], env=environment()
        )
        while len(shards(options.cache_dir)) < len(before) + 2 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(2)  # its workers finish the shards that they hold
        made = shards(options.cache_dir)
        assert before.items() <= made.items(), "a finished shard was tokenized twice"
        before = made
        kept.append(len(made))
    _, _, tokens, found = run(PREPARE, [options.model_dump_json(), str(processes)])
    assert before.items() <= shards(options.cache_dir).items(), "a finished shard was tokenized twice"
    assert found == fingerprint, "the tokens differ from those of an undisturbed run"
    total = len(shards(options.cache_dir))
    return f"killed with {kept[0]} and {kept[1]} of {total} shards done; all kept, {int(tokens):,} tokens, the same"


def loader_speed(options: DataOptions, steps: int = 2000) -> float:
    """Tokens per second that batches are made at, in shuffled order, by whoever does nothing else."""
    from lm.data.prepare import prepare

    train = prepare(options).train
    begin = time.perf_counter()
    for step in range(steps):
        train.rows(range(4 * step, 4 * step + 4))
    return 4 * steps * train.sequence_length / (time.perf_counter() - begin)


def measure(corpus: Path, kind: str, tokenizer: Path, processes: int, size: int, kills: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours = options_for(corpus, kind, tokenizer, Path(folder) / "ours", processes)
        seconds, cpu, tokens, fingerprint = run(PREPARE, [ours.model_dump_json(), str(processes)])
        theirs = [str(corpus), kind, str(tokenizer), f"{folder}/theirs", str(processes)]
        loading, mapping, mapping_cpu, mapped_tokens = run(MAP, theirs)
        assert tokens == mapped_tokens, f"{tokens} tokens here, {mapped_tokens} there"
        count, own, other, load = int(tokens), float(seconds), float(mapping), float(loading)
        print(f"{kind}: {size / 1e6:.1f} MB, {count:,} tokens, {processes} processes")
        for name, taken in (("braid prepare", own), ("datasets.map", other), ("load and map", load + other)):
            print(f"  {name:14} {taken:6.2f} s {count / taken:12,.0f} tokens/s   ratio {taken / own:.2f}")
        ratio = float(mapping_cpu) / float(cpu)
        print(f"  CPU time: {float(cpu):.2f} s, of datasets.map {float(mapping_cpu):.2f} s, ratio {ratio:.2f}")
        print(f"  batches of 4 rows of 1,024 tokens: {loader_speed(ours):,.0f} tokens/s in one process")
        if kills:
            shutil.rmtree(ours.cache_dir)
            print(f"  {kill_twice(ours, processes, fingerprint)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=positive, default=2, metavar="N")
    parser.add_argument("--copies", type=positive, default=1, metavar="N", help="how often the text is repeated")
    parser.add_argument("--vocab-size", type=positive, default=8192, metavar="N")
    parser.add_argument("--only", choices=TOKENIZERS, help="one of the tokenizers; left out, all")
    parser.add_argument("--skip-kills", action="store_true", help="only the ratio")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        size = write_corpus(corpus, chosen.copies)
        for kind, tokenizer in write_tokenizers(corpus, Path(folder), chosen.vocab_size).items():
            if chosen.only in (None, kind):
                measure(corpus, kind, tokenizer, chosen.processes, size, not chosen.skip_kills)


if __name__ == "__main__":
    main()
