"""Writing to paths that people name: all of it or nothing, and never over what is not ours.

A single file is written beside its place and takes it when it is complete (`whole_file`); a
directory likewise (`replacing`). Every path may be a link, `.`, relative, or begin with `~`; one
that cannot be written to is refused in one line that names it (`refusing`).
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foretell.errors import CheckpointError, ForetellError, InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

WORK = ".foretell-"
"""What the names of work directories in their target begin with; beside it they have its name
before that.
"""


def local_path(path: str | Path) -> Path:
    """`path` with the home directory in place of `~`, which shells leave in `--out=~/runs`.

    Raises:
        InputError: nothing can lie there: a name is too long, or its links go in a circle.
    """
    found = Path(os.path.expanduser(path))
    try:
        os.stat(found)
    except ValueError as error:  # a null byte
        raise InputError(f"{str(path)!r}: cannot be a path ({error}).") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise InputError(f"{path}: cannot be a path ({error.strerror}).") from None
    return found


@contextmanager
def refusing(path: Path, what: str = "", error: type[ForetellError] = InputError) -> Iterator[None]:
    """Turn an `OSError` inside into an `error` of one line: `path` cannot be written to, and why.

    Args:
        path: as the user named it.
        what: was to be written, for the message.
    """
    try:
        yield
    except OSError as reason:
        raise refusal(path, reason.strerror or str(reason), what, error) from None


def refusal(
    path: Path, reason: str, what: str = "", error: type[ForetellError] = InputError
) -> ForetellError:
    """What to raise where `path` cannot be written to."""
    purpose = f" for the {what}" if what else ""
    return error(f"{path}: cannot be written to ({reason}); name another path{purpose}.")


# -- files ----------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file to, which takes its place when it is complete.

    Whatever is raised inside leaves `path` as it was. A link stays one, and its target is replaced.

    Raises:
        OSError: it cannot be written.
    """
    target = path.resolve()
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield work
        with work.open("r+b") as stream:
            os.fsync(stream.fileno())
        os.replace(work, target)
    finally:
        with suppress(OSError):
            work.unlink()


def write_whole(path: Path, content: bytes | str) -> None:
    """Put a whole file in the place of what was there, or leave that; see `whole_file`."""
    with whole_file(path) as work:
        work.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def require_replaceable(path: Path, what: str, ours: Callable[[bytes], bool]) -> None:
    """Refuse to write over a file that was not written here.

    Args:
        path: where to.
        what: is to be written, for the message.
        ours: whether a file's content is what is written here; an empty file may be replaced.

    Raises:
        InputError: another file is there, or something that is no file.
    """
    target = local_path(path)
    with refusing(path, what):
        if not target.exists():
            return
        if not target.is_file():
            raise refusal(path, "it is not a file", what)
        content = target.read_bytes()
    if content and not ours(content):
        raise refusal(path, "another file is there, which would be lost", what)


def replace_file(path: Path, content: bytes, what: str, ours: Callable[[bytes], bool]) -> None:
    """Write a whole file, see `whole_file`; folders that lack are made.

    Raises:
        InputError: it cannot be written, or what is there is not `ours`, see
            `require_replaceable`; `what` it is stands in the message.
    """
    require_replaceable(path, what, ours)
    target = local_path(path).resolve()
    with refusing(path, what):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, content)


# -- directories ----------------------------------------------------------------------------------


@contextmanager
def replacing(
    target: Path, superseded: Collection[str] = (), *, marks: Collection[str]
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
    with refusing(target, error=CheckpointError):
        beside.mkdir(parents=True, exist_ok=True)
        for stale in (*target.glob(f"{WORK}*"), *target.parent.glob(f".*{WORK}*")):
            with suppress(OSError):  # it is in use, or gone, or cannot be told here
                unheld = lock(stale)
                shutil.rmtree(stale, ignore_errors=True)
                os.close(unheld)
        prefix = WORK if beside == target else f".{target.name}{WORK}"
        work, held = _locked_directory(beside, prefix)
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
