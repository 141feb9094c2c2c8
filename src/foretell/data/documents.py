"""Text of any supported kind, read as documents.

A *document* is a run of text that a model reads from its beginning: nothing in it may attend to, or
be predicted from, the document before it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from foretell.data.records import (
    FIELDS,
    REFUSED,
    Bad,
    Document,
    document_of,
    kind,
    without_nulls,
)
from foretell.errors import InputError
from foretell.files import local_path

TEXT_SUFFIXES = (".txt", ".md", ".py")
"""A file with one of these names is one document."""

LINES_SUFFIXES = (".jsonl", ".jsonl.gz")
"""A file with one of these names holds one JSON object per line, a record."""

TABLE_SUFFIXES = (".parquet",)
"""A file with one of these names holds one record per row."""

RECORD_SUFFIXES = LINES_SUFFIXES + TABLE_SUFFIXES

SUFFIXES = TEXT_SUFFIXES + RECORD_SUFFIXES

_KINDS = {".py": "python", ".md": "markdown", ".txt": "text"}

_SUPPORTED = ", ".join(SUFFIXES)


def document_kind(document: Document) -> str:
    """What kind of text a document is, as far as its source tells.

    `conversation`, `python`, `markdown` or `text`; a line or row of a file, and a document of a
    data set, is named after the file or data set.
    """
    if document.messages is not None:
        return "conversation"
    name, colon, number = document.source.rpartition(":")
    if colon and number.isdigit():
        return Path(name).name.partition(".")[0]
    return _KINDS.get(Path(document.source).suffix.lower(), "text")


def read_documents(path: str | Path, bad: Bad = REFUSED) -> Iterator[Document]:
    """Yield the documents of `path`, always in the same order.

    `path` is one of
      - a `.txt`, `.md` or `.py` file: one document,
      - a `.jsonl` or `.jsonl.gz` file, or a `.parquet` table: one document per line or row, see
        below,
      - a folder: all such files in it and below it, sorted by path; hidden files and folders
        (`.git`, `.venv`) are left out,
      - `hub:NAME`, `hub:NAME:CONFIG` or `hub:NAME:CONFIG:SPLIT`: a data set of the Hugging Face
        Hub, streamed; the split is `train` unless another is named,
      - `stdlib:train` or `stdlib:held-out`: the source of the running Python's standard library.

    A line or row has one of
      - `text`,
      - `messages`, a list of `{"role": …, "content": …}`, or `conversations`, a list of `{"from":
        …, "value": …}`; and perhaps `tools`, `documents`, `system` and `chat_template_kwargs`,
      - `prompt` and `completion`, two texts or two such lists, of which the completion is learned,
      - `tokens`, a list of token ids of which the first `prompt_tokens` are not learned, as
        `foretell distill` writes them, with the `text` that they stand for if it is known,
      - `prompt` alone, which is only to be continued, as in HumanEval.

    Documents that are empty or all white space are left out. `bad` says what becomes of records
    that are malformed; by default the first is an error.

    Raises:
        InputError: nothing is at `path`, its kind is unknown, it is not UTF-8, a line is malformed,
            or no text is left. A path that cannot be read at all is reported by the call, the rest
            when iteration reaches it.
    """
    if str(path).startswith("stdlib:"):
        return _read_stdlib(str(path))
    if str(path).startswith("hub:"):
        return _read_hub(str(path), bad)
    path = local_path(path)
    if path.is_dir():
        files = _files_in(path)
        base = path
    elif path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise InputError(f"cannot read {path}: a text file must end in one of {_SUPPORTED}")
        files = [path]
        base = path.parent
    else:
        raise InputError(f"{path}: no such file or folder; check the path")
    return _read_files(path, base, files, bad)


def _read_stdlib(name: str) -> Iterator[Document]:
    # Imported here because that module itself needs Document.
    from foretell.data.stdlib import standard_library

    if name == "stdlib:train":
        return standard_library("train")
    if name == "stdlib:held-out":
        return standard_library("held-out")
    raise InputError(f"unknown text {name!r}: use stdlib:train or stdlib:held-out")


def _files_in(folder: Path) -> list[Path]:
    """Return the supported files below `folder`, sorted by relative path, hidden ones left out."""
    relatives = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    kept = sorted(
        (
            relative
            for relative in relatives
            if relative.name.lower().endswith(SUFFIXES)
            and not any(part.startswith(".") for part in relative.parts)
        ),
        key=Path.as_posix,
    )
    if not kept:
        raise InputError(f"nothing to read in the folder {folder}: no file ends in {_SUPPORTED}")
    return [folder / relative for relative in kept]


def _read_files(path: Path, base: Path, files: list[Path], bad: Bad) -> Iterator[Document]:
    """Yield the documents of `files`, named relative to `base`; `path` is what the caller gave."""
    found = False
    for file in files:
        source = file.relative_to(base).as_posix()
        name = file.name.lower()
        read = (
            _read_lines
            if name.endswith(LINES_SUFFIXES)
            else _read_table
            if name.endswith(TABLE_SUFFIXES)
            else _read_text
        )
        for document in read(file, source, bad):
            if not _is_empty(document):
                found = True
                yield document
    if not found:
        raise _nothing_in(path, bad)


def _read_text(file: Path, source: str, bad: Bad) -> Iterator[Document]:
    try:
        # Bytes, then text: reading as text would rewrite the line ends.
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    yield Document(text=decode(content, str(file)), source=source)


def _read_lines(file: Path, source: str, bad: Bad) -> Iterator[Document]:
    try:
        with _open_binary(file) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    where = f"{file}, line {number}"
                    yield from _taken(_line, line, where, f"{source}:{number}", bad)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file} is not a whole gzip file ({error}): fetch it again") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None


def _open_binary(file: Path) -> BinaryIO:
    if file.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(file, "rb"))
    return file.open("rb")


def _read_table(file: Path, source: str, bad: Bad) -> Iterator[Document]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            number = 0
            # None is all columns; the error then says what they are.
            columns = [name for name in table.schema_arrow.names if name in FIELDS] or None
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    where = f"{file}, row {number}"
                    yield from _taken(_row, record, where, f"{source}:{number}", bad)
    except ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file} is not a whole parquet file ({reason})") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None


def _read_hub(address: str, bad: Bad) -> Iterator[Document]:
    """Stream `hub:NAME[:CONFIG[:SPLIT]]`; documents are `NAME:number`."""
    import datasets

    _, name, *rest = address.split(":")
    config, split = [*rest, None, None][:2]
    if not name or len(rest) > 2:
        raise InputError(f"{address!r} is not the name of a data set: write hub:NAME:CONFIG:SPLIT")
    try:
        records = datasets.load_dataset(
            name, config or None, split=split or "train", streaming=True
        )
        found = False
        for number, record in enumerate(records, start=1):
            where = f"{address}, row {number}"
            for document in _taken(_row, record, where, f"{name}:{number}", bad):
                found = True
                yield document
    except InputError:
        raise
    except Exception as error:  # datasets raises whatever its readers do
        reason = " ".join(str(error).split())
        raise InputError(f"{address}: cannot be read ({type(error).__name__}: {reason})") from None
    if not found:
        raise _nothing_in(address, bad)


def _taken(
    read: Callable[[Any, str, str], Document], record: Any, where: str, source: str, bad: Bad
) -> Iterator[Document]:
    """A record's document, unless it is empty or bad."""
    try:
        document = read(record, where, source)
    except InputError as error:
        bad(error)
    else:
        if not _is_empty(document):
            yield document


