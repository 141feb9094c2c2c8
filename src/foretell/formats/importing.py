"""Heads of a released checkpoint as a foretell directory.

transformers drops native modules when it loads a checkpoint, and they are gone after
`save_pretrained`. Here they become foretell's heads, with the backbone left where it lies.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedModel

from foretell.backbone import fingerprint
from foretell.checkpoints import (
    CONFIG_FILES,
    BackboneReference,
    StoredHeads,
    fill_head,
    load_causal_lm,
    resolve,
    write_heads,
)
from foretell.errors import CheckpointError, HeadError, InputError
from foretell.files import local_path, replacing
from foretell.formats.base import EMBEDDING, OUTPUT, Layout, Loaded
from foretell.formats.files import (
    CONFIG,
    SUPERSEDED,
    Checkpoint,
    require_plain,
    write_checkpoint,
    writing,
)
from foretell.formats.registry import recognise
from foretell.model import MTPModel


@dataclass(frozen=True)
class Imported:
    """What was found.

    Attributes:
        layout: the directory's.
        modules: how many depths its heads predict.
        parameters: of the heads.
        directory: where the foretell directory is.
    """

    layout: Layout
    modules: int
    parameters: int
    directory: Path


def local_directory(name: str | Path) -> Path:
    """The directory of a model; one on the Hub is fetched, without its code."""
    where = Path(resolve(name))
    if where.is_dir():
        return where
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]
    return Path(snapshot_download(str(name), allow_patterns=patterns))


def require_apart(out: Path, *sources: Path) -> None:
    """Refuse to write over a directory that is read, or over one that it lies in."""
    for source in sources:
        if source.resolve().is_relative_to(out.resolve()):
            raise InputError(
                f"{out}: is where the model lies ({source}); write to another directory."
            )


def import_heads(name: str | Path, out: Path, backbone: str | Path | None = None) -> Imported:
    """Write the heads of a released checkpoint to the foretell directory `out`.

    Args:
        name: a directory or Hub id in one of the layouts.
        out: where to; all of it is written, or nothing.
        backbone: that the heads are put on: needed where the layout holds heads alone, and
            otherwise another one than their own, such as a fine-tuned copy that lost them.

    Raises:
        CheckpointError: a file is damaged, dangerous or contradicts the config.
        InputError: no backbone, or one that is not needed; `out` cannot be written.
    """
    out = local_path(out)
    with writing(out):
        directory = local_directory(name)
        sources = [directory] if backbone is None else [directory, local_directory(backbone)]
        require_apart(out, *sources)
        base = Checkpoint(directory)
        require_plain(base)
        layout = recognise(base)
        loaded = layout.load(base)
        with replacing(out, SUPERSEDED, marks=CONFIG_FILES) as work:
            lm, reference = _backbone(layout, base, backbone, work)
            _check_shared(loaded, lm, directory)
            try:
                model = MTPModel(lm, loaded.head)
            except (HeadError, InputError) as error:
                raise CheckpointError(f"{directory}: {error}") from None
            about = BackboneReference(fingerprint(lm), type(lm).__name__, reference)
            stored = StoredHeads(loaded.head.to_dict(), about, loaded.tensors)
            fill_head(model.require_head(), stored, directory, model.backbone.vocab_size)
            write_heads(work, stored)
        parameters = sum(t.numel() for t in loaded.tensors.values() if t.is_floating_point())
        return Imported(layout, loaded.head.depth, parameters, out)


def _backbone(
    layout: Layout, base: Checkpoint, given: str | Path | None, work: Path
) -> tuple[PreTrainedModel, str | None]:
    """The backbone, and where it lies; None: in `work`."""
    if given is not None:
        return load_causal_lm(given), _reference(given)
    if all(layout.owns(tensor, base) for tensor in base.files):
        raise InputError(
            f"{base.directory}: holds {layout.name} heads without their backbone; "
            "name it with --backbone."
        )
    config = layout.backbone_config(base)
    if config == base.config:
        _check_shapes(base)
        return load_causal_lm(base.directory), str(base.directory.resolve())
    write_checkpoint(base, work, config=config, drop=lambda name: layout.owns(name, base))
    _check_shapes(Checkpoint(work))
    return load_causal_lm(work), None


def _reference(name: str | Path) -> str:
    return str(local_path(name).resolve()) if local_path(name).is_dir() else str(name)


def _check_shapes(base: Checkpoint) -> None:
    """Embedding and output head against the config, before anything is built."""
    config = base.text_config
    wanted = config.get("vocab_size"), config.get("hidden_size")
    for name, file in base.files.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            with base.open(file) as handle:
                shape = tuple(handle.get_slice(name).get_shape())
            if shape != wanted:
                raise CheckpointError(
                    f"{base.directory / file}: {name} is {shape}, and {CONFIG} says {wanted}."
                )


def _check_shared(loaded: Loaded, lm: PreTrainedModel, where: Path) -> None:
    """What heads share with the backbone must be the backbone's."""
    parts = {EMBEDDING: lm.get_input_embeddings(), OUTPUT: lm.get_output_embeddings()}
    for name, tensor in loaded.shared.items():
        own = cast(Tensor, parts[name].weight)
        drafted = loaded.tensors.get("vocabulary.tokens")
        if name == OUTPUT and drafted is not None and int(drafted.max()) < len(own):
            own = own[drafted.to(own.device)]
        if own.shape != tensor.shape or not (own.float() == tensor.float()).all():
            raise CheckpointError(
                f"{where}: its {name} is not the backbone's, and foretell's heads have none of "
                "their own; name the backbone they were trained on."
            )
