"""What models of one config have in common, for tests that make or load one again and again."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from transformers import PreTrainedModel

from foretell.backbone import abilities, view
from foretell.backbone.anatomy import Anatomy

_kinds: WeakKeyDictionary[PreTrainedModel, Hashable] = WeakKeyDictionary()


def kind(model: PreTrainedModel) -> Hashable:
    """The same for models that had one class, config and type when they were first asked about."""
    if model not in _kinds:
        _kinds[model] = type(model), model.config.to_json_string(use_diff=False), model.dtype
    return _kinds[model]


class Alike(dict[Any, Any]):
    """Keeps one entry for all models of a kind."""

    def __getitem__(self, model: PreTrainedModel) -> Any:
        return super().__getitem__(kind(model))

    def __setitem__(self, model: PreTrainedModel, value: Any) -> None:
        super().__setitem__(kind(model), value)

    def setdefault(self, model: PreTrainedModel, default: Any = None) -> Any:
        return super().setdefault(kind(model), default)

    def pop(self, model: PreTrainedModel, *default: Any) -> Any:
        return super().pop(kind(model), *default)


known, rooms = Alike(), Alike()


@contextmanager
def tried_once() -> Iterator[None]:
    """What a model can do is tried on the first of its kind, and holds for the others."""
    room = view.room

    def once(parts: Anatomy) -> int | None:
        found = rooms.setdefault(parts.model, [])
        if not found:
            found.append(room(parts))
        return found[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(abilities, "_known", known)
        patch.setattr(view, "room", once)
        yield
