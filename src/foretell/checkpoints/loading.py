"""Finding and loading a causal language model by name, strictly.

transformers fills tensors that a checkpoint lacks with random numbers and a warning. Here that is
an error, as is everything else that would leave a model silently wrong.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from foretell.backbone.weights import is_plain
from foretell.checkpoints.adapters import Adapters, base_of_adapters, fit_vocabulary
from foretell.checkpoints.heads import (
    CONFIG_FILES,
    config_file,
    is_foretell_directory,
    read_about,
)
from foretell.checkpoints.reading import GGUF, open_tensors, read_object, require_itself
from foretell.errors import BackboneError, CheckpointError, InputError
from foretell.files import local_path

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

BUNDLED = ("tiny", "tiny-mtp")
"""Models that come with foretell."""


def resolve(name: str | Path) -> str:
    """The directory of a bundled model, or `name` itself where it is a directory or a Hub id."""
    if isinstance(name, str) and name in BUNDLED and not Path(name).exists():
        return str(files("foretell") / "bundled" / name)
    path = local_path(name)
    if path.is_dir() and str(name):
        return str(path)
    if isinstance(name, str) and name.count("/") == 1 and not path.exists():
        return _find_on_hub(name)
    if path.suffix == ".gguf" and path.is_file():
        raise InputError(f"model {str(name)!r} {GGUF}")
    problem = "is a file, not a model directory" if path.is_file() else "does not exist"
    raise InputError(
        f"model {str(name)!r} {problem}; "
        f"give a directory, a Hub id (owner/name) or {' or '.join(BUNDLED)}."
    )


def load_causal_lm(name: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a causal LM with every tensor from its checkpoint, in evaluation mode.

    Where the checkpoint is adapters alone, they are merged into the model that they name.

    Args:
        name: a directory, a Hub id, or a bundled model.
        dtype: of the weights; None is the type they are stored in. transformers loads them in it,
            so that what it computes from the config (the scale of Gemma's embeddings) is exact in
            it too, and what a family keeps in float32 stays so.

    Raises:
        CheckpointError: it cannot be loaded, or tensors are missing, of another shape, or without
            a place in a part that the model has.
        BackboneError: it is no causal LM.
    """
    where = resolve(name)
    if (base := base_of_adapters(where)) is not None:
        return _merged(where, base, dtype)
    _refuse_heads_alone(where)
    _check_generation(where)
    with _explained(where, check=_check_weights):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,  # or transformers asks on the terminal whether to run it
            ignore_mismatched_sizes=True,  # reported below, by name
        )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
    if wrapped := _wrapped(missing, info["unexpected_keys"]):
        raise CheckpointError(
            f"{where}: holds {wrapped[0]} for {wrapped[1]}, a name that a wrapper (torch.compile, "
            "DDP, FSDP, peft) left; save the model that is inside of the wrapper."
        )
    for problem, names in (("lacks", missing), ("has another shape for", mismatched)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{where}: the checkpoint {problem} {names[0]}{more}; fetch it again."
            )
    if unplaced := _unplaced(model, where, info["unexpected_keys"]):
        more = f" and {len(unplaced) - 1} more" if len(unplaced) > 1 else ""
        raise CheckpointError(
            f"{where}: holds {unplaced[0]}{more}, and the model that its config.json describes has "
            "no place for it; fetch config and weights again, they are not of one model."
        )
    return cast(PreTrainedModel, model.eval())


