"""A module's tensors under the names of a layout: one mapping for all that differ in names alone.

Shapes: D hidden, E experts, F inner width.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from foretell.errors import CheckpointError

_EXPERT = re.compile(r"(.*mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_FUSED = re.compile(r"(.*mlp\.experts)\.(gate_up|down)_proj")


@dataclass(frozen=True)
class ModuleNames:
    """Where the parts of module `i` lie.

    Attributes:
        hidden_norm, embedding_norm, projection, norm: names without `.weight`; `{i}` is filled in.
        block: what stands before the names of the block's tensors.
        embedding_first: whether the projection reads [embedding, hidden]; ours reads
            [hidden, embedding].
        copies: tensors of the backbone that the layout stores again, by name, and from where.
    """

    hidden_norm: str
    embedding_norm: str
    projection: str
    norm: str
    block: str
    embedding_first: bool
    copies: tuple[tuple[str, str], ...] = ()

    def at(self, index: int) -> dict[str, str]:
        """Our names of module parts and theirs, for module `index` of the layout."""
        parts = ("hidden_norm", "embedding_norm", "projection", "norm")
        return {part: getattr(self, part).format(i=index) + ".weight" for part in parts}

    def write(
        self, ours: Mapping[str, Tensor], index: int, *, split_experts: bool = True
    ) -> dict[str, Tensor]:
        """One module's tensors, without our `chain.0.`, under the layout's names."""
        theirs = {name: ours[f"{part}.weight"] for part, name in self.at(index).items()}
        if self.embedding_first:
            name = self.at(index)["projection"]
            theirs[name] = swap_halves(theirs[name])
        block = {k.removeprefix("block."): v for k, v in ours.items() if k.startswith("block.")}
        if split_experts:
            block = split(block)
        return theirs | {self.block.format(i=index) + name: v for name, v in block.items()}

    def read(self, theirs: Mapping[str, Tensor], index: int, where: str) -> dict[str, Tensor]:
        """The inverse: all tensors of module `index`, under our names.

        Raises:
            CheckpointError: a part is missing.
        """
        ours, taken = {}, set()
        for part, name in self.at(index).items():
            if name not in theirs:
                raise CheckpointError(f"{where}: its multi-token module lacks {name}.")
            ours[f"{part}.weight"] = theirs[name]
            taken.add(name)
        if self.embedding_first:
            ours["projection.weight"] = swap_halves(ours["projection.weight"])
        taken |= {name.format(i=index) for name, _ in self.copies}
        prefix = self.block.format(i=index)
        block = {
            name.removeprefix(prefix): tensor
            for name, tensor in theirs.items()
            if name.startswith(prefix) and name not in taken
        }
        try:
            fused = fuse(block)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None
        return ours | {f"block.{name}": tensor for name, tensor in fused.items()}

    def owns(self, name: str, index: int) -> bool:
        """Whether a tensor belongs to module `index`, the copies included."""
        copies = {copy.format(i=index) for copy, _ in self.copies}
        known = {*self.at(index).values(), *copies}
        return name in known or name.startswith(self.block.format(i=index))


def swap_halves(projection: Tensor) -> Tensor:
    """(D, 2D) with its two inputs in the other order; its own inverse."""
    first, second = projection.chunk(2, dim=1)
    return torch.cat([second, first], dim=1).contiguous()


def split(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts one by one, as published: `gate_up_proj` (E, 2F, D), `down_proj` (E, D, F)."""
    result: dict[str, Tensor] = {}
    for name, tensor in block.items():
        match = _FUSED.fullmatch(name)
        if match is None:
            result[name] = tensor
            continue
        stem, kind = match.groups()
        parts = {"gate_up": ("gate", "up"), "down": ("down",)}[kind]
        for expert, matrix in enumerate(tensor):
            for part, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
                result[f"{stem}.{expert}.{part}_proj.weight"] = rows.contiguous()
    return result


def fuse(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split`, as transformers holds them."""
    result: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[str, int], Tensor]] = {}
    for name, tensor in block.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            result[name] = tensor
        else:
            stem, expert, part = match.groups()
            experts.setdefault(stem, {})[part, int(expert)] = tensor
    for stem, found in experts.items():
        count = 1 + max(expert for _, expert in found)
        missing = [key for key in _keys(count) if key not in found]
        if missing:
            part, expert = missing[0]
            raise CheckpointError(f"expert {expert} of {stem} lacks its {part}_proj.")
        gate_up = [torch.cat([found["gate", e], found["up", e]]) for e in range(count)]
        result[f"{stem}.gate_up_proj"] = torch.stack(gate_up)
        result[f"{stem}.down_proj"] = torch.stack([found["down", e] for e in range(count)])
    return result


def _keys(count: int) -> list[tuple[str, int]]:
    return [(part, expert) for part in ("gate", "up", "down") for expert in range(count)]
