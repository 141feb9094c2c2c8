"""`foretell serve` as typed."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import foretell
from command_line import fine, refused
from foretell.cli import serve
from foretell.cli.commands.serve import Serve
from foretell.results import read_result
from foretell.results.tables import Served
from serving import offline


def _check_pasted(line: str, client: httpx.Client) -> None:
    """The line that is to be pasted asks what the server answers, with the key from the shell."""
    assert line.startswith("Try it: curl ")
    words = shlex.split(line.removeprefix("Try it: ").replace("$FORETELL_API_KEY", "sesame"))
    assert "sesame" not in line
    _, url, *options = words
    pairs = list(zip(options[::2], options[1::2], strict=True))
    headers = dict(value.split(": ", 1) for name, value in pairs if name == "-H")
    (body,) = [value for name, value in pairs if name == "-d"]
    assert client.post(url, content=body, headers=headers).json()["choices"][0]["text"]


def test_a_server_starts_answers_and_ends_when_told_to(tmp_path: Path) -> None:
    environment = {**os.environ, "FORETELL_API_KEY": "sesame"}
    command = [sys.executable, "-m", "foretell", "serve", "tiny-mtp", "--port", "0"]
    command += ["--json", str(tmp_path / "serve.json"), "--draft-length", "auto"]
    with subprocess.Popen(
        [*command, "--model-name", "small"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            first, curl, second = (process.stdout.readline() for _ in range(3))
            assert "vLLM" in second
            assert "foretell export MODEL --to LAYOUT" in second
            found = re.fullmatch(r"small at (http://127.0.0.1:\d+)/v1, the page at \1/\n", first)
            assert found is not None, first
            assert process.stdout.readline().startswith("Result file: ")
            result = read_result(tmp_path / "serve.json")
            assert result.settings["url"] == f"{found[1]}/v1"
            served = Served(model="small", method="parallel", depth=3, draft_length="auto")
            assert result.rows == [served]
            asked: dict[str, Any] = {"model": "small", "prompt": "def main(", "temperature": 0}
            headers = {"Authorization": "Bearer sesame"}
            transport = httpx.HTTPTransport(retries=5)
            with httpx.Client(base_url=found[1], timeout=60, transport=transport) as client:
                assert client.post("/v1/completions", json=asked).status_code == 401
                answer = client.post("/v1/completions", json=asked, headers=headers)
                assert answer.json()["choices"][0]["text"] == offline("def main(", 16)
                asked["model"] = "tiny-mtp"  # as MODEL was given
                answer = client.post("/v1/completions", json=asked, headers=headers)
                assert answer.json()["model"] == "small"
                assert client.get("/v1/models/tiny-mtp", headers=headers).status_code == 200
                asked["model"] = "small"
                _check_pasted(curl, client)
                running = threading.Timer(0.2, process.send_signal, [signal.SIGTERM])
                running.start()
                asked["max_tokens"] = 60  # it is told to stop in the middle
                answer = client.post("/v1/completions", json=asked, headers=headers)
                assert answer.json()["choices"][0]["text"] == offline("def main(", 60)
            assert process.wait(60) == -signal.SIGTERM
        finally:
            process.kill()


def test_interrupted_twice_it_ends_quietly() -> None:
    """While a request is being answered, which would take a while."""
    command = [sys.executable, "-m", "foretell", "serve", "tiny-mtp", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            url = re.search(r"http://[\d.:]+", process.stdout.readline())[0]
            transport = httpx.HTTPTransport(retries=5)
            asked = {"model": "tiny-mtp", "prompt": "def main(", "max_tokens": 200, "stream": True}
            with (
                httpx.Client(base_url=url, timeout=60, transport=transport) as client,
                client.stream("POST", "/v1/completions", json=asked) as answer,
            ):
                next(answer.iter_raw())
                process.send_signal(signal.SIGINT)
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == 130
            assert process.stderr.read() == "foretell: interrupted\n"
        finally:
            process.kill()


def test_the_key_of_the_variable_counts_whatever_typer_makes_of_it(monkeypatch) -> None:
    monkeypatch.setenv("FORETELL_API_KEY", "sesame")
    assert serve._api_key(Serve("tiny")) == "sesame"
    assert serve._api_key(Serve("tiny", api_key="other")) == "other"
    monkeypatch.delenv("FORETELL_API_KEY")
    assert serve._api_key(Serve("tiny")) is None


def test_help_sends_production_elsewhere() -> None:
    text = " ".join(fine("serve", "--help").split())
    assert "Production traffic belongs on vLLM" in text
    assert "foretell export MODEL --to LAYOUT --out DIR" in text


def test_no_length_is_chosen_for_drafts_that_nobody_makes() -> None:
    asked = ("--port", 0, "--drafter", "none", "--draft-length", "auto")
    assert "without a drafter there is no draft" in refused("serve", "tiny-mtp", *asked)


def test_what_cannot_be_served_is_said_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen at 127.0.0.1:{port}" in refused("serve", "none", "--port", port)
    assert "give one from 0 to 65535" in refused("serve", "none", "--port", 70000)
    assert "max_batch is 0; it must be at least 1" in refused("serve", "none", "--max-batch", 0)
    assert "cannot listen at nowhere" in refused("serve", "none", "--host", "nowhere.invalid")
    assert "cannot listen at a..b" in refused("serve", "none", "--host", "a..b")
    for origin in ("example.org", "https://example.org/", "https://a b", ""):
        assert "as https://example.org, or *" in refused("serve", "none", "--cors", origin)
    given = ("--api-key", "sesame", "--json", "serve.json")
    assert "give that by FORETELL_API_KEY" in refused("serve", "none", *given)
    assert "--api-key is empty" in refused("serve", "none", "--api-key", "")
    monkeypatch.delattr(foretell, "serve", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("foretell.serve")]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install '.[serve]'" in refused("serve", "tiny-mtp")
