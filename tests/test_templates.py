"""What a conversation says is what is learned of it, with the templates that models come with."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from foretell.checkpoints import load_tokenizer
from foretell.data import Bad, read_documents
from foretell.data.tokenization import given_prompt, tokenize
from foretell.errors import InputError

# Short forms of the real ones: what they write otherwise, leave out and refuse is theirs.
CHATML = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
QWEN = """{% if tools %}<|system|>
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
{% for t in tools %}{{ t | tojson }}
{% endfor %}<|end|>
{% elif messages[0].role == 'system' %}<|system|>
{{ messages[0].content }}<|end|>
{% endif %}{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}
{%- set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}
{%- if m.role == 'user' %}<|user|>
{{ m.content }}<|end|>
{% elif m.role == 'assistant' %}<|assistant|>
{% set content = m.content or '' %}{% set thought = m.reasoning_content or '' %}
{%- if not thought and '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}
{%- set content = content.split('</think>')[-1].lstrip() %}{% endif %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}<think>
{{ thought }}
</think>

{% endif %}{{ content }}{% for c in m.tool_calls or [] %}{% set f = c.function or c %}
<tool_call>
{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}
</tool_call>{% endfor %}<|end|>
{% elif m.role == 'tool' %}<|user|>
<tool_response>
{{ m.content }}
</tool_response><|end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
LLAMA = """{{ bos_token or '' }}{% if messages[0].role == 'system' %}
{%- set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}<|start|>system<|stop|>

Today: 26 Jul 2024

{{ system }}<|eot|>{% if tools %}<|start|>user<|stop|>

Answer with a call:
{% for t in tools %}{{ t | tojson(indent=4) }}
{% endfor %}{{ messages[0].content | trim }}<|eot|>{% set messages = messages[1:] %}{% endif %}
{%- for m in messages %}{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}
{{- '<|start|>assistant<|stop|>\n\n' }}
{{- '{"name": "' + f.name + '", "parameters": ' }}{{ f.arguments | tojson }}}<|eot|>
{%- elif m.role == 'tool' %}<|start|>ipython<|stop|>

{{ m.content | tojson }}<|eot|>{% else %}<|start|>{{ m.role }}<|stop|>

{{ m.content | trim }}<|eot|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant<|stop|>

{% endif %}"""
MISTRAL = """{% if messages[0].role == 'system' %}{% set system = messages[0].content %}
{%- set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}
{%- set ns = namespace(last=0) %}{% for m in turns %}{% if m.role == 'user' %}
{%- set ns.last = loop.index0 %}{% endif %}{% endfor %}<s>{% for m in turns %}
{%- if m.role == 'user' %}{% if loop.index0 == ns.last %}
{%- if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[INST]
{%- if system %} {{ system }}

{% endif %} {{ m.content }}[/INST]{% else %}[INST] {{ m.content }}[/INST]{% endif %}
{%- elif m.tool_calls %}[CALLS] [{% for c in m.tool_calls %}{{ c.function | tojson }}
{%- endfor %}]</s>
{%- elif m.role == 'assistant' %} {{ m.content }}</s>
{%- elif m.role == 'tool' %}[RESULTS] {"content": {{ m.content }}}[/RESULTS]
{%- else %}{{ raise_exception('Only user, assistant and tool roles are supported!') }}
{%- endif %}{% endfor %}"""
GEMMA = """{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}
{%- endif %}<bos>{% for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end>
{% endfor %}{% if add_generation_prompt %}<turn>model
{% endif %}"""
PHI = """{% for m in messages %}{% if m.role == 'system' %}<|system|>
{{ m.content }}<|end|>
{% elif m.role == 'user' %}<|user|>
{{ m.content }}<|end|>
{% elif m.role == 'assistant' %}<|assistant|>
{{ m.content }}<|end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
R1 = """{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}
{%- elif m.tool_calls %}<Assistant>{% for c in m.tool_calls %}
{{- '<call>' + c.function.name + '<sep>' + c.function.arguments + '</call>' }}{% endfor %}<end>
{%- elif m.role == 'assistant' %}<Assistant>{{ m.content.split('</think>')[-1] }}<end>
{%- elif m.role == 'tool' %}<tool>{{ m.content }}</tool>
{%- endif %}{% endfor %}{% if add_generation_prompt %}<Assistant>{% endif %}"""
PRINTING = CHATML.replace(
    "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}("
    "{{ c.function.arguments }}){% endfor %}",
)  # fmt: skip
MARKED = """{% for m in messages %}<|{{ m.role }}|>
{% if m.role == 'assistant' %}{% generation %}{% for c in m.tool_calls or [] %}
{{- c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{{ m.content }}<|end|>
{% endgeneration %}{% else %}{{ m.content }}<|end|>
{% endif %}{% endfor %}"""

ARGUMENTS = {"city": "Zürich", "units": "°C", "days": 2, "note": 'say "hi"\n'}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def called(arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return assistant(
        None, tool_calls=[{"id": "a1b2c3d4e", "type": "function", "function": function}]
    )


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "a1b2c3d4e", "name": "weather", "content": content}


def tokenizer(template: str | dict[str, str]) -> PreTrainedTokenizerBase:
    loaded = load_tokenizer("tiny")
    loaded.chat_template = template
    return loaded


def learned(tmp_path: Path, template: str, record: dict[str, Any]) -> list[str]:
    """What is learned of a record, in each of the pieces that it is read in."""
    path = tmp_path / "chat.jsonl"
    path.write_text("\n" + json.dumps(record))
    chat = tokenizer(template)
    pieces = tokenize(list(read_documents(path)), chat)
    return [chat.decode(piece.ids[piece.learned]) for piece in pieces]


def shown(tmp_path: Path, template: str, record: dict[str, Any]) -> str:
    """The text that is read last."""
    path = tmp_path / "chat.jsonl"
    path.write_text("\n" + json.dumps(record))
    chat = tokenizer(template)
    return str(chat.decode(list(tokenize(list(read_documents(path)), chat))[-1].ids))


TEMPLATES = {
    "chatml": CHATML, "qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL, "gemma": GEMMA,
    "phi": PHI, "r1": R1, "marked": MARKED,
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_is_learned_with_its_end(tmp_path: Path, name: str) -> None:
    turns = [user("One?"), assistant("Eins."), user("Two?"), assistant("Zwei.")]
    found = "".join(learned(tmp_path, TEMPLATES[name], {"messages": turns}))
    assert found.index("Eins.") < found.index("Zwei.")
    assert "?" not in found
    assert found.strip().endswith(("<|end|>", "<|eot|>", "</s>", "<end>"))


@pytest.mark.parametrize("given", [ARGUMENTS, json.dumps(ARGUMENTS)])
@pytest.mark.parametrize("name", ["qwen", "llama", "mistral", "r1", "marked", "printing"])
def test_arguments_of_a_call_are_learned_as_json_once(
    tmp_path: Path, name: str, given: Any
) -> None:
    template = {**TEMPLATES, "printing": PRINTING}[name]
    turns = [user("Weather?"), called(given), tool('{"t": 3}'), assistant("3 °C.")]
    found = "".join(learned(tmp_path, template, {"messages": turns}))
    begin = found.index("{", found.index('arguments": ') if name in ("qwen", "mistral") else 0)
    if name == "llama":
        begin = found.index("{", 1)
    assert json.JSONDecoder().raw_decode(found[begin:])[0] == ARGUMENTS
    assert "3 °C." in found


def test_tools_reach_the_template(tmp_path: Path) -> None:
    turns = [system("Be kind."), user("Weather?"), assistant("Fine.")]
    for template in (QWEN, LLAMA, MISTRAL):
        for tools in (TOOLS, json.dumps(TOOLS)):
            text = shown(tmp_path, template, {"messages": turns, "tools": tools})
            assert '"name": "weather"' in text
            assert "Be kind." in text
        assert "weather" not in shown(tmp_path, template, {"messages": turns, "tools": []})
    both = {"default": CHATML, "tool_use": MARKED + "{{ tools | tojson }}"}
    (found,) = learned(tmp_path, both, {"messages": turns[1:], "tools": TOOLS})  # type: ignore[arg-type]
    assert found == "Fine.<|end|>\n"


def test_what_a_template_is_told_besides(tmp_path: Path) -> None:
    template = "{{ style }}{% for d in documents or [] %}[{{ d.text }}]{% endfor %}" + CHATML
    record = {"messages": [user("Say."), assistant("x")], "documents": [{"text": "A fact."}]}
    text = shown(tmp_path, template, {**record, "chat_template_kwargs": {"style": "plain"}})
    assert text.startswith("plain[A fact.]<|user|>")


def test_reasoning_is_learned_where_it_is_written(tmp_path: Path) -> None:
    turns = [user("One?"), assistant("1.", reasoning_content="It is one.")]
    (found,) = learned(tmp_path, QWEN, {"messages": turns})
    assert found == "<think>\nIt is one.\n</think>\n\n1.<|end|>\n"
    more = [*turns, user("Two?"), assistant("<think>It is two.</think>2.")]
    first, second = learned(tmp_path, QWEN, {"messages": more})  # each as it is asked for
    assert first == found
    assert second == "<think>\nIt is two.\n</think>\n\n2.<|end|>\n"
    assert "It is one." not in shown(tmp_path, QWEN, {"messages": more})


def test_marked_answers_that_are_written_anew_are_read_one_by_one(tmp_path: Path) -> None:
    """And where the template begins an answer itself, the rest of it is learned."""
    marked = MARKED.replace(
        "{{ m.content }}<|end|>\n{% endgen",
        "{{ m.reasoning_content if loop.last }}{{ m.content }}<|end|>\n{% endgen",
    )
    turns = [user("One?"), assistant("1.", reasoning_content="It is one."),
             user("Two?"), assistant("2.", reasoning_content="It is two.")]  # fmt: skip
    found = learned(tmp_path, marked, {"messages": turns})
    assert found == ["It is one.1.<|end|>\n", "It is two.2.<|end|>\n"]
    begun = PHI.removesuffix("{% endif %}") + "<think>{% endif %}"
    turns = [user("One?"), assistant("<think>It is one.</think>1.")]
    assert learned(tmp_path, begun, {"messages": turns}) == ["It is one.</think>1.<|end|>\n"]


TURNS = [user("a"), assistant("b")]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (PHI, {"messages": [{"role": "developer", "content": "Be kind."}, user("a"), assistant("b")]},
     r"leaves out 'content' of turn 1 \(developer\)"),
    (PHI, {"messages": [user("a"), called(ARGUMENTS), tool("cold"), assistant("b")]},
     r"leaves out 'tool_calls' of turn 2 \(assistant\)"),
    (PHI, {"messages": [user("a"), assistant("x"), tool("cold"), assistant("b")]},
     r"leaves out 'content' of turn 3 \(tool\)"),
    (QWEN, {"messages": [user("a"), system("Be kind."), assistant("b")]},
     r"leaves out 'content' of turn 2 \(system\)"),
    (GEMMA, {"messages": [system("Be kind."), user("a"), assistant("b")]},
     r"applied \(System role not supported\)"),
    (GEMMA, {"messages": [user("a"), user("b"), assistant("c")]}, "roles must alternate"),
    (MISTRAL, {"messages": [{"role": "developer", "content": "."}, user("a"), assistant("c")]},
     "Only user, assistant and tool"),
    (CHATML, {"messages": [user("a"), assistant("b", reasoning_content="hm")]},
     r"leaves out 'reasoning_content' of turn 2 \(assistant\)"),
    (R1, {"messages": [user("a"), assistant("<think>hm</think>b")]},
     "leaves out 'content' of turn 2"),
    (CHATML, {"messages": [user("a"), called(ARGUMENTS)]}, "leaves out 'tool_calls' of turn 2"),
    (CHATML, {"messages": [user("a"), assistant("b", function_call={"name": "f"})]},
     "leaves out 'function_call' of turn 2"),
    (CHATML, {"messages": [user("a"), assistant("b")], "tools": TOOLS}, "leaves out 'tools'"),
    (CHATML, {"messages": TURNS, "chat_template_kwargs": {"tokenize": True}},
     "'tokenize' is not a setting"),
    (CHATML, {"messages": TURNS, "chat_template_kwargs": {"chat_template": ""}},
     "'chat_template' is not a setting"),
    (CHATML, {"messages": [user("a"), assistant("b")], "documents": [{"text": "fact"}]},
     "leaves out 'documents'"),
    (MARKED.replace("{{ m.content }}<|end|>\n{% endgen", "<|end|>\n{% endgen"),
     {"messages": [user("a"), assistant("b")]}, "leaves out 'content' of turn 2"),
    (PHI.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.index0 != 1"),
     {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]},
     "turn 2"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "record", "message"), REFUSED)
def test_what_a_template_leaves_out_is_refused_by_line(
    tmp_path: Path, template: str, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"^chat\.jsonl:2: .*{message}") as caught:
        learned(tmp_path, template, record)
    assert "\n" not in str(caught.value)


def test_an_answer_of_which_only_the_end_is_written_is_refused(tmp_path: Path) -> None:
    dropped = CHATML.replace("{{ m.content }}", "{{ m.content if loop.index0 != 1 }}")
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    with pytest.raises(InputError, match=r"^chat\.jsonl:2: .* leaves out 'content' of turn 2"):
        learned(tmp_path, dropped, {"messages": turns})


def test_a_prompt_keeps_what_is_said_too(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    records = [
        {"messages": [system("Be kind."), user("Weather?"), assistant("Fine.")], "tools": TOOLS},
        {"prompt": [user("Weather?")]},
        {"prompt": "2 + 2 =", "completion": " 4"},
        {"messages": [{"role": "developer", "content": "Be kind."}, user("a"), assistant("b")]},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    chat = tokenizer(QWEN)
    documents = list(read_documents(path))
    texts = [chat.decode(given_prompt(document, chat) or []) for document in documents[:3]]
    assert "Be kind." in texts[0]
    assert '"weather"' in texts[0]
    assert texts[0].endswith("<|user|>\nWeather?<|end|>\n<|assistant|>\n")
    assert texts[1:] == ["<|user|>\nWeather?<|end|>\n<|assistant|>\n", "2 + 2 ="]
    with pytest.raises(InputError, match=r"^chat\.jsonl:4: .* turn 1 \(developer\)"):
        given_prompt(documents[3], chat)


# -- forms of records ------------------------------------------------------------------------------

LEARNED = "Hi.<|end|>\n"


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [user("Hello"), assistant("Hi.")]},
        {"messages": [user([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]),
                      assistant([{"type": "text", "text": "Hi."}])]},
        {"messages": [user(["Hello"]), assistant(["Hi."])]},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]},
        {"conversations": [user("Hello"), assistant("Hi.")]},
        {"prompt": [user("Hello")], "completion": [assistant("Hi.")]},
        {"messages": [user("Hello"), assistant("Hi.")], "prompt": "Hello", "system": None},
    ],
)  # fmt: skip
def test_forms_of_a_conversation(tmp_path: Path, record: dict[str, Any]) -> None:
    assert learned(tmp_path, CHATML, record) == [LEARNED]
    assert shown(tmp_path, CHATML, record) == "<|user|>\nHello<|end|>\n<|assistant|>\n" + LEARNED


def test_a_system_text_beside_the_turns_is_their_first(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]
    text = shown(tmp_path, CHATML, {"conversations": turns, "system": "Be kind."})
    assert text.startswith("<|system|>\nBe kind.<|end|>\n<|user|>\nHello")


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_of_a_prompt_and_its_completion_the_completion_is_learned(
    tmp_path: Path, template: str
) -> None:
    asked = [user("One?"), assistant("Eins."), user("Two?")]
    record = {"prompt": asked, "completion": [assistant("Zwei."), user("And?"), assistant("Drei.")]}
    assert "".join(learned(tmp_path, template, record)) == "Zwei.<|end|>\nDrei.<|end|>\n"
    chat = tokenizer(template)
    end = chat.eos_token
    for prompt, completion in (
        ("2 + 2 =", " 4"),
        ("2 + 2 = ", "4"),
        ("x = [", "[1]]"),
        ("é", "\n"),
    ):
        record = {"prompt": prompt, "completion": completion + "x"}
        assert learned(tmp_path, template, record) == [completion + "x" + end]
        assert shown(tmp_path, template, record) == prompt + completion + "x" + end


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a", "messages": [user("a")]}, "has both 'text' and 'messages'"),
        ({"messages": [user("a")], "conversations": [user("a")]}, "has both"),
        ({"completion": "a"}, "'prompt', as 'completion' is one, must be a string, not null"),
        ({"prompt": "a", "completion": [user("a")]}, "'completion', as 'prompt' is one, must be"),
        ({"prompt": "a", "completion": " "}, "'completion' is empty"),
        ({"prompt": [], "completion": []}, "'prompt' must be a list of turns"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "turn 1 is from 'narrator'"),
        ({"conversations": [{"from": "human"}]}, "'content' of turn 1 must be a string, not null"),
        ({"messages": [user([{"type": "image_url", "image_url": "x"}])]}, "has a part 'image_url'"),
        ({"messages": [user([{"type": "text", "text": 3}])]}, "a part of turn 1 must be a string"),
        ({"messages": [user({"a": 1})]}, "'content' of turn 1 must be a string, not an object"),
        ({"messages": [user("a")], "tools": "soon"}, "'tools' must be a list of objects"),
        ({"messages": [user("a")], "tools": {"name": "f"}}, "'tools' must be a list of objects"),
        ({"messages": [user("a")], "functions": [{"name": "f"}]}, "'functions' is not read"),
        ({"messages": [system("a"), user("b")], "system": "c"}, "'system' and a turn of that role"),
        ({"messages": [user("a")], "chat_template_kwargs": "x"}, "must be an object"),
        ({"messages": [user("a")], "chat_template_kwargs": {"tools": "x"}}, "without 'tools'"),
    ],
)
def test_a_record_that_says_two_things_or_none_is_refused(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"chat\.jsonl, line 2: .*{message}"):
        learned(tmp_path, CHATML, record)


def test_rows_of_a_table_have_no_fields_of_other_rows(tmp_path: Path) -> None:
    """Where a call has one argument and another call another, both have both in a table."""
    import pyarrow
    from pyarrow import parquet

    records = [
        {"messages": [user("a"), called({"city": "Bern"})], "tools": TOOLS},
        {"messages": [user("b"), called({"day": 1})], "tools": TOOLS},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "chat.parquet")
    chat = tokenizer(QWEN)
    pieces = list(tokenize(list(read_documents(tmp_path / "chat.parquet")), chat))
    texts = [chat.decode(piece.ids[piece.learned]) for piece in pieces]
    assert ['{"city": "Bern"}' in texts[0], '{"day": 1}' in texts[1]] == [True, True]


def test_bad_records_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    lines = [
        '{"messages": [',
        json.dumps({"messages": [user("a"), assistant("b")]}),
        json.dumps({"messages": [user("a"), assistant("")]}),
        json.dumps({"messages": [user("a"), called({})]}),
        json.dumps({"text": "good"}),
        json.dumps({"tokens": [10**6]}),
        '{"text": "\xff"}',
        json.dumps({"prompt": "only"}),
    ]
    path.write_bytes("\n".join(lines).encode("latin-1"))
    chat, bad = tokenizer(CHATML), Bad(skip=True)
    for _ in range(2):  # a stream is read again and again
        pieces = list(tokenize(list(read_documents(path, bad)), chat, bad))
        assert [chat.decode(piece.ids) for piece in pieces] == [
            "<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n",
            "good" + chat.eos_token,
        ]
    assert len(bad.found) == 6
    assert str(bad).startswith("bad records left out: 6; the first: ")
    path.write_text(lines[0])
    with pytest.raises(InputError, match=r"no text in .*: bad records left out: 1; .*line 1"):
        list(read_documents(path, Bad(skip=True)))
    with pytest.raises(InputError, match="line 1"):
        list(read_documents(path))
