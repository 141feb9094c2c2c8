"""`foretell export` and `foretell import`: external checkpoint layouts."""

from pathlib import Path
from typing import Any

from foretell.cli import common
from foretell.cli.commands.export import Export, Import
from foretell.formats import export as write
from foretell.formats import import_heads, upload
from foretell.results.provenance import provenance
from foretell.results.tables import ConvertedHeads


def export(asked: Export) -> None:
    """Do what `asked` says."""
    common.quiet_transformers()
    done = write(asked.model, asked.to, asked.out, like=asked.like, results=asked.results)
    common.console.print(f"{done.parameters:,} parameters of heads → {asked.out} ({asked.to})")
    for name, value in done.contract.items():
        common.console.print(f"{name:<12}{value}")
    common.console.print(f"Serve: {done.serve}")
    for note in done.notes:
        common.console.print(note)
    if asked.push is not None:
        common.console.print(f"Uploaded: {upload(done.directory, asked.push)}")
    row = ConvertedHeads(
        model=asked.model, method=done.kind, depth=done.depth, parameters=done.parameters
    )
    settings = {"layout": asked.to, "serve": done.serve, **done.contract}
    _save(asked.json, "export", settings, row)


def import_(asked: Import) -> None:
    """Do what `asked` says."""
    common.quiet_transformers()
    done = import_heads(asked.model, asked.out, asked.backbone)
    common.console.print(
        f"{done.layout.name}: {done.modules} module{'s' * (done.modules != 1)}, "
        f"{done.parameters:,} parameters → {asked.out}"
    )
    row = ConvertedHeads(model=asked.model, depth=done.modules, parameters=done.parameters)
    _save(asked.json, "import", {"layout": done.layout.name}, row)


def _save(path: Path | None, command: str, settings: dict[str, Any], row: ConvertedHeads) -> None:
    if path is not None:
        common.save_result(path, command, settings, [row], provenance(None, "cpu", "auto"))
