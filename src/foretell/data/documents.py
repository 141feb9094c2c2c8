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
from typing import Any, BinaryIO, cast

from foretell.errors import InputError
from foretell.provenance import local_path

TEXT_SUFFIXES = (".txt", ".md", ".py")
"""A file with one of these names is one document."""

LINES_SUFFIXES = (".jsonl", ".jsonl.gz")
"""A file with one of these names holds one JSON object per line, a record."""

TABLE_SUFFIXES = (".parquet",)
"""A file with one of these names holds one record per row."""

RECORD_SUFFIXES = LINES_SUFFIXES + TABLE_SUFFIXES

_FIELDS = ("text", "messages", "tokens", "prompt_tokens", "prompt")
"""Of a record, all that is read."""

SUFFIXES = TEXT_SUFFIXES + RECORD_SUFFIXES

_KINDS = {".py": "python", ".md": "markdown", ".txt": "text"}

_SUPPORTED = ", ".join(SUFFIXES)

Message = dict[str, Any]
"""`role` and `content`, and whatever else the chat template reads."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document and where it came from.

    Attributes:
        text: all of it.
        source: a path relative to what was read, with `:line` appended for a file that holds a
            document per line or row. It does not contain the machine's own folders, so it is the
            same everywhere.
        messages: the turns of a conversation; what is learned is the assistant's.
        tokens: token ids that are known already, so that nothing is tokenized differently.
        prompt_tokens: how many of `tokens` are a prompt, which is not learned.
        is_prompt: whether the text is a prompt, as a whole; there is nothing to learn in it.
    """

    text: str
    source: str
    messages: tuple[Message, ...] | None = None
    tokens: tuple[int, ...] | None = None
    prompt_tokens: int = 0
    is_prompt: bool = False


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


