"""Drafts for a transformers model whose own `generate` is called, by code that knows nothing of us.

Calls that drafts cannot follow (beams, scores, embeddings, …) are answered by the model's own
`generate`, as if nothing had been done to it.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import update_wrapper
from pathlib import Path
from types import MethodType, TracebackType
from typing import Any, Self, cast

import torch
from transformers import GenerationMixin, PreTrainedModel

from foretell.checkpoint import is_foretell_directory
from foretell.decoding import Drafter
from foretell.decoding.cache import decodes
from foretell.decoding.drafters import NAMED
from foretell.errors import BackboneError, ForetellError, InputError
from foretell.loading import resolve
from foretell.model import MTPModel

_SIGNATURE = inspect.signature(GenerationMixin.generate)


class Patch:
    """A model's `generate`, exchanged; also a context manager, at whose end it is undone.

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
        self.own = vars(model).get("generate")
        vars(model)["generate"] = _Generate(self)

    def undo(self) -> None:
        """Give the model its own `generate` back; nothing happens where that was done."""
        if _patch_of(self.model) is not self:
            return
        del vars(self.model)["generate"]
        if self.own is not None:
            vars(self.model)["generate"] = self.own

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
        told = _told(args, kwargs)
        if told is None or not _followed(told):
            return self.original(*args, **kwargs)
        random, begun = torch.get_rng_state(), None
        with self.decoder.mode_kept():
            with suppress(ForetellError):
                begun = self.decoder.begin({**told, "drafter": self.drafter})
            if begun is not None and not begun[0].as_dict:
                return self.decoder.finish(*begun)
        torch.set_rng_state(random)  # seeds may have been drawn
        return self.original(*args, **kwargs)


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
    follow go to the model's own `generate`, and so do those that ask for a dictionary, and those
    whose processors, or stopping criteria of several rows, are code that drafts might mislead.

    Args:
        model: any causal language model of transformers; it is patched in place.
        drafts: what proposes tokens: trained heads (a directory, a Hub id, or an `MTPModel` of this
            very model), a draft model by name, `"lookup"`, or a drafter.

    Returns:
        what was done, to `undo`; or use it in a `with` statement, or call `unpatch`.

    Raises:
        BackboneError: the model cannot be decoded in drafts.
        CheckpointError: the heads belong to another model.
        InputError: the model is patched already, or there is no such drafter.
    """
    if _patch_of(model) is not None:
        raise InputError(f"{type(model).__name__} is patched already; unpatch it first.")
    drafter: Drafter | str | None = None
    if isinstance(drafts, MTPModel):
        if drafts.lm is not model:
            raise InputError("these heads lie on another model object; patch their own, model.lm.")
        decoder = drafts
    elif isinstance(drafts, (str, Path)) and str(drafts) not in NAMED:
        if is_foretell_directory(Path(resolve(drafts))):
            decoder = MTPModel.from_pretrained(drafts, backbone=model)
        else:
            decoder, drafter = MTPModel(model), str(drafts)
    else:
        decoder, drafter = MTPModel(model), drafts if not isinstance(drafts, Path) else None
    if not (able := decodes(decoder.backbone)):
        raise BackboneError(f"{type(model).__name__} cannot be decoded in drafts: {able.lacking}")
    if isinstance(drafter, str):
        decoder.drafter_named(drafter)  # refused now, if at all
    return Patch(model, decoder, drafter)


def unpatch(model: PreTrainedModel) -> None:
    """Give a model its own `generate` back; nothing happens where it has it."""
    if (found := _patch_of(model)) is not None:
        found.undo()


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
    """Whether what was given along depends on nothing but a row's tokens and scores."""
    if told.get("prefix_allowed_tokens_fn") is not None:
        return False
    if not all(map(_known, told.get("logits_processor") or ())):
        return False
    prompts = told.get("inputs") if told.get("inputs") is not None else told.get("input_ids")
    alone = prompts is not None and len(prompts) == 1 and not told.get("num_return_sequences")
    return alone or all(map(_known, told.get("stopping_criteria") or ()))


def _known(part: object) -> bool:
    """Whether it is transformers' own."""
    return type(part).__module__.startswith("transformers.")
