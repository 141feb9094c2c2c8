"""Finding and loading a causal language model by name, strictly.

transformers fills tensors that a checkpoint lacks with random numbers and a warning. Here that is
an error, as is everything else that would leave a model silently wrong.
"""

from collections.abc import Mapping
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

from foretell.backbone.trying import some_logits
from foretell.backbone.weights import is_plain
from foretell.checkpoints.adapters import Adapters, base_of_adapters, fit_vocabulary
from foretell.checkpoints.explaining import (
    check_generation,
    check_tokenizer,
    check_weights,
    explained,
    tokenizer_files,
    without_place,
    wrapped_name,
)
from foretell.checkpoints.heads import (
    CONFIG_FILES,
    config_file,
    is_foretell_directory,
    read_about,
)
from foretell.checkpoints.reading import GGUF
from foretell.errors import CheckpointError, InputError
from foretell.files import local_path

BUNDLED = ("tiny", "tiny-mtp", "smollm2-mtp")
"""Models that come with foretell."""

APART = {
    "smollm2-mtp": "run `make smollm2` in a clone of foretell and then this command there, or say "
    "where that model is with --backbone, in Python backbone="
}
"""Those of them that are heads alone, and how to come by their backbone."""


def resolve(name: str | Path) -> str:
    """The directory of a bundled model, or `name` itself where it is a directory or a Hub id."""
    if isinstance(name, str) and name in BUNDLED and not Path(name).exists():
        return str(_bundled() / name)
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


def _bundled() -> Path:
    return Path(str(files("foretell") / "bundled"))


def load_causal_lm(
    name: str | Path, dtype: torch.dtype | None = None, told: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """Load a causal LM with every tensor from its checkpoint, in evaluation mode.

    Where the checkpoint is adapters alone, they are merged into the model that they name.

    Args:
        name: a directory, a Hub id, or a bundled model.
        dtype: of the weights; None is the type they are stored in. transformers loads them in it,
            so that what it computes from the config (the scale of Gemma's embeddings) is exact in
            it too, and what a family keeps in float32 stays so.
        told: what transformers is told beside that, such as `attn_implementation`.

    Raises:
        CheckpointError: it cannot be loaded, or tensors are missing, of another shape, or without
            a place in a part that the model has.
        BackboneError: it is no causal LM.
    """
    where = resolve(name)
    if (base := base_of_adapters(where)) is not None:
        return _merged(where, base, dtype, told)
    _refuse_heads_alone(where)
    check_generation(where)
    with explained(where, check=check_weights):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,  # or transformers asks on the terminal whether to run it
            ignore_mismatched_sizes=True,  # reported below, by name
            **(told or {}),
        )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
    if found := wrapped_name(missing, info["unexpected_keys"]):
        raise CheckpointError(
            f"{where}: holds {found[0]} for {found[1]}, a name that a wrapper (torch.compile, "
            "DDP, FSDP, peft) left; save the model that is inside of the wrapper."
        )
    for problem, names in (("lacks", missing), ("has another shape for", mismatched)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{where}: the checkpoint {problem} {names[0]}{more}; fetch it again."
            )
    if unplaced := without_place(model, where, info["unexpected_keys"]):
        more = f" and {len(unplaced) - 1} more" if len(unplaced) > 1 else ""
        raise CheckpointError(
            f"{where}: holds {unplaced[0]}{more}, and the model that its config.json describes has "
            "no place for it; fetch config and weights again, they are not of one model."
        )
    return cast(PreTrainedModel, model.eval())


def _merged(
    where: str, base: str, dtype: torch.dtype | None, told: Mapping[str, Any] | None
) -> PreTrainedModel:
    """The model at `base` with the adapters at `where` in its weights.

    They are added in float32, whatever the type of the result, so that heads know their backbone
    again on another device. The model must say the same as before.
    """
    if Path(base).resolve() == Path(where).resolve():
        raise CheckpointError(f"{where}: adapters that name themselves as their base.")
    try:
        model = load_causal_lm(base, torch.float32, told)
    except InputError as error:
        raise CheckpointError(f"{where}: holds adapters, and of their base: {error}") from None
    if not all(map(is_plain, model.parameters())):
        raise CheckpointError(
            f"{where}: holds adapters on packed weights ({base}), which they cannot be merged "
            "into; merge them into the model before it was quantised."
        )
    fit_vocabulary(model, Path(where))
    adapters = Adapters.load(model, Path(where))
    adapted = some_logits(model.eval())
    try:
        adapters.merge()
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    if not torch.allclose(some_logits(model), adapted, atol=1e-3 * float(adapted.abs().max())):
        raise CheckpointError(
            f"{where}: merging the adapters changes what the model says, as where they adapt an "
            "embedding that is tied to the output head; merge them by hand and load the result."
        )
    _say_if_untied(model)
    if dtype == torch.float32:
        return model
    # Of that type from the beginning: what a family computes from its config is too.
    typed = load_causal_lm(base, dtype, told)
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


def new_causal_lm(
    name: str | Path, seed: int, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A causal LM of the config found at `name`, with random weights of type `dtype`."""
    where = resolve(name)
    _refuse_heads_alone(where)
    with explained(where):
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
        with explained(where, "its tokenizer", check_tokenizer):
            found = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except CheckpointError:  # adapters on the Hub may come without one, which is not seen before
        base = None if Path(where).is_dir() else base_of_adapters(where)
        if base is None or resolve(base) == where:
            raise
        return load_tokenizer(base)
    return cast(PreTrainedTokenizerBase, found)


def has_tokenizer(where: str) -> bool:
    """Whether a directory has files of a tokenizer; of what the Hub has, it is taken to be so."""
    return not Path(where).is_dir() or bool(tokenizer_files(Path(where)))


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
        remedy = "say where it is now with --backbone, in Python backbone=, or in that file"
        if Path(where).parent == _bundled():
            remedy = APART[Path(where).name]
        raise CheckpointError(
            f"{config_file(Path(where))}: its backbone, {named}, is not found "
            f"({str(error).rstrip('.')}); {remedy}."
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
        reason = f"is not a directory here, and the Hub cannot be asked for it ({why})"
    else:
        return name
    raise InputError(f"model {name!r} {reason}; check the name.")
