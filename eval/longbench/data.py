"""LongBench's rows from a copy of its data: the original's data.zip or its folder, parquet files, or the Hub."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from lm.errors import UserError

HUB_ID = "THUDM/LongBench"
ARCHIVE = "data.zip"
HOW_TO_GET_IT = (
    f"LongBench is the file {ARCHIVE} of the Hub's dataset {HUB_ID}: name that file, the folder it unpacks to, or, "
    f"where there is a network, {HUB_ID} itself"
)


@dataclass(frozen=True)
class Row:
    """One question. words: the benchmark's own length, in words of English or characters of Chinese."""

    id: str
    input: str
    context: str
    answers: tuple[str, ...]
    words: int
    classes: tuple[str, ...]


def read_rows(data: str, name: str) -> list[Row]:
    """The rows of a task, such as `qasper` or `qasper_e`, in their order.

    data: a folder of NAME.jsonl, NAME.parquet or NAME/*.parquet (or a folder `data` in it), a data.zip, or a Hub id.

    Raises:
        UserError: there are no rows of that name, or they are not LongBench's.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        found = _from_folder(path, name)
    elif path.is_file():
        found = _from_archive(path, name)
    elif data.count("/") == 1 and not data.startswith((".", "~", "/")):
        found = _from_hub(data, name)
    else:
        raise UserError(f"{data}: there is no such folder or file. {HOW_TO_GET_IT}")
    where = f"{data}, {name}"
    if found is None:
        raise UserError(f"{where}: there are no such rows. {HOW_TO_GET_IT}")
    try:
        return [_row(values, f"{where}, row {number}") for number, values in enumerate(found, 1)]
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {_first_line(error)}. {HOW_TO_GET_IT}") from None


def _from_folder(folder: Path, name: str) -> Iterable[Any] | None:
    for place in (folder, folder / "data"):
        if (place / f"{name}.jsonl").is_file():
            return _lines((place / f"{name}.jsonl").read_bytes())
        if files := [*place.glob(f"{name}.parquet"), *sorted((place / name).glob("*.parquet"))]:
            return _tables(files)
    return None


def _tables(files: Iterable[Path]) -> Iterator[Any]:
    import pyarrow.parquet

    for file in files:
        yield from pyarrow.parquet.read_table(file).to_pylist()


def _from_archive(file: Path, name: str) -> Iterable[Any] | None:
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [entry for entry in archive.namelist() if entry.rpartition("/")[2] == f"{name}.jsonl"]
            return _lines(archive.read(inside[0])) if inside else None
    except zipfile.BadZipFile:
        raise UserError(f"{file} is no zip archive. {HOW_TO_GET_IT}") from None


def _from_hub(repository: str, name: str) -> Iterable[Any] | None:
    try:
        return _from_archive(Path(hf_hub_download(repository, ARCHIVE, repo_type="dataset")), name)
    except EntryNotFoundError:
        pass
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{repository}: neither here nor on the Hub ({_first_line(error)}). {HOW_TO_GET_IT}") from None
    from datasets import load_dataset

    try:
        rows: Iterable[Any] = load_dataset(repository, name, split="test")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{repository}: {_first_line(error)}. {HOW_TO_GET_IT}") from None
    return rows


def _lines(text: bytes) -> Iterator[Any]:
    # Only line feeds end a row: contexts hold every other kind of line break.
    return (json.loads(line) for line in text.decode().split("\n") if line.strip())


def _row(values: Mapping[str, Any], where: str) -> Row:
    found: dict[str, Any] = {"input": values.get("question"), **values}  # as parquet copies call it
    kinds = {"input": str, "context": str, "answers": list, "length": int}
    if wrong := [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]:
        raise UserError(f"{where}: not a row of LongBench, {', '.join(wrong)} is missing or of another type")
    return Row(
        id=str(found.get("_id", "")),
        input=found["input"],
        context=found["context"],
        answers=tuple(found["answers"]),
        words=int(found["length"]),
        classes=tuple(found.get("all_classes") or ()),
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
