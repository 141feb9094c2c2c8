"""One at a time: what several threads ask of one model takes turns.

A pass is watched by hooks on the model, which every pass of it sets off, whoever began it.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from copy import copy
from threading import Lock, RLock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Made = TypeVar("Made")

_turns: "WeakKeyDictionary[nn.Module, Any]" = WeakKeyDictionary()
_making = Lock()
_busy: set[int] = set()
"""Those that `alone` has given away, by identity."""


def turn_of(model: nn.Module) -> Any:
    """What a thread holds while it runs `model`: a lock that it may take several times."""
    made = RLock()  # before the lock is held: making anything may end streams that wait for it
    with _making:
        return _turns.setdefault(model, made)


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


@contextmanager
def alone(drafter: Made) -> Iterator[Made]:
    """The drafter, or a copy of it while it drafts for another stream: it keeps what it has read of
    the rows that it drafts for.
    """
    other = copy(drafter)
    with _making:
        mine = other if id(drafter) in _busy else drafter
        _busy.add(id(mine))
    try:
        yield mine
    finally:
        _busy.discard(id(mine))
