"""Everything that the OpenAPI schema allows, and much that it does not."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving import NAME, Running, serving

CHECKS: Any = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
OPERATIONS = [
    ("/v1/models", "get"),
    ("/v1/models/{name}", "get"),
    ("/v1/completions", "post"),
    ("/v1/chat/completions", "post"),
    ("/health", "get"),
    ("/metrics", "get"),
]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(user="fuzz", max_tokens=16) as running:
        yield running


@pytest.fixture(scope="module")
def api(running: Running) -> Any:
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json")


def test_no_operation_is_left_out(api: Any) -> None:
    found = [result.ok() for result in api.get_all_operations()]
    assert sorted((each.path, each.method) for each in found) == sorted(OPERATIONS)


def usable(prompt: Any) -> Any:
    """A prompt with ids that the vocabulary has, and something in every text."""
    if isinstance(prompt, list):
        return [usable(part) for part in prompt]
    return prompt % 1024 if isinstance(prompt, int) else prompt or "a"


@pytest.mark.parametrize("examples", [8, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        ("/v1/models/{name}", "get", GenerationMode.POSITIVE),  # any text is a name
        ("/v1/completions", "post", GenerationMode.POSITIVE),
        ("/v1/completions", "post", GenerationMode.NEGATIVE),
        ("/v1/chat/completions", "post", GenerationMode.POSITIVE),
        ("/v1/chat/completions", "post", GenerationMode.NEGATIVE),
    ],
)
def test_answers_are_as_the_schema_says(
    api: Any, path: str, method: str, mode: GenerationMode, examples: int
) -> None:
    statuses = []

    @settings(max_examples=examples)
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if isinstance(case.body, dict):
            if isinstance(case.body.get("model"), str):
                case.body["model"] = NAME  # or all would be answered 404
            if mode == GenerationMode.POSITIVE and "prompt" in case.body:
                case.body["prompt"] = usable(case.body["prompt"])
        statuses.append(case.call_and_validate(checks=CHECKS).status_code)

    check()
    if mode == GenerationMode.POSITIVE and method == "post":
        assert 200 in statuses  # it did not stop at the door


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics"])
def test_what_takes_nothing_answers_as_the_schema_says(api: Any, path: str) -> None:
    api[path]["get"].Case().call_and_validate(checks=CHECKS)
