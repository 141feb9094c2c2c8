import json
from pathlib import Path

import numpy as np
import pytest

from foretoken.data import Document, PackedBlocks, read_documents
from foretoken.data.tokenization import tokenize
from foretoken.errors import InputError
from foretoken.loading import load_tokenizer
from foretoken.targets import IGNORE

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = (  # only the last answer is written in full
    "{% for m in messages %}{% if loop.last or m.role == 'user' %}<{{ m.role }}>{{ m.content }}"
    "</s>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TURNS = (
    {"role": "user", "content": "Add one to x."},
    {"role": "assistant", "content": "x += 1"},
    {"role": "user", "content": "And two?"},
    {"role": "assistant", "content": "x += 2"},
)


def tokenizer(template: str | None = CHATML):
    loaded = load_tokenizer("tiny")
    loaded.chat_template = template
    return loaded


def test_only_the_assistants_turns_are_learned() -> None:
    chat = tokenizer()
    (piece,) = tokenize([Document("", "d", messages=TURNS)], chat)
    whole = chat.apply_chat_template(list(TURNS), tokenize=False)
    assert chat.decode(piece.ids) == whole
    learned = chat.decode(piece.ids[piece.learned])
    assert learned == "x += 1</s>\nx += 2</s>\n"
    assert len(chat(whole, add_special_tokens=False)["input_ids"]) == len(piece.ids)


def test_a_template_that_writes_earlier_turns_anew_is_refused() -> None:
    with pytest.raises(InputError, match="writes earlier turns anew") as caught:
        list(tokenize([Document("", "chat.jsonl:7", messages=TURNS)], tokenizer(FORGETFUL)))
    assert "chat.jsonl:7" in str(caught.value)
    (piece,) = tokenize([Document("", "d", messages=TURNS[:2])], tokenizer(FORGETFUL))
    assert tokenizer().decode(piece.ids[piece.learned]) == "x += 1</s>\n"
    with pytest.raises(InputError, match="chat template cannot be applied"):
        list(tokenize([Document("", "d", messages=TURNS)], tokenizer(None)))


@pytest.mark.parametrize("one", [False, True])
def test_blocks_have_labels_where_something_is_learned(one: bool) -> None:
    chat = tokenizer()
    documents = [
        Document("", "a", messages=TURNS),
        Document("y = 3\n" * 9, "b"),
        Document("", "c", tokens=(5, 6, 7, 8, 9), prompt_tokens=2),
    ]
    blocks = PackedBlocks.from_documents(documents, chat, 16, one_document_per_block=one)
    pieces = list(tokenize(documents, chat))
    expected: list[int] = []
    for piece in pieces:
        mask = np.ones(len(piece.ids), bool) if piece.learned is None else piece.learned
        labels = np.where(mask, piece.ids, IGNORE).tolist()
        if one:
            labels += [IGNORE] * (-len(labels) % 16)
        expected += labels
    found = [label for i in range(len(blocks)) for label in blocks[i]["labels"].tolist()]
    assert found == expected[: len(found)]
    assert len(found) >= len(expected) - 15


RECORDS = [
    {"text": "plain"},
    {"messages": list(TURNS)},
    {"tokens": [3, 1, 4], "prompt_tokens": 1, "text": "pi"},
]
EXPECTED = [
    ("plain", None, None, 0),
    ("Add one to x.\nx += 1\nAnd two?\nx += 2", TURNS, None, 0),
    ("pi", None, (3, 1, 4), 1),
]


def write(path: Path, records: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        import pyarrow
        from pyarrow import parquet

        names = {name for record in records for name in record}
        rows = [{name: record.get(name) for name in sorted(names)} for record in records]
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_lines_and_rows_are_read_alike(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, RECORDS)
    found = list(read_documents(path))
    assert [(d.text, d.messages, d.tokens, d.prompt_tokens) for d in found] == EXPECTED
    assert [d.source for d in found] == [f"{name}:{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"body": "x"}, "'text' is missing"),
        ({"text": 3}, "must be a string"),
        ({"messages": "hello"}, "must be a list of turns"),
        ({"messages": []}, "must be a list of turns"),
        ({"messages": [{"role": "user"}]}, "'content' of turn 1 must be a string, not null"),
        ({"tokens": [1, -2]}, "list of token ids"),
        ({"tokens": [1, 2], "prompt_tokens": 3}, "must be 0 to 2"),
    ],
)
def test_a_malformed_record_names_file_line_and_reason(
    tmp_path: Path, name: str, record: dict, message: str
) -> None:
    path = write(tmp_path / name, [record])
    with pytest.raises(InputError) as caught:
        list(read_documents(path))
    text = str(caught.value)
    assert message in text
    assert f"{name}, {'line' if name.endswith('l') else 'row'} 1" in text
    assert "\n" not in text


def test_a_broken_table_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet", RECORDS)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a whole parquet file") as caught:
        list(read_documents(path))
    assert "\n" not in str(caught.value)


def test_a_data_set_of_the_hub_is_streamed(monkeypatch) -> None:
    import datasets

    asked = []

    def load(name, config, *, split, streaming):
        asked.append((name, config, split, streaming))
        if name == "gone/away":
            raise FileNotFoundError("no such\ndata set")
        return iter(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = list(read_documents("hub:owner/name:en:test"))
    assert [(d.text, d.messages, d.tokens, d.prompt_tokens) for d in found] == EXPECTED
    assert found[0].source == "owner/name:1"
    list(read_documents("hub:owner/name"))
    assert asked == [("owner/name", "en", "test", True), ("owner/name", None, "train", True)]
    for wrong, message in (
        ("hub:", "is no data set"),
        ("hub:a:b:c:d", "is no data set"),
        ("hub:gone/away", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            list(read_documents(wrong))
        assert "\n" not in str(caught.value)


def test_a_record_without_tokens_shifts_no_other(tmp_path: Path) -> None:
    documents = [Document("a = 1", "a", tokens=()), Document("b = 2", "b"), Document("c = 3", "c")]
    found = [tokenizer().decode(piece.ids) for piece in tokenize(documents, tokenizer())]
    assert [text.removesuffix("<|endoftext|>") for text in found] == ["", "b = 2", "c = 3"]
