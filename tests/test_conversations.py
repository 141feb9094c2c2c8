import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel as PreTokenizer
from tokenizers.pre_tokenizers import Metaspace, WhitespaceSplit
from tokenizers.processors import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from chats import CHATML, TURNS, tokenizer
from foretell.data import Document, PackedBlocks, read_documents
from foretell.data.tokenization import given_prompt, tokenize
from foretell.errors import InputError
from foretell.targets import IGNORE

FORGETFUL = (  # only the last answer is written in full
    "{% for m in messages %}{% if loop.last or m.role == 'user' %}<{{ m.role }}>{{ m.content }}"
    "</s>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TAGGED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}</s>{%- endgeneration %}{% else %}{{ m.content }}</s>{% endif %}\n{% endfor %}"
)


def test_only_the_assistants_turns_are_learned() -> None:
    chat = tokenizer()
    (piece,) = tokenize([Document("", "d", messages=TURNS)], chat)
    whole = chat.apply_chat_template(list(TURNS), tokenize=False)
    assert chat.decode(piece.ids) == whole
    learned = chat.decode(piece.ids[piece.learned])
    assert learned == "x += 1</s>\nx += 2</s>\n"
    assert len(chat(whole, add_special_tokens=False)["input_ids"]) == len(piece.ids)


def test_a_template_says_itself_what_is_learned() -> None:
    chat = tokenizer(TAGGED)
    (piece,) = tokenize([Document("", "d", messages=TURNS)], chat)
    assert chat.decode(piece.ids) == chat.apply_chat_template(list(TURNS), tokenize=False)
    assert chat.decode(piece.ids[piece.learned]) == "x += 1</s>x += 2</s>"


def test_a_conversation_that_is_written_anew_is_read_once_for_every_answer() -> None:
    chat = tokenizer(FORGETFUL)
    pieces = list(tokenize([Document("", "d", messages=TURNS)], chat))
    assert [chat.decode(piece.ids) for piece in pieces] == [
        "<user>Add one to x.</s>\n<assistant>x += 1</s>\n",
        "<user>Add one to x.</s>\n<user>And two?</s>\n<assistant>x += 2</s>\n",
    ]
    learned = [chat.decode(piece.ids[piece.learned]) for piece in pieces]
    assert learned == ["x += 1</s>\n", "x += 2</s>\n"]
    assert [piece.num_bytes for piece in pieces] == [19, 33]
    (piece,) = tokenize([Document("", "d", messages=TURNS[:2])], chat)
    assert chat.decode(piece.ids[piece.learned]) == "x += 1</s>\n"


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, **fields) -> dict:
    return {"role": "assistant", "content": content, **fields}


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("header", ["\n", " ", "="])
@pytest.mark.parametrize("answer", ["\n\nx", "  x", "= 1", "x", "é"])
@pytest.mark.parametrize("template", [CHATML, TAGGED])
def test_an_answer_has_tokens_of_its_own_behind_its_very_prompt(
    template: str, answer: str, header: str, trim: bool
) -> None:
    """Also where the tokenizer would join its beginning with the header, or its end with more."""
    headed = "<{{ m.role }}>" + header
    chat = tokenizer(template.replace("<{{ m.role }}>", headed))
    chat.chat_template = chat.chat_template.replace("<assistant>", "<assistant>" + header)
    chat.backend_tokenizer.post_processor = ByteLevel(trim_offsets=trim)
    turns = (user("Say."), assistant(answer), user("Go on."), assistant("x"))
    (piece,) = tokenize([Document("", "d", messages=turns)], chat)
    end = "</s>" if template == TAGGED else "</s>\n"
    assert chat.decode(piece.ids) == chat.apply_chat_template(list(turns), tokenize=False)
    assert chat.decode(piece.ids[piece.learned]) == answer + end + "x" + end
    prompt = f"<user>{header}Say.</s>\n<assistant>{header}"
    if template == TAGGED:
        prompt = prompt.replace("\n<a", "<a")  # a line break behind a block of a template
    ids = chat(prompt)["input_ids"]
    assert piece.ids[: len(ids)].tolist() == ids
    assert piece.learned[: len(ids) + 1].tolist() == [False] * len(ids) + [True]


