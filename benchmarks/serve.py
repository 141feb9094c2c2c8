"""`foretell serve` under load: many clients at once, some of which do everything wrong.

    python benchmarks/serve.py --minutes 10

The server runs in a process of its own, on loopback. Of the clients' requests four in five are well
formed, half of them streamed; the others are malformed, or go away in the middle. Every text is
compared with what the model says by itself, greedily, without drafts. Clients and server share the
machine, so the times are those of a busy one. Writes `results/serve.json`: a row for each kind of
request, one for the server, and in the settings its memory over time.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from foretell.data import read_prompts
from foretell.decoding import NoDrafter
from foretell.ready import load_model, tokenizer_of
from foretell.results import write_result
from foretell.results.benchmarks import ClientLoad, ServerLoad
from foretell.results.provenance import provenance

DATA = "stdlib:held-out"
LENGTHS = (4, 12, 24, 48, 96)
"""Tokens that a request asks for."""
SAMPLES = 120
"""Memory is looked at so often."""
MALFORMED: tuple[tuple[dict[str, Any] | bytes, int], ...] = (
    (b"{", 400),
    (b"\xff" * 50, 400),
    ({"n": 3}, 400),
    ({"temperature": "hot"}, 400),
    ({"max_tokens": 10**9}, 400),
    ({"prompt": ["a", "b"]}, 400),
    ({"prompt": [10**6]}, 400),
    ({"prompt": "x = 1\n" * 2000}, 400),
    ({"stop": "\ud800"}, 400),
    ({"model": "another"}, 404),
    (b" " * 2_000_000, 413),
)
"""What is sent, and how it is refused."""


@dataclass
class Expected:
    """A prompt, and the text after so many tokens of its continuation."""

    prompt: list[int]
    texts: dict[int, str]


@dataclass
class Found:
    """What became of one kind of request."""

    requests: int = 0
    errors: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    tokens: int = 0
    forwards: int = 0
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)


@dataclass
class Load:
    """The clients.

    Attributes:
        url: of the server.
        model: what it calls its model.
        expected: what may be asked, and is then said.
        until: when they stop, by the monotonic clock.
    """

    url: str
    model: str
    expected: list[Expected]
    until: float
    found: dict[str, Found] = field(
        default_factory=lambda: {
            kind: Found() for kind in ("whole", "stream", "malformed", "aborted")
        }
    )

    async def client(self, number: int, seed: int) -> None:
        """One after another, until it is time."""
        dice = random.Random(f"{seed} {number}")
        kinds: dict[str, Callable[..., Awaitable[None]]] = {
            "whole": self.whole,
            "stream": self.stream,
            "malformed": self.malformed,
            "aborted": self.aborted,
        }
        async with httpx.AsyncClient(base_url=self.url, timeout=600) as client:
            while time.monotonic() < self.until:
                (kind,) = dice.choices(list(kinds), (4, 4, 1, 1))
                found = self.found[kind]
                found.requests += 1
                try:
                    await kinds[kind](client, dice, found)
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    found.errors.append(f"{type(error).__name__}: {error}")

    def asked(self, dice: random.Random, **more: Any) -> tuple[dict[str, Any], str]:
        """A request, and the text that answers it."""
        expected, tokens = dice.choice(self.expected), dice.choice(LENGTHS)
        asked = {"model": self.model, "prompt": expected.prompt, "max_tokens": tokens}
        return {**asked, "temperature": 0, **more}, expected.texts[tokens]

    async def whole(self, client: httpx.AsyncClient, dice: random.Random, found: Found) -> None:
        asked, text = self.asked(dice)
        began = time.monotonic()
        answer = await client.post("/v1/completions", json=asked)
        answer.raise_for_status()
        self.note(found, began, answer.json()["choices"][0]["text"], text, answer.json()["usage"])

    async def stream(self, client: httpx.AsyncClient, dice: random.Random, found: Found) -> None:
        asked, text = self.asked(dice, stream=True, stream_options={"include_usage": True})
        began, said, usage = time.monotonic(), "", None
        async with client.stream("POST", "/v1/completions", json=asked) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if not said and chunk["choices"]:
                    found.first.append(time.monotonic() - began)
                said += "".join(choice["text"] for choice in chunk["choices"])
                usage = chunk.get("usage") or usage
        if usage is None:
            raise ValueError("a stream without its end")
        self.note(found, began, said, text, usage)

    def note(self, found: Found, began: float, said: str, text: str, usage: dict[str, Any]) -> None:
        found.seconds.append(time.monotonic() - began)
        found.tokens += usage["completion_tokens"]
        found.forwards += usage["foretell"]["forwards"]
        if said != text:
            found.different.append(f"{text!r} became {said!r}")

    async def malformed(self, client: httpx.AsyncClient, dice: random.Random, found: Found) -> None:
        change, status = dice.choice(MALFORMED)
        body = change
        if isinstance(change, dict):
            body = json.dumps({**self.asked(dice)[0], **change}).encode()
        headers = {"Content-Type": "application/json"}
        answer = await client.post("/v1/completions", content=body, headers=headers)
        if answer.status_code != status or "error" not in answer.json():
            found.errors.append(f"{answer.status_code} to {str(change)[:80]}")

    async def aborted(self, client: httpx.AsyncClient, dice: random.Random, found: Found) -> None:
        """Go away: before an answer, or in the middle of one."""
        if dice.random() < 0.5:
            asked, _ = self.asked(dice, max_tokens=96)
            try:
                await client.post("/v1/completions", json=asked, timeout=dice.random())
            except httpx.TimeoutException:
                return
        asked, _ = self.asked(dice, max_tokens=96, stream=True)
        async with client.stream("POST", "/v1/completions", json=asked) as answer:
            async for _ in answer.aiter_lines():
                if dice.random() < 0.3:
                    return


def offline(arguments: argparse.Namespace) -> list[Expected]:
    """Prompts, and what the model says to each by itself."""
    model = load_model(arguments.model, dtype=arguments.dtype)
    tokenizer = tokenizer_of(arguments.model, model)
    expected = []
    for prompt in read_prompts(
        DATA, tokenizer, arguments.prompt_tokens, arguments.count, arguments.seed
    ):
        options: dict[str, Any] = {"max_new_tokens": max(LENGTHS), "drafter": NoDrafter()}
        said = model.decode(prompt, **options).new_tokens
        texts = {n: tokenizer.decode(said[:n], skip_special_tokens=True) for n in LENGTHS}
        expected.append(Expected(prompt[0].tolist(), texts))
    return expected


async def watch(process: int, until: float, every: float) -> list[int]:
    """The server's resident memory in bytes, time after time."""
    seen = []
    while time.monotonic() < until:
        seen.append(resident(process))
        await asyncio.sleep(every)
    return seen


