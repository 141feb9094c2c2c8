"""CUDA graphs of passes of fixed shape.

A small model's pass on a GPU waits for the host, which launches a thousand kernels one by one. A
graph launches them at once. They are the same kernels, so the numbers are those of the same pass
without a graph, and recording them takes no longer than that pass.
"""

import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache

from foretell.backbone import Backbone
from foretell.backbone.anatomy import name_of
from foretell.decoding.arguments import caches, exchanged, leaves, tensors

Replay = Callable[[], None]
Record = Callable[[Callable[[], Any]], tuple[Replay, Any]]
"""Records what a function has the device do: how to have it done again, and where its results will
lie."""

slow_calls = 0
"""How many calls were no playback so far: they tell nothing of the speed of those to come."""


class Captured:
    """A function as a CUDA graph for each shape that it meets.

    A shape runs as it is the first time, is recorded the second time and played back from then on.
    Arguments are copied to where the graph reads them; caches are read and written in place. What
    comes back is overwritten by the next call.

    Where a pass makes the host wait for the device, as some mixtures of experts do, it cannot be
    recorded: it goes on running as it is, and a warning says so.

    Args:
        function: of tensors, caches of a `SlottedPast`, and what does not change.
        backbone: that runs in it.
        recorder: makes what records graphs that share their memory; by default CUDA's.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        backbone: Backbone,
        recorder: Callable[[], Record] | None = None,
    ) -> None:
        self.function, self.backbone = function, backbone
        self.recorder = recorder or partial(Recorder, backbone.device)
        self.record: Record | None = None
        self.graphs: dict[Hashable, Graph | None] = {}
        self.objects: dict[int, tuple[Callable[[], Any], int]] = {}
        self.counted = 0
        self.versions: list[int] = []
        self.refused = False
        if len({parameter.device for parameter in backbone.model.parameters()}) > 1:
            self._refuse("its weights lie on several devices")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        global slow_calls
        if self.refused:
            return self.function(*args, **kwargs)
        given = args, kwargs
        versions = [slots.version for slots in _slots(given)]
        if versions != self.versions:
            self.graphs.clear()  # they know tensors that the cache has no more
            self.versions, self.record = versions, None
        case = self.backbone.watchers, *self._traits(given)
        if graph := self.graphs.get(case):
            return graph(given)
        slow_calls += 1
        if case not in self.graphs:
            self.graphs[case] = None
            with _waits() as waits:
                output = self.function(*args, **kwargs)
            if waits:
                self._refuse(waits[0])
            return output
        try:
            self.record = self.record or self.recorder()
            self.graphs[case] = graph = Graph(self.function, given, self.record)
        except RuntimeError as error:
            self._refuse(str(error).partition("\n")[0])
            return self.function(*args, **kwargs)
        return graph(given)

    def _traits(self, given: Any) -> Iterator[Hashable]:
        """What a recorded function takes for granted about its arguments."""
        for leaf in (*leaves(given), *leaves([slots.reached for slots in _slots(given)])):
            if isinstance(leaf, Tensor):
                yield leaf.shape, leaf.dtype
            elif leaf is None or isinstance(leaf, (int, float, str)):
                yield leaf
            elif isinstance(leaf, slice):
                yield leaf.start, leaf.stop
            elif not isinstance(leaf, Cache):
                yield self._number(leaf)

    def _number(self, value: object) -> tuple[str, int]:
        """The same for the same object alone, also where another gets its address later. A drafter
        holds what is recorded of it: so that this is no cycle, it is not held here.
        """
        known, number = self.objects.get(id(value), (None, 0))
        if known is None or known() is not value:
            try:
                known = weakref.ref(value)
            except TypeError:  # of a plain value there is no weak reference

                def known() -> Any:
                    return value

            self.counted += 1
            self.objects[id(value)] = known, (number := self.counted)
        return "object", number

    def _refuse(self, reason: str) -> None:
        self.refused = True
        self.graphs.clear()
        warnings.warn(
            f"{name_of(self.backbone.model)} cannot be recorded as a CUDA graph ({reason}); its "
            "passes run uncompiled.",
            stacklevel=3,
        )


class Graph:
    """A function, recorded for arguments of one shape."""

    def __init__(self, function: Callable[..., Any], given: Any, record: Record) -> None:
        slots = _slots(given)
        copied = exchanged((given, [each.reached for each in slots]), Tensor.clone)
        (args, kwargs), places = copied

        def run() -> Any:
            before = [each.reached for each in slots]
            try:
                for each, reached in zip(slots, places, strict=True):
                    each.reached = reached
                return function(*args, **kwargs)
            finally:
                for each, reached in zip(slots, before, strict=True):
                    each.reached = reached

        self.inputs = tensors(copied)
        self.replay, self.output = record(run)

    def __call__(self, given: Any) -> Any:
        """The result for other arguments of that shape."""
        now = tensors((given, [each.reached for each in _slots(given)]))
        for own, tensor in zip(self.inputs, now, strict=True):
            own.copy_(tensor)
        self.replay()
        return self.output


class Recorder:
    """CUDA's way; graphs of one recorder share their memory.

    Args:
        device: a GPU, be it the current one or not.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def __call__(self, run: Callable[[], Any]) -> tuple[Replay, Any]:
        with torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            # The outer context gives the current stream back where recording fails.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(
                    graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
                ),
            ):
                output = run()
        return graph.replay, output


def _slots(given: Any) -> list[Any]:
    """The `Slots` of the caches in some arguments, each once."""
    every = [cast(Any, cache.layers[0]).slots for cache in caches(given)]
    return list({id(slots): slots for slots in every}.values())


@contextmanager
def _waits() -> Iterator[list[str]]:
    """What makes the host wait for the device, within; CUDA tells."""
    found: list[str] = []
    if not torch.cuda.is_available():
        yield found
        return
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            found.append("the host waits for the device within them")
        elif "prototype feature" not in str(warning.message):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
