"""Hidden states of a frozen backbone on disk, so that later epochs need not run it.

One file of fixed size, memory-mapped: the states of the first blocks of the corpus, as many as the
limit allows. Rows that are not there are computed, so that a cache of any size is correct.

Shapes: B rows, T row length, D hidden, S states kept per row.
"""

import errno
import os
from pathlib import Path

import torch
from torch import Tensor

from foretell.backbone import BackboneOutput, BlockCall, rehearses
from foretell.errors import BackboneError, InputError
from foretell.heads import FINAL
from foretell.model import MTPModel


class StateCache:
    """What heads read of every block, kept from the first time it is computed.

    They are stored in the type that the backbone computes them in, so that it is to be made, and
    read, under the autocast of the training.

    Args:
        path: the file; made anew.
        model: its backbone must not change while the cache is in use.
        num_blocks: of the corpus.
        block_size: T.
        limit: bytes that the file may take.

    Raises:
        BackboneError: the heads run blocks that cannot be called without a pass of the backbone.
        InputError: the limit does not hold a single block, or the file cannot be made.
    """

    def __init__(
        self, path: Path, model: MTPModel, num_blocks: int, block_size: int, limit: int
    ) -> None:
        self.model = model
        self.blocks = model.head is not None and model.head.runs_blocks
        if self.blocks and not (able := rehearses(model.backbone)):
            raise BackboneError(
                f"{type(model.lm).__name__} cannot train heads on kept states: {able.lacking}; "
                "set cache_gb to 0."
            )
        self.layers = (FINAL, *model.layers)
        shape = (len(self.layers), block_size, model.backbone.hidden_size)
        row, dtype = torch.Size(shape).numel(), self._dtype()
        size = row * dtype.itemsize
        self.capacity = min(num_blocks, limit // size)
        if self.capacity < 1:
            raise InputError(
                f"a state cache of {limit / 2**30:.3g} GB holds no block: one takes "
                f"{size / 2**20:.3g} MB; give more, or none."
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _allocate(path, self.capacity * size)
            flat = torch.from_file(str(path), shared=True, size=self.capacity * row, dtype=dtype)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{path}: a state cache of {self.capacity * size / 2**30:.3g} GB cannot be made "
                f"there ({' '.join(str(error).split())}); give less, or none."
            ) from None
        self.stored = flat.view(self.capacity, *shape)
        self.known = torch.zeros(num_blocks, dtype=torch.bool)

    @torch.no_grad()
    def _compute(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """The states of rows (B, T), (B, S, T, D), in a type that holds all of them."""
        output = self.model.backbone(input_ids, position_ids=position_ids, layers=self.model.layers)
        states = {FINAL: output.final, **output.states}
        return torch.stack([states[layer] for layer in self.layers], dim=1)

    def _dtype(self) -> torch.dtype:
        """The type of the states, as one token shows it."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self.model.backbone.device)
        return self._compute(token, token).dtype

    @torch.no_grad()
    def read(self, index: Tensor, input_ids: Tensor, position_ids: Tensor) -> BackboneOutput:
        """A pass of the backbone, of which only rows that are not stored are computed.

        Args:
            index: (B,) blocks.
            input_ids: (B, T), their tokens.
            position_ids: (B, T).
        """
        index, backbone = index.cpu(), self.model.backbone
        missing = ~self.known[index]
        rows = torch.empty(
            len(index), *self.stored.shape[1:], dtype=self.stored.dtype, device=backbone.device
        )
        rows[~missing] = self.stored[index[~missing]].to(rows.device)
        if missing.any():
            wanted = missing.to(input_ids.device)
            fresh = self._compute(input_ids[wanted], position_ids[wanted]).to(rows.dtype)
            rows[missing] = fresh
            kept = index[missing] < self.capacity
            self.stored[index[missing][kept]] = fresh[kept].cpu()
            self.known[index[missing][kept]] = True
        final, *residual = rows.unbind(1)
        call = backbone.block_call(input_ids, position_ids, None) if self.blocks else BlockCall()
        states = dict(zip(self.model.layers, residual, strict=True))
        return BackboneOutput(final, states, call, positions=position_ids)


def _allocate(path: Path, size: int) -> None:
    """Make a new file of `size` bytes that the disk has room for.

    A file with holes would grow as it is written to, and a full disk end the process (SIGBUS).
    """
    path.unlink(missing_ok=True)  # whoever has the old one mapped keeps it
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # by the file system
                    path.unlink()
                    raise
