"""`foretell export` and `foretell import`: external checkpoint layouts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from foretell.cli import common
from foretell.cli.commands.export import Export, Import
from foretell.errors import InputError
from foretell.formats import export as write
from foretell.formats import import_heads
from foretell.provenance import provenance


def export(asked: Export) -> None:
    """Do what `asked` says."""
    common.quiet_transformers()
    with writing(asked.out):
        done = write(asked.model, asked.to, asked.out, like=asked.like, results=asked.results)
    common.console.print(f"{done.parameters:,} parameters of heads → {asked.out} ({asked.to})")
    for name, value in done.contract.items():
        common.console.print(f"{name:<12}{value}")
    common.console.print(f"Serve: {done.serve}")
    for note in done.notes:
        common.console.print(note)
    if asked.push is not None:
        common.console.print(f"Uploaded: {upload(done.directory, asked.push)}")
    row = {
        "model": asked.model,
        "method": done.kind,
        "depth": done.depth,
        "parameters": done.parameters,
    }
    settings = {"layout": asked.to, "serve": done.serve, **done.contract}
    _save(asked.json, "export", settings, row)


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


def import_(asked: Import) -> None:
    """Do what `asked` says."""
    common.quiet_transformers()
    with writing(asked.out):
        done = import_heads(asked.model, asked.out, asked.backbone)
    common.console.print(
        f"{done.layout.name}: {done.modules} module{'s' * (done.modules != 1)}, "
        f"{done.parameters:,} parameters → {asked.out}"
    )
    row = {"model": asked.model, "depth": done.modules, "parameters": done.parameters}
    _save(asked.json, "import", {"layout": done.layout.name}, row)


def _save(path: Path | None, command: str, settings: dict[str, Any], row: dict[str, Any]) -> None:
    if path is not None:
        common.save_result(path, command, settings, [row], provenance(None, "cpu", "auto"))