def trained(pieces: PreTokenizer | Metaspace, decoder: Any, **model: Any) -> Any:
    """A tokenizer of a few words, some of which stand behind two line breaks."""
    made = Tokenizer(BPE(**model))
    made.pre_tokenizer, made.decoder = pieces, decoder
    trainer = BpeTrainer(vocab_size=300, special_tokens=["</s>"], show_progress=False)
    made.train_from_iterator(["Say it.\n\n", "And then\n\nit is done."], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def unknowing() -> Any:
    """As TinyStories-656K has it: what it does not know it drops, and then counts wrongly."""
    return trained(Metaspace(split=False), MetaspaceDecoder())


@pytest.mark.parametrize(
    ("chat", "prompt"),
    [
        (trained(PreTokenizer(add_prefix_space=False), ByteLevelDecoder()), "Say it.\n\n"),
        (unknowing(), "Say 你好 it.\n\n"),
        (unknowing(), "你好 Say"),
        (ByT5Tokenizer(), "Say it.\n\n"),
    ],
    ids=["line breaks", "unknown", "unknown first", "slow"],
)
def test_what_is_learned_stands_behind_the_prompt_as_it_is_asked(chat: Any, prompt: str) -> None:
    """Of GPT-2's kind are two line breaks at an end one token, and two before a word."""
    document = Document(f"{prompt}is done.", "d", prompt_length=len(prompt))
    (piece,) = tokenize([document], chat)
    asked = given_prompt(document, chat)
    assert asked is not None
    assert piece.ids[: len(asked)].tolist() == asked
    assert piece.learned[: len(asked) + 1].tolist() == [False] * len(asked) + [True]
    assert piece.learned[len(asked) :].all()


def test_an_answer_without_a_token_of_its_own_is_refused() -> None:
    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    known = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    with pytest.raises(InputError, match=r"^line 3: .* cannot keep them apart"):
        list(tokenize([Document("Name:Bob", "line 3", prompt_length=5)], known))


def test_an_answer_ends_where_the_next_turn_begins() -> None:
    lines = "{% for m in messages %}\n{{ m.role }}: {{ m.content }}\n{% endfor %}"
    chat = tokenizer(lines + "{% if add_generation_prompt %}\nassistant: {% endif %}")
    turns = (user("Say."), assistant("x"), user("Go on."), assistant("y"))
    (piece,) = tokenize([Document("", "d", messages=turns)], chat)
    assert chat.decode(piece.ids[piece.learned]) == "x\ny\n"


def test_a_tokenizer_that_cannot_be_cut_is_refused() -> None:
    chat = tokenizer(CHATML.replace("<{{ m.role }}>", "{{ m.role }}="))
    chat.chat_template = chat.chat_template.replace("<assistant>", "assistant=")
    chat.backend_tokenizer.pre_tokenizer = PreTokenizer(add_prefix_space=True)
    turns = (user("Say."), assistant("= 1"))
    with pytest.raises(InputError, match=r"^chat\.jsonl:7: .* cannot keep them apart"):
        list(tokenize([Document("", "chat.jsonl:7", messages=turns)], chat))


HEADLESS = CHATML.partition("{% if add")[0]
INSTRUCT = (
    "{% for m in messages %}{% if m.role == 'user' %}[U]{{ m.content }}[/U]{% else %} "
    "{{ m.content }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        (CHATML, [user("Say.")], "answers nothing"),
        (TAGGED, [user("Say.")], "answers nothing"),
        (CHATML, [assistant("Hello.")], "answers nothing"),
        (CHATML, [assistant("Hello."), user("Say.")], "answers nothing"),
        (CHATML, [user("Say."), assistant("")], "turn 2 is an empty answer"),
        (TAGGED, [user("Say."), assistant(" \n")], "turn 2 is an empty answer"),
        (CHATML, [user("Say."), assistant("", tool_calls=[])], "turn 2 is an empty answer"),
        (HEADLESS, TURNS, "writes '<assistant>' before turn 2"),
        (
            CHATML,
            [user("Say."), assistant("", tool_calls=["add"])],
            "leaves out 'tool_calls' of turn",
        ),
    ],
)
def test_a_conversation_without_an_answer_to_learn_is_refused(
    template: str, turns, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^chat\.jsonl:7: .*{message}") as caught:
        list(tokenize([Document("", "chat.jsonl:7", messages=tuple(turns))], tokenizer(template)))
    assert "\n" not in str(caught.value)


def test_what_is_no_mistake_is_learned() -> None:
    for template, turns, learned in (
        (CHATML, [user(""), assistant("x")], "x</s>\n"),
        (CHATML, [assistant("Hello."), user("Say."), assistant("x")], "x</s>\n"),
        (INSTRUCT, [user("Say."), assistant("x")], " x</s>"),
        (HEADLESS.replace("<{{ m.role }}>", ""), [user("Say."), assistant("x")], "x</s>\n"),
    ):
        chat = tokenizer(template)
        (piece,) = tokenize([Document("", "d", messages=tuple(turns))], chat)
        assert chat.decode(piece.ids[piece.learned]) == learned


@pytest.mark.parametrize("template", [CHATML, TAGGED])
def test_an_answer_of_no_weight_is_not_learned(tmp_path: Path, template: str) -> None:
    """As OpenAI's and ShareGPT's forms mark one that is there to be read only."""
    turns = [user("Say."), assistant("no", weight=0), user("Again."), assistant("yes", weight=1)]
    shared = [
        {"from": "gpt" if turn["role"] == "assistant" else "human", "value": turn["content"],
         "weight": turn.get("weight")}
        for turn in turns
    ]  # fmt: skip
    path = write(tmp_path / "a.jsonl", [{"messages": turns}, {"conversations": shared}])
    chat = tokenizer(template)
    pieces = list(tokenize(list(read_documents(path)), chat))
    end = "</s>" if template == TAGGED else "</s>\n"
    assert [chat.decode(one.ids[one.learned]) for one in pieces] == ["yes" + end] * 2
    assert all("no</s>" in chat.decode(one.ids) for one in pieces)
    turns[3]["weight"] = 0.5
    path = write(tmp_path / "b.jsonl", [{"messages": turns}])
    with pytest.raises(InputError, match=r"b\.jsonl, line 1: 'weight' of turn 4 must be 0"):
        list(read_documents(path))


def test_the_order_of_roles_that_a_template_wants_is_its_own_to_say() -> None:
    alternate = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must\\nalternate.') }}{% endif %}{% endfor %}"
    )
    turns = (user("Say."), user("Say!"), assistant("x"))
    with pytest.raises(InputError, match=r"^chat\.jsonl:7: .*applied \(Roles must alternate\.\)"):
        list(
            tokenize([Document("", "chat.jsonl:7", messages=turns)], tokenizer(alternate + CHATML))
        )


