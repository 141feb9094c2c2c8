"""The server as clients see it: OpenAI's own, and those that do everything wrong."""

import http.client
import json
import threading
import time
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params

from foretell.data.conversations import render
from foretell.decoding import NoDrafter
from serving import NAME, TEMPLATE, Running, offline, serving

PROMPT = "def main("
GREEDY: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "temperature": 0}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    limits = {"max_body_bytes": 20_000, "max_prompt_tokens": 200, "max_tokens": 300}
    with serving(user="module", **limits) as running:
        yield running


class Slow(NoDrafter):
    """Takes its time, so that others can come in between."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def draft(self, committed: Any, limit: int) -> Any:
        time.sleep(self.seconds)
        return super().draft(committed, limit)


# -- what it answers ------------------------------------------------------------------------------


def test_completions_say_what_the_model_says_offline(running: Running) -> None:
    found = running.client.completions.create(**GREEDY, max_tokens=24)
    (choice,) = found.choices
    assert (choice.text, choice.finish_reason) == (offline(PROMPT, 24), "length")
    usage = found.usage
    prompt = len(running.service.tokenizer(PROMPT)["input_ids"])
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, 24)
    assert usage.total_tokens == prompt + 24
    own = usage.foretell
    assert own["tokens_per_forward"] == pytest.approx(24 / own["forwards"])
    assert own["forwards"] < 24  # drafts were accepted
    assert 24 - own["forwards"] <= own["accepted"] <= own["drafted"]


def test_a_stream_says_the_same_piece_by_piece(running: Running) -> None:
    options = {"include_usage": True}
    chunks = list(
        running.client.completions.create(
            **GREEDY, max_tokens=24, stream=True, stream_options=options
        )
    )
    *texts, end, last = chunks
    assert len(texts) > 3
    assert "".join(chunk.choices[0].text for chunk in texts) == offline(PROMPT, 24)
    assert [chunk.choices[0].finish_reason for chunk in texts] == [None] * len(texts)
    assert (end.choices[0].text, end.choices[0].finish_reason) == ("", "length")
    assert last.choices == []
    assert last.usage.completion_tokens == 24
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_chat_answers_what_the_template_asks(running: Running) -> None:
    client, tokenizer = running.client, running.service.tokenizer
    parts = [{"type": "text", "text": text} for text in ("sort ", "a list")]
    turns: list[Any] = [{"role": "system", "content": "short"}, {"role": "user", "content": parts}]
    plain = [turns[0], {"role": "user", "content": "sort a list"}]
    expected = offline(render(plain, tokenizer, "test", prompt=True), 16)
    asked: dict[str, Any] = {"model": NAME, "messages": turns, "temperature": 0, "max_tokens": 16}
    found = client.chat.completions.create(**asked)
    assert found.choices[0].message.content == expected
    assert found.choices[0].message.role == "assistant"
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "length"


def test_token_ids_are_a_prompt_too(running: Running) -> None:
    ids = running.service.tokenizer(PROMPT)["input_ids"]
    for prompt in (ids, [PROMPT]):
        found = running.client.completions.create(**{**GREEDY, "prompt": prompt}, max_tokens=8)
        assert found.choices[0].text == offline(PROMPT, 8)


@pytest.mark.parametrize("stream", [False, True])
def test_stops_are_cut_off(running: Running, stream: bool) -> None:
    text = offline(PROMPT, 60)
    stop = next(text[n : n + 4] for n in range(12, 50) if text.find(text[n : n + 4]) == n)
    asked = {**GREEDY, "max_tokens": 60, "stop": [stop, "\x00never"]}
    if stream:
        chunks = list(running.client.completions.create(**asked, stream=True))
        found = "".join(chunk.choices[0].text for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = running.client.completions.create(**asked).choices[0]
        found, reason = choice.text, choice.finish_reason
    assert (found, reason) == (text[: text.index(stop)], "stop")


def test_seeds_repeat_and_no_seed_does_not(running: Running) -> None:
    def drawn(**more: Any) -> str:
        asked = {**GREEDY, "temperature": 1.2, "max_tokens": 16, **more}
        return running.client.completions.create(**asked).choices[0].text

    assert drawn(seed=7) == drawn(seed=7)
    assert len({drawn(), drawn(), drawn()}) == 3


def test_drafts_show_where_each_piece_came_from(running: Running) -> None:
    asked = {**GREEDY, "max_tokens": 24, "show_drafts": True}
    found = running.post("/v1/completions", **asked).json()["choices"][0]
    assert "".join(text for text, _ in found["drafts"]) == found["text"] == offline(PROMPT, 24)
    depths = [depth for _, depth in found["drafts"]]
    assert {0, 1} <= set(depths) <= {0, 1, 2, 3}
    plain = running.post("/v1/completions", **asked, drafter="none").json()
    assert {depth for _, depth in plain["choices"][0]["drafts"]} == {0}
    assert plain["choices"][0]["text"] == found["text"]
    assert plain["usage"]["foretell"]["tokens_per_forward"] == 1


def test_the_model_is_listed(running: Running) -> None:
    (model,) = running.client.models.list().data
    assert (model.id, model.drafter, model.depth, model.chat) == (NAME, "parallel", 3, True)
    assert running.client.models.retrieve(NAME).max_tokens == 300
    with pytest.raises(openai.NotFoundError):
        running.client.models.retrieve("gpt-5")


def test_many_clients_at_once_get_what_each_would_get_alone(running: Running) -> None:
    prompts = ["def main(", "import os\n", "class Node:\n", "for x in "]
    wanted = [(prompts[n % 4], 6 + 5 * (n % 3)) for n in range(8)]
    before = running.metric("foretell_forwards_total"), running.metric("foretell_passes_total")

    def ask(job: tuple[str, int]) -> str:
        asked = {**GREEDY, "prompt": job[0], "max_tokens": job[1]}
        return running.client.completions.create(**asked).choices[0].text

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, wanted)) == [offline(*job) for job in wanted]
    rows = running.metric("foretell_forwards_total") - before[0]
    passes = running.metric("foretell_passes_total") - before[1]
    assert rows > 1.5 * passes  # they shared passes


def test_metrics_tell_what_happened() -> None:
    with serving() as fresh:
        usage = fresh.client.completions.create(**GREEDY, max_tokens=24).usage
        own = usage.foretell
        assert fresh.metric("foretell_generated_tokens_total") == 24
        assert fresh.metric("foretell_prompt_tokens_total") == usage.prompt_tokens
        assert fresh.metric("foretell_forwards_total") == own["forwards"]
        assert fresh.metric("foretell_tokens_per_forward") == own["tokens_per_forward"]
        by_depth = [fresh.metric(f'foretell_drafts_accepted_total{{depth="{n}"}}') for n in (1, 2)]
        tried = [fresh.metric(f'foretell_drafts_tried_total{{depth="{n}"}}') for n in (1, 2)]
        assert by_depth[1] <= tried[1] <= by_depth[0] <= tried[0]
        assert fresh.metric('foretell_acceptance{depth="1"}') == by_depth[0] / tried[0]
        assert fresh.metric("foretell_request_seconds_count") == 1
        assert fresh.metric("foretell_requests_running") == 0
        ok = 'foretell_responses_total{path="/v1/completions",status="200"}'
        assert fresh.metric(ok) == 1
        assert httpx.get(f"{fresh.url}/health").json() == {"status": "ok"}


def test_what_clients_make_up_adds_no_metrics() -> None:
    """Every label stays in memory: paths that anybody can think of are counted as one."""
    with serving(api_key="sesame", max_body_bytes=100) as guarded:
        key, big = {"Authorization": "Bearer sesame"}, b" " * 101
        for number in range(3):
            post = partial(httpx.post, f"{guarded.url}/v1/models/{number}")
            assert post().status_code == 401
            assert post(headers=key).status_code == 405
            assert post(headers=key, content=big).status_code == 413
            assert httpx.get(f"{guarded.url}/{number}", headers=key).status_code == 404
        text = httpx.get(f"{guarded.url}/metrics", headers=key).text
        lines = [line for line in text.splitlines() if line.startswith("foretell_responses_total")]
        assert sorted(lines) == [
            f'foretell_responses_total{{path="other",status="{status}"}} 3.0'
            for status in (401, 404, 405, 413)
        ]


# -- what it refuses ------------------------------------------------------------------------------


def refused(answer: httpx.Response, status: int, message: str, param: str | None = None) -> None:
    """An answer in OpenAI's form of errors."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("change", "message", "param"),
    [
        ({"n": 2}, "n is not supported", "n"),
        ({"n": True}, "n is not supported", "n"),
        ({"logprobs": 1}, "logprobs is not supported", "logprobs"),
        ({"echo": True}, "echo is not supported", "echo"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported", "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported", "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools is not supported", "tools"),
        ({"tool_choice": "required"}, "tool_choice is not supported", "tool_choice"),
        ({"reasoning_effort": "high"}, "reasoning_effort is not", "reasoning_effort"),
        ({"temprature": 1}, "this server does not know temprature; leave it out", "temprature"),
        ({"a": 1, "b": None}, "this server does not know a, b; leave it out", "a"),
        ({"stream_options": {"usage": True}}, "know stream_options.usage;", "stream_options"),
        ({"temperature": -1}, "temperature", "temperature"),
        ({"temperature": "warm"}, "temperature", "temperature"),
        ({"temperature": True}, "valid number", "temperature"),
        ({"temperature": "0"}, "valid number", "temperature"),
        ({"stream": "no"}, "valid boolean", "stream"),
        ({"seed": False}, "valid integer", "seed"),
        ({"top_p": 0}, "top_p", "top_p"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens"),
        ({"max_tokens": True}, "valid integer", "max_tokens"),
        ({"max_tokens": "16"}, "valid integer", "max_tokens"),
        ({"max_tokens": 301}, "max_tokens is 301; at most 300", "max_tokens"),
        ({"max_tokens": 10**40}, "max_tokens", "max_tokens"),
        ({"prompt": ""}, "the prompt is empty", "prompt"),
        ({"prompt": []}, "prompt: an empty list is not a prompt", "prompt"),
        ({"prompt": ["a", 1]}, "prompt", "prompt"),
        ({"prompt": ["a", ""]}, "the prompt is empty", "prompt"),
        ({"prompt": [[1], [5000]]}, "outside the vocabulary of 1024", "prompt"),
        ({"prompt": [[1], []]}, "prompt: an empty list is not a prompt", "prompt"),
        ({"prompt": [1, True]}, "valid integer", "prompt"),
        ({"prompt": ["a"] * 257}, "257 prompts were given; at most 256", "prompt"),
        ({"prompt": [5000]}, "outside the vocabulary of 1024", "prompt"),
        ({"prompt": [-1]}, "prompt", "prompt"),
        ({"prompt": "x = 1\n" * 200}, "tokens; at most 200 are taken", None),
        ({"prompt": None}, "prompt", "prompt"),
        ({"stop": ""}, "stop", "stop"),
        ({"stop": ["a"] * 17}, "stop: List should have at most 16 items", "stop"),
        ({"stop": [5]}, "stop.0: Input should be a valid string", "stop"),
        (
            {"stream_options": {"include_usage": True}},
            "stream_options are for streams",
            "stream_options",
        ),
        ({"drafter": "magic"}, "drafter", "drafter"),
    ],
)
def test_what_cannot_be_done_is_refused(
    running: Running, change: dict[str, Any], message: str, param: str | None
) -> None:
    refused(running.post("/v1/completions", **{**GREEDY, **change}), 400, message, param)


@pytest.mark.parametrize(
    "body",
    [b"\x1f\x8b\x08", b'{"prompt": "caf\xe9"}', b"[" * 5000, b'{"seed": ' + b"9" * 5000 + b"}"],
)
def test_a_body_that_cannot_be_read_is_refused_with_the_reason(
    running: Running, body: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{running.url}/v1/completions", content=body, headers=headers)
    refused(
        answer, 400, "the body is not JSON in UTF-8, or has more in it than JSON is read for", None
    )


NEUTRAL: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "user": "me",
    "stop": [],
    "stream_options": {"include_usage": False},
}
NEUTRAL_COMPLETION = {**NEUTRAL, "best_of": 1, "echo": False, "suffix": ""}
NEUTRAL_CHAT = {
    **NEUTRAL,
    "top_logprobs": 0,
    "tools": [],
    "tool_choice": "auto",
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "store": False,
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "reasoning_effort": "none",
    "verbosity": "medium",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "max_completion_tokens": 4,
}


def test_neutral_values_ask_for_nothing(running: Running) -> None:
    """Those of OpenAI's fields, and null in every one of them."""
    fields = typing.get_type_hints(completion_create_params.CompletionCreateParamsBase)
    nulls = dict.fromkeys(fields)
    for neutral in (nulls, NEUTRAL_COMPLETION):
        asked = {**neutral, **GREEDY, "max_tokens": 4}
        answer = running.post("/v1/completions", **asked).json()
        assert answer["choices"][0]["text"] == offline(PROMPT, 4)
    turn = {"role": "user", "content": "hi"}
    expected = offline(render([turn], running.service.tokenizer, "test", prompt=True), 4)
    fields = typing.get_type_hints(chat_params.CompletionCreateParamsBase)
    chat = {"model": NAME, "messages": [turn], "temperature": 0, "max_tokens": 4}
    for neutral in (dict.fromkeys(fields), NEUTRAL_CHAT, {"tool_choice": "none"}):
        answer = running.post("/v1/chat/completions", **{**neutral, **chat}).json()
        assert answer["choices"][0]["message"]["content"] == expected


@pytest.mark.parametrize("how", ["as sent", "as the client has it"])
def test_an_answer_can_be_sent_back(running: Running, how: str) -> None:
    asked: dict[str, Any] = {"model": NAME, "temperature": 0, "max_tokens": 6}
    turns: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    if how == "as sent":
        answer = running.post("/v1/chat/completions", **asked, messages=turns).json()
        said = answer["choices"][0]["message"]
    else:
        found = running.client.chat.completions.create(**asked, messages=turns)  # type: ignore[arg-type]
        said = found.choices[0].message.model_dump()
    assert said["refusal"] is None
    turns += [said, {"role": "user", "content": [{"type": "text", "text": "more"}]}]
    again = running.post("/v1/chat/completions", **asked, messages=turns).json()
    plain = [turns[0], {"role": "assistant", "content": said["content"]}]
    plain.append({"role": "user", "content": "more"})
    text = render(plain, running.service.tokenizer, "test", prompt=True)
    assert again["choices"][0]["message"]["content"] == offline(text, 6)
    said["tool_calls"] = [{"id": "1"}]
    answer = running.post("/v1/chat/completions", **asked, messages=turns)
    refused(answer, 400, "messages.1: tool_calls is not supported", "messages")
    turns[1] = {"role": "assistant", "content": "a", "mood": "good"}
    answer = running.post("/v1/chat/completions", **asked, messages=turns)
    refused(answer, 400, "does not know messages.1.mood", "messages")


MANY = ["def main(", "import os\n", "class Node:\n"]


@pytest.mark.parametrize("ids", [False, True])
def test_several_prompts_have_a_choice_each(running: Running, ids: bool) -> None:
    tokens = [running.service.tokenizer(text)["input_ids"] for text in MANY]
    asked = {**GREEDY, "prompt": tokens if ids else MANY, "max_tokens": 9}
    found = running.client.completions.create(**asked)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert [choice.text for choice in found.choices] == [offline(text, 9) for text in MANY]
    assert {choice.finish_reason for choice in found.choices} == {"length"}
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (sum(map(len, tokens)), 27)
    assert usage.foretell["tokens_per_forward"] == pytest.approx(27 / usage.foretell["forwards"])


def test_several_prompts_stream_side_by_side(running: Running) -> None:
    options = {"include_usage": True}
    asked = {**GREEDY, "prompt": MANY, "max_tokens": 9, "stream": True, "stream_options": options}
    *chunks, last = running.client.completions.create(**asked)
    texts, ends = ["", "", ""], []
    for chunk in chunks:
        (choice,) = chunk.choices
        assert choice.index not in ends
        texts[choice.index] += choice.text
        if choice.finish_reason is not None:
            ends.append(choice.index)
    assert texts == [offline(text, 9) for text in MANY]
    assert sorted(ends) == [0, 1, 2]
    assert (last.choices, last.usage.completion_tokens) == ([], 27)


def test_of_several_prompts_all_find_a_place_or_none() -> None:
    with serving(Slow(0.05), max_batch=1, max_queue=2) as slow:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(slow.post, "/v1/completions", **GREEDY, max_tokens=16)
            slow.eventually("foretell_requests_running", 1)
            two = pool.submit(slow.post, "/v1/completions", **{**GREEDY, "prompt": MANY[:2]})
            assert first.result().status_code == 200
            assert len(two.result().json()["choices"]) == 2
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(slow.post, "/v1/completions", **GREEDY, max_tokens=30)
            slow.eventually("foretell_requests_running", 1)
            second = pool.submit(slow.post, "/v1/completions", **GREEDY, max_tokens=2)
            slow.eventually("foretell_requests_waiting", 1)
            answer = slow.post("/v1/completions", **{**GREEDY, "prompt": MANY[:2]})
            refused(answer, 429, "1 requests wait already")
            assert slow.metric("foretell_requests_waiting") == 1
            assert {first.result().status_code, second.result().status_code} == {200}


def test_pages_from_elsewhere_ask_where_that_is_allowed(running: Running) -> None:
    page = {"Origin": "https://example.org"}
    preflight = {**page, "Access-Control-Request-Method": "POST"}
    preflight["Access-Control-Request-Headers"] = "authorization,content-type"
    with serving(api_key="sesame", origins=["https://example.org"]) as open_to:
        path = f"{open_to.url}/v1/completions"
        answer = httpx.options(path, headers=preflight)  # a browser asks first, without the key
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://example.org"
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
        refusal = httpx.post(path, json=GREEDY, headers=page)
        assert refusal.status_code == 401
        assert refusal.headers["Access-Control-Allow-Origin"] == "https://example.org"
        other = httpx.options(path, headers={**preflight, "Origin": "https://evil.example"})
        assert other.status_code == 400
        assert "Access-Control-Allow-Origin" not in other.headers
    closed = httpx.post(f"{running.url}/v1/completions", json=GREEDY, headers=page)
    assert "Access-Control-Allow-Origin" not in closed.headers


def test_another_model_is_not_found(running: Running) -> None:
    answer = running.post("/v1/completions", **{**GREEDY, "model": "gpt-5"})
    refused(answer, 404, "'tiny-mtp' is", "model")
    refused(httpx.get(f"{running.url}/v2"), 404, "Not Found")
    refused(httpx.get(f"{running.url}/v1/completions"), 405, "Method Not Allowed")
    picture: Any = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    turns: Any = [{"role": "user", "content": [picture]}]
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.content\.0"):
        running.client.chat.completions.create(model=NAME, messages=turns)


def test_chat_needs_a_template(running: Running) -> None:
    tokenizer = running.service.tokenizer
    asked = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
    try:
        tokenizer.chat_template = None
        refused(running.post("/v1/chat/completions", **asked), 400, "has no chat template")
        tokenizer.chat_template = "{{ raise_exception('no such role') }}"
        refused(running.post("/v1/chat/completions", **asked), 400, "no such role")
    finally:
        tokenizer.chat_template = TEMPLATE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": "tiny-mtp", "prompt": "\\ud800", "max_tokens": 2}',
        b'{"model": "tiny-mtp", "prompt": "a", "stop": "\\udc80", "max_tokens": 2}',
        b'{"model": "\\ud800", "prompt": "a"}',
        b'{"model": "tiny-mtp", "prompt": "a", "\\ud800": 1}',
        b'{"model": "tiny-mtp", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny-mtp", "prompt": "a", "max_tokens": 1e400}',
        b"[" * 9000,
        b'{"model": "tiny-mtp", "prompt": "a", "max_tokens": ' + b"1" * 6000 + b"}",
    ],
)
def test_malformed_bodies_are_refused(running: Running, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{running.url}/v1/completions", content=body, headers=headers)
    param = answer.json()["error"]["param"]
    refused(answer, 400, "", param)
    assert param in (None, "stop", "temperature", "max_tokens")


def test_broken_json_is_called_so(running: Running) -> None:
    def sent(body: bytes, kind: str = "application/json") -> httpx.Response:
        headers = {"Content-Type": kind}
        return httpx.post(f"{running.url}/v1/completions", content=body, headers=headers)

    refused(sent(b'{"model": "tiny-mtp",'), 400, "the body is not JSON (")
    refused(sent(b"[1]"), 400, "the body is not a JSON object")
    refused(sent(b""), 400, "the body is not a JSON object")
    refused(sent(json.dumps(GREEDY).encode(), "text/plain"), 400, "Content-Type: application/json")


@settings(max_examples=15)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_request_end_in_a_refusal(running: Running, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{running.url}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400


def test_large_bodies_are_refused_unread(running: Running) -> None:
    big = {**GREEDY, "prompt": "a" * 30_000}
    refused(running.post("/v1/completions", **big), 413, "larger than 20000 bytes")

    def unannounced() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 1000

    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{running.url}/v1/completions", content=unannounced(), headers=headers)
    refused(answer, 413, "larger than 20000 bytes")


def test_the_key_is_asked_for() -> None:
    with serving(api_key="sésame") as guarded:
        for headers in ({}, {"Authorization": "Bearer open"}, {"Authorization": "sésame"}):
            encoded = {name: text.encode() for name, text in headers.items()}
            answer = httpx.post(f"{guarded.url}/v1/completions", json=GREEDY, headers=encoded)
            refused(answer, 401, "give the API key of this server")
            assert httpx.get(f"{guarded.url}/metrics", headers=encoded).status_code == 401
        key = {"Authorization": "Bearer sésame".encode()}
        assert httpx.get(f"{guarded.url}/v1/models", headers=key).status_code == 200
        for path in ("/", "/health"):
            assert httpx.get(f"{guarded.url}{path}").status_code == 200


def test_a_full_queue_says_so() -> None:
    with serving(Slow(0.1), max_batch=1, max_queue=1) as slow:
        asked = {**GREEDY, "max_tokens": 16}
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(slow.post, "/v1/completions", **asked)
            slow.eventually("foretell_requests_running", 1)
            second = pool.submit(slow.post, "/v1/completions", **asked)
            slow.eventually("foretell_requests_waiting", 1)
            third = slow.post("/v1/completions", **asked)
            refused(third, 429, "1 requests wait already")
            assert third.headers["Retry-After"] == "1"
            with pytest.raises(openai.RateLimitError):
                slow.client.completions.create(**asked)
            for answer in (first, second):
                assert answer.result().json()["choices"][0]["text"] == offline(PROMPT, 16)


# -- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_row(stream: bool) -> None:
    with serving(Slow(0.02)) as slow:
        host, port = slow.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        body = json.dumps({**GREEDY, "max_tokens": 900, "stream": stream})
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", body, headers)
        if stream:
            connection.getresponse().read(100)
        slow.eventually("foretell_requests_running", 1)
        connection.close()
        slow.eventually("foretell_cancelled_total", 1)
        slow.eventually("foretell_requests_running", 0)
        assert slow.metric("foretell_generated_tokens_total") < 900
        text = slow.client.completions.create(**GREEDY, max_tokens=3).choices[0].text
        assert text == offline(PROMPT, 3)


def test_a_failure_is_told_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(NoDrafter):
        def draft(self, committed: Any, limit: int) -> Any:
            raise RuntimeError("a secret of this machine")

    with serving(Failing()) as failing:
        answer = failing.post("/v1/completions", **GREEDY)
        refused(answer, 500, "the server failed")
        assert "secret" not in answer.text
        stream = failing.post("/v1/completions", **GREEDY, stream=True).text
        events = [json.loads(part.removeprefix("data: ")) for part in stream.split("\n\n") if part]
        assert events[-1]["error"]["type"] == "internal_error"
        with pytest.raises(openai.APIError):
            list(failing.client.completions.create(**GREEDY, stream=True))
        plain = failing.post("/v1/completions", **GREEDY, max_tokens=4, drafter="none")
        assert plain.json()["choices"][0]["text"] == offline(PROMPT, 4)
    assert "a secret of this machine" in caplog.text


@pytest.mark.parametrize(("grace", "finishes"), [(30, True), (1, False)])
def test_told_to_stop_it_lets_requests_finish_for_a_while(grace: int, finishes: bool) -> None:
    tokens = 30 if finishes else 900
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(slow.post("/v1/completions", **GREEDY, max_tokens=tokens))
        except httpx.HTTPError as error:
            found.append(error)

    with serving(Slow(0.05), grace_seconds=grace) as slow:
        asking = threading.Thread(target=ask)
        asking.start()
        slow.eventually("foretell_requests_running", 1)
    asking.join(30)
    if finishes:
        assert found[0].json()["choices"][0]["text"] == offline(PROMPT, tokens)
    else:
        assert isinstance(found[0], httpx.HTTPError) or found[0].status_code >= 500
    assert not slow.service.engine.healthy
