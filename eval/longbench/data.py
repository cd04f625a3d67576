"""LongBench's rows from a copy of its data: the original's data.zip or its folder, parquet files, or the Hub."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from lm.errors import UserError, first_line

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


def require_data(data: str) -> None:
    """Raises UserError where no data can be of this name, before they are looked into."""
    path = Path(data).expanduser()
    if path.is_file() and not zipfile.is_zipfile(path):
        raise UserError(f"{data} is no zip archive that can be read. {HOW_TO_GET_IT}")
    is_hub_id = data.count("/") == 1 and not data.startswith((".", "~", "/"))
    if not path.exists() and not is_hub_id:
        raise UserError(f"{data}: there is no such folder or file. {HOW_TO_GET_IT}")


def read_rows(data: str, name: str) -> list[Row]:
    """The rows of a task, such as `qasper` or `qasper_e`, in their order.

    data: a folder of NAME.jsonl, NAME.parquet or NAME/*.parquet (or a folder `data` in it), a data.zip, or a Hub id.

    Raises:
        UserError: there are no rows of that name, they cannot be read, or they are not LongBench's.
    """
    where = f"{data}, {name}"
    try:
        rows = [_row(values, f"{where}, row {number}") for number, values in enumerate(_found(data, name), 1)]
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {first_line(error)}. {HOW_TO_GET_IT}") from None
    if not rows:
        raise UserError(f"{where}: there are no such rows. {HOW_TO_GET_IT}")
    return rows


def _found(data: str, name: str) -> Iterable[Any]:
    require_data(data)
    path = Path(data).expanduser()
    if path.is_dir():
        return _from_folder(path, name)
    if path.is_file():
        return _from_archive(path, name)
    return _from_hub(data, name)


def _from_folder(folder: Path, name: str) -> Iterable[Any]:
    for place in (folder, folder / "data"):
        if (place / f"{name}.jsonl").is_file():
            return _lines((place / f"{name}.jsonl").read_bytes())
        if files := [*place.glob(f"{name}.parquet"), *sorted((place / name).glob("*.parquet"))]:
            return _tables(files)
    return ()


def _tables(files: Iterable[Path]) -> Iterator[Any]:
    import pyarrow.parquet

    for file in files:
        yield from pyarrow.parquet.read_table(file).to_pylist()


def _from_archive(file: Path, name: str) -> Iterable[Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [entry for entry in archive.namelist() if entry.rpartition("/")[2] == f"{name}.jsonl"]
            return _lines(archive.read(inside[0])) if inside else ()
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # the last where it is encrypted
        raise UserError(f"{file} is no zip archive that can be read: {first_line(error)}. {HOW_TO_GET_IT}") from None


def _from_hub(repository: str, name: str) -> Iterable[Any]:
    try:
        return _from_archive(Path(hf_hub_download(repository, ARCHIVE, repo_type="dataset")), name)
    except EntryNotFoundError:
        pass
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{repository}: neither here nor on the Hub ({first_line(error)}). {HOW_TO_GET_IT}") from None
    from datasets import load_dataset

    try:
        rows: Iterable[Any] = load_dataset(repository, name, split="test")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{repository}: {first_line(error)}. {HOW_TO_GET_IT}") from None
    return rows


def _lines(text: bytes) -> Iterator[Any]:
    # Only line feeds end a row: contexts hold every other kind of line break.
    for number, line in enumerate(text.split(b"\n"), 1):
        if line.strip():
            try:
                yield json.loads(line.decode())
            except ValueError as error:
                raise ValueError(f"line {number}: {first_line(error)}") from None


def _row(values: Any, where: str) -> Row:
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a row of LongBench but {json.dumps(values)[:80]}")
    found: dict[str, Any] = {"input": values.get("question"), **values}  # as parquet copies call it
    found["all_classes"] = found.get("all_classes") or []
    kinds = {"input": str, "context": str, "answers": list, "length": int, "all_classes": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    wrong += [
        key
        for key in ("answers", "all_classes")
        if key not in wrong and not all(isinstance(s, str) for s in found[key])
    ]
    if wrong:
        raise UserError(f"{where}: not a row of LongBench, {', '.join(wrong)} is missing or of another type")
    if not found["answers"]:
        raise UserError(f"{where}: not a row of LongBench, it has no answers")
    return Row(
        id=str(found.get("_id", "")),
        input=found["input"],
        context=found["context"],
        answers=tuple(found["answers"]),
        words=int(found["length"]),
        classes=tuple(found["all_classes"]),
    )
