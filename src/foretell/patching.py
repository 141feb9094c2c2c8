"""Drafts for a transformers model whose own `generate` is called, by code that knows nothing of us.

Calls that drafts cannot follow (beams, scores, embeddings, …) are answered by the model's own
`generate`, as if nothing had been done to it.
"""

import inspect
import logging
import threading
from collections.abc import Callable, Mapping
from functools import update_wrapper
from pathlib import Path
from types import MethodType, TracebackType
from typing import Any, Self, cast

import torch
from transformers import GenerationMixin, PreTrainedModel

from foretell.checkpoints import is_foretell_directory, read_heads, resolve
from foretell.decoding import Batch, Drafter, Sampling
from foretell.decoding.cache import require_decoding
from foretell.decoding.constraints import constraints
from foretell.decoding.drafters import NAMED
from foretell.errors import ForetellError, HeadError, InputError
from foretell.generation import modes_kept
from foretell.generation.translation import Request
from foretell.model import MTPModel

log = logging.getLogger(__name__)

_SIGNATURE = inspect.signature(GenerationMixin.generate)


class Patch:
    """A model's `generate`, exchanged; also a context manager, at whose end it is undone.

    Calls from several threads take turns: they share the backbone's hooks.

    Args:
        model: whose `generate` is called.
        decoder: the same backbone, with what drafts for it.
        drafter: that proposes tokens; None: the heads.
    """

    def __init__(
        self, model: PreTrainedModel, decoder: MTPModel, drafter: Drafter | str | None
    ) -> None:
        self.model, self.decoder, self.drafter = model, decoder, drafter
        self.original = cast(Callable[..., Any], model.generate)
        self.active, self._turn = True, threading.RLock()
        vars(model)["generate"] = _Generate(self)

    def undo(self) -> None:
        """Give the model its own `generate` back; nothing happens where that was done.

        What has kept or wrapped the patched `generate` in the meantime gets the original too.
        """
        self.active = False
        if _patch_of(self.model) is self:
            del vars(self.model)["generate"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """In drafts where that gives what the original would; else the original itself."""
        if not self.active:
            return self.original(*args, **kwargs)
        with self._turn:
            told = _told(args, kwargs)
            if told is None or not _followed(told):
                return self.original(*args, **kwargs)
            random, begun = torch.get_rng_state(), None
            with modes_kept(self.decoder):
                try:
                    begun = self.decoder.begin({**told, "drafter": self.drafter})
                except HeadError as error:
                    log.warning("%s Until then generate decodes without drafts.", error)
                except ForetellError:  # what cannot be followed
                    pass
                if begun is not None and self._alike(begun[0], begun[1], told):
                    return self.decoder.finish(*begun)
            torch.set_rng_state(random)  # seeds may have been drawn
            return self.original(*args, **kwargs)

    def _alike(self, request: Request, batch: Batch, told: Mapping[str, Any]) -> bool:
        """Whether the original would write the same, and return it in the same form."""
        if request.as_dict or not _sees_its_row(batch, told):
            return False
        mask = request.attention_mask
        if mask is None or bool(mask.all()):
            return True
        # The original goes on after padding on the right, and shows padding to its processors.
        shown = any(constraints(self.model, batch, Sampling(), request.config))
        return bool(mask[:, -1].all()) and not shown


class _Generate:
    """What stands in the place of a model's `generate`.

    A copy of the model gets its own `generate`, since heads and cache are the original's.
    """

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        update_wrapper(self, patch.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.patch.generate(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.patch.model))
        return self if copied is None else MethodType(type(copied).generate, copied)

    def __reduce__(self) -> Any:
        raise InputError("a patched model cannot be pickled; unpatch it first.")


def patch(model: PreTrainedModel, drafts: MTPModel | Drafter | str | Path = "lookup") -> Patch:
    """Have a model's own `generate(...)` decoded in drafts from now on.

    Whoever calls it, pipelines and libraries too, gets the same tokens in fewer passes: greedily
    the very same, drawn the same distribution by other random numbers. Calls that drafts cannot
    follow go to the model's own `generate`, and so do those that ask for a dictionary, those whose
    processors, or stopping criteria of several rows, are code that drafts might mislead, and those
    where the original reads padding: on the right, or on the left with penalties and the like.

    Args:
        model: any causal language model of transformers; it is patched in place.
        drafts: what proposes tokens: trained heads (a directory, a Hub id, or an `MTPModel` of this
            very model), a draft model by name, `"lookup"`, or a drafter.

    Returns:
        what was done, to `undo`; or use it in a `with` statement, or call `unpatch`.

    Raises:
        BackboneError: the model cannot be decoded in drafts.
        CheckpointError: the heads belong to another model.
        InputError: the model is patched already or has a `generate` that is not transformers', the
            heads bring adapters, or there is no such drafter.
    """
    name = type(model).__name__
    if _patch_of(model) is not None:
        raise InputError(f"{name} is patched already; unpatch it first.")
    if isinstance(cast(object, model), MTPModel):
        raise InputError("an MTPModel drafts by itself: call its generate, or patch its lm.")
    if getattr(model.generate, "__func__", None) is not GenerationMixin.generate:
        raise InputError(
            f"{name} has a generate of its own, which cannot be replaced by one that drafts."
        )
    drafts = str(drafts) if isinstance(drafts, Path) else drafts
    drafter: Drafter | str | None = None
    if isinstance(drafts, MTPModel):
        if drafts.lm is not model:
            raise InputError("these heads lie on another model object; patch their own, model.lm.")
        decoder = drafts
    elif isinstance(drafts, str) and _are_heads(drafts):
        with modes_kept(model):
            decoder = MTPModel.from_pretrained(drafts, backbone=model)
    else:
        decoder, drafter = MTPModel(model), drafts
    require_decoding(decoder.backbone)
    if isinstance(drafter, str):
        decoder.drafter_named(drafter)  # refused now, if at all
    return Patch(model, decoder, drafter)


def unpatch(model: PreTrainedModel) -> None:
    """Give a model its own `generate` back; nothing happens where it has it."""
    if (found := _patch_of(model)) is not None:
        found.undo()


def _are_heads(drafts: str) -> bool:
    """Whether they lie in a directory or on the Hub, and can be put on a model without a change."""
    if drafts in NAMED:
        return False
    where = Path(resolve(drafts))
    if not is_foretell_directory(where):
        return False
    if read_heads(where).backbone.adapted:
        raise InputError(
            f"{drafts}: its heads go with adapters, which would change what the model says; load "
            "them with MTPModel.from_pretrained and patch its lm."
        )
    return True


def _patch_of(model: PreTrainedModel) -> Patch | None:
    own = vars(model).get("generate")
    return own.patch if isinstance(own, _Generate) else None


def _told(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call by name; None where they are not what transformers takes."""
    try:
        bound = _SIGNATURE.bind(None, *args, **kwargs).arguments
    except TypeError:
        return None
    told = {**bound, **bound.get("kwargs", {})}
    told.pop("kwargs", None)
    del told["self"]
    return told


def _followed(told: Mapping[str, Any]) -> bool:
    """Whether the scores are changed by nothing but a row's tokens."""
    if told.get("prefix_allowed_tokens_fn") is not None:
        return False
    return all(map(_known, told.get("logits_processor") or ()))


def _sees_its_row(batch: Batch, told: Mapping[str, Any]) -> bool:
    """Whether stopping criteria, which are asked for each row alone, could tell the difference."""
    return len(batch) == 1 or all(map(_known, told.get("stopping_criteria") or ()))


def _known(part: object) -> bool:
    """Whether it is transformers' own."""
    return type(part).__module__.startswith("transformers.")
