"""Heads on disk: `foretell.json` (what they are, and whose) beside `heads.safetensors`.

A directory holds heads alone, with a reference to their backbone, or heads beside an ordinary
Hugging Face checkpoint, which then loads in plain transformers as if the heads were not there.
Either way the backbone's fingerprint is stored, and loading onto another backbone is an error.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from safetensors.torch import save_file
from torch import Tensor

from foretell.checkpoints.reading import read_tensors
from foretell.errors import CheckpointError

FORMAT_VERSION = 1
CONFIG_FILE = "foretell.json"
CONFIG_FILES = (CONFIG_FILE, "foretoken.json")
"""The names that are read: this package was called foretoken before its first release."""
HEADS_FILE = "heads.safetensors"
ADAPTERS_DIRECTORY = "adapters"


@dataclass(frozen=True)
class BackboneReference:
    """Whose heads they are.

    Attributes:
        fingerprint: `Backbone.fingerprint()` of the backbone that they were trained on.
        architecture: its class, for people.
        path: where it can be loaded from; None where it lies in the same directory.
        adapted: whether adapters beside the heads belong on it; the fingerprint is its own without
            them.
    """

    fingerprint: str
    architecture: str
    path: str | None = None
    adapted: bool = False

    def check(self) -> None:
        """Raise ValueError where a field holds something else than it should."""
        for name, kind in get_type_hints(type(self)).items():
            if not isinstance(value := getattr(self, name), kind) or value == "":
                raise ValueError(f"backbone.{name} is {value!r}")


@dataclass(frozen=True)
class StoredHeads:
    """What a directory says about heads.

    Attributes:
        head: their config.
        backbone: whose they are.
        tensors: None where only the config was read.
        trained_on: a sketch of the documents that they learned from, see `foretell.data.Sketch`;
            empty where that is not known.
    """

    head: dict[str, Any]
    backbone: BackboneReference
    tensors: dict[str, Tensor] | None = None
    trained_on: Mapping[str, Any] = field(default_factory=dict)


def is_foretell_directory(path: Path) -> bool:
    """Whether `path` holds heads."""
    return config_file(path).is_file()


def config_file(directory: Path) -> Path:
    """The config in `directory` under whichever name it has; where it would be if there is none."""
    found = (directory / name for name in CONFIG_FILES if (directory / name).is_file())
    return next(found, directory / CONFIG_FILE)


def write_heads(directory: Path, stored: StoredHeads) -> None:
    """Write config and tensors into an existing directory."""
    if stored.tensors is None:
        raise CheckpointError(f"{directory}: no tensors to write.")
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in stored.tensors.items()},
        directory / HEADS_FILE,
    )
    config = {
        "format_version": FORMAT_VERSION,
        "head": stored.head,
        "backbone": asdict(stored.backbone),
    }
    if stored.trained_on:
        config["trained_on"] = dict(stored.trained_on)
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_heads(directory: Path) -> StoredHeads:
    """Read both files, refusing what is truncated, foreign or of a later format."""
    return replace(read_about(directory), tensors=read_tensors(directory / HEADS_FILE))


def read_about(directory: Path) -> StoredHeads:
    """Read the config alone, with as much suspicion."""
    path = config_file(directory)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format version {version} is not {FORMAT_VERSION}; "
                "it was written by another release of foretell, use that one or a newer."
            )
        head, backbone = dict(config["head"]), BackboneReference(**config["backbone"])
        backbone.check()
        trained_on = dict(config.get("trained_on") or {})
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is not a foretell config ({error}); save the model again."
        ) from None
    return StoredHeads(head, backbone, trained_on=trained_on)
