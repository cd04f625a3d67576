from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lm.train.tensor_file import read_entry, write_tensors

DTYPES = [torch.float32, torch.bfloat16, torch.uint8, torch.int64]


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=5),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=5, max_size=5),
)
@settings(deadline=None, max_examples=30)
def test_the_safetensors_library_reads_what_was_written(
    tmp_path_factory: object, shapes: list[list[int]], dtypes: list[torch.dtype]
) -> None:
    path: Path = tmp_path_factory.mktemp("file") / "x.safetensors"  # type: ignore[attr-defined]
    tensors = {
        f"layer.{index} \"'é": torch.randint(0, 99, shape).to(dtype)
        for index, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))
    }
    entry = write_tensors(path, tensors, {"note": "ünï"})
    assert read_entry(path) == entry
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"note": "ünï"}
        assert sorted(file.keys()) == sorted(tensors)
        for name, tensor in tensors.items():
            found = file.get_tensor(name)
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
