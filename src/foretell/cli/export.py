"""`foretell export` and `foretell import`: external checkpoint layouts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import SafetensorError

from foretell.cli import common
from foretell.errors import InputError
from foretell.formats import LAYOUTS, import_heads
from foretell.formats import export as write
from foretell.provenance import provenance, write_result


def export(
    model: common.Model,
    to: Annotated[str, typer.Option(help=f"Layout: {', '.join(LAYOUTS)}.")],
    out: Annotated[Path, typer.Option(help="Directory to write, all of it or nothing.")],
    like: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The released checkpoint MODEL was made from: what transformers dropped of it "
            "when it was loaded is taken from there.",
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="Result file (--json of eval or bench) for the card. Repeat for more."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the Hub as well.")
    ] = None,
    json: common.Json = None,
) -> None:
    """Write MODEL's heads for a serving engine, with a card that says how to serve them.

    Heads are trained for an engine's way of running them: `foretell train --for LAYOUT`. What a
    layout cannot express is refused.

    Example: foretell export runs/first/model --to mimo --out served
    """
    common.quiet_transformers()
    with writing(out):
        done = write(model, to, out, like=like, results=results)
    common.console.print(f"{done.parameters:,} parameters of heads → {out} ({to})")
    for name, value in done.contract.items():
        common.console.print(f"{name:<12}{value}")
    common.console.print(f"Serve: {done.serve}")
    for note in done.notes:
        common.console.print(note)
    if push is not None:
        common.console.print(f"Uploaded: {upload(done.directory, push)}")
    row = {"model": model, "method": done.kind, "depth": done.depth, "parameters": done.parameters}
    settings = {"layout": to, "serve": done.serve, **done.contract}
    _save(json, "export", settings, row)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Say in one line that a directory cannot be written, or something beside it not be read."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{out}: nothing is written there ({error}).") from None


def upload(directory: Path, repository: str) -> str:
    """Create the repository where it is not there, and upload the directory."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=directory))
    except Exception as error:  # whatever the HTTP library of the day raises
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{repository}: cannot be uploaded to ({why}); {directory} is kept."
        ) from None


def import_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory, or Hub id.")],
    out: Annotated[Path, typer.Option(help="Directory to write, all of it or nothing.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Put the heads on this backbone: where MODEL holds heads alone, or on a "
            "fine-tuned copy that lost them.",
        ),
    ] = None,
    json: common.Json = None,
) -> None:
    """Make foretell heads of the multi-token module of a released checkpoint.

    The backbone stays where it is. Train on with `foretell train OUT --recipe native`, and write
    back with `foretell export`.

    Example: foretell import models/released --out runs/native
    """
    common.quiet_transformers()
    with writing(out):
        done = import_heads(model, out, backbone)
    common.console.print(
        f"{done.layout.name}: {done.modules} module{'s' * (done.modules != 1)}, "
        f"{done.parameters:,} parameters → {out}"
    )
    row = {"model": model, "depth": done.modules, "parameters": done.parameters}
    _save(json, "import", {"layout": done.layout.name}, row)


def _save(path: Path | None, command: str, settings: dict[str, Any], row: dict[str, Any]) -> None:
    if path is not None:
        origin = provenance(None, "cpu", "auto")
        write_result(path, command, settings, [row], origin)
        common.console.print(f"Result file: {path}")
