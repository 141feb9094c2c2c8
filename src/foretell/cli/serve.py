"""`foretell serve`: an OpenAI-compatible server and its page."""

import ipaddress
import json
import os
import re
import shlex
from typing import TYPE_CHECKING, Any

from foretell.cli import common, drafting
from foretell.cli.commands.serve import API_KEY, Serve
from foretell.decoding import Sampling
from foretell.errors import InputError, not_installed
from foretell.evaluation.methods import method_name
from foretell.files import local_path
from foretell.ready import tokenizer_of
from foretell.results.tables import Served

if TYPE_CHECKING:
    from foretell.serve import Service


def serve(asked: Serve) -> None:
    """Do what `asked` says."""
    try:
        from foretell import serve as serving
    except ModuleNotFoundError as error:
        raise not_installed(str(error.name), "serve") from None
    limits = serving.Limits(**asked.settings())
    shape, length = drafting.parse_tree(asked.tree), drafting.parse_length(asked.draft_length)
    api_key = _api_key(asked)
    origins = [_origin(each) for each in asked.cors or ()]
    with serving.listen(asked.host, asked.port) as listening:
        loaded = common.load_model(
            asked.model, asked.device, asked.dtype, asked.backbone, quantize=asked.quantize
        )
        name = drafting.drafter_name(asked.drafter, loaded)
        service = serving.Service(
            loaded,
            tokenizer_of(asked.model, loaded),
            asked.model_name or _name(asked.model),
            drafting.drafter(name, loaded, length, shape),
            method_name(name, loaded),
            limits,
            api_key,
            origins,
            auto_length=length == "auto",
            aliases={asked.model},
        )
        running = serving.server(service, asked.host, asked.port)
        where = f"http://{_shown(asked.host)}:{listening.getsockname()[1]}"
        common.console.print(f"{service.name} at {where}/v1, the page at {where}/")
        common.console.print(f"Try it: {_curl(service, listening.getsockname()[1], asked)}")
        common.console.print(serving.PRODUCTION)
        if api_key is None and not _local(asked.host):
            common.console.print(
                f"Anybody who reaches {asked.host} can use it; --api-key keeps others out."
            )
        for line in drafting.describe_config(loaded, Sampling()):
            common.console.print(line)
        row = Served(
            model=service.name,
            method=service.drafter_name,
            depth=service.drafter.longest,
            draft_length=length,
        )
        settings = {"url": f"{where}/v1", "page": f"{where}/", "cors": origins, **limits.to_dict()}
        settings["quantize"] = asked.quantize
        common.save_json(asked.json, "serve", loaded, None, settings, [row])
        try:
            running.run(sockets=[listening])
        finally:
            service.engine.close()  # told twice to stop, the application does not


def _curl(service: "Service", port: int, asked: Serve) -> str:
    """A command that asks it something, to be pasted into a shell; a key is never printed."""
    prompt = "Write a haiku about the sea."
    body: dict[str, Any] = {"model": service.name, "max_tokens": min(64, service.limits.max_tokens)}
    if service.tokenizer.chat_template:
        route, body["messages"] = "chat/completions", [{"role": "user", "content": prompt}]
    else:
        route, body["prompt"] = "completions", "def main("
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    host = _shown(everywhere.get(asked.host, asked.host))
    words = ["curl", f"http://{host}:{port}/v1/{route}", "-H", "Content-Type: application/json"]
    key = f' -H "Authorization: Bearer ${API_KEY}"' if service.api_key is not None else ""
    return f"{shlex.join(words)}{key} -d {shlex.quote(json.dumps(body))}"


def _api_key(asked: Serve) -> str | None:
    """The key that requests must bring; None lets everybody in."""
    variable = os.environ.get(API_KEY)
    # The variable is read here too: Typer 0.26.0 forgets it, and nobody would notice.
    key = variable if asked.api_key is None else asked.api_key
    if key is not None and not key.strip():
        raise InputError("--api-key is empty; give a key, or leave it out to let everybody in.")
    if asked.json is not None and key != variable:
        raise InputError(
            f"--json writes the command as typed, with the key in it; give that by {API_KEY}."
        )
    return key


def _origin(text: str) -> str:
    """An origin as browsers send it: scheme, host and port, and nothing after them."""
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", text):
        raise InputError(
            f"--cors {text}: give scheme, host and port, as https://example.org, or *."
        )
    return text


def _name(model: str) -> str:
    """A Hub id or a bundled model as it is, a directory by its last part."""
    path = local_path(model)
    return path.resolve().name if path.is_dir() and os.sep in model else model


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
