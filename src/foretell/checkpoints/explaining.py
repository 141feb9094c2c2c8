"""What is wrong with a checkpoint, in one line that names the file and what to do.

transformers raises anything, from anywhere in it. Files are looked at only then, to find the one
that is to blame.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import nn

from foretell.checkpoints.heads import is_foretell_directory
from foretell.checkpoints.reading import GGUF, open_tensors, read_object, require_itself
from foretell.errors import BackboneError, CheckpointError

INDEX = "model.safetensors.index.json"
_WRAPPERS = re.compile(
    r"(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_model\.model|base_layer)\."
)
"""What torch.compile, DDP, FSDP, activation checkpointing and peft put into names."""

_OTHER_WEIGHTS = {
    **dict.fromkeys(
        ("*.bin", "*.pt", "*.pth", "*.ckpt"),
        "is a pickle file, which can run code when it is read, and is not read; convert it to "
        "safetensors.",
    ),
    "*.gguf": GGUF,
    "*.safetensors": "is not called model.safetensors, and no index names it; rename it.",
}


@contextmanager
def explained(
    where: str, what: str = "the model", check: Callable[[Path], object] = lambda directory: None
) -> Iterator[None]:
    """Turn what transformers raises into one line; `check` may find the file that is to blame."""
    try:
        with _quiet("transformers.modeling_utils"):
            yield
    except Exception as error:  # a broken config.json can break transformers anywhere
        reason = " ".join(str(error).split())
        if "Unrecognized configuration class" in reason:
            raise BackboneError(
                f"{where}: is not a causal language model that transformers lists; if it writes "
                "text all the same, load it by its class and give the model (backbone= for heads)."
            ) from None
        if "trust_remote_code" in reason:
            raise CheckpointError(
                f"{where}: {what} brings code of its own, which is not run; only what transformers "
                "itself knows is loaded."
            ) from None
        if (directory := _directory(where)) is not None:
            _read_config(directory)
            check(directory)
        if "attn_implementation" in reason or "has been toggled on" in reason:
            raise CheckpointError(
                f"{where}: an attention is asked for that cannot be had here ({_shorten(reason)}); "
                "install it, or change attn_implementation, here or in config.json."
            ) from None
        raise CheckpointError(f"{where}: {what} cannot be loaded: {_shorten(reason)}") from None


def _directory(where: str) -> Path | None:
    """Where a model's files lie on this machine, in the Hub's cache too; None where they do not."""
    if Path(where).is_dir():
        return Path(where)
    try:
        found = try_to_load_from_cache(where, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _read_config(directory: Path) -> dict[str, Any]:
    """What every model has to have."""
    if not (directory / "config.json").exists() and (found := sorted(directory.glob("*.gguf"))):
        raise CheckpointError(f"{found[0]}: {GGUF}")
    return read_object(directory / "config.json")


def check_generation(where: str) -> None:
    """Raise for a broken file, which transformers passes over, and how generation ends with it."""
    directory = _directory(where)
    if directory is not None and (path := directory / "generation_config.json").exists():
        read_object(path)


def check_weights(directory: Path) -> None:
    """Raise for the first file of weights that is not there, or not whole."""
    for path in _weight_files(directory):
        with open_tensors(path):
            pass


def _weight_files(directory: Path) -> list[Path]:
    named = _read_config(directory).get("transformers_weights")
    single, index = (directory / name for name in ("model.safetensors", INDEX))
    if isinstance(named, str):
        return [directory / named]
    if single.exists():
        return [single]
    if index.exists():
        files = read_object(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(v, str) for v in files.values()):
            raise CheckpointError(f"{index}: has no weight_map of names to files; fetch it again.")
        return [directory / file for file in sorted(set(files.values()))]
    for pattern, problem in _OTHER_WEIGHTS.items():
        if found := sorted(directory.glob(pattern)):
            raise CheckpointError(f"{found[0]}: {problem}")
    raise CheckpointError(f"{directory}: has no model.safetensors; fetch the weights too.")


def check_tokenizer(directory: Path) -> None:
    """Raise where there is none, or for its first file that is not whole."""
    found = tokenizer_files(directory)
    for path in found:
        require_itself(path)
        if path.suffix == ".json":
            read_object(path)
    if not found or [path.name for path in found] == ["tokenizer_config.json"]:
        named = " or name a model that has it with --backbone" * is_foretell_directory(directory)
        raise CheckpointError(
            f"{directory}: has no tokenizer beside the weights (tokenizer.json, tokenizer.model); "
            "save it there (tokenizer.save_pretrained, or save_pretrained with tokenizer=),"
            f"{named} or copy the model's own there."
        )


def tokenizer_files(directory: Path) -> list[Path]:
    """What a tokenizer is loaded from; empty where there is none."""
    kinds = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")
    return sorted({path for kind in kinds for path in directory.glob(kind)})


def wrapped_name(missing: Collection[str], unexpected: Collection[str]) -> tuple[str, str] | None:
    """A name with what a wrapper put into it, and the missing one that it stands for."""
    for name in sorted(unexpected):
        plain = _WRAPPERS.sub("", name)
        if plain != name and plain in missing:
            return name, plain
    for name in sorted(missing)[:1]:
        for other in sorted(unexpected):
            prefix = other.removesuffix(name)
            if prefix != other and all(f"{prefix}{each}" in unexpected for each in missing):
                return other, name
    return None


def without_place(model: nn.Module, where: str, unexpected: Collection[str]) -> list[str]:
    """Weights of a part that the model has, a block or a single layer, which it has no place for.

    Without them it would say something else than it learned to. Modules for further tokens, towers
    for images and the like are parts by themselves, and may be missing. So may constants that old
    checkpoints store: causal masks, and numbers.
    """
    parts = dict(model.named_modules())

    def belongs(name: str) -> bool:
        while name not in parts:
            name = name.rpartition(".")[0]
        alone = name != "" and not any(parts[name].children())
        return alone or any(piece.isdigit() for piece in name.split("."))

    names = {name for name in unexpected if belongs(name)}
    if not names or (directory := _directory(where)) is None:
        return []
    found = []
    for path in _weight_files(directory):
        with open_tensors(path) as file:
            for name in names & set(file.keys()):
                held = file.get_slice(name)
                if held.get_dtype().startswith(("F", "BF")) and 1 <= len(held.get_shape()) <= 3:
                    found.append(name)
    return sorted(found)


@contextmanager
def _quiet(logger: str) -> Iterator[Any]:
    """No load report from transformers: what it would warn about is an error here."""
    log = logging.getLogger(logger)
    # Not by its level, by which transformers decides to look at more things to warn of.
    log.addFilter(_is_error)
    try:
        yield
    finally:
        log.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
