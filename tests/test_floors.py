"""The shape of the house: imports go down the floors only, and no file or function grows past its limit."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each part of the tree may import from the others. A part is the longest prefix that fits a module, and may
# import what its own entries and those of the parts it names hold. docs/architecture.md draws the same table.
BASE = {"lm.errors", "lm.options"}
MODEL = {"kernels", "lm.model", "lm.pattern", *BASE}
DATA = {"lm.data", *BASE}
PLAN = {"lm.plan", *MODEL}
HF = {"lm.hf", *MODEL}
TRAIN = {"lm.train", "lm.hf", "lm.plan", "lm.yaml_tree", *MODEL, *DATA}
TRAIN_OPTIONS = {"lm.train.options", "lm.train.optimizer_options", "lm.train.stage_options", *BASE}
EXTEND = {"lm.extend", *TRAIN}
GRAFT = {"lm.graft", *EXTEND}
RUN_FILE = {"lm.run_file", "lm.option_errors", "eval.options", *GRAFT}
EVAL = {"eval", "lm.export", *RUN_FILE}
BENCHMARKS = {"benchmarks", "lm.arguments", *EVAL}
VERBS = {"lm.verbs", "lm.option_reference", "lm.plan_table", *BENCHMARKS}
CLI = {"lm.cli", "lm.__version__", *VERBS}
FLOORS: dict[str, set[str]] = {
    "kernels": {"kernels"},
    "lm": {"kernels"},
    "lm.errors": set(),
    "lm.options": set(),
    "lm.arguments": {"lm.errors"},
    "lm.option_reference": set(),
    "lm.pattern": {"lm.errors"},
    "lm.yaml_tree": {"lm.errors"},
    "lm.option_errors": {"lm.yaml_tree", *BASE},
    "lm.model": MODEL,
    "lm.data": DATA,
    "lm.data.options": {"lm.data.recall_options", "lm.data.source_options", "lm.data.tokenizer_options", *BASE},
    "lm.data.recall_options": BASE,
    "lm.data.source_options": BASE,
    "lm.data.tokenizer_options": BASE,
    "lm.hf": HF,
    "lm.hf.bundle": {"lm.__version__", *HF},
    "lm.hf.tokenizer": {*HF, *DATA},
    "lm.hf.export": {"lm.__version__", *HF, *DATA},
    "lm.plan": PLAN,
    "lm.train": TRAIN,
    "lm.train.options": TRAIN_OPTIONS,
    "lm.train.optimizer_options": TRAIN_OPTIONS,
    "lm.train.stage_options": TRAIN_OPTIONS,
    "lm.train.deepspeed_options": {"lm.train.deepspeed_keys", *BASE},
    "lm.train.guard_options": BASE,
    "lm.train.observe.options": BASE,
    "lm.extend": EXTEND,
    "lm.extend.options": BASE,
    "lm.graft": GRAFT,
    "lm.graft.options": {"lm.model.options", *TRAIN_OPTIONS},
    "lm.run_file": RUN_FILE,
    "lm.plan_table": RUN_FILE,
    "lm.export": RUN_FILE,
    "eval": EVAL,
    "eval.options": BASE,
    "eval.__main__": {"lm.cli"},
    "lm.verbs": VERBS,
    "lm.cli": CLI,
    "lm.__main__": {"lm.cli"},
    "train": {"lm.cli"},
    "benchmarks": BENCHMARKS,
}
# All that the rest of the house knows of the mixers: what each is, what softmax attention is, and that there are some.
KNOWN = ("lm.model.mixers.Mixer", "lm.model.mixers.SoftmaxMixer", "lm.model.mixers.MIXERS")
OURS = ("kernels", "lm", "eval", "train", "benchmarks")


def sources() -> list[Path]:
    folders = [ROOT / name for name in ("kernels", "lm", "eval", "benchmarks")]
    return [ROOT / "train.py", *sorted(path for folder in folders for path in folder.rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Every name that an import anywhere in the file brings in, in full: `from a import b` is `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor they reach"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def floor_of(module: str) -> set[str]:
    return FLOORS[max((part for part in FLOORS if within(module, part)), key=len)]


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_down_only(path: Path) -> None:
    module = module_name(path)
    allowed = floor_of(module)
    for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        if name.split(".")[0] in OURS:
            assert any(within(name, part) for part in allowed), f"{module} may not import {name}; it may: {allowed}"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_the_model_knows_single_mixers(path: Path) -> None:
    if not within(module_name(path), "lm.model"):
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            assert not within(name, "lm.model.mixers") or name in KNOWN, name


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_tests_mirror_the_tree() -> None:
    modules = {module_name(path).replace(".", "/") for path in sources()}
    folders = {module.rpartition("/")[0] for module in modules} | modules
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests").as_posix()
        assert folder == "." or folder in folders, f"{path} stands in a folder that mirrors none of the sources"
