import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretell.data import Document, read_documents
from foretell.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data"

# Any text that UTF-8 can hold, with the line ends and marks that readers tend to change.
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n\t\u2028\ufeff"))


def sources(path: Path) -> list[str]:
    return [document.source for document in read_documents(path)]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "A.TXT"])
def test_a_text_file_is_one_document_to_the_byte(tmp_path: Path, name: str) -> None:
    text = "zwei\r\nZeilen\rund é\n\u2028\n"
    (tmp_path / name).write_bytes(text.encode())
    assert list(read_documents(tmp_path / name)) == [Document(text, name)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy cores
@given(lines=st.lists(texts), escaped=st.booleans())
def test_every_line_of_jsonl_is_a_document(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], escaped: bool
) -> None:
    folder = tmp_path_factory.mktemp("jsonl")
    content = "".join(
        json.dumps({"id": 1, "text": text}, ensure_ascii=escaped) + "\n" for text in lines
    ).encode()
    (folder / "a.jsonl").write_bytes(content)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(content))
    expected = [(text, n) for n, text in enumerate(lines, start=1) if text.strip()]
    for name in ("a.jsonl", "a.jsonl.gz"):
        if expected:
            read = list(read_documents(folder / name))
            assert read == [Document(text, f"{name}:{n}") for text, n in expected]
        else:
            with pytest.raises(InputError, match="every document is empty"):
                list(read_documents(folder / name))


def test_blank_lines_and_a_byte_order_mark_in_jsonl_are_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n   \n{"text": "two"}')
    assert list(read_documents(file)) == [
        Document("one", "a.jsonl:1"),
        Document("two", "a.jsonl:4"),
    ]


def test_a_folder_is_read_in_sorted_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ["b.txt", "a/z.py", "a/y.md", "a.jsonl", "c.csv", ".git/d.txt", "a/.e.txt"]:
        file = tmp_path / "corpus" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"text": "x"}\n{"text": " "}\n')
    assert sources(tmp_path / "corpus") == ["a.jsonl:1", "a/y.md", "a/z.py", "b.txt"]


def test_a_hidden_folder_is_read_when_it_is_named_itself(tmp_path: Path) -> None:
    folder = tmp_path / ".cache"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    assert sources(folder) == ["a.txt"]


def test_an_empty_file_among_others_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    (tmp_path / "b.py").write_text("pass\n")
    assert sources(tmp_path) == ["b.py"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": ', "not JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "a number of thousands of digits"),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "tools": "' + b"[" * 100_000 + b'"}',
            "the field 'tools' must be a list",
        ),
        (b'["text"]', "not a list"),
        (b"7", "not a number"),
        (b'{"content": "x"}', "the field 'text' is missing .*'content'"),
        (b'{"text": null}', "must be a string, not null"),
        (b'{"text": {"a": 1}}', "must be a string, not an object"),
        (b'{"text": "a\\ud800"}', "half a surrogate pair at character 1"),
        (b'{"text": "\xff"}', "not UTF-8 .*byte 10 is 0xff"),
    ],
)
def test_a_malformed_line_names_file_line_and_reason(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=rf"bad\.jsonl, line 3: .*{reason}") as caught:
        list(read_documents(file))
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_refused_by_the_call_itself(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "empty").mkdir()
    for path, reason in [
        (tmp_path / "lost.txt", "lost.txt: no such file or folder"),
        (tmp_path / "a.csv", r"a\.csv: a text file must end in one of .*\.jsonl\.gz"),
        (tmp_path / "empty", "nothing to read in the folder .*empty"),
        ("stdlib:test", "stdlib:train or stdlib:held-out"),
    ]:
        with pytest.raises(InputError, match=reason):
            read_documents(path)  # no iteration


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "b.jsonl").write_text("")
    for path in (tmp_path, tmp_path / "a.txt", tmp_path / "b.jsonl"):
        with pytest.raises(InputError, match="every document is empty"):
            list(read_documents(path))


def test_a_text_that_is_not_utf8_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt: not UTF-8 \(byte 2 is 0xef\)"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"text", lambda b: b[:12] + b"\0" * 9]
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(damage(gzip.compress(b'{"text": "some text"}\n' * 50)))
    with pytest.raises(InputError, match=r"a\.jsonl\.gz is not a whole gzip file"):
        list(read_documents(file))


def test_the_standard_library_has_names() -> None:
    held_out = [document.source for document in read_documents("stdlib:held-out")]
    assert "textwrap.py" in held_out
    assert next(read_documents("stdlib:train")).source not in held_out


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
def test_real_corpora_are_read() -> None:
    code = list(read_documents(SHARED / "code" / "numpy_py.jsonl"))
    assert len(code) > 10
    assert any("import" in document.text for document in code)
    assert len(list(read_documents(SHARED / "text" / "tinyshakespeare.txt"))) == 1


@pytest.mark.parametrize("name", ["text.txt", "lines.jsonl"])
def test_the_mark_before_a_text_of_windows_is_no_part_of_it(tmp_path: Path, name: str) -> None:
    content = "Hello\r\n" if name == "text.txt" else '{"text": "Hello\\r\\n"}\r\n'
    (tmp_path / name).write_text(content, encoding="utf-8-sig", newline="")
    assert [document.text for document in read_documents(tmp_path / name)] == ["Hello\r\n"]
