"""Servers for tests: a small model behind a real port."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import openai
import torch

from foretell import MTPModel
from foretell.checkpoints import load_tokenizer
from foretell.data.tokenization import prompt_ids
from foretell.decoding import Drafter, drafter_for
from foretell.serve import Limits, Service, server

NAME = "tiny-mtp"
TEMPLATE = (
    "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant:{% endif %}"
)


@cache
def tiny(user: str) -> tuple[MTPModel, Any]:
    """The bundled model with heads, in float32, and its tokenizer with a chat template.

    A model decodes in one thread at a time, so everybody has one of its own.
    """
    tokenizer = load_tokenizer(NAME)
    tokenizer.chat_template = TEMPLATE
    return MTPModel.from_pretrained(NAME, dtype=torch.float32), tokenizer


@cache
def offline(prompt: str, tokens: int) -> str:
    """What the model says greedily, by itself."""
    model, tokenizer = tiny("offline")
    ids = torch.tensor([prompt_ids(tokenizer, prompt)])
    found = model.decode(ids, max_new_tokens=tokens).new_tokens
    return str(tokenizer.decode(found, skip_special_tokens=True))


@dataclass
class Running:
    """A server that runs.

    Attributes:
        url: where.
        service: what it serves.
        client: of it.
    """

    url: str
    service: Service
    client: openai.OpenAI

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)

    def metric(self, name: str) -> float:
        """A figure of /metrics."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])

    def eventually(self, name: str, value: float) -> None:
        """Wait until a figure has a value."""
        end = time.monotonic() + 30
        while self.metric(name) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.02)


@contextmanager
def serving(
    drafter: Drafter | None = None,
    *,
    user: str = "test",
    api_key: str | None = None,
    origins: Sequence[str] = (),
    **limits: int,
) -> Iterator[Running]:
    """A server of the bundled model, at a free port of its own; `user` has no other meanwhile."""
    model, tokenizer = tiny(user)
    drafter = drafter or drafter_for(model.backbone, model.require_head())
    service = Service(
        model, tokenizer, NAME, drafter, "parallel", Limits(**limits), api_key, origins
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = server(service, "127.0.0.1", 0)
        work = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        work.start()
        while not running.started:
            assert work.is_alive()
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        key = api_key or "none"
        try:
            with openai.OpenAI(
                base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60
            ) as client:
                yield Running(url, service, client)
        finally:
            running.should_exit = True
            work.join(30)
            assert not work.is_alive()
