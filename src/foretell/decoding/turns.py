"""One at a time: what several threads ask of one model takes turns.

A pass is watched by hooks on the model, which every pass of it sets off, whoever began it.
"""

from collections.abc import Generator, Iterator
from threading import Lock, RLock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Made = TypeVar("Made")

_turns: "WeakKeyDictionary[nn.Module, Any]" = WeakKeyDictionary()
_making = Lock()


def turn_of(model: nn.Module) -> Any:
    """What a thread holds while it runs `model`: a lock that it may take several times."""
    with _making:
        return _turns.setdefault(model, RLock())


def in_turns(model: nn.Module, steps: Generator[Made, None, None]) -> Iterator[Made]:
    """What `steps` yields, each made while no other thread runs `model`; then others may."""
    turn, over = turn_of(model), object()
    try:
        while True:
            with turn:
                made = next(steps, over)
            if made is over:
                return
            yield made  # type: ignore[misc]
    finally:
        with turn:  # it takes its hooks off the model
            steps.close()
