"""Opening a foretell directory, or a plain checkpoint: what is in it, checked and loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foretell.backbone import fingerprint, require_usable
from foretell.checkpoints.heads import (
    ADAPTERS_DIRECTORY,
    HEADS_FILE,
    BackboneReference,
    StoredHeads,
    config_file,
    is_foretell_directory,
    read_heads,
)
from foretell.checkpoints.loading import (
    backbone_of_heads,
    has_tokenizer,
    load_causal_lm,
    resolve,
)
from foretell.checkpoints.wording import (
    FETCHED_WITH,
    LOADED_WITH,
    NOT_LOADED_WITH,
    allowed,
    fetched,
    type_told,
)
from foretell.errors import CheckpointError, HeadError, InputError
from foretell.heads import Head, HeadConfig, head_class


@dataclass(frozen=True)
class Opened:
    """What lies in a directory.

    Attributes:
        where: the directory.
        source: where the backbone was loaded from.
        lm: the backbone; of heads that were stored, it is theirs.
        stored: the heads; None where there are none.
        warning: what to say of the backbone, where it was named and heads were trained on another.
    """

    where: str
    source: str
    lm: PreTrainedModel
    stored: StoredHeads | None
    warning: str | None = None

    @property
    def config_file(self) -> Path:
        """What describes the heads."""
        return config_file(Path(self.where))

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer lies: beside heads that have one, else beside the backbone.

        One beside heads is their backbone's, and not that of another which was named.
        """
        theirs = self.warning is None or not has_tokenizer(self.source)
        return self.where if theirs and has_tokenizer(self.where) else self.source

    @property
    def adapters(self) -> Path | None:
        """Where the adapters lie that belong into the backbone."""
        adapted = self.stored is not None and self.stored.backbone.adapted
        return Path(self.where) / ADAPTERS_DIRECTORY if adapted else None

    def head_config(self) -> HeadConfig | None:
        """What to build, after a look at the tensors that are to fill it.

        Raises:
            InputError, HeadError: heads cannot be told so, or have too few tensors.
        """
        if self.stored is None:
            return None
        config = head_class(str(self.stored.head.get("kind", ""))).Config.from_dict(
            self.stored.head
        )
        if config.modules > len(self.stored.tensors or {}):
            raise HeadError(
                f"heads of depth {config.depth} have more modules than {HEADS_FILE} has tensors."
            )
        return config


@dataclass(frozen=True)
class Loading:
    """How a model is to be loaded, once everything that was said of it is understood.

    Attributes:
        where: what lies where.
        dtype: of the weights; None: as they are stored.
        device: where the model is to be; None: where it is loaded.
        told: what transformers is told beside that.
    """

    where: str
    dtype: torch.dtype | None
    device: torch.device | str | None
    told: Mapping[str, Any]

    def load(self, source: str) -> PreTrainedModel:
        """The causal LM at `source`, not yet on the device."""
        return load_causal_lm(source, self.dtype, self.told)

    @classmethod
    def of(
        cls, caller: str, path: str | Path, options: Mapping[str, Any], backbone: object = None
    ) -> "Loading":
        """Check what `caller` was told; see `MTPModel.from_pretrained`."""
        ours = ("dtype", "torch_dtype", "device", "device_map")
        told = allowed(caller, options, {*ours, *LOADED_WITH, *FETCHED_WITH}, NOT_LOADED_WITH)
        dtype = _weights_type(type_told(told), backbone)
        device = _one_device(told.pop("device", None), told.pop("device_map", None))
        where = resolve(fetched(path, told))
        if told and isinstance(backbone, PreTrainedModel):
            raise InputError(
                f"{', '.join(told)}: for loading a backbone, and one is given; load that so."
            )
        return cls(where, dtype, device, told)


def open_checkpoint(
    path: str | Path,
    backbone: PreTrainedModel | str | Path | None,
    options: Mapping[str, Any],
) -> Opened:
    """What lies at `path`, its backbone loaded; see `MTPModel.from_pretrained`."""
    loading = Loading.of("from_pretrained", path, options, backbone)
    where, wanted, device = loading.where, loading.dtype, loading.device
    stored = read_heads(Path(where)) if is_foretell_directory(Path(where)) else None
    source, rounded, given, warning = where, False, backbone is not None, None
    if backbone is None or isinstance(backbone, (str, Path)):
        source = _backbone_of(where, stored, backbone)
        backbone = loading.load(source)
        rounded = wanted == torch.float16  # more than the fingerprint does
    if stored is not None:
        other = rounded and fingerprint(backbone) != stored.backbone.fingerprint
        checked = load_causal_lm(source) if other else backbone
        warning = _check_backbone(checked, stored.backbone, where, given=given)
    if device is not None:
        backbone.to(device)  # type: ignore[arg-type]
    return Opened(where, source, backbone, stored, warning)


