"""Layouts by their names."""

from foretell.errors import CheckpointError, InputError
from foretell.formats.base import LAYOUTS, Layout, has_plain_norms
from foretell.formats.files import Checkpoint
from foretell.model import MTPModel


def layout(name: str) -> Layout:
    """The layout called `name`."""
    if name not in LAYOUTS:
        raise InputError(f"layout {name!r} is unknown; choose from {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def layouts_for(model: MTPModel) -> list[str]:
    """The layouts that run heads as `model`'s are run, and can hold its backbone.

    `export` looks at the weights too.
    """
    head, base = model.require_head().config, model.backbone.config.to_dict()
    plain_norms = has_plain_norms(model.backbone)
    return [
        one.name
        for one in LAYOUTS.values()
        if not one.contract_of(head).differences(head, plain_norms)
        and not one.refusals(model, base)
    ]


def recognise(base: Checkpoint) -> Layout:
    """The layout that a directory is in.

    Raises:
        CheckpointError: none is, with what was found instead.
    """
    for one in LAYOUTS.values():
        if one.recognises(base):
            return one
    code = " Its config names code to run (auto_map), which is not run." * (
        "auto_map" in base.config
    )
    known = ", ".join(name for name in LAYOUTS if name not in ("transformers", "vllm"))
    raise CheckpointError(
        f"{base.directory}: no multi-token module of a known layout is in it "
        f"(model_type {base.model_type}; known: {known}).{code}"
    )
