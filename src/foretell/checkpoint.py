"""Heads on disk: `foretell.json` (what they are, and whose) beside `heads.safetensors`.

A directory holds heads alone, with a reference to their backbone, or heads beside an ordinary
Hugging Face checkpoint, which then loads in plain transformers as if the heads were not there.
Either way the backbone's fingerprint is stored, and loading onto another backbone is an error.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foretell.errors import CheckpointError
from foretell.provenance import local_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT_VERSION = 1
CONFIG_FILE = "foretell.json"
CONFIG_FILES = (CONFIG_FILE, "foretoken.json")
"""The names that are read: this package was called foretoken before its first release."""
HEADS_FILE = "heads.safetensors"
ADAPTERS_DIRECTORY = "adapters"
WORK = ".foretell-"
"""What the names of work directories in their target begin with; beside it they have its name
before that.
"""

GGUF = (
    "is a GGUF file, which llama.cpp reads; give the checkpoint that it was made from, in "
    "safetensors."
)


@dataclass(frozen=True)
class BackboneReference:
    """Whose heads they are.

    Attributes:
        fingerprint: `Backbone.fingerprint()` of the backbone that they were trained on.
        architecture: its class, for people.
        path: where it can be loaded from; None where it lies in the same directory.
        adapted: whether adapters beside the heads belong on it; the fingerprint is its own without
            them.
    """

    fingerprint: str
    architecture: str
    path: str | None = None
    adapted: bool = False

    def check(self) -> None:
        """Raise ValueError where a field holds something else than it should."""
        for name, kind in get_type_hints(type(self)).items():
            if not isinstance(value := getattr(self, name), kind) or value == "":
                raise ValueError(f"backbone.{name} is {value!r}")


@dataclass(frozen=True)
class StoredHeads:
    """What a directory says about heads; `tensors` is None where only the config was read."""

    head: dict[str, Any]
    backbone: BackboneReference
    tensors: dict[str, Tensor] | None = None


def is_foretell_directory(path: Path) -> bool:
    """Whether `path` holds heads."""
    return config_file(path).is_file()


def config_file(directory: Path) -> Path:
    """The config in `directory` under whichever name it has; where it would be if there is none."""
    found = (directory / name for name in CONFIG_FILES if (directory / name).is_file())
    return next(found, directory / CONFIG_FILE)


def write_heads(directory: Path, stored: StoredHeads) -> None:
    """Write config and tensors into an existing directory."""
    if stored.tensors is None:
        raise CheckpointError(f"{directory}: no tensors to write.")
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in stored.tensors.items()},
        directory / HEADS_FILE,
    )
    config = {
        "format_version": FORMAT_VERSION,
        "head": stored.head,
        "backbone": asdict(stored.backbone),
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_heads(directory: Path) -> StoredHeads:
    """Read both files, refusing what is truncated, foreign or of a later format."""
    path = config_file(directory)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format version {version} is not {FORMAT_VERSION}; "
                "it was written by another release of foretell, use that one or a newer."
            )
        head, backbone = dict(config["head"]), BackboneReference(**config["backbone"])
        backbone.check()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is not a foretell config ({error}); save the model again."
        ) from None
    return StoredHeads(head, backbone, read_tensors(directory / HEADS_FILE))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or `CheckpointError`."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, whole, or `CheckpointError`."""
    require_itself(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is not a whole safetensors file ({error}); fetch it again."
        ) from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file, or `CheckpointError`."""
    require_itself(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); fetch it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON object; fetch it again.")
    return value


def require_itself(path: Path) -> None:
    """Refuse a file that is missing or empty, or that another one only stands for."""
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; save the model again or fetch the file.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    if not head:
        raise CheckpointError(f"{path}: is not a whole file, it is empty; fetch it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: is a pointer of git-lfs and not the file itself; run `git lfs pull` there."
        )
    if head.startswith(b"GGUF"):
        raise CheckpointError(f"{path}: {GGUF}")


@contextmanager
def replacing(
    target: Path, superseded: Collection[str] = (), marks: Collection[str] = CONFIG_FILES
) -> Iterator[Path]:
    """Give a temporary directory; what is in it goes to `target` when all of it is written.

    `target` may be new, empty but for hidden files, a link to such a directory, or one that was
    saved to before, which one of its files tells. Any other directory is somebody else's.

    Args:
        target: where to.
        superseded: patterns of files that an earlier save left there, and that go with it; all
            others stay.
        marks: the files that tell a directory of ours. While files change places there, and where
            the process dies meanwhile, none of them is there.

    Raises:
        CheckpointError: `target` is a file, holds what was not saved here, or cannot be written to.
    """
    target = local_path(target).resolve()
    exists = _is_ours(target, marks)
    with work_directory(target if exists else target.parent, target) as work:
        yield work
        if exists:
            _move_in(work, target, superseded, marks)
        else:
            work.chmod(0o755)
            os.replace(work, target)


def _is_ours(target: Path, marks: Collection[str]) -> bool:
    """Whether there is a directory that may be saved to; an error where there is something else."""
    if not target.exists():
        return False
    if not target.is_dir():
        raise CheckpointError(f"{target}: is a file; name a directory to save to.")
    names = {path.name for path in target.iterdir() if not path.name.startswith(".")}
    # A save that was killed while files changed places left its work directory there.
    interrupted = any(target.glob(f"{WORK}*"))
    if names and names.isdisjoint(marks) and not interrupted:
        raise CheckpointError(
            f"{target}: holds {min(names)} and no {min(marks)}, so it may be somebody else's; name "
            "a new or an empty directory."
        )
    return True


def _move_in(work: Path, target: Path, superseded: Collection[str], marks: Collection[str]) -> None:
    """Move what `work` holds to `target`, in place of what is there: marks go first, come last."""
    new = sorted(path.name for path in work.iterdir())
    gone = [
        path.name
        for path in sorted(target.iterdir())
        if path.name in new or any(path.match(pattern) for pattern in superseded)
    ]
    with work_directory(target, target) as old:
        try:
            for name in sorted(gone, key=marks.__contains__, reverse=True):
                os.replace(target / name, old / name)
            for name in sorted(new, key=marks.__contains__):
                os.replace(work / name, target / name)
        except BaseException:
            for name in (name for name in new if not (work / name).exists()):
                os.replace(target / name, work / name)
            for path in old.iterdir():
                os.replace(path, target / path.name)
            raise


@contextmanager
def work_directory(beside: Path, target: Path) -> Iterator[Path]:
    """A hidden directory in `beside`, gone afterwards, for what is to lie at `target`.

    A process that is killed leaves it behind. It is locked while its process lives, whatever that
    dies of; the next one that writes to the same place removes what nobody holds.

    Raises:
        CheckpointError: nothing can be written there.
    """
    try:
        beside.mkdir(parents=True, exist_ok=True)
        for stale in (*target.glob(f"{WORK}*"), *target.parent.glob(f".*{WORK}*")):
            with suppress(OSError):  # it is in use, or gone, or cannot be told here
                unheld = lock(stale)
                shutil.rmtree(stale, ignore_errors=True)
                os.close(unheld)
        prefix = WORK if beside == target else f".{target.name}{WORK}"
        work, held = _locked_directory(beside, prefix)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written to ({error.strerror}); name another directory."
        ) from None
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if held is not None:
            os.close(held)


def _locked_directory(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """A new directory and its lock; without one, nobody removes it but its own process."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            held = lock(work)
        except BlockingIOError:  # by a process that takes it for a stale one
            continue
        except OSError:  # not on this file system
            return work, None
        if work.exists():
            return work, held
        os.close(held)  # taken for a stale one, and removed, before it was locked


def lock(directory: Path) -> int:
    """Lock a directory for as long as the descriptor is open in this process or a child of it.

    Raises:
        BlockingIOError: another one holds it.
        OSError: it cannot be locked.
    """
    if fcntl is None:
        raise OSError("there are no such locks on this system")
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise
    return held
