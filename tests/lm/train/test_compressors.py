import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from lm.train.compressors import compressed_bits_per_byte

TEXT = (Path(__file__).read_bytes() + bytes(range(256))) * 3


def test_figures_are_those_of_the_library_however_the_text_is_cut() -> None:
    documents = [TEXT[begin : begin + 1000] for begin in range(0, len(TEXT), 1000)]
    found = compressed_bits_per_byte(iter(documents))
    assert found["gzip -9"] == 8 * len(gzip.compress(TEXT, 9)) / len(TEXT)
    assert found["xz -9"] == 8 * len(lzma.compress(TEXT, preset=9)) / len(TEXT)
    assert found == compressed_bits_per_byte([TEXT])


@pytest.mark.launch
@pytest.mark.parametrize("program", ["gzip", "xz"])
def test_figures_are_those_of_the_command(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    size = len(subprocess.run([program, "-9"], input=TEXT, capture_output=True, check=True).stdout)
    assert compressed_bits_per_byte([TEXT])[f"{program} -9"] == pytest.approx(8 * size / len(TEXT), rel=0.01)


def test_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        compressed_bits_per_byte([b"", b""])
