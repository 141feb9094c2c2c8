"""What heads would bring: tokens per forward and speed-up, as a range, and what to train.

Leviathan et al. 2023 (arXiv 2211.17192), theorem 3.8, with costs measured on this machine and
acceptance by depth in place of one rate. A step that drafts g tokens emits 1 + Σ_{k≤g} A_k, where
A_k is the share of steps in which the first k drafted tokens all stand, and takes v_{g+1} + g·d
where a plain step takes v_1 (v_w: a pass over w tokens, d: drafting one). With A_k = α^k and v_w
constant this is their (1 - α^{g+1}) / ((1 - α)(g·c + 1)).

The range: at least what linear probes of the best layer read (a head has a block over that), at
most what a perfect reader of the marginals would reach, both with the far end of their confidence
intervals. Heads that read drafted tokens (`sequential`) know more than the marginals and may pass
the upper end.

Shapes: K depths, L layers.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foretoken.decoding.cache import SlottedPast
from foretoken.model import MTPModel
from foretoken.tally import Tally, estimate

PAST = 128
"""Tokens read before what is timed."""
REPEATS = 15
ENOUGH = 0.8
"""Where a linear probe agrees with the backbone this often, relative to the marginals, heads on a
frozen backbone have what they need. A rule of thumb."""


@dataclass(frozen=True)
class Costs:
    """Seconds: of passes over 1…K+1 tokens, and of drafting one token with a block of its own."""

    verify: Sequence[float]
    draft: float

    def rows(self) -> list[dict[str, Any]]:
        """Flat records."""
        passes = [
            {"method": "verify", "tokens": width, "seconds": seconds}
            for width, seconds in enumerate(self.verify, start=1)
        ]
        return [*passes, {"method": "draft", "tokens": 1, "seconds": self.draft}]

    def relative(self, length: int) -> float:
        """What a step with a draft of `length` tokens costs, plain steps costing 1."""
        return (self.verify[length] + length * self.draft) / self.verify[0]


@torch.inference_mode()
def measure_costs(model: MTPModel, depth: int) -> Costs:
    """Time passes over 1…`depth` + 1 tokens behind `PAST` others, and a block with its output."""
    backbone = model.eval().backbone
    limit = (backbone.max_length or PAST + depth + 1) - depth - 1
    length = max(1, min(PAST, limit))
    tokens = torch.arange(length, device=backbone.device).remainder(backbone.vocab_size)[None]
    past = SlottedPast(backbone, 1, length + depth + 1)
    backbone(tokens, **past.enter(length))
    past.keep([length])
    verify = []
    for width in range(1, depth + 2):
        window = tokens[:, :1].expand(-1, width)

        def check(window: torch.Tensor = window) -> None:
            output = backbone(window, **past.enter(window.shape[1]))
            backbone.unembed(output.final).argmax(-1).tolist()

        verify.append(_median(check))
    output = backbone(tokens[:, :1])
    block = backbone.new_block("copy")

    def draft() -> None:
        backbone.unembed(output.call(block, output.final)).argmax(-1).tolist()

    return Costs(verify, _median(draft))


def _median(action: Callable[[], None]) -> float:
    seconds = []
    for _ in range(REPEATS + 2):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])  # the first ones warm up


def tokens_per_forward(acceptance: Sequence[float], length: int) -> float:
    """1 + Σ_{k≤length} A_k, `acceptance` being A_1, A_2, …"""
    return 1.0 + sum(acceptance[:length])


def speedup(acceptance: Sequence[float], costs: Costs, length: int) -> float:
    """Over plain decoding, of drafts of `length` tokens."""
    return tokens_per_forward(acceptance, length) / costs.relative(length)


@dataclass(frozen=True)
class Prediction:
    """What to expect of parallel heads, and what to train.

    Attributes:
        low: A_1…A_K at least.
        high: A_1…A_K at most.
        costs: as measured.
        layers: of every depth 1…K the layer that a linear probe reads it from best; empty where
            none were trained.
        share: how often the best linear probe of depth 1 agrees with the backbone, relative to the
            marginals; None where none were trained.
        num_layers: L.
    """

    low: Sequence[float]
    high: Sequence[float]
    costs: Costs
    layers: Sequence[int]
    share: float | None
    num_layers: int

    @property
    def depth(self) -> int:
        """The draft length whose speed-up, in the middle of its range, is best; 0: do not draft."""

        def middle(length: int) -> float:
            return sum(speedup(side, self.costs, length) for side in (self.low, self.high))

        return max(range(len(self.high) + 1), key=middle)

    @property
    def tap(self) -> str:
        """Which state the heads should read."""
        if not self.layers:
            return "weighted"
        if all(layer >= self.num_layers - 1 for layer in self.layers):
            return "final" if self.layers[0] == self.num_layers else "trunk"
        return "weighted"

    @property
    def recipe(self) -> str:
        """Whether the backbone should learn with the heads."""
        return "frozen" if self.share is not None and self.share >= ENOUGH else "joint"

    def rows(self) -> list[dict[str, Any]]:
        """By draft length: the ranges, and on the best length what to train."""
        rows = []
        for length in range(1, len(self.high) + 1):
            rows.append(
                {
                    "method": "parallel",
                    "depth": length,
                    "acceptance_min": self.low[length - 1],
                    "acceptance_max": self.high[length - 1],
                    "tokens_per_forward_min": tokens_per_forward(self.low, length),
                    "tokens_per_forward_max": tokens_per_forward(self.high, length),
                    "speedup_min": speedup(self.low, self.costs, length),
                    "speedup_max": speedup(self.high, self.costs, length),
                    "tap": self.tap,
                    "recipe": self.recipe,
                    "chosen": length == self.depth,
                }
            )
        return rows


def predict(
    depths: Tally, layers: Tally | None, costs: Costs, depth: int, num_layers: int
) -> Prediction:
    """Put together what was measured.

    Args:
        depths: of `measure`, with `marginalization` among its methods.
        layers: of `read_layers`, where linear probes were trained; None otherwise.
        costs: of `measure_costs`.
        depth: K.
        num_layers: L.
    """
    names = ("acceptance_max", "own_acceptance")
    high = [
        max(_end(depths, name, "high", method="marginalization", depth=k) for name in names)
        for k in range(1, depth + 1)
    ]
    if layers is None:
        return Prediction([0.0] * depth, high, costs, [], None, num_layers)
    best = [_best_layer(layers, k) for k in range(1, depth + 1)]
    probe: dict[str, str | int] = {"method": "linear-probe", "layer": best[0]}
    low = [_end(layers, "acceptance", "low", **probe, depth=k) for k in range(1, depth + 1)]
    read = layers.means("agreement", **probe, depth=1)[0]
    known = depths.means("agreement", method="marginalization", depth=1)[0]
    share = float(read / known) if known > 0 else 1.0
    return Prediction(low, high, costs, best, share, num_layers)


def _end(tally: Tally, name: str, end: str, **where: str | int) -> float:
    """One end of a confidence interval, or the mean where there is none."""
    found = estimate(name, tally.means(name, **where))
    value = found[f"{name}_{end}"]
    return float(np.clip(found[name] if value is None else value, 0.0, 1.0))  # type: ignore[arg-type]


def _best_layer(layers: Tally, depth: int) -> int:
    """From which a linear probe agrees with the backbone most often; of equals the last."""
    probed = [
        int(layer)
        for layer in sorted(map(int, layers.keys("layer")))
        if layers.count("agreement", method="linear-probe", layer=int(layer), depth=depth)
    ]
    means = {
        layer: layers.means("agreement", method="linear-probe", layer=layer, depth=depth)[0]
        for layer in probed
    }
    return max(probed, key=lambda layer: (means[layer], layer))
