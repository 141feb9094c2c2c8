"""What heads would bring: tokens per forward and speed-up, as a range, and what to train.

Leviathan et al. 2023 (arXiv 2211.17192), theorem 3.8, with costs measured on this machine and
acceptance by depth in place of one rate. A step that drafts g tokens emits 1 + Σ_{k≤g} A_k, where
A_k is the share of steps in which the first k drafted tokens all stand, and takes v_{g+1} + g·d
where a plain step takes v_1 (v_w: a pass over w tokens, d: drafting one). With A_k = α^k and v_w
constant this is their (1 - α^{g+1}) / ((1 - α)(g·c + 1)).

The range goes from what simple readers of the training text reach (its n-grams, and linear probes
of the best layer; a head can be both and more) to what a perfect reader of the marginals would
reach, both with the far end of their confidence intervals. Heads that read drafted tokens
(`sequential`) know more than the marginals and may pass the upper end. There is one range after
the text, to be compared with `foretell eval`, and one after the backbone's own greedy
continuation, to be compared with decoding.

Shapes: K depths, L layers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from foretell.decoding.cache import SlottedPast
from foretell.model import MTPModel
from foretell.results.tables import PassCost, Predicted
from foretell.tally import Estimate, Tally, estimate

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

    def rows(self) -> list[PassCost]:
        """For a result file."""
        passes = [
            PassCost(method="verify", tokens=width, seconds=seconds)
            for width, seconds in enumerate(self.verify, start=1)
        ]
        return [*passes, PassCost(method="draft", tokens=1, seconds=self.draft)]

    def relative(self, length: int) -> float:
        """What a step with a draft of `length` tokens costs, plain steps costing 1."""
        return (self.verify[length] + length * self.draft) / self.verify[0]


@torch.inference_mode()
def measure_costs(model: MTPModel, depth: int) -> Costs:
    """Time passes over 1…`depth` + 1 tokens after `PAST` others, and a block with its output.

    They take turns, and the fastest time of each counts: what else runs on a machine only adds. For
    the same reason a pass costs no more than was ever measured for a wider one.
    """
    backbone = model.eval().backbone
    room = (backbone.max_length or PAST + depth + 1) - depth - 1
    length = max(1, min(PAST, room))
    tokens = torch.arange(length, device=backbone.device).remainder(backbone.vocab_size)[None]
    past = SlottedPast(backbone, 1, length + depth + 1)
    backbone(tokens, **past.enter(length))
    past.keep([length])

    def verify(width: int) -> None:
        output = backbone(tokens[:, :1].expand(-1, width), **past.enter(width))
        backbone.unembed(output.final).argmax(-1).tolist()

    output, block = backbone(tokens[:, :1]), backbone.new_block("copy")

    def draft() -> None:
        backbone.unembed(output.call(block, output.final)).argmax(-1).tolist()

    actions: list[Callable[[], None]] = [partial(verify, w) for w in range(1, depth + 2)]
    actions.append(draft)
    seconds = [min(times) for times in zip(*(_turn(actions) for _ in range(REPEATS)), strict=True)]
    return Costs(_rising(seconds[:-1]), seconds[-1])


def _rising(seconds: Sequence[float]) -> list[float]:
    """Each no more than those after it, so that no draft can look cheaper than none."""
    return [min(seconds[place:]) for place in range(len(seconds))]


def _turn(actions: Sequence[Callable[[], None]]) -> list[float]:
    """Seconds that each takes."""
    seconds = []
    for action in actions:
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return seconds


def tokens_per_forward(acceptance: Sequence[float], length: int) -> float:
    """1 + Σ_{k≤length} A_k, `acceptance` being A_1, A_2, …"""
    return 1.0 + sum(acceptance[:length])


def speedup(acceptance: Sequence[float], costs: Costs, length: int) -> float:
    """Over plain decoding, of drafts of `length` tokens."""
    return tokens_per_forward(acceptance, length) / costs.relative(length)


@dataclass(frozen=True)
class Range:
    """A_1…A_K at least and at most."""

    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Prediction:
    """What to expect of parallel heads, and what to train.

    Attributes:
        ranges: after the `text`, and after the backbone's `own` continuation.
        costs: as measured.
        layers: of every depth 1…K the layer that a linear probe reads it from best; empty where
            none were trained.
        share: how often the best linear probe of depth 1 agrees with the backbone, relative to the
            marginals; None where none were trained.
        num_layers: L.
    """

    ranges: Mapping[str, Range]
    costs: Costs
    layers: Sequence[int]
    share: float | None
    num_layers: int

    @property
    def depth(self) -> int:
        """Of the draft lengths that may pay the one whose speed-up, in the middle of its range, is
        best; 0: none may.
        """

        def middle(length: int) -> float:
            return sum(self.speedups(length))

        lengths = range(1, len(self.ranges["own"].high) + 1)
        return max((n for n in lengths if self.speedups(n)[1] > 1.0), key=middle, default=0)

    def speedups(self, length: int) -> tuple[float, float]:
        """Over plain decoding, at least and at most, of drafts of `length` tokens."""
        own = self.ranges["own"]
        low, high = (speedup(side, self.costs, length) for side in (own.low, own.high))
        return low, high

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

    def rows(self) -> list[Predicted]:
        """By draft length: the ranges; on the best length what to train."""
        return [
            Predicted(
                method="parallel",
                behind=behind,
                depth=length,
                acceptance=Estimate(min=found.low[length - 1], max=found.high[length - 1]),
                tokens_per_forward=Estimate(
                    min=tokens_per_forward(found.low, length),
                    max=tokens_per_forward(found.high, length),
                ),
                speedup=Estimate(
                    min=speedup(found.low, self.costs, length),
                    max=speedup(found.high, self.costs, length),
                ),
                tap=self.tap,
                recipe=self.recipe,
                chosen=length == self.depth,
            )
            for behind, found in self.ranges.items()
            for length in range(1, len(found.high) + 1)
        ]


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
    places = range(1, depth + 1)

    def ends(name: str, end: str, method: str) -> list[float]:
        return [_end(depths, name, end, method=method, depth=k) for k in places]

    low = {
        "text": ends("acceptance", "low", "n-gram"),
        "own": ends("own_acceptance", "low", "n-gram"),
    }
    best: list[int] = []
    share = None
    if layers is not None:
        best = [_best_layer(layers, k) for k in places]
        probe: dict[str, str | int] = {"method": "linear-probe", "layer": best[0]}
        reached = [_end(layers, "acceptance", "low", **probe, depth=k) for k in places]
        low["text"] = list(map(max, low["text"], reached))
        read = layers.means("agreement", **probe, depth=1)[0]
        known = depths.means("agreement", method="marginalization", depth=1)[0]
        share = float(read / known) if known > 0 else 1.0
    high = {
        "text": ends("acceptance_max", "high", "marginalization"),
        "own": ends("own_acceptance_max", "high", "marginalization"),
    }
    ranges = {behind: Range(low[behind], high[behind]) for behind in low}
    return Prediction(ranges, costs, best, share, num_layers)


def _end(tally: Tally, name: str, end: str, **where: str | int) -> float:
    """One end of a confidence interval, or the mean where there is none; 0 of nothing."""
    if not tally.count(name, **where):
        return 0.0
    means = tally.means(name, **where)
    found = getattr(estimate(means), end)
    return float(np.clip(means[0] if found is None else found, 0.0, 1.0))


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
