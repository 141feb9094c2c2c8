"""What transformers' users write beside a name: done as there, or refused with the reason.

What belongs to the loading of a backbone is handed on to transformers, what says where on the Hub
it lies is fetched from there, and what changes nothing here is passed over where it says just that.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from foretell.errors import InputError
from foretell.files import local_path

LOADED_WITH = (
    "attn_implementation", "experts_implementation", "quantization_config", "low_cpu_mem_usage",
    "use_kernels",
)  # fmt: skip
"""Handed on to transformers where a backbone is loaded."""

FETCHED_WITH = (
    "revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder",
)  # fmt: skip
"""Handed on to the Hub's library."""
NEEDED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.yaml")
"""The files of a model on the Hub that are fetched; weights in other forms are left there."""

Refused = Mapping[str, tuple[tuple[object, ...], str]]
"""By name: the values that change nothing, and why others are refused."""

NOT_LOADED_WITH: Refused = {
    "trust_remote_code": ((False,), "code that comes with a checkpoint is never run; leave it out"),
    "use_safetensors": ((True,), "weights are read from safetensors alone; leave it out"),
    "weights_only": ((True,), "weights are read from safetensors alone; leave it out"),
    "output_loading_info": ((False,), "what does not fit is an error here; leave it out"),
    "ignore_mismatched_sizes": ((False,), "what does not fit is an error here; leave it out"),
    "config": ((), "it is the checkpoint's own; load the model with transformers, for attach"),
    "state_dict": ((), "it is the checkpoint's own; load the model with transformers, for attach"),
    "variant": ((), "give a directory whose weights are called model.safetensors"),
    "proxies": ((), "name them in the variables HTTP_PROXY and HTTPS_PROXY"),
    "gguf_file": ((), "GGUF files are not read; give the model in safetensors"),
    "max_memory": ((), "heads need their backbone on one device; say which with device"),
    "offload_folder": ((), "heads need their backbone on one device; say which with device"),
    "offload_state_dict": ((False,), "heads need their backbone on one device"),
    "offload_buffers": ((False,), "heads need their backbone on one device"),
    "tp_plan": ((), "heads need their backbone on one device"),
    "tp_size": ((), "heads need their backbone on one device"),
    "device_mesh": ((), "heads need their backbone on one device"),
    "from_tf": ((False,), "weights are read from safetensors alone"),
    "from_flax": ((False,), "weights are read from safetensors alone"),
}  # fmt: skip

LOADING = frozenset({"dtype", "device", "device_map", "torch_dtype", *LOADED_WITH, *FETCHED_WITH,
                     *NOT_LOADED_WITH})  # fmt: skip
"""All that is said of how a model is loaded."""

SAVED_WITH = ("max_shard_size",)
"""Handed on to transformers where a backbone is saved."""

NOT_SAVED_WITH: Refused = {
    "safe_serialization": ((True,), "weights are written as safetensors alone; leave it out"),
    "push_to_hub": ((False,), "use MTPModel.push_to_hub"),
    "is_main_process": ((True,), "call it in the main process alone"),
    "state_dict": ((), "the model's own weights are saved"),
    "variant": ((), "files have the names that they are loaded by"),
    "use_temp_dir": ((True, False), "leave it out"),
    "tags": ((), "write them into the README.md of the repository"),
    "token": ((), "use MTPModel.push_to_hub"),
}

UPLOADED_WITH = (
    "path_in_repo", "commit_message", "commit_description", "revision", "create_pr",
    "parent_commit", "allow_patterns", "ignore_patterns", "delete_patterns",
)  # fmt: skip
"""Of `huggingface_hub.HfApi.upload_folder`."""


def allowed(
    caller: str, told: Mapping[str, Any], known: Collection[str], refused: Refused
) -> dict[str, Any]:
    """What `caller` was told of what it knows; None says nothing.

    Raises:
        InputError: something else was told, that is unknown or would change something.
    """
    found = {}
    for name, value in told.items():
        if name not in known and name not in refused:
            raise InputError(f"{caller} has no argument {name!r}; leave it out.")
        if value is None:
            continue
        if name in known:
            found[name] = value
            continue
        harmless, reason = refused[name]
        if not any(value is one for one in harmless):
            raise InputError(f"{caller} does nothing with {name}={value!r:.60}: {reason}.")
    return found


def type_told(told: dict[str, Any]) -> Any:
    """The type of the weights, under its name or the one of older releases; out of `told`."""
    given = [told.pop(name) for name in ("dtype", "torch_dtype") if name in told]
    named = [one for one in given if one != "auto"]
    spelled = {str(one).removeprefix("torch.") for one in named}
    if len(spelled) > 1:
        raise InputError(
            f"dtype is {named[0]} and torch_dtype {named[1]}; they mean the same, give one of them."
        )
    return next(iter(named), "auto")


def fetched(name: str | Path, told: dict[str, Any]) -> str | Path:
    """Where the model called `name` lies, once what says so is taken out of `told`.

    A directory is what it is. From the Hub the revision asked for is fetched, and is a directory
    from then on.

    Raises:
        InputError: it cannot be had.
    """
    asked = {word: told.pop(word) for word in FETCHED_WITH if word in told}
    asked = {word: value for word, value in asked.items() if value or word == "token"}
    inside = asked.pop("subfolder", None)
    on_hub = isinstance(name, str) and name.count("/") == 1 and not local_path(name).exists()
    if on_hub and (asked or inside):
        try:
            name = snapshot_download(str(name), allow_patterns=list(NEEDED), **asked)
        except Exception as error:  # of any HTTP library
            why = " ".join(str(error).split())
            raise InputError(
                f"model {name!r} cannot be fetched from the Hub ({why:.300})."
            ) from None
    return Path(name) / inside if inside else name
