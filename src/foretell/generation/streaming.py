"""Tokens for transformers' streamers, which take one of every row at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from foretell.decoding import Step


class Columns:
    """Shows a streamer each token of all rows, as soon as every row has come to it.

    Args:
        streamer: None shows nothing.
        rows: how many.
        fill: shown of rows that have ended.
    """

    def __init__(self, streamer: BaseStreamer | None, rows: int, fill: int) -> None:
        self.streamer, self.fill, self.shown = streamer, fill, 0
        self.rows: list[list[int]] = [[] for _ in range(rows)]

    def begin(self, prompts: Tensor) -> None:
        """The prompts, (B, T)."""
        if self.streamer is not None:
            self.streamer.put(prompts.cpu())

    def add(self, steps: Sequence[Step], active: Sequence[bool]) -> None:
        """A step of every row, and which of them go on."""
        if self.streamer is None:
            return
        for row, step in zip(self.rows, steps, strict=True):
            row += step.tokens
        going = [len(row) for row, on in zip(self.rows, active, strict=True) if on]
        complete = min(going, default=max(map(len, self.rows)))
        for place in range(self.shown, complete):
            column = [row[place] if place < len(row) else self.fill for row in self.rows]
            self.streamer.put(torch.tensor(column))
        self.shown = max(self.shown, complete)

    def end(self) -> None:
        """There is no more."""
        if self.streamer is not None:
            self.streamer.end()
