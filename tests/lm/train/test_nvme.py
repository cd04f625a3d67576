"""State in files: DeepSpeed's own where libaio is installed, and a stand-in of it everywhere."""

import os
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch

from lm.errors import UserError
from lm.train import checkpoint, distributed, nvme
from lm.train.checkpoint import Counters
from lm.train.deepspeed_options import DeepSpeedOptions
from lm.train.engine import Engine
from lm.train.nvme import in_own_folders, operator_is_built, own_folder, require_asynchronous_files

from . import tiny
from .tiny import make_engine, steps


class Owner:
    """Whatever a folder is made for."""


def has_operator() -> bool:
    distributed.start()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return AsyncIOBuilder().is_compatible(verbose=False) and operator_is_built()


def offloaded(folder: Path, *keys: str) -> dict[str, Any]:
    """Settings of ZeRO with these in files."""
    small = {"offload_param": {"buffer_size": 1 << 20}}
    sections = {key: {"device": "nvme", "nvme_path": str(folder)} | small.get(key, {}) for key in keys}
    return {"stage3_param_persistence_threshold": 0, **sections}


needs_operator = pytest.mark.skipif(
    not has_operator(), reason="needs libaio-dev, and DeepSpeed's operator for files, which takes minutes to build"
)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files go; the model is so large that there are some, and its sizes are no multiples of anything."""
    monkeypatch.setattr(tiny, "WIDTH", 300)  # DeepSpeed leaves in memory what has less than a MiB
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


CASES = [
    ("fp32", ("offload_optimizer",)),
    ("bf16", ("offload_param",)),
    ("bf16", ("offload_optimizer", "offload_param")),
]


@needs_operator
@pytest.mark.parametrize(("precision", "keys"), CASES, ids=str)
def test_training_and_checkpoints_are_those_without_files(
    precision: str, keys: tuple[str, ...], disk: Path, tmp_path: Path
) -> None:
    in_memory, engine = make_engine(3, precision), make_engine(3, precision, zero_optimization=offloaded(disk, *keys))
    begun, wanted = steps(engine, 0, 2), steps(in_memory, 0, 2)
    assert [result.loss for result in begun] == pytest.approx([result.loss for result in wanted], rel=1e-6)
    assert [result.grad_norm for result in begun] == pytest.approx([result.grad_norm for result in wanted], rel=1e-6)
    assert any(path.stat().st_size > 1 << 20 for path in disk.rglob("*.swp"))
    folder = checkpoint.save(tmp_path, Counters(step=2, adam_step=2), engine.buffers(), engine.world)
    expected = steps(engine, 2, 4)
    resumed = make_engine(3, precision, zero_optimization=offloaded(disk, *keys))
    for one in (resumed, in_memory):
        checkpoint.load(folder, one.fragments())
        one.restored(2)
    assert steps(resumed, 2, 4) == expected
    found = [result.loss for result in steps(in_memory, 2, 4)]
    assert found == pytest.approx([result.loss for result in expected], rel=1e-6)


@needs_operator
def test_parameters_that_files_would_round_are_refused(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(UserError, match=r"offload_param\.device: .* as bfloat16, which train.precision fp32 is not"):
        make_engine(3, zero_optimization=offloaded(disk, "offload_param"))


class InFiles:
    """While entered, an engine at stage 3 has its masters and moments away, as where they lie in files."""

    def __init__(self, engine: Engine) -> None:
        self.zero: Any = engine._engine.optimizer
        self.away: dict[int, list[torch.Tensor]] = {}

    def tensors(self, index: int) -> list[torch.Tensor]:
        flat = self.zero.fp32_partitioned_groups_flat[index]
        state = self.zero.optimizer.state[flat]
        return [flat, *(state[kind] for kind in ("exp_avg", "exp_avg_sq"))]

    def read(self, index: int) -> None:
        for tensor, data in zip(self.tensors(index), self.away.pop(index), strict=True):
            tensor.data = data

    def write(self, index: int) -> None:
        assert index not in self.away
        self.away[index] = [tensor.data.clone() for tensor in self.tensors(index)]
        for tensor in self.tensors(index):
            tensor.data.fill_(torch.nan)  # a view that is kept for too long has this
            tensor.data = torch.empty(0)

    def __enter__(self) -> None:
        self.zero.swap_optimizer = True
        self.zero._swappable_optimizer_subgroup = lambda index: True
        self.zero._optimizer_states_and_gradient_swap_in = self.read
        self.zero._optimizer_states_and_gradient_swap_out = self.write
        for index in range(len(self.zero.fp16_groups)):
            self.write(index)

    def __exit__(self, *_: object) -> None:
        for index in list(self.away):
            self.read(index)
        self.zero.swap_optimizer = False
        del self.zero._swappable_optimizer_subgroup


def test_a_checkpoint_reads_and_writes_one_buffer_after_the_other(tmp_path: Path) -> None:
    engine, resumed = make_engine(3), make_engine(3)
    steps(engine, 0, 2)
    counters = Counters(step=2, adam_step=2)
    with InFiles(engine):
        folder = checkpoint.save(tmp_path, counters, engine.buffers(), engine.world)
    assert len(list(folder.glob("state-*"))) == len(engine._engine.optimizer.fp16_groups) > 1
    expected = steps(engine, 2, 4)
    with InFiles(resumed):
        checkpoint.load(folder, resumed.fragments())
        resumed.restored(2)
    assert steps(resumed, 2, 4) == expected


def test_pieces_are_views_of_where_the_state_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a GPU, state in the CPU memory must not be handed out as copies: what is written into them is lost."""
    engine = make_engine(3, zero_optimization={"offload_optimizer": {"device": "cpu"}})
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "current_device_name", lambda: "meta")
    for fragment in engine.fragments():
        assert {part.device.type for part in fragment.parts.values()} == {"cpu"}