def _is_empty(document: Document) -> bool:
    return not (document.text.strip() or document.tokens or document.messages)


def _nothing_in(path: str | Path, bad: Bad) -> InputError:
    why = str(bad) if bad.found else "every document is empty"
    return InputError(f"no text in {path}: {why}")


def _row(record: dict[str, Any], where: str, source: str) -> Document:
    """A row of a table, in which each field of any value is a field of all of them."""
    values = {name: without_nulls(value) for name, value in record.items()}
    return document_of(values, where, source)


def _line(line: bytes, where: str, source: str) -> Document:
    """One line of JSON."""
    return document_of(_parse(line, where), where, source)


def _parse(line: bytes, where: str) -> dict[str, Any]:
    """One line of JSON; `where` names file and line in an error."""
    text = decode(line, where)
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON (column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise InputError(f"{where}: not usable JSON (nested too deeply)") from None
    except ValueError:  # Python reads no number of more than 4,300 digits
        raise InputError(f"{where}: not usable JSON (a number of thousands of digits)") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object with the field 'text', not {kind(record)}")
    return record


def decode(content: bytes, where: str) -> str:
    """UTF-8 as text, without the mark that Windows puts before it.

    What another encoding leaves between letters is valid in it, and no text.
    """
    if not json.detect_encoding(content[:4]).startswith("utf-8"):
        raise InputError(f"{where}: UTF-16 or no text at all: convert it to UTF-8")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"{where}: not UTF-8 (byte {error.start} is 0x{byte:02x}): convert it to UTF-8"
        ) from None