def read_documents(path: str | Path) -> Iterator[Document]:
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

    A line or row has a field `text`; or `messages`, a list of `{"role": …, "content": …}`; or
    `tokens`, a list of token ids of which the first `prompt_tokens` are not learned, as `foretell
    distill` writes them, with the `text` that they stand for if it is known; or `prompt`, a text
    that is only to be continued, as in HumanEval.

    Documents that are empty or all white space are left out.

    Raises:
        InputError: nothing is at `path`, its kind is unknown, it is not UTF-8, a line is malformed,
            or no text is left. A path that cannot be read at all is reported by the call, the rest
            when iteration reaches it.
    """
    if str(path).startswith("stdlib:"):
        return _read_stdlib(str(path))
    if str(path).startswith("hub:"):
        return _read_hub(str(path))
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
        raise InputError(f"no file or folder at {path}: check the path given as text")
    return _read_files(path, base, files)


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


def _read_files(path: Path, base: Path, files: list[Path]) -> Iterator[Document]:
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
        for document in read(file, source):
            if document.text.strip() or document.tokens:
                found = True
                yield document
    if not found:
        raise InputError(f"no text in {path}: every document is empty")


def _read_text(file: Path, source: str) -> Iterator[Document]:
    try:
        # Bytes, then text: reading as text would rewrite the line ends.
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    yield Document(text=decode(content, str(file)), source=source)


def _read_lines(file: Path, source: str) -> Iterator[Document]:
    try:
        with _open_binary(file) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    where = f"{file}, line {number}"
                    yield _document_of(_parse(line, where), where, f"{source}:{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file} is not a whole gzip file ({error}): fetch it again") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None


def _open_binary(file: Path) -> BinaryIO:
    if file.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(file, "rb"))
    return file.open("rb")


def _read_table(file: Path, source: str) -> Iterator[Document]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            number = 0
            # None is all columns; the error then says what they are.
            columns = [name for name in table.schema_arrow.names if name in _FIELDS] or None
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield _document_of(record, f"{file}, row {number}", f"{source}:{number}")
    except ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file} is not a whole parquet file ({reason})") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None


def _read_hub(address: str) -> Iterator[Document]:
    """Stream `hub:NAME[:CONFIG[:SPLIT]]`; documents are `NAME:number`."""
    import datasets

    _, name, *rest = address.split(":")
    config, split = [*rest, None, None][:2]
    if not name or len(rest) > 2:
        raise InputError(f"{address!r} is no data set: write hub:NAME:CONFIG:SPLIT")
    try:
        records = datasets.load_dataset(
            name, config or None, split=split or "train", streaming=True
        )
        found = False
        for number, record in enumerate(records, start=1):
            document = _document_of(record, f"{address}, row {number}", f"{name}:{number}")
            if document.text.strip() or document.tokens:
                found = True
                yield document
    except InputError:
        raise
    except Exception as error:  # datasets raises whatever its readers do
        reason = " ".join(str(error).split())
        raise InputError(f"{address}: cannot be read ({type(error).__name__}: {reason})") from None
    if not found:
        raise InputError(f"no text in {address}: every document is empty")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    """One line of JSON; `where` names file and line in an error."""
    try:
        record = json.loads(decode(line, where).removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise InputError(f"{where}: not usable JSON (nested too deeply)") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object with the field 'text', not {_kind(record)}")
    return record


def _document_of(record: dict[str, Any], where: str, source: str) -> Document:
    """What a record holds; of `tokens`, `messages`, `text` and `prompt` the first one counts."""
    if record.get("tokens") is not None:
        return _tokens_of(record, where, source)
    if record.get("messages") is not None:
        messages = _messages_of(record["messages"], where)
        text = "\n".join(message.get("content", "") for message in messages)
        return Document(text=text, source=source, messages=messages)
    if "text" not in record and "prompt" in record:
        text = _string(record["prompt"], "the field 'prompt'", where)
        return Document(text=text, source=source, is_prompt=True)
    if "text" not in record:
        fields = ", ".join(map(repr, record)) or "none"
        raise InputError(f"{where}: the field 'text' is missing (fields: {fields})")
    return Document(text=_string(record["text"], "the field 'text'", where), source=source)


def _tokens_of(record: dict[str, Any], where: str, source: str) -> Document:
    tokens, prompt = record["tokens"], record.get("prompt_tokens", 0)
    if not isinstance(tokens, list) or not all(map(_is_count, tokens)):
        raise InputError(f"{where}: the field 'tokens' must be a list of token ids")
    if not _is_count(prompt) or prompt > len(tokens):
        raise InputError(f"{where}: the field 'prompt_tokens' must be 0 to {len(tokens)}")
    text = _string(record.get("text") or "", "the field 'text'", where)
    return Document(text=text, source=source, tokens=tuple(tokens), prompt_tokens=prompt)


def _messages_of(messages: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: the field 'messages' must be a list of turns")
    turns = []
    for number, turn in enumerate(messages, start=1):
        if not isinstance(turn, dict):
            raise InputError(f"{where}: turn {number} must be an object, not {_kind(turn)}")
        turn = {name: value for name, value in turn.items() if value is not None}
        _string(turn.get("role"), f"'role' of turn {number}", where)
        if "content" in turn or "tool_calls" not in turn:
            _string(turn.get("content"), f"'content' of turn {number}", where)
        turns.append(turn)
    return tuple(turns)


def _string(value: object, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {what} must be a string, not {_kind(value)}")
    try:
        value.encode("utf-8")  # JSON can escape half a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half a surrogate pair at character {error.start}") from None
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def decode(content: bytes, where: str) -> str:
    """UTF-8 as text. What another encoding leaves between letters is valid in it, and no text."""
    if not json.detect_encoding(content[:4]).startswith("utf-8"):
        raise InputError(f"{where}: UTF-16 or no text at all: convert it to UTF-8")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"{where}: not UTF-8 (byte {error.start} is 0x{byte:02x}): convert it to UTF-8"
        ) from None