def resident(process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


async def run(load: Load, arguments: argparse.Namespace, process: int) -> list[int]:
    """All clients at once; the memory of the server meanwhile."""
    clients = [load.client(n, arguments.seed) for n in range(arguments.clients)]
    every = 60 * arguments.minutes / SAMPLES
    memory, *_ = await asyncio.gather(watch(process, load.until, every), *clients)
    return memory


def rows_of(load: Load, seconds: float, model: str) -> list[ClientLoad]:
    rows = []
    for kind, found in load.found.items():
        answered: dict[str, Any] = {}
        if found.seconds:
            answered = {
                "prompts": len(found.seconds),
                "identical": len(found.seconds) - len(found.different),
                "tokens": found.tokens,
                "tokens_per_forward": found.tokens / found.forwards,
                "tokens_per_second": found.tokens / seconds,
                **percentiles(found.seconds),
            }
        row = ClientLoad(
            model=model,
            request=kind,
            requests=found.requests,
            errors=len(found.errors),
            first_token_seconds=statistics.median(found.first) if found.first else None,
            **answered,
        )
        rows.append(row)
        print(row.flat(), flush=True)
        for problem in (*found.errors[:5], *found.different[:5]):
            print(f"  {problem}", flush=True)
    return rows


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    names = {"median_seconds": 0.5, "p90_seconds": 0.9, "p99_seconds": 0.99}
    return {name: ordered[int(part * (len(ordered) - 1))] for name, part in names.items()}


def server_row(url: str, model: str, seconds: float, memory: Sequence[int]) -> ServerLoad:
    """What the server itself counted."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
    tokens, forwards, passes = (
        float(figures[f"foretell_{name}_total"])
        for name in ("generated_tokens", "forwards", "passes")
    )
    row = ServerLoad(
        model=model,
        request="all, as the server counts",
        tokens=int(tokens),
        forwards=int(forwards),
        tokens_per_forward=tokens / forwards,
        tokens_per_second=tokens / seconds,
        batch=forwards / passes,
        seconds=seconds,
        peak_memory_bytes=max(memory),
    )
    print(row.flat(), flush=True)
    return row


def started(arguments: argparse.Namespace) -> tuple["subprocess.Popen[str]", str]:
    """The server, and where it listens."""
    command = [sys.executable, "-m", "foretell", "serve", arguments.model, "--port", "0"]
    command += ["--dtype", arguments.dtype, "--max-batch", str(arguments.max_batch)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"at (http://\S+)/v1", process.stdout.readline())
    assert found is not None, "the server did not start"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if httpx.get(f"{found[1]}/health", timeout=60).is_success:
                return process, found[1]
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("the server does not answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-mtp")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/serve.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    expected = offline(arguments)
    process, url = started(arguments)
    try:
        began = time.monotonic()
        load = Load(url, arguments.model, expected, began + 60 * arguments.minutes)
        memory = asyncio.run(run(load, arguments, process.pid))
        seconds = time.monotonic() - began
        rows = [
            *rows_of(load, seconds, arguments.model),
            server_row(url, arguments.model, seconds, memory),
        ]
    finally:
        process.terminate()
        process.wait(60)
    quarter = max(1, len(memory) // 4)
    settings = {
        **{name: value for name, value in vars(arguments).items() if name != "out"},
        "lengths": LENGTHS,
        "prompts": DATA,
        "memory_bytes": memory,
        "memory_second_quarter": statistics.mean(memory[quarter : 2 * quarter] or memory),
        "memory_last_quarter": statistics.mean(memory[-quarter:]),
        "differences": [text for found in load.found.values() for text in found.different[:20]],
        "errors": [text for found in load.found.values() for text in found.errors[:20]],
    }
    print(
        f"memory: {settings['memory_second_quarter']:.4g} → {settings['memory_last_quarter']:.4g}"
    )
    origin = provenance(arguments.seed, "cpu", arguments.dtype)
    write_result(arguments.out, "serve", settings, rows, origin)
    print(f"Result file: {arguments.out}")


if __name__ == "__main__":
    main()
