"""Heads in an external layout, with a card that says what they are and how to serve them."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foretell.checkpoints import is_foretell_directory, read_heads
from foretell.errors import CheckpointError, HeadError, InputError
from foretell.files import local_path, replacing
from foretell.formats.base import OUTPUT, Layout
from foretell.formats.card import types, write_card
from foretell.formats.files import (
    BACKBONE,
    CONTRACT,
    SUPERSEDED,
    Checkpoint,
    copy_companions,
    require_plain,
    write_checkpoint,
    writing,
)
from foretell.formats.importing import local_directory, require_apart
from foretell.formats.registry import layout
from foretell.formats.tying import as_engines_read
from foretell.model import MTPModel


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        layout: in which.
        directory: where.
        serve: the command that serves it.
        notes: what else the user should know, in sentences.
        contract: how its engines run it, plain values.
        parameters: of the heads.
        kind: of the heads.
        depth: how many tokens they were trained to predict.
    """

    layout: Layout
    directory: Path
    serve: str
    notes: list[str]
    contract: dict[str, Any]
    parameters: int
    kind: str
    depth: int


def export(
    name: str | Path,
    to: str,
    out: Path,
    *,
    like: str | Path | None = None,
    results: list[Path] | None = None,
) -> Exported:
    """Write a foretell directory's heads to `out` in the layout called `to`.

    Every tensor of the backbone that did not change keeps its bytes.

    Args:
        name: a foretell directory, a Hub id or a bundled model, with heads.
        to: a layout's name.
        out: where to; all of it is written, or nothing.
        like: the released checkpoint that the model was made from: what transformers drops when it
            loads one (vision towers, say) is taken from there, and types are its where that
            rounds nothing.
        results: result files whose figures the card shows.

    Raises:
        HeadError: the layout cannot express the heads, or the model; with the reason.
        CheckpointError: the backbone's files are not as they should be.
        InputError: `out` cannot be written, or a file beside it not be read.
    """
    out = local_path(out)
    with writing(out):
        target, where = layout(to), local_directory(name)
        model, source = _load(where)
        stored = Checkpoint(local_directory(source))
        template = None if like is None else Checkpoint(local_directory(like))
        sources = [one for one in (stored, template) if one is not None]
        require_apart(out, where, *(one.directory for one in sources))
        for one in sources:
            require_plain(one)
        base = as_engines_read(stored, model.lm)
        target.check(model, base)
        head = model.require_head()
        contract = target.contract_of(head.config).to_dict()
        as_it_lies = base is stored and base.directory.resolve() != where.resolve()
        inside = target.apart and not (as_it_lies and template is None)
        reference = str(out / BACKBONE) if inside else _served(source, where, base)
        serve = target.command(model).format(out=out, model=reference, depth=model.depth)
        superseded = (*SUPERSEDED, CONTRACT, BACKBONE)
        with replacing(out, superseded, marks=(CONTRACT,)) as work:
            with TemporaryDirectory(dir=work) as scratch:
                if template is not None:
                    base = _merge(template, base, model, target, Path(scratch))
                target.save(model, base, work)
                if inside:  # an engine reads every *.safetensors, and not every name
                    (work / BACKBONE).mkdir()
                    write_checkpoint(base, work / BACKBONE)
            text = json.dumps({"layout": target.name, **contract}, indent=2)
            (work / CONTRACT).write_text(text + "\n", encoding="utf-8")
            write_card(work, model, target, serve, reference, where, results or [])
        parameters = sum(p.numel() for p in head.parameters())
        notes = [note for note in (target.needs, types(model)) if note]
        return Exported(
            target, out, serve, notes, contract, parameters, head.config.kind, head.depth
        )


def upload(directory: Path, repository: str) -> str:
    """Create the repository where it is not there, and upload the directory.

    Args:
        directory: with everything in it.
        repository: `owner/name` on the Hub.

    Returns:
        the address of the commit.

    Raises:
        InputError: it cannot be uploaded; the directory is kept.
    """
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


def _load(where: Path) -> tuple[MTPModel, str]:
    """The model, its heads in the type they are stored in, and where its backbone lies."""
    if not is_foretell_directory(where):
        raise InputError(f"{where}: has no heads to export; train some with `foretell train`.")
    stored = read_heads(where)
    reference = stored.backbone
    if reference.adapted:
        raise HeadError(
            f"{where}: its backbone has adapters, which no layout holds; merge them first "
            "(train with --set lora.merge=true)."
        )
    model = MTPModel.from_pretrained(where)  # which rounds heads to the backbone's type
    model.require_head().load_state_dict(stored.tensors or {}, assign=True)
    return model, reference.path or str(where)


def _served(source: str, where: Path, base: Checkpoint) -> str:
    """How a server names the backbone."""
    return str(base.directory) if source == str(where) or Path(source).is_dir() else source


def _merge(
    template: Checkpoint, base: Checkpoint, model: MTPModel, target: Layout, out: Path
) -> Checkpoint:
    """`template` with the tensors of `base`, which `model` was loaded from, in their places."""
    template = as_engines_read(template, model.lm)
    extra = sorted(base.files.keys() - template.files.keys())
    if extra:
        raise CheckpointError(
            f"{template.directory}: has no {extra[0]}, which the model has; it was not made from "
            "this checkpoint."
        )
    moved = base.tensors(lambda name: True)
    if OUTPUT in template.files and OUTPUT not in moved:  # tied, and stored all the same
        moved[OUTPUT] = model.backbone.output.weight
    repeated = {name for name in template.files if target.repeats(name, template)}
    write_checkpoint(template, out, replace=moved, drop=repeated.__contains__)
    copy_companions(base, out)
    return Checkpoint(out)