def test_what_nobody_asked_for_is_not_learned() -> None:
    chat = tokenizer()
    (piece,) = tokenize([Document("", "d", messages=TURNS[1:])], chat)
    assert chat.decode(piece.ids[piece.learned]) == "x += 2</s>\n"


def test_a_template_reads_all_fields_of_a_turn(tmp_path: Path) -> None:
    calling = "{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls }};{% endfor %}"
    turns = [
        {"role": "user", "content": "Add.", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": ["add"]},
    ]
    path = write(tmp_path / "data.jsonl", [{"messages": turns}])
    (document,) = read_documents(path)
    chat = tokenizer(calling)
    (piece,) = tokenize([document], chat)
    assert chat.decode(piece.ids) == "userAdd.;assistant['add'];"


def test_what_cannot_be_told_from_the_prompt_is_refused() -> None:
    thinking = CHATML.replace("<assistant>{% endif", "<assistant><think>{% endif")
    for template, message in (
        (thinking, "asks for an answer otherwise than it writes one"),
        (None, "chat template cannot be applied"),
        ("{{ raise_exception('no') }}", r"chat template cannot be applied \(no\)"),
    ):
        with pytest.raises(InputError, match=rf"chat\.jsonl:7: .*{message}") as caught:
            list(tokenize([Document("", "chat.jsonl:7", messages=TURNS)], tokenizer(template)))
        assert "\n" not in str(caught.value)


def test_tokens_of_another_tokenizer_are_refused() -> None:
    chat = tokenizer()
    ids = tuple(chat("x += 1")["input_ids"])
    for text in ("x += 1", ""):
        (piece,) = tokenize([Document(text, "d", tokens=ids, prompt_tokens=2)], chat)
        assert piece.ids.tolist() == list(ids)
        assert piece.learned.tolist() == [n >= 2 for n in range(len(ids))]
        assert piece.num_bytes == len("x += 1")  # by which bits per byte are divided
    for document in (
        Document("y = 7", "own.jsonl:3", tokens=ids),
        Document("", "own.jsonl:3", tokens=(*ids, len(chat))),
    ):
        with pytest.raises(InputError, match=r"own\.jsonl:3: .* another tokenizer's"):
            list(tokenize([document], chat))


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
        ({"messages": [{"role": "user", "content": None}]}, "'content' of turn 1 must be a string"),
        ({"messages": [{"role": None, "content": "x"}]}, "'role' of turn 1 must be a string"),
        ({"tokens": [1, -2]}, "list of token ids"),
        ({"tokens": [1, 2**31]}, "list of token ids"),
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


def test_other_columns_of_a_table_are_not_read(tmp_path: Path, monkeypatch) -> None:
    from pyarrow import parquet

    seen = []

    class File(parquet.ParquetFile):
        def iter_batches(self, *args, **options):
            for batch in super().iter_batches(*args, **options):
                seen.append(batch.schema.names)
                yield batch

    monkeypatch.setattr(parquet, "ParquetFile", File)
    records = [{"image": b"x" * 99, **record} for record in RECORDS[:2]]
    found = list(read_documents(write(tmp_path / "data.parquet", records)))
    assert [(d.text, d.messages) for d in found] == [expected[:2] for expected in EXPECTED[:2]]
    assert seen == [["messages", "text"]]


def test_the_library_of_data_sets_reads_them_alike(tmp_path: Path, monkeypatch) -> None:
    """The real one, on a folder of its own instead of the Hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "corpus").mkdir()
    write(tmp_path / "corpus" / "train.parquet", RECORDS)
    write(tmp_path / "corpus" / "test.parquet", RECORDS[:1])
    name = tmp_path / "corpus"
    found = list(read_documents(f"hub:{name}"))
    assert [(d.text, d.messages, d.tokens, d.prompt_tokens) for d in found] == EXPECTED
    assert [d.text for d in read_documents(f"hub:{name}::test")] == ["plain"]
    with pytest.raises(InputError, match=r"cannot be read .*validation"):
        list(read_documents(f"hub:{name}::validation"))


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
        ("hub:", "is not the name of a data set"),
        ("hub:a:b:c:d", "is not the name of a data set"),
        ("hub:gone/away", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            list(read_documents(wrong))
        assert "\n" not in str(caught.value)


def test_a_record_without_tokens_shifts_no_other(tmp_path: Path) -> None:
    documents = [Document("", "a", tokens=()), Document("b = 2", "b"), Document("c = 3", "c")]
    found = [tokenizer().decode(piece.ids) for piece in tokenize(documents, tokenizer())]
    assert [text.removesuffix("<|endoftext|>") for text in found] == ["", "b = 2", "c = 3"]
