"""A training run from a model and text to a saved model."""

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from foretell.checkpoints import Adapters
from foretell.data import PackedBlocks, Sketch, StreamedBlocks
from foretell.errors import InputError
from foretell.files import local_path
from foretell.model import MTPModel
from foretell.probe import require_branches
from foretell.results.provenance import provenance
from foretell.training.config import TrainConfig
from foretell.training.following import Follow
from foretell.training.plan import Plan
from foretell.training.preparation import (
    check_blocks,
    check_loss,
    checkpoint_activations,
    compiled_blocks,
    set_attention,
    set_precision,
)
from foretell.training.processes import gather_whole, is_sharded, rows_per_pass, shards
from foretell.training.progress import Clock, Progress
from foretell.training.report import Departure, Movement, write_report
from foretell.training.rundir import RunDirectory
from foretell.training.trainer import Trainer
from foretell.training.vocabulary import choose_vocabulary


@dataclass
class TrainResult:
    """What a run leaves behind.

    Attributes:
        directory: of the trained model.
        steps: optimiser steps done.
        tokens: tokens read, over all steps, the filling of blocks included.
        seconds: training time spent, over all processes of the run.
        depth_losses: of the last report.
        movements: how far each part of the model went.
    """

    directory: Path
    steps: int
    tokens: int
    seconds: float
    depth_losses: tuple[float, ...] = ()
    movements: tuple[Movement, ...] = ()


def train(
    model: MTPModel,
    blocks: PackedBlocks | StreamedBlocks,
    config: TrainConfig,
    out: Path,
    *,
    held_out: PackedBlocks | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    backbone_path: str | None = None,
    begin: Callable[[Plan], None] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train `model` on `blocks` and save it to `out/model`; resume where `out` holds a checkpoint.

    Under `torchrun` or `accelerate launch` every process calls this with the same arguments.

    Args:
        model: with heads attached; changed in place.
        blocks: the corpus, one document per block where the backbone does not isolate documents.
        config: the settings.
        out: the run directory.
        held_out: blocks to measure the loss on, every `config.evaluate_every` steps.
        tokenizer: saved with the model.
        backbone_path: where the backbone can be loaded from; then `frozen` stores heads alone.
            Adapters that are not merged need it.
        begin: called with what is about to be done, before the first step, by the main process.
        report: called with the progress, by the main process: after each of the first steps, and
            then every `config.log_every` steps.

    Raises:
        BackboneError: the backbone lets documents that are packed in `blocks` attend to each other,
            or has no marginals that could be distilled.
        CheckpointError: the model could not be saved, see `MTPModel.require_savable`.
        InputError: `out` belongs to a run with other settings or is being trained in, or the
            blocks or adapters do not fit the model.
    """
    if config.attention is not None:
        set_attention(model, config.attention)
    for given in (blocks, held_out):
        if given is not None:
            check_blocks(model, given)
    if config.objective.distill == "marginal":
        strings = model.depth * config.objective.marginal_width
        require_branches(model.backbone, blocks.block_size + strings)
    _check_base(model, config, backbone_path)
    processes = PartialState(cpu=model.backbone.device.type == "cpu")
    rows_per_pass(config, processes.num_processes)
    shards(config, processes.num_processes)
    run = RunDirectory(local_path(out))
    with run.held() if processes.is_main_process else nullcontext():
        return _train(model, blocks, config, run, held_out, tokenizer, backbone_path, begin, report)


def _train(
    model: MTPModel,
    blocks: PackedBlocks | StreamedBlocks,
    config: TrainConfig,
    run: RunDirectory,
    held_out: PackedBlocks | None,
    tokenizer: PreTrainedTokenizerBase | None,
    backbone_path: str | None,
    begin: Callable[[Plan], None] | None,
    report: Callable[[Progress], None] | None,
) -> TrainResult:
    """`train`, once what it was given is known to fit."""
    processes = PartialState()
    source = {"backbone": model.backbone.fingerprint(), **blocks.describe()}
    process = provenance(config.seed, model.backbone.device, model.backbone.dtype)
    with processes.main_process_first():
        run.claim(config, source, process if processes.is_main_process else None)
        if processes.is_main_process:
            run.clear_after_resume_point()
    resume = run.resume_point()
    covered = choose_vocabulary(model, blocks)
    torch.manual_seed(config.seed)
    if config.recipe == "lora":
        lora = config.lora.model_dump(exclude={"merge"})
        model.adapt(lambda lm: Adapters.add(lm, **lora))
    if config.backbone_learns:
        check_loss(model)
    else:
        model.freeze_backbone()
    set_precision(model, config.precision)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    with processes.main_process_first():
        departure = Departure(run.departure, model)
    clock = Clock(config.minutes, resume.seconds if resume else 0.0, compiles=config.compile)
    if begin is not None and processes.is_main_process:
        begun, number = resume.step if resume else 0, processes.num_processes
        begin(Plan.of(model, blocks, config, begun=begun, processes=number, coverage=covered))
    trainer = Trainer(model, blocks, config, run, clock, resume)
    follow = Follow(trainer, held_out, report)
    with compiled_blocks(model) if config.compile else nullcontext(), closing(follow):
        trainer.train(follow)
    seconds = clock.seconds()
    model.eval()
    if sharded := is_sharded(model):
        gather_whole(model)
    movements: list[Movement] = []
    if processes.is_main_process:
        movements = write_report(run.path, model, departure, run.metrics())
    if config.recipe == "lora" and config.lora.merge and (processes.is_main_process or not sharded):
        model.merge_adapters()
    if processes.is_main_process:
        _store(model, blocks, config, run.model, tokenizer, backbone_path)
        run.finish()
    processes.wait_for_everyone()
    tokens = trainer.done * trainer.tokens_per_step
    return TrainResult(run.model, trainer.done, tokens, seconds, follow.latest, tuple(movements))


def _store(
    model: MTPModel,
    blocks: PackedBlocks | StreamedBlocks,
    config: TrainConfig,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    backbone_path: str | None,
) -> None:
    """Save the model; heads alone where the backbone did not change and can be found again."""
    apart = model.adapters is not None or not config.backbone_learns
    beside = model.tokenizer_path == model.backbone_path  # of the backbone
    known = Sketch.from_dict(model.trained_on) | blocks.sketch
    model.trained_on = known.to_dict() if len(known) else {}
    model.save_pretrained(
        directory,
        backbone_path=backbone_path if apart else None,
        tokenizer=None if apart and beside and backbone_path else tokenizer,
    )


def _check_base(model: MTPModel, config: TrainConfig, backbone_path: str | None) -> None:
    """Refuse what could be trained and then not be saved.

    Adapters that stay apart from their base are saved with its name; packed weights cannot change.
    """
    adds, packer = config.recipe == "lora", model.backbone.packed_by
    apart = model.adapters is not None or (adds and not config.lora.merge)
    if backbone_path is None and apart:
        raise InputError(
            "adapters are saved apart from their base, whose place is not known: "
            "give backbone_path, or merge them."
        )
    if packer and config.backbone_learns and not apart:
        raise InputError(
            f"recipe {config.recipe} changes the backbone's weights, which are packed ({packer}); "
            "use recipe frozen, or lora with lora.merge=false."
        )
    keeps = apart or not config.backbone_learns
    model.require_savable(backbone_path if keeps else None)
