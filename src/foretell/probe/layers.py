"""Where in the model what can be read: by layer and depth.

logit-lens    the output head on a layer's state, after the final norm (nostalgebraist 2020)
linear-probe  trained per layer and depth, see `foretell.probe.linear`
settled       whether no later layer changes the lens's next-token decision any more
cka, cosine   how far states drift from layer to layer: linear centred kernel alignment
              ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) (Kornblith et al. 2019, arXiv 1905.00414), and the mean cosine

Layer l is the residual stream entering block l; layer L leaves the last block.

Shapes: N positions, T row length, D hidden, K depths, V vocabulary, L layers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foretell.backbone import Backbone
from foretell.data import PackedBlocks
from foretell.errors import InputError
from foretell.model import MTPModel
from foretell.probe.branches import distribution
from foretell.probe.linear import LinearProbe, fit
from foretell.probe.scores import Scorer, Scores, Truth
from foretell.results.tables import Drift, ScoredByLayer
from foretell.tally import Tally
from foretell.targets import IGNORE, NO_TARGET, depth_targets

PER_BLOCK = 128
"""Positions read in one block, at most."""
COMPARED = 1024
"""Positions that layers are compared at."""
PROBED = 8
"""Layers that linear probes are trained on by default, evenly spread up to the last."""

Progress = Callable[[float], None]
Probes = dict[tuple[int, int], LinearProbe]
"""By layer and depth."""


@dataclass(frozen=True)
class Sample:
    """Positions of one block.

    Attributes:
        states: (N, D) by layer.
        finals: (N, K+1, D), what the output head reads at depths 0…K.
        tokens: (N, K+1), what comes there.
        documents: (N,).
    """

    states: dict[int, Tensor]
    finals: Tensor
    tokens: Tensor
    documents: NDArray[np.int64]


def spread_layers(num_layers: int, count: int = PROBED) -> tuple[int, ...]:
    """`count` layers of 0…L, the first and the last two among them."""
    even = torch.linspace(0, num_layers, max(2, count - 1)).round().long().tolist()
    return tuple(sorted({*even, num_layers - 1, num_layers}))


def train_probes(
    model: MTPModel,
    blocks: PackedBlocks,
    *,
    layers: Sequence[int],
    depth: int,
    positions: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Probes:
    """A linear probe for each of `layers` and depths 0…`depth`, on about `positions` positions."""
    drawn = list(samples(model, blocks, layers, depth, positions, seed))
    finals = torch.cat([sample.finals for sample in drawn])
    tokens = torch.cat([sample.tokens for sample in drawn])
    probes: Probes = {}
    for layer in layers:
        states = torch.cat([sample.states[layer] for sample in drawn])
        for k in range(depth + 1):
            probes[layer, k] = fit(states, finals[:, k], tokens[:, k], model.backbone.unembed)
            if progress is not None:
                progress(len(probes) / (len(layers) * (depth + 1)))
    return probes


@dataclass(frozen=True)
class LayerTable:
    """What was found by layer.

    Attributes:
        tally: by method, layer and depth.
        drift: by layer.
    """

    tally: Tally
    drift: list[Drift]

    def rows(self) -> list[ScoredByLayer]:
        """By method, layer and depth."""
        rows = []
        for method in self.tally.keys("method"):
            for layer in sorted(map(int, self.tally.keys("layer"))):
                for depth in sorted(map(int, self.tally.keys("depth"))):
                    where: dict[str, Any] = {"method": method, "layer": layer, "depth": depth}
                    if count := self.tally.count("top1", **where):
                        means = self.tally.estimates(**where)
                        rows.append(ScoredByLayer(**where, positions=count, **means))
        return rows


@torch.no_grad()
def read_layers(
    model: MTPModel,
    blocks: PackedBlocks,
    *,
    depth: int,
    positions: int,
    probes: Probes | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LayerTable:
    """Read depths 0…`depth` from all layers, at about `positions` positions.

    Args:
        model: its backbone is looked at.
        blocks: text that neither the model nor the probes have seen.
        depth: K.
        positions: how many.
        probes: trained before; those layers are read by them too.
        seed: of the positions.
        progress: told the share done.
    """
    backbone, tally = model.backbone, Tally("method", "layer", "depth")
    layers = range(backbone.num_layers + 1)
    compared: list[dict[int, Tensor]] = []
    done = 0
    for sample in samples(model, blocks, layers, depth, positions, seed):
        own = [distribution(backbone.unembed, sample.finals[:, k]) for k in range(depth + 1)]
        decisions = []
        for layer in layers:
            lens = distribution(backbone.unembed, backbone.final_norm(sample.states[layer]))
            decisions.append(lens.argmax(-1))
            predicted = [lens] * (depth + 1)
            _count(tally, ("logit-lens", layer), sample, predicted, own)
            if probes and (layer, 0) in probes:
                read = [probes[layer, k](sample.states[layer]) for k in range(depth + 1)]
                predicted = [distribution(backbone.unembed, final) for final in read]
                _count(tally, ("linear-probe", layer), sample, predicted, own)
        for layer, settled in zip(layers, _settled(decisions), strict=True):
            values = {"settled": settled.cpu().numpy()}
            tally.add(("logit-lens", layer, 0), sample.documents, values)
        if done < COMPARED:
            compared.append(sample.states)
        done += len(sample.tokens)
        if progress is not None:
            progress(min(1.0, done / positions))
    return LayerTable(tally, _drift(compared))


def samples(
    model: MTPModel,
    blocks: PackedBlocks,
    layers: Sequence[int],
    depth: int,
    positions: int,
    seed: int,
) -> Iterator[Sample]:
    """Blocks in random order, `PER_BLOCK` random positions of each.

    Raises:
        InputError: no position has a target at every depth.
    """
    random = torch.Generator().manual_seed(seed)
    found = 0
    model.eval()
    for index in torch.randperm(len(blocks), generator=random).tolist():
        sample = _sample(model.backbone, blocks, index, layers, depth, random)
        if len(sample.tokens):
            found += len(sample.tokens)
            yield sample
        if found >= positions:
            return
    if not found:
        raise InputError(NO_TARGET)


@torch.no_grad()
def _sample(
    backbone: Backbone,
    blocks: PackedBlocks,
    index: int,
    layers: Sequence[int],
    depth: int,
    random: torch.Generator,
) -> Sample:
    block = blocks[index]
    labels = block.get("labels", block["input_ids"]).unsqueeze(0)
    targets = [
        depth_targets(labels, k, block["position_ids"].unsqueeze(0))[0] for k in range(depth + 1)
    ]
    tokens = torch.stack(targets, dim=1)  # (T, K+1)
    usable = (tokens != IGNORE).all(1).nonzero().flatten()
    chosen = usable[torch.randperm(len(usable), generator=random)[:PER_BLOCK]].sort().values
    output = backbone(
        block["input_ids"].unsqueeze(0).to(backbone.device),
        position_ids=block["position_ids"].unsqueeze(0).to(backbone.device),
        layers=layers,
    )
    where = chosen.to(backbone.device)
    return Sample(
        {layer: output.states[layer][0, where] for layer in layers},
        torch.stack([output.final[0, where + k] for k in range(depth + 1)], dim=1),
        tokens[chosen].to(backbone.device),
        blocks.documents(index)[chosen.numpy()],
    )


def _count(
    tally: Tally,
    key: tuple[str, int],
    sample: Sample,
    predicted: Sequence[Tensor],
    own: Sequence[Tensor],
) -> None:
    """Score the distributions of depths 0…K read from one layer."""
    scorer = Scorer()
    for depth, (prediction, chances) in enumerate(zip(predicted, own, strict=True)):
        target = Truth(sample.tokens[:, depth], chances)
        scores: Scores = scorer.distribution(depth, prediction, target)
        values = {name: value.cpu().numpy() for name, value in scores.items()}
        tally.add((*key, depth), sample.documents, values)


def _settled(decisions: Sequence[Tensor]) -> list[Tensor]:
    """By layer, (N,): whether it and all later ones decide as the last does."""
    same = torch.stack([decision == decisions[-1] for decision in decisions])
    return list(same.flip(0).cumprod(0).flip(0).float())


def _drift(compared: Sequence[dict[int, Tensor]]) -> list[Drift]:
    layers = list(compared[0])
    states = {
        layer: torch.cat([part[layer] for part in compared])[:COMPARED].float() for layer in layers
    }
    rows = []
    for before, layer in zip([layers[0], *layers], layers, strict=False):
        here, there = states[layer], states[before]
        rows.append(
            Drift(
                layer=layer,
                cka=linear_cka(here, there),
                cka_final=linear_cka(here, states[layers[-1]]),
                cosine=float(torch.cosine_similarity(here, there, dim=-1).mean()),
            )
        )
    return rows


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Similarity of two representations of the same N things: (N, D), (N, D') → 0…1."""
    x, y = (part.double() - part.double().mean(0) for part in (x, y))
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()).clamp(min=1e-30))
