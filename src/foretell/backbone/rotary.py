"""Rotary embeddings that depend on how far a pass reaches, given to each token as if it were alone.

LongRoPE (Ding et al. 2024, arXiv 2402.13753) has other frequencies once a text is longer than what
the model was first trained on, dynamic NTK scaling has others for every further token, and
transformers chooses them for a whole pass, by its largest position. A draft, a longer neighbour in
the batch or another document of the block would then change what a token is. So every token says
how far the pass would reach that it would be read in without them, its *extent*, and is rotated as
there.

Which modules do so, and from which length on, is tried out on copies: some remember the longest
pass that they have seen.

Shapes: B rows, W tokens of a pass.
"""

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from foretell.backbone.anatomy import Anatomy
from foretell.backbone.trying import evaluating
from foretell.backbone.weights import packed

FAR = 1 << 24
"""Further than any model was built for; float32 still holds it exactly."""

Rotation = dict[Hashable, Any]
"""What rotary embeddings answer in a pass, by which of them is called how."""


@dataclass(eq=False)
class Call:
    """How a decoder calls one of its rotary embeddings.

    Attributes:
        number: of the module.
        original: the module that the decoder calls.
        module: a copy of it, to be asked what it would answer in other passes.
        args, kwargs: of the call.
        switch: in passes of up to this many tokens it answers alike.
        grows: whether it answers otherwise in every longer one; else alike in all of them.
    """

    number: int
    original: nn.Module
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    switch: int = FAR
    grows: bool = False

    @property
    def key(self) -> Hashable:
        """Which module it is, and what tells its calls apart."""
        return _key(self.number, self.args, self.kwargs)

    def __call__(self, positions: Tensor, extent: int, like: Tensor) -> Any:
        """The answer for `positions` (B, W) in a pass of `extent` tokens, in the type of `like`."""
        last = positions.new_full((len(positions), 1), extent - 1)
        places = torch.cat([positions.clamp(max=extent - 1), last], dim=1)

        def swap(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.is_floating_point():  # hidden states, for their type
                return like.new_zeros(*places.shape, 1)
            return places.expand(*value.shape[:-2], *places.shape)

        args, kwargs = tree_map(swap, (self.args, self.kwargs))
        return tree_map(lambda answer: answer[..., :-1, :], self.module(*args, **kwargs))

    def depends(self) -> bool:
        """Find out whether it answers otherwise in longer passes, and from which length on."""
        places, like = torch.tensor([[0, 1]]), torch.zeros(1)

        def answer(extent: int) -> list[Any]:
            self(places, 2, like)  # whatever was longer before is forgotten
            return tree_leaves(self(places, extent, like))

        def alike(one: int, other: int) -> bool:
            return all(map(torch.equal, answer(one), answer(other)))

        try:
            if alike(2, FAR):
                return False
        except IndexError:  # it looks answers up in a table, which has an end
            return False
        low, high = 2, FAR
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if alike(2, middle) else (low, middle)
        self.switch, self.grows = low, not alike(high, FAR)
        return True

    def answers(self, positions: Tensor, extent: Tensor, like: Tensor) -> Any:
        """For each token as in a pass that reaches as far as `extent` (B, W) says."""
        self.module.to(like.device)
        self(positions, 2, like)  # whatever was longer before is forgotten
        found = self(positions, self.switch, like)
        for first, length in self._longer(extent):
            there = (extent >= first).unsqueeze(-1)
            pairs = zip(tree_leaves(found), tree_leaves(self(positions, length, like)), strict=True)
            parts = iter([torch.where(there, other, before) for before, other in pairs])
            found = tree_map(lambda _: next(parts), found)  # noqa: B023
        return found

    def _longer(self, extent: Tensor) -> list[tuple[int, int]]:
        """From which length on it answers otherwise, and a pass to be asked how; in order."""
        if not self.grows:
            return [(self.switch + 1, FAR)]
        return [(length, length) for length in extent[extent > self.switch].unique().tolist()]


class Rotary:
    """The rotary embeddings of a decoder that depend on how far a pass reaches.

    Attributes:
        calls: of them.
        switch: passes of up to this many tokens are alike.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.switch = min(call.switch for call in calls)
        self._given: Rotation | None = None
        self._installed = False

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, whose modules answer by themselves whatever they are doing here."""
        return {**vars(self), "_given": None, "_installed": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for module in {call.original for call in self.calls}:
            if getattr(vars(module).get("forward"), "__module__", None) == __name__:
                del module.forward

    @classmethod
    def find(cls, parts: Anatomy) -> "Rotary | None":
        """Those of the decoder; None where there are none."""
        with torch.inference_mode(False), evaluating(parts.model):
            calls = [call for call in _calls(parts) if call.depends()]
        return cls(calls) if calls else None

    @torch.no_grad()
    def rotation(self, positions: Tensor, extent: Tensor, like: Tensor) -> Rotation:
        """What they answer for tokens at `positions` (B, W), each in a pass of `extent` (B, W)."""
        with torch.inference_mode(False):  # or what they keep could never be written again
            positions, extent = positions.clone(), extent.expand_as(positions).clone()
            return {call.key: call.answers(positions, extent, like) for call in self.calls}

    @contextmanager
    def giving(self, rotation: Rotation) -> Iterator[None]:
        """Have the decoder's own modules answer so, within."""
        before, self._given = self._given, rotation
        try:
            with self.installed():
                yield
        finally:
            self._given = before

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Have the decoder's own modules answer what is given; passes within find that in place."""
        if self._installed:
            yield
            return
        numbers = {call.original: call.number for call in self.calls}
        before = {module: module.__dict__.get("forward") for module in numbers}
        for module, number in numbers.items():
            module.forward = self._answering(number, module.forward)
        self._installed = True
        try:
            yield
        finally:
            self._installed = False
            for module, forward in before.items():
                del module.forward
                if forward is not None:  # accelerate's
                    module.forward = forward

    def _answering(self, number: int, forward: Any) -> Any:
        def answer(*args: Any, **kwargs: Any) -> Any:
            given = self._given or {}
            key = _key(number, args, kwargs)
            return given[key] if key in given else forward(*args, **kwargs)

        return answer


def _key(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """Of a call of a module: by what is no tensor in it."""
    return (number, *[x for x in (*args, *kwargs.values()) if not isinstance(x, Tensor)])


def _calls(parts: Anatomy) -> list[Call]:
    """The calls, in a small pass, of modules that learn nothing and read positions."""
    positions = torch.arange(5, device=parts.device).unsqueeze(0)
    seen: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> None:
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        whole = [x for x in read if not x.is_floating_point()]
        lengths = {x.shape[-2:-1] for x in tree_leaves(answer) if isinstance(x, Tensor)}
        if (
            [x.shape[-2:] for x in whole] == [positions.shape]
            and bool((whole[0] == positions).all())
            and lengths == {positions.shape[1:]}
        ):
            seen.append((module, args, kwargs))

    weights = {*parts.decoder.parameters(), *packed(parts.model).values()}
    quiet = [
        module
        for module in parts.decoder.modules()
        if weights.isdisjoint((*module.parameters(), *module.buffers()))
    ]
    handles = [m.register_forward_hook(note, with_kwargs=True) for m in quiet]
    try:
        tokens = torch.zeros_like(positions)
        parts.decoder(input_ids=tokens, position_ids=positions, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    numbers: dict[nn.Module, int] = {}
    calls: dict[Hashable, Call] = {}
    for module, args, kwargs in seen:
        own = copy.deepcopy(module).cpu()
        for hooked in ("forward", "_hf_hook"):  # accelerate's, bound to the module itself
            own.__dict__.pop(hooked, None)
        call = Call(numbers.setdefault(module, len(numbers)), module, own, args, kwargs)
        calls.setdefault(call.key, call)
    return list(calls.values())


def document_extent(positions: Tensor) -> Tensor:
    """How far each token's document reaches, (B, T) → (B, T): its last position, and one more.

    Documents are told apart by positions that do not follow on one another.
    """
    count = positions.shape[1]
    places = torch.arange(count, device=positions.device)
    ends = torch.ones_like(positions, dtype=torch.bool)
    ends[:, :-1] = positions.diff(dim=1) != 1
    end = torch.where(ends, places, count).flip(1).cummin(1).values.flip(1)
    return positions + end - places + 1


def reads_again(parts: Anatomy, switch: int, keyword: str) -> bool:
    """Whether transformers' `generate` reads a row anew once it is longer than `switch`.

    Phi-3 does, other families go on with keys rotated as in shorter passes. Its own method is
    asked, with a cache that says that it holds this many tokens.
    """

    def keeps(length: int) -> bool:
        """Whether a row of this many tokens goes on with the cache of all but its last."""
        layer = DynamicLayer()
        layer.get_seq_length = lambda: length - 1  # type: ignore[method-assign]
        given = {keyword: Cache(layers=[layer]), "attention_mask": None, "use_cache": True}
        tokens = torch.zeros(1, length, dtype=torch.long, device=parts.device)
        model: Any = parts.model
        prepared = model.prepare_inputs_for_generation(tokens, next_sequence_length=1, **given)
        return prepared.get(keyword) is not None

    return keeps(switch) and not keeps(switch + 1)
