"""`foretell serve`: an OpenAI-compatible server and its page."""

import ipaddress
import os
import re
import socket
from dataclasses import asdict
from typing import Annotated

import typer

from foretell.cli import common, drafting
from foretell.decoding import Sampling
from foretell.errors import InputError, not_installed
from foretell.provenance import local_path

API_KEY = "FORETELL_API_KEY"
"""The variable that may hold it."""


def serve(
    model: common.Model,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: any free one.")] = 8000,
    model_name: Annotated[
        str | None, typer.Option(help="What requests call the model; by default as MODEL.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=API_KEY, help="Requests must bring it; better by the variable."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let web pages from there ask: https://example.org, or * for any. Repeat for "
            "more.",
        ),
    ] = None,
    drafter: drafting.DrafterName = None,
    draft_length: drafting.DraftLength = None,
    tree: drafting.Tree = None,
    max_batch: Annotated[int, typer.Option(help="Requests that are decoded together.")] = 16,
    max_queue: Annotated[int, typer.Option(help="Requests that wait; more get a 429.")] = 256,
    max_prompt_tokens: Annotated[int, typer.Option(help="Of a prompt; more get a 400.")] = 4096,
    max_tokens: Annotated[int, typer.Option(help="That may be asked for; more get a 400.")] = 1024,
    max_body_bytes: Annotated[int, typer.Option(help="Of a request; more get a 413.")] = 1024
    * 1024,
    grace_seconds: Annotated[
        int, typer.Option(help="That running requests have when the server is told to stop.")
    ] = 30,
    backbone: common.BackboneAt = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    json: common.Json = None,
) -> None:
    """Serve MODEL with OpenAI's API, and a page that shows how its tokens come.

    /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics, and the page at /.
    Requests that wait together are decoded as one batch. Every drafter is lossless here.

    For trying a model out. Production traffic belongs on vLLM: export the heads with `foretell
    export MODEL --to LAYOUT --out DIR` and serve DIR there.

    Example: foretell serve tiny-mtp --port 8000
    """
    try:
        from foretell import serve as serving
    except ModuleNotFoundError as error:
        raise not_installed(str(error.name), "serve") from None
    limits = serving.Limits(
        max_body_bytes=max_body_bytes,
        max_prompt_tokens=max_prompt_tokens,
        max_tokens=max_tokens,
        max_batch=max_batch,
        max_queue=max_queue,
        grace_seconds=grace_seconds,
    )
    shape, length = drafting.parse_tree(tree), drafting.parse_length(draft_length)
    if api_key is not None and not api_key.strip():
        raise InputError("--api-key is empty; give a key, or leave it out to let everybody in.")
    origins = [_origin(each) for each in cors or ()]
    if json is not None and api_key is not None and os.environ.get(API_KEY) != api_key:
        raise InputError(
            f"--json writes the command as typed, with the key in it; give that by {API_KEY}."
        )
    with _listen(host, port) as listening:
        loaded = common.load_model(model, device, dtype, backbone)
        name = drafting.drafter_name(drafter, loaded)
        service = serving.Service(
            loaded,
            common.tokenizer_of(model, loaded),
            model_name or _name(model),
            drafting.drafter(name, loaded, length, shape),
            drafting.method_name(name, loaded),
            limits,
            api_key,
            origins,
            auto_length=length == "auto",
        )
        running = serving.server(service, host, port)
        where = f"http://{_shown(host)}:{listening.getsockname()[1]}"
        common.console.print(f"{service.name} at {where}/v1, the page at {where}/")
        common.console.print(serving.PRODUCTION)
        if api_key is None and not _local(host):
            common.console.print(
                f"Anybody who reaches {host} can use it; --api-key keeps others out."
            )
        for line in drafting.describe_config(loaded, Sampling()):
            common.console.print(line)
        row = {
            "model": service.name,
            "method": service.drafter_name,
            "depth": service.drafter.longest,
            "draft_length": length,
        }
        settings = {"url": f"{where}/v1", "page": f"{where}/", "cors": origins, **asdict(limits)}
        common.save_json(json, "serve", loaded, None, settings, [row])
        running.run(sockets=[listening])


def _origin(text: str) -> str:
    """An origin as browsers send it: scheme, host and port, and nothing behind them."""
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", text):
        raise InputError(
            f"--cors {text}: give scheme, host and port, as https://example.org, or *."
        )
    return text


def _listen(host: str, port: int) -> socket.socket:
    """A socket, before the model is loaded: a port that is taken is known at once."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}; give one from 0 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, UnicodeError) as error:  # the latter where a name is none
        listening.close()
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {host}:{port} ({why}); give another --port.") from None
    return listening


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