def fill_head(
    head: Head, stored: StoredHeads, where: str | Path, vocab_size: int, *, other: bool = False
) -> None:
    """Copy stored tensors into a head; every one must be there, fit, and be wanted.

    Args:
        head: to be filled.
        stored: what with.
        where: it lies, for messages.
        vocab_size: V, of the model.
        other: whether the backbone is another than the heads were trained on.

    Raises:
        CheckpointError: one is not.
    """
    own, given = head.state_dict(), stored.tensors or {}
    wrong = [
        f"{name} ({_shape(own.get(name))} expected, {_shape(given.get(name))} found)"
        for name in sorted(own.keys() | given.keys())
        if _shape(own.get(name)) != _shape(given.get(name))
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: the heads do not fit {'this backbone' if other else 'their own config'}: "
            f"{wrong[0]}" + (f" and {len(wrong) - 1} more." if len(wrong) > 1 else ".")
        )
    head.load_state_dict(given)
    if head.vocabulary is not None:
        try:
            head.vocabulary.check(vocab_size)
        except InputError as error:
            raise CheckpointError(f"{where}: {error}") from None


def _one_device(
    device: torch.device | str | None,
    device_map: str | int | torch.device | Mapping[str, Any] | None,
) -> torch.device | str | None:
    """The device that both name, or None."""
    if device_map is None:
        return device
    if device is not None:
        raise InputError("device and device_map say the same; give one of them.")
    places = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    spread = len(set(places)) != 1 or places[0] in ("disk", "meta")
    if spread or (isinstance(places[0], str) and places[0].startswith("balanced")):
        raise InputError(
            f"device_map is {device_map!r}; heads need their backbone on one device: name it, or "
            '"auto".'
        )
    if places[0] == "auto":
        found = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
        return found or torch.device("cpu")
    return torch.device(places[0])


def _backbone_of(where: str, stored: StoredHeads | None, given: str | Path | None) -> str:
    """Where the backbone lies of the model at `where`; `given` goes before what its heads say."""
    if given is not None and stored is None:
        raise InputError(f"{where}: has no heads to put on the backbone at {given}.")
    if given is not None:
        return resolve(given)
    return backbone_of_heads(where) or where


def _weights_type(dtype: torch.dtype | str, backbone: object) -> torch.dtype | None:
    """The type to load weights in; None where they stay as they are."""
    if isinstance(dtype, str) and dtype == "auto":
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f'dtype is {dtype!r}; give "auto" or a type such as torch.bfloat16.')
    if isinstance(backbone, PreTrainedModel) and backbone.dtype != found:
        raise InputError(
            f"dtype is {found}, and the backbone that is given has {backbone.dtype}; load it in "
            "the type wanted."
        )
    return found


def _check_backbone(
    lm: PreTrainedModel, reference: BackboneReference, where: str | Path, *, given: bool
) -> str | None:
    """Refuse a backbone that heads were not trained on, but for one that somebody has `given`.

    Its output stays its own whatever heads draft. With adapters that belong to another it would
    not.

    Returns:
        what to say of the latter.
    """
    require_usable(lm)
    found, architecture = fingerprint(lm), type(lm).__name__
    if (found, architecture) == (reference.fingerprint, reference.architecture):
        return None
    problem = (
        f"{where}: its heads belong to a {reference.architecture} with fingerprint "
        f"{reference.fingerprint}, this backbone is a {architecture} with fingerprint {found}"
    )
    if architecture != reference.architecture:  # AutoModelForCausalLM may take the text alone
        remedy = f"load it as {reference.architecture}, and give that model as backbone=."
    elif reference.adapted:
        remedy = "their adapters change what it says; load them onto the backbone they belong to."
    elif not given:
        remedy = (
            "load the heads onto the backbone they were trained on, or name this one with "
            "--backbone, in Python backbone=, to draft for it all the same."
        )
    else:
        return f"{problem}; its text stays its own, fewer drafts may be accepted."
    raise CheckpointError(f"{problem}; {remedy}")


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))
