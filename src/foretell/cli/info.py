"""`foretell info`: what was found in a model."""

from foretell.cli import common
from foretell.cli.commands.info import Info
from foretell.facts import facts_of
from foretell.results.tables import ModelFacts


def info(asked: Info) -> None:
    """Do what `asked` says."""
    loaded = common.load_model(asked.model, asked.device, asked.dtype, asked.backbone)
    with common.doing("Trying out packed documents, drafts, batches and trees"):
        facts = facts_of(loaded)
    for name, value in facts.items():
        common.console.print(f"{name:<22}{value}")
    row = ModelFacts(
        model=asked.model,
        family=loaded.backbone.config.model_type,
        head=loaded.head.config.kind if loaded.head else None,
        depth=loaded.depth,
    )
    common.save_json(asked.json, "info", loaded, None, facts, [row])
