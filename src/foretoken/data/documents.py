"""Text of any supported kind, read as documents.

A *document* is a run of text that a model reads from its beginning: nothing in it may attend to, or
be predicted from, the document before it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from foretoken.errors import InputError

TEXT_SUFFIXES = (".txt", ".md", ".py")
"""A file with one of these names is one document."""

LINES_SUFFIXES = (".jsonl", ".jsonl.gz")
"""A file with one of these names holds one JSON object per line, its document under `text`."""

_SUPPORTED = ", ".join(TEXT_SUFFIXES + LINES_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Document:
    """One document and where it came from.

    `source` is a path relative to what was read, with `:line` appended for a file that holds a
    document per line. It does not contain the machine's own folders, so it is the same everywhere.
    """

    text: str
    source: str


def read_documents(path: str | Path) -> Iterator[Document]:
    """Yield the documents of `path`, always in the same order.

    `path` is one of
      - a `.txt`, `.md` or `.py` file: one document,
      - a `.jsonl` or `.jsonl.gz` file: one document per line, in the field `text`,
      - a folder: all such files in it and below it, sorted by path; hidden files and folders
        (`.git`, `.venv`) are left out,
      - `stdlib:train` or `stdlib:held-out`: the source of the running Python's standard library.

    Documents that are empty or all white space are left out.

    Raises:
        InputError: nothing is at `path`, its kind is unknown, it is not UTF-8, a line is malformed,
            or no text is left. A path that cannot be read at all is reported by the call, the rest
            when iteration reaches it.
    """
    if str(path).startswith("stdlib:"):
        return _read_stdlib(str(path))
    path = Path(path)
    if path.is_dir():
        files = _files_in(path)
        base = path
    elif path.is_file():
        if not path.name.lower().endswith(TEXT_SUFFIXES + LINES_SUFFIXES):
            raise InputError(f"cannot read {path}: a text file must end in one of {_SUPPORTED}")
        files = [path]
        base = path.parent
    else:
        raise InputError(f"no file or folder at {path}: check the path given as text")
    return _read_files(path, base, files)


def _read_stdlib(name: str) -> Iterator[Document]:
    # Imported here because that module itself needs Document.
    from foretoken.data.stdlib import standard_library

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
            if relative.name.lower().endswith(TEXT_SUFFIXES + LINES_SUFFIXES)
            and not any(part.startswith(".") for part in relative.parts)
        ),
        key=Path.as_posix,
    )
    if not kept:
        raise InputError(f"nothing to read in the folder {folder}: no file ends in {_SUPPORTED}")
    return [folder / relative for relative in kept]


def _read_files(path: Path, base: Path, files: list[Path]) -> Iterator[Document]:
    """Yield the documents of `files`, named relative to `base`; `path` is what the caller gave."""
    found = False
    for file in files:
        source = file.relative_to(base).as_posix()
        is_lines = file.name.lower().endswith(LINES_SUFFIXES)
        for document in _read_lines(file, source) if is_lines else _read_text(file, source):
            if document.text.strip():
                found = True
                yield document
    if not found:
        raise InputError(f"no text in {path}: every document is empty")


def _read_text(file: Path, source: str) -> Iterator[Document]:
    try:
        # Bytes, then text: reading as text would rewrite the line ends.
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: {_not_utf8(error)}") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    yield Document(text=text, source=source)


def _read_lines(file: Path, source: str) -> Iterator[Document]:
    try:
        with _open_binary(file) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    text = _text_of(line, f"{file}, line {number}")
                    yield Document(text=text, source=f"{source}:{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file} is not a whole gzip file ({error}): fetch it again") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None


def _open_binary(file: Path) -> BinaryIO:
    if file.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(file, "rb"))
    return file.open("rb")


def _text_of(line: bytes, where: str) -> str:
    """Return the `text` of one line of JSON; `where` names file and line in an error."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: {_not_utf8(error)}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise InputError(f"{where}: not usable JSON (nested too deeply)") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object with the field 'text', not {_kind(record)}")
    if "text" not in record:
        fields = ", ".join(map(repr, record)) or "none"
        raise InputError(f"{where}: the field 'text' is missing (fields: {fields})")
    text = record["text"]
    if not isinstance(text, str):
        raise InputError(f"{where}: the field 'text' must be a string, not {_kind(text)}")
    try:
        text.encode("utf-8")  # JSON can escape half a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half a surrogate pair at character {error.start}") from None
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"not UTF-8 (byte {error.start} is 0x{byte:02x}): convert it to UTF-8"