def _merged(where: str, base: str, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model at `base` with the adapters at `where` in its weights.

    They are added in float32, whatever the type of the result, so that heads know their backbone
    again on another device. The model must say the same as before.
    """
    if Path(base).resolve() == Path(where).resolve():
        raise CheckpointError(f"{where}: adapters that name themselves as their base.")
    try:
        model = load_causal_lm(base, torch.float32)
    except InputError as error:
        raise CheckpointError(f"{where}: holds adapters, and of their base: {error}") from None
    if not all(map(is_plain, model.parameters())):
        raise CheckpointError(
            f"{where}: holds adapters on packed weights ({base}), which they cannot be merged "
            "into; merge them into the model before it was quantised."
        )
    fit_vocabulary(model, Path(where))
    adapters = Adapters.load(model, Path(where))
    adapted = _some_logits(model.eval())
    adapters.merge()
    if not torch.allclose(_some_logits(model), adapted, atol=1e-3 * float(adapted.abs().max())):
        raise CheckpointError(
            f"{where}: merging the adapters changes what the model says, as where they adapt an "
            "embedding that is tied to the output head; merge them by hand and load the result."
        )
    _say_if_untied(model)
    if dtype == torch.float32:
        return model
    typed = load_causal_lm(base, dtype)  # what a family computes from its config is of the type
    fit_vocabulary(typed, Path(where))
    _take_weights(typed, model)
    return typed


def _take_weights(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """The weights of `source` in the types of `model`'s, each matrix once, as it is there."""
    types = {name: value.dtype for name, value in model.state_dict().items()}
    given, made = source.state_dict(keep_vars=True), dict[int, Tensor]()
    for name, value in given.items():
        typed = value.detach().to(types[name])
        learned = isinstance(value, nn.Parameter)
        made.setdefault(id(value), nn.Parameter(typed) if learned else typed)
    model.load_state_dict({name: made[id(value)] for name, value in given.items()}, assign=True)
    _say_if_untied(model)


def _say_if_untied(model: PreTrainedModel) -> None:
    """Adapters may bring one of two matrices that were tied: then the config is to say so.

    peft does it from some release on.
    """
    output = model.get_output_embeddings()
    if output is not None and output.weight is not model.get_input_embeddings().weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


@torch.no_grad()
def _some_logits(model: PreTrainedModel) -> Tensor:
    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = torch.arange(8).remainder(vocabulary).unsqueeze(0)
    return cast(Tensor, model(input_ids=tokens, use_cache=False).logits)


def new_causal_lm(
    name: str | Path, seed: int, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A causal LM of the config found at `name`, with random weights of type `dtype`."""
    where = resolve(name)
    _refuse_heads_alone(where)
    with _explained(where):
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return cast(PreTrainedModel, model)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, or beside the one that heads or adapters alone belong on.

    Raises:
        InputError: there is no such model.
        CheckpointError: there is no tokenizer, it is broken, or that model is not found.
    """
    where, passed = resolve(name), set[str]()
    while not has_tokenizer(where):
        passed.add(where)
        further = backbone_of_heads(where) or base_of_adapters(where)
        if further is None or (place := resolve(further)) in passed:
            break
        where = place
    try:
        with _explained(where, "its tokenizer", _check_tokenizer):
            found = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except CheckpointError:  # adapters on the Hub may come without one, which is not seen before
        base = None if Path(where).is_dir() else base_of_adapters(where)
        if base is None or resolve(base) == where:
            raise
        return load_tokenizer(base)
    return cast(PreTrainedTokenizerBase, found)


def has_tokenizer(where: str) -> bool:
    """Whether a directory has files of a tokenizer; of what the Hub has, it is taken to be so."""
    return not Path(where).is_dir() or bool(_tokenizer_files(Path(where)))


def backbone_of_heads(where: str) -> str | None:
    """Where the backbone of the heads in the directory `where` lies, as they say.

    None where it lies beside them, or there are no heads.

    Raises:
        CheckpointError: it is not found, or their config is broken.
    """
    if not is_foretell_directory(Path(where)):
        return None
    if (named := read_about(Path(where)).backbone.path) is None:
        return None
    try:
        return resolve(named)
    except InputError as error:
        raise CheckpointError(
            f"{config_file(Path(where))}: its backbone, {named}, is not found "
            f"({str(error).rstrip('.')}); say where it is now with --backbone, in Python "
            "backbone=, or in that file."
        ) from None


def _refuse_heads_alone(where: str) -> None:
    if (backbone := backbone_of_heads(where)) is not None:
        raise CheckpointError(
            f"{where}: holds heads alone, and a backbone is wanted here; theirs is {backbone}."
        )


def _find_on_hub(name: str) -> str:
    """A Hub id, or the local snapshot of a repository that holds heads.

    Says at once that a model cannot be had, where transformers would retry for a minute.
    """
    try:
        for config in CONFIG_FILES:
            if isinstance(heads := try_to_load_from_cache(name, config), str):
                return str(Path(heads).parent)
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return name
        held = model_info(name, timeout=10).siblings or ()
        if any(file.rfilename in CONFIG_FILES for file in held):
            return snapshot_download(name)
    except (HFValidationError, RepositoryNotFoundError):
        reason = "is neither a directory nor a model on the Hub (a private one needs a login)"
    except Exception as error:  # whatever the HTTP library of the day raises
        why = " ".join(str(error).split())
        reason = f"is no directory, and the Hub cannot be asked for it ({why})"
    else:
        return name
    raise InputError(f"model {name!r} {reason}; check the name.")


@contextmanager
def _explained(
    where: str, what: str = "the model", check: Callable[[Path], object] = lambda directory: None
) -> Iterator[None]:
    """Turn what transformers raises into one line; `check` may find the file that is to blame."""
    try:
        with _quiet("transformers.modeling_utils"):
            yield
    except Exception as error:  # a broken config.json can break transformers anywhere
        reason = " ".join(str(error).split())
        if "Unrecognized configuration class" in reason:
            raise BackboneError(f"{where}: is not a causal language model.") from None
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
                f"{where}: config.json asks for an attention that cannot be had here "
                f"({_shorten(reason)}); install it, or take attn_implementation out of that file."
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


def _check_generation(where: str) -> None:
    """Raise for a broken file, which transformers passes over, and how generation ends with it."""
    directory = _directory(where)
    if directory is not None and (path := directory / "generation_config.json").exists():
        read_object(path)


def _check_weights(directory: Path) -> None:
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


def _check_tokenizer(directory: Path) -> None:
    """Raise where there is none, or for its first file that is not whole."""
    found = _tokenizer_files(directory)
    for path in found:
        require_itself(path)
        if path.suffix == ".json":
            read_object(path)
    if not found or [path.name for path in found] == ["tokenizer_config.json"]:
        raise CheckpointError(
            f"{directory}: has no tokenizer beside the weights (tokenizer.json, tokenizer.model); "
            "copy the model's own there."
        )


def _tokenizer_files(directory: Path) -> list[Path]:
    kinds = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")
    return sorted({path for kind in kinds for path in directory.glob(kind)})


def _wrapped(missing: Collection[str], unexpected: Collection[str]) -> tuple[str, str] | None:
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


def _unplaced(model: nn.Module, where: str, unexpected: Collection[str]) -> list[str]:
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
                if held.get_dtype()[0] in "FB" and 1 <= len(held.get_shape()) <= 3:
                    found.append(name)
    return sorted(found)


@contextmanager
def _quiet(logger: str) -> Iterator[Any]:
    """No load report from transformers: what it would warn about is an error here."""
    log = logging.getLogger(logger)
    # Not by its level, by which transformers decides to look at more things to warn of.
    errors = _Errors()
    log.addFilter(errors)
    try:
        yield
    finally:
        log.removeFilter(errors)


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _Errors(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR
