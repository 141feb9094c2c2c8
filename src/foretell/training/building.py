"""What a run trains and reads: a model by its name, and a corpus by its own."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretell.backbone import isolates_documents
from foretell.checkpoints import (
    APART,
    BUNDLED,
    is_foretell_directory,
    load_causal_lm,
    new_causal_lm,
    resolve,
)
from foretell.data import REFUSED, Bad, PackedBlocks, StreamedBlocks, read_corpus
from foretell.errors import InputError
from foretell.model import MTPModel
from foretell.training.config import TrainConfig
from foretell.training.vocabulary import read_vocabulary


def build(
    name: str, config: TrainConfig, device: torch.device, backbone_at: str | None = None
) -> MTPModel:
    """The model to train: random weights under `pretrain`, given ones under all other recipes.

    Args:
        name: a directory, a Hub id, or a bundled model: the backbone, or under `native` heads.
        config: of the run.
        device: where to train.
        backbone_at: where the backbone of heads lies that are trained on, if not where they say.

    Raises:
        InputError: there is no such model, or it does not go with the recipe.
        BackboneError: it cannot carry the heads.
        CheckpointError: it cannot be loaded.
    """
    if backbone_at is not None and config.recipe != "native":
        raise InputError("--backbone goes with recipe native; else MODEL is the backbone.")
    torch.manual_seed(config.seed)
    dtype = _dtype(config, device)
    if config.recipe == "native":
        model = MTPModel.from_pretrained(
            name, backbone=backbone_at, dtype=dtype or "auto", device=device
        )
        if model.head is None:
            raise InputError(f"{name}: has no heads to train on; recipe frozen or joint adds some.")
        return model
    if config.recipe == "pretrain":
        backbone = new_causal_lm(name, config.seed, dtype or torch.float32)
    else:
        if is_foretell_directory(Path(resolve(name))):
            raise InputError(
                f"{name}: has heads already; train on with recipe native, or name the backbone "
                "that new ones are to be trained on."
            )
        backbone = load_causal_lm(name, dtype)
    backbone.to(device)  # type: ignore[arg-type]
    if config.vocabulary_file is None:
        return MTPModel(backbone, config.head)
    return _drafting(backbone, config)


def _drafting(backbone: PreTrainedModel, config: TrainConfig) -> MTPModel:
    """A model whose heads draft the tokens that a file lists."""
    plain = MTPModel(backbone)
    path, head = str(config.vocabulary_file), config.head
    tokens = read_vocabulary(path, plain.backbone.vocab_size, plain.stop_tokens)
    assert head is not None  # see TrainConfig
    model = MTPModel(backbone, head.replace(vocabulary=len(tokens)))
    vocabulary = model.require_head().vocabulary
    assert vocabulary is not None
    vocabulary.choose(tokens)
    return model


def _dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """What the backbone is loaded in: the type it is to train in; None where it stays as stored."""
    if config.precision == "bf16":
        return torch.bfloat16
    learns = config.backbone_learns and config.recipe != "lora"
    return torch.float32 if learns or device.type == "cpu" else None


def reference(name: str, model: MTPModel) -> str:
    """How heads that are stored alone name the backbone `model`, which was loaded from `name`."""
    if name in BUNDLED and name not in APART:
        return name
    name = model.backbone_path or name  # heads may be stored apart from it
    where = Path(resolve(name))
    return str(where.resolve()) if where.is_dir() else name


def read_training_text(
    data: str | Path,
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    bad: Bad = REFUSED,
) -> tuple[PackedBlocks | StreamedBlocks, PackedBlocks | None]:
    """What to train on, and what to measure on where some documents are held out.

    Args:
        data: see `foretell.data.read_documents`.
        model: that is trained; packed if it keeps documents apart.
        tokenizer: of the model.
        config: of the run.
        bad: what becomes of records that cannot be used; of a stream, while it is read.

    Raises:
        InputError: see `foretell.data.read_corpus`; blocks are longer than the model's context.
    """
    model.backbone.require_room(config.block_size, "blocks")
    return read_corpus(
        data,
        tokenizer,
        config.block_size,
        held_out=config.held_out,
        seed=config.seed,
        streaming=config.streaming,
        one_document_per_block=not isolates_documents(model.backbone, config.block_size),
        bad=bad,
    )
