"""`foretell info`: what was found in a model."""

import typer

from foretell.cli import common
from foretell.cli.commands.info import Info
from foretell.facts import facts_of


def info(asked: Info) -> None:
    """Do what `asked` says."""
    loaded = common.load_model(asked.model, asked.device, asked.dtype, asked.backbone)
    if not common.console.quiet:
        typer.echo("Trying out packed documents, drafts, batches and trees …", err=True)
    facts = facts_of(loaded)
    for name, value in facts.items():
        common.console.print(f"{name:<22}{value}")
    row = {
        "model": asked.model,
        "family": loaded.backbone.config.model_type,
        "head": loaded.head.config.kind if loaded.head else None,
        "depth": loaded.depth,
    }
    common.save_json(asked.json, "info", loaded, None, facts, [row])
