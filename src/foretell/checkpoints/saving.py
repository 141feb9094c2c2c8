"""Saving a backbone, its head and its adapters together: to a directory, or to the Hub."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import PreTrainedModel

from foretell.backbone import fingerprint
from foretell.backbone.int8 import is_quantized
from foretell.backbone.weights import adapters_inside, packed_by
from foretell.checkpoints.adapters import Adapters
from foretell.checkpoints.heads import (
    ADAPTERS_DIRECTORY,
    CONFIG_FILES,
    HEADS_FILE,
    BackboneReference,
    StoredHeads,
    write_heads,
)
from foretell.checkpoints.wording import (
    NOT_SAVED_WITH,
    SAVED_WITH,
    UPLOADED_WITH,
    allowed,
)
from foretell.decoding import store_by_rows
from foretell.errors import CheckpointError, InputError
from foretell.files import local_path, replacing
from foretell.heads import Head


@dataclass(frozen=True)
class Assembled:
    """What is saved together.

    Attributes:
        lm: the backbone.
        head: None where there is none.
        adapters: inside of `lm`, ours to save; None where there are none.
        trained_on: see `StoredHeads`.
    """

    lm: PreTrainedModel
    head: Head | None
    adapters: Adapters | None
    trained_on: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of the backbone, or of its base where adapters are inside."""
        return fingerprint(self.lm) if self.adapters is None else self.adapters.base

    def require_savable(self, backbone_path: str | Path | None = None) -> None:
        """See `MTPModel.require_savable`."""
        kind, name = adapters_inside(self.lm), type(self.lm).__name__
        if kind is not None and self.adapters is None:
            raise CheckpointError(
                f"{name} was given adapters ({kind}) that are not saved with heads: put them in "
                "with MTPModel.adapt, or merge or remove them with the library that made them."
            )
        if any(part is not None and is_quantized(part) for part in (self.lm, self.head)):
            raise CheckpointError(
                f"the weights of {name} were rounded to 8 bits (`quantize`), which is for decoding "
                "alone; train and save it without."
            )
        if self.head is not None and self.head.vocabulary is not None:
            output: Any = self.lm.get_output_embeddings()
            try:
                self.head.vocabulary.check(len(output.weight))
            except InputError as error:
                raise CheckpointError(f"the heads cannot be saved: {error}") from None
        if backbone_path is not None:
            return
        if kind is not None:
            raise CheckpointError(
                "adapters are saved apart from their base: name its path, or merge them first."
            )
        quantizer = getattr(self.lm, "hf_quantizer", None)
        packer = packed_by(self.lm)
        if packer and not (quantizer and quantizer.is_serializable()):
            raise CheckpointError(
                f"the packed weights of {name} ({packer}) cannot be saved beside heads: name the "
                "path that the backbone is loaded from."
            )
        if not packer and getattr(self.lm.config, "quantization_config", None) is None:
            _require_its_class(self.lm)
        with TemporaryDirectory() as place, _in_one_line(name):
            self.lm.config.save_pretrained(place)
            if self.lm.can_generate():
                self.lm.generation_config.save_pretrained(place)

    def save(
        self,
        path: Path,
        backbone_path: str | Path | None,
        tokenizer: Any,
        options: Mapping[str, Any],
    ) -> None:
        """See `MTPModel.save_pretrained`."""
        more = allowed("save_pretrained", options, SAVED_WITH, NOT_SAVED_WITH)
        self.require_savable(backbone_path)
        # What an earlier save left and this one does not write would not fit any more.
        superseded = [*CONFIG_FILES, HEADS_FILE, ADAPTERS_DIRECTORY]
        if backbone_path is None:
            superseded.append("model*.safetensors*")
        with replacing(path, superseded, marks=CONFIG_FILES) as work:
            if backbone_path is None:
                store_by_rows(self.lm)  # others cannot be written
                with _in_one_line(type(self.lm).__name__):
                    self.lm.save_pretrained(work, **more)
            if tokenizer is not None:
                tokenizer.save_pretrained(work)
            if self.head is not None:
                reference = BackboneReference(
                    self.fingerprint,
                    type(self.lm).__name__,
                    _full_path(backbone_path),
                    adapted=self.adapters is not None,
                )
                told, tensors = self.head.config.to_dict(), self.head.state_dict()
                stored = StoredHeads(told, reference, tensors, self.trained_on)
                write_heads(work, stored)
            if self.adapters is not None:
                self.adapters.save(work / ADAPTERS_DIRECTORY)

    def push(
        self,
        repo_id: str,
        backbone_path: str | None,
        tokenizer: Any,
        private: bool | None,
        token: str | bool | None,
        options: Mapping[str, Any],
    ) -> str:
        """See `MTPModel.push_to_hub`."""
        told = allowed("push_to_hub", options, {*UPLOADED_WITH, *SAVED_WITH}, NOT_SAVED_WITH)
        more = {name: told.pop(name) for name in SAVED_WITH if name in told}
        if backbone_path is not None and local_path(backbone_path).exists():
            raise InputError(
                f"backbone_path is {backbone_path}, a directory of this machine; name the Hub id "
                "of the backbone, or leave it out to upload that too."
            )
        self.require_savable(backbone_path)
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as place:
            directory = Path(place) / "model"
            self.save(directory, backbone_path, tokenizer, more)
            done = api.upload_folder(repo_id=repo_id, folder_path=directory, **told)
        return str(done.commit_url)


def _full_path(backbone_path: str | Path | None) -> str | None:
    """A directory's path as it holds from anywhere; a Hub id or a bundled model as it is."""
    if backbone_path is None:
        return None
    path = local_path(backbone_path)
    return str(path.absolute()) if path.is_dir() else str(backbone_path)


def _require_its_class(lm: PreTrainedModel) -> None:
    """See to it that loading makes a place for each of a model's parameters, and no other.

    Raises:
        CheckpointError: it does not.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            made = dict(type(lm)(deepcopy(lm.config)).named_parameters(remove_duplicate=False))
    except Exception:  # a class may want more than its config
        return
    own = dict(lm.named_parameters(remove_duplicate=False))
    for name in sorted({*made, *own}):
        if name not in made or name not in own:
            much = "more than" if name in own else "without a part of what"
            problem = f"it is {much} its config describes ({name})"
        elif made[name].shape != own[name].shape:
            shapes = f"{tuple(own[name].shape)}, by its config {tuple(made[name].shape)}"
            problem = f"{name} has the shape {shapes}"
        else:
            continue
        raise CheckpointError(
            f"{type(lm).__name__} could be saved and not loaded again: {problem}; name the path "
            "that the backbone is loaded from, or change the config with the model."
        )


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """Turn what transformers raises of a model that it does not save into one line."""
    try:
        yield
    except OSError:  # of the disk: whoever writes the directory says it better
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"{name} cannot be saved: {reason}.") from None