def test_what_killed_processes_left_is_removed_and_what_others_use_is_not(tmp_path: Path) -> None:
    used, own = Owner(), Owner()
    theirs = own_folder(tmp_path, used)
    left = tmp_path / f"braid-swap-{os.getuid()}-left"
    left.mkdir()
    (left / "x.swp").write_text("state")
    mine = own_folder(tmp_path, own)
    assert mine != theirs
    assert not left.exists()
    assert theirs.exists()
    del used, own
    assert not list(tmp_path.glob("*/"))


def test_every_engine_gets_folders_of_its_own(tmp_path: Path) -> None:
    owners = Owner(), Owner()
    zero = {"offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path)}, "offload_param": {"device": "cpu"}}
    first, second = (in_own_folders(zero, owner) for owner in owners)
    paths = [Path(found["offload_optimizer"]["nvme_path"]) for found in (first, second)]
    assert len({*paths}) == 2
    assert {path.parent for path in paths} == {tmp_path}
    assert first["offload_param"] == zero["offload_param"]


def test_a_machine_without_libaio_or_without_the_folder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = distributed.start()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda builder, verbose: False)
    values = {"zero_stage": 3, "zero_optimization": offloaded(tmp_path, "offload_param")}
    with pytest.raises(UserError, match=r"offload_param\.device: nvme needs libaio .*apt install libaio-dev"):
        require_asynchronous_files(DeepSpeedOptions.model_validate(values), world, print)
    values = {"zero_stage": 3, "zero_optimization": offloaded(tmp_path / "none", "offload_param")}
    with pytest.raises(UserError, match=r"offload_param\.nvme_path: .*none is no folder"):
        require_asynchronous_files(DeepSpeedOptions.model_validate(values), world, print)


def test_an_operator_of_another_installation_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvme, "_operator_folder", lambda: tmp_path)
    (tmp_path / "async_io.so").touch()
    for sources, built in (("/other", False), (Path(deepspeed.__file__).parent, True)):
        (tmp_path / "build.ninja").write_text(f"c++ -I {sources}/ops/csrc")
        assert operator_is_built() == built
