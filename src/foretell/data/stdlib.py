"""The standard library of the running Python, as a corpus that needs no download.

Every Python carries some nine megabytes of hand-written source: enough to train the tiny models of
this project, and the same text on every machine with the same Python. `standard_library` yields it
file by file. Generated tables, bundled wheels, installed packages and test suites are left out, and
a fixed list of modules, `HELD_OUT`, is kept from training so that a measurement means something.

The text differs between Python versions, so numbers compare only within one version.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from foretell.data.records import Document
from foretell.errors import InputError

HELD_OUT: tuple[str, ...] = (
    "asyncio/streams.py",
    "calendar.py",
    "cmd.py",
    "concurrent/futures/_base.py",
    "csv.py",
    "ctypes/util.py",
    "curses/textpad.py",
    "dbm/dumb.py",
    "email/feedparser.py",
    "filecmp.py",
    "fractions.py",
    "gettext.py",
    "graphlib.py",
    "heapq.py",
    "html/parser.py",
    "http/cookies.py",
    "idlelib/hyperparser.py",
    "json/decoder.py",
    "logging/config.py",
    "multiprocessing/heap.py",
    "pprint.py",
    "sched.py",
    "selectors.py",
    "shlex.py",
    "sqlite3/dump.py",
    "textwrap.py",
    "tkinter/dnd.py",
    "unittest/suite.py",
    "urllib/robotparser.py",
    "wsgiref/validate.py",
    "xml/sax/saxutils.py",
    "zipapp.py",
)
"""Modules kept from training, relative to the standard library, in sorted order.

All of them are written by hand and exist in Python 3.11 to 3.14; together they are about 5 % of the
corpus. A Python that lacks one (some distributions package tkinter or idlelib apart) holds out the
others.
"""

# No training file has to be left out as a near-duplicate of a held-out one, because the held-out
# modules are chosen to have none: measured on 3.11 to 3.13, at most 3.4 % of any module's runs of
# five code lines occur in a training file. Modules with a twin, such as tokenize.py and
# lib2to3/pgen2/tokenize.py, are no candidates.

_MAX_BYTES = 200_000

_EXCLUDED_DIRECTORIES = frozenset(
    {
        "__phello__",  # a frozen-module test
        "__pycache__",
        "_bundled",  # the wheels of ensurepip
        "dist-packages",
        "idle_test",
        "pydoc_data",  # the language reference as one generated string
        "site-packages",
        "test",
        "tests",
    }
)

_EXCLUDED_PREFIXES = ("config-", "_sysconfigdata")  # build settings of this one machine

_EXCLUDED_TABLES = frozenset(
    {
        "_opcode_metadata.py",
        "html/entities.py",
        "locale.py",
        "re/_casefix.py",
        "stringprep.py",
    }
)

# Most of encodings/ is generated character maps, or one template repeated for every codec that is
# written in C; only these files hold code of their own.
_KEPT_ENCODINGS = frozenset(
    {
        "__init__.py",
        "base64_codec.py",
        "bz2_codec.py",
        "charmap.py",
        "hex_codec.py",
        "idna.py",
        "punycode.py",
        "quopri_codec.py",
        "utf_16.py",
        "utf_32.py",
        "utf_8.py",
        "utf_8_sig.py",
        "uu_codec.py",
        "zlib_codec.py",
    }
)


def standard_library(split: Literal["train", "held-out"]) -> Iterator[Document]:
    """Yield the standard library's source files of one split, sorted by relative path.

    `source` of each document is its path relative to the standard library, with forward slashes.
    Files that are not UTF-8, are empty or are larger than 200 kB are skipped.

    Raises:
        InputError: `split` is not one of the two names, or this Python keeps no source files of its
            standard library (a zipped or frozen Python).
    """
    if split not in ("train", "held-out"):
        raise InputError(
            f"unknown split {split!r} of the standard library: use 'train' or 'held-out'"
        )
    root = Path(sysconfig.get_paths()["stdlib"])
    held_out = frozenset(HELD_OUT)
    found = False
    for relative in _source_files(root):
        found = True
        if (relative in held_out) != (split == "held-out"):
            continue
        text = _read(root / relative)
        if text:
            yield Document(text=text, source=relative)
    if not found:
        raise InputError(
            f"no standard library source files under {root}: this Python is zipped or frozen, "
            "give a folder of text instead"
        )


def _source_files(root: Path) -> list[str]:
    """Return the corpus's files under `root` as sorted relative paths with forward slashes."""
    relatives: list[str] = []
    for folder, directories, files in os.walk(root):
        directories[:] = [name for name in directories if _keeps_directory(name)]
        base = Path(folder).relative_to(root)
        relatives.extend(
            relative
            for name in files
            if name.endswith(".py") and _keeps_file(relative := (base / name).as_posix())
        )
    return sorted(relatives)


def _keeps_directory(name: str) -> bool:
    return name not in _EXCLUDED_DIRECTORIES and not name.startswith(_EXCLUDED_PREFIXES)


def _keeps_file(relative: str) -> bool:
    folder, _, name = relative.rpartition("/")
    if relative in _EXCLUDED_TABLES or name.startswith(_EXCLUDED_PREFIXES):
        return False
    return folder != "encodings" or name in _KEPT_ENCODINGS


def _read(path: Path) -> str | None:
    """Return the text of `path` with its own line ends, or None if it is no part of the corpus."""
    try:
        content = path.read_bytes()
    except OSError:  # a dangling link, as some distributions leave for files they package apart
        return None
    if len(content) > _MAX_BYTES:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None
