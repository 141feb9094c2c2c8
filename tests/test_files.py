import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import refused
from foretell import files
from foretell.errors import CheckpointError, InputError
from foretell.files import local_path, replacing

MARK = "foretell.json"


def listing(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down"

    def save(*names: str, fails: bool = False) -> None:
        with replacing(target, ["old*"], marks=["mark"]) as work:
            for name in names:
                (work / name).write_text(names[-1])
            if fails:
                raise ZeroDivisionError

    def found() -> dict[str, str]:
        assert list(target.parent.iterdir()) == [target]
        return {file.name: file.read_text() for file in target.iterdir()}

    with pytest.raises(ZeroDivisionError):
        save("mark", "a", fails=True)
    assert list(target.parent.iterdir()) == []
    save("mark", "old", "one")
    (target / "mine").write_text("kept")
    before = found()
    with pytest.raises(ZeroDivisionError):
        save("mark", "one", "two", fails=True)
    assert found() == before
    save("mark", "one", "two")
    assert found() == {"mark": "two", "one": "two", "two": "two", "mine": "kept"}


def test_a_save_that_dies_halfway_leaves_no_directory_that_looks_whole(
    tmp_path: Path, monkeypatch
) -> None:
    def save(text: str) -> None:
        with replacing(tmp_path / "m", marks=["mark"]) as work:
            for name in ("a", "mark", "z"):
                (work / name).write_text(text)

    save("old")
    moved: list[Path] = []
    move = files.os.replace

    def counting(source, target) -> None:
        looks_whole = (tmp_path / "m" / "mark").exists()
        assert looks_whole == (not moved)
        moved.append(Path(target))
        move(source, target)

    monkeypatch.setattr(files.os, "replace", counting)
    save("new")
    assert [path.name for path in moved] == ["mark", "a", "z", "a", "z", "mark"]
    assert {path.read_text() for path in (tmp_path / "m").iterdir()} == {"new"}


KILLED = """
import os, signal, sys
from pathlib import Path
from foretell.files import local_path, replacing

with replacing(Path(sys.argv[1]), marks=["foretell.json"]) as work:
    (work / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_MOVING = """
import os, signal, sys
from pathlib import Path
from foretell.files import local_path, replacing

replace, moved = os.replace, []

def until(source, to):
    moved.append(source)
    if len(moved) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, to)

with replacing(Path(sys.argv[1]), marks=["foretell.json"]) as work:
    for name in {files}:
        (work / name).write_text("two")
    os.replace = until
"""


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(
    tmp_path: Path,
) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "one")], timeout=120)
    assert ended.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "weights").read_text() == "half"
    (tmp_path / ".one.mine").mkdir()
    with replacing(tmp_path / "two", marks=[MARK]) as live:
        assert not left.exists()
        (live / "weights").write_text("live")
        with replacing(tmp_path / "three", marks=[MARK]) as other:
            assert live.exists()
            (other / "weights").write_text("other")
    assert (tmp_path / "two" / "weights").read_text() == "live"
    assert {path.name for path in tmp_path.iterdir()} == {"two", "three", ".one.mine"}


def test_a_save_beside_what_is_not_ours_makes_it_no_more_ours(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / tmp_path.name)], timeout=120)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(CheckpointError, match="somebody else's"), replacing(tmp_path, marks=[MARK]):
        pass


def test_a_save_that_was_killed_while_files_changed_places_is_done_again(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with replacing(target, marks=[MARK]) as work:
        for name in (MARK, "heads"):
            (work / name).write_text("one")
    (target / "notes").write_text("mine")
    killed = KILLED_MOVING.format(files=(MARK, "heads"))
    ended = subprocess.run([sys.executable, "-c", killed, str(target)], timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert not (target / MARK).exists()
    with replacing(target, marks=[MARK]) as work:
        for name in (MARK, "heads"):
            (work / name).write_text("three")
    assert {path.name for path in target.iterdir()} == {MARK, "heads", "notes"}
    assert (target / MARK).read_text() == (target / "heads").read_text() == "three"


def test_a_save_that_fails_while_files_change_places_leaves_what_was_there(
    tmp_path: Path, monkeypatch
) -> None:
    target, replace = tmp_path / "model", os.replace

    def save(text: str, *names: str) -> None:
        with replacing(target, marks=[MARK]) as work:
            for name in names:
                (work / name).write_text(text)

    save("one", MARK, "heads")
    before = listing(tmp_path)
    for moment in range(4):
        left = [moment]

        def fail(source, to, left=left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise OSError("no space left on device")
            replace(source, to)

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            save("two", MARK, "heads", "more")
        assert listing(tmp_path) == before


def test_a_directory_taken_for_a_stale_one_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch
) -> None:
    """Between its making and its locking another process may find it."""
    lock, made = files.lock, []

    def late(directory: Path) -> int:
        made.append(directory)
        if len(made) == 1:
            raise BlockingIOError
        held = lock(directory)
        if len(made) == 2:
            directory.rmdir()
        return held

    monkeypatch.setattr(files, "lock", late)
    with files.work_directory(tmp_path, tmp_path / "out") as work:
        assert [work.exists(), len(made)] == [True, 3]


def test_where_nothing_can_be_locked_nothing_is_taken_for_stale(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with (
        replacing(tmp_path / "one", marks=[MARK]) as live,
        replacing(tmp_path / "two", marks=[MARK]),
    ):
        assert live.exists()


@pytest.mark.parametrize("exists", [False, True])
def test_a_file_that_is_not_written_to_its_end_leaves_what_was_there(
    tmp_path: Path, exists: bool
) -> None:
    path = tmp_path / "file"
    if exists:
        path.write_text("before")
    before = listing(tmp_path)
    with pytest.raises(ZeroDivisionError), files.whole_file(path) as work:  # noqa: PT012
        work.write_text("half")
        raise ZeroDivisionError
    assert listing(tmp_path) == before
    files.write_whole(path, "whole")
    assert listing(tmp_path) == {"file": b"whole"}


def test_nothing_else_in_the_package_moves_files_into_place() -> None:
    """One atomic write: whoever needs one more takes it from `foretell.files`."""
    package = Path(files.__file__).parent
    movers = ("os.replace(", "os.rename(", "NamedTemporaryFile", ".tmp", "mkdtemp", "expanduser")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(mover in path.read_text(encoding="utf-8") for mover in movers)
    }
    assert found == {"files.py", "training/rundir.py"}  # which clears what a killed run left


def test_where_nothing_can_lie_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")
    for wrong in ("y" * 300, "circle", "circle/in", "a\0b"):
        with pytest.raises(InputError, match="cannot be a path"):
            local_path(wrong)
        with pytest.raises(InputError, match="cannot be"), replacing(Path(wrong), marks=[MARK]):
            pass


@pytest.mark.parametrize(
    "words",
    [
        ("info", "{}"),
        ("report", "{}", "--out", "page.html"),
        ("export", "tiny-mtp", "--to", "vllm", "--out", "{}"),
        ("train", "tiny", "--data", "{}", "--steps", "1", "--out", "run"),
        ("train", "tiny", "--data", "text.py", "--steps", "1", "--out", "{}"),
    ],
)
def test_commands_say_so(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.py").write_text("def mean(values):\n    return sum(values)\n" * 99)
    Path("circle").symlink_to("circle")
    for wrong in ("y" * 300, "circle"):
        assert "cannot be a path" in refused(*(word.format(wrong) for word in words))
