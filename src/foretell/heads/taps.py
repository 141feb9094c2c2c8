"""Taps: which hidden states of the backbone a head reads.

final       after the final norm, what the output head reads
trunk       the residual stream before the last block (Gloeckle et al. 2024, section 2: the model's
            own last block is then the next-token head)
last        the residual stream leaving the last block, before the final norm
l           an integer, the residual stream entering block `l`; `L` is the same as `last`
weighted    a learned weighted sum of all residual states 0…L, one softmax of weights per depth
            (weighted hidden states, WHS: Mehra et al. 2025, arXiv 2502.09419)
fused       a low, a middle and a high residual state, concatenated and projected back to D
            (EAGLE-3: Li et al. 2025, arXiv 2503.01840; the paper names no layers, 2, L//2 and L-3
            are those of the authors' released code)

A tap can scale residual states to a root mean square of 1 first. In a trained backbone they are
many times larger than what a new block adds to them, and late layers are larger than early ones:
unscaled, new heads learn slowly (`docs/log.md`), and a weighted sum is little more than its last
terms.

Shapes: B batch, T time, K depths, D hidden, L blocks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from foretell.errors import HeadError, InputError

FINAL = -1
"""The final hidden state, in a mapping from layers to states."""

TAPS = ("final", "trunk", "last", "weighted", "fused")
"""Taps that have a name."""

States = Mapping[int, Tensor]
"""(B, T, D) by layer: `FINAL`, or 0…L for the residual stream entering that block."""


class Tap(nn.Module, ABC):
    """Reads a head's input from the states of one pass.

    Attributes:
        layers: the states that it reads.
        normalize: whether residual states are scaled to a root mean square of 1.
    """

    def __init__(self, layers: tuple[int, ...], normalize: bool) -> None:
        super().__init__()
        self.layers = layers
        self.normalize = normalize

    def state(self, states: States, layer: int) -> Tensor:
        """(B, T, D) of one layer, scaled if it is to be. The final hidden state needs none."""
        state = states[layer]
        if not self.normalize or layer == FINAL:
            return state
        return rms_norm(state, state.shape[-1:])

    @abstractmethod
    def forward(self, states: States, depth: int) -> Tensor:
        """(B, T, D) that depth `depth` (1…K) starts from."""


class LayerTap(Tap):
    """One layer's state, the same for every depth."""

    def __init__(self, layer: int, normalize: bool) -> None:
        super().__init__((layer,), normalize)

    def forward(self, states: States, depth: int) -> Tensor:
        return self.state(states, self.layers[0])


class WeightedTap(Tap):
    """Weighted hidden states; all layers weigh the same at first.

    The logits of the weights are one vector per depth, so that optimisers treat them as the vectors
    they are: no weight decay, no orthogonalisation.
    """

    def __init__(self, num_layers: int, depths: int, normalize: bool) -> None:
        super().__init__(tuple(range(num_layers + 1)), normalize)
        self.logits = nn.ParameterList(torch.zeros(num_layers + 1) for _ in range(depths))

    def weights(self, depth: int) -> Tensor:
        """(L+1,) what each layer counts for `depth`; they sum to 1."""
        return cast(Tensor, self.logits[min(depth, len(self.logits)) - 1]).float().softmax(0)

    def forward(self, states: States, depth: int) -> Tensor:
        weights = self.weights(depth).to(states[0].dtype)
        total = weights[0] * self.state(states, 0)
        for layer in self.layers[1:]:
            total = total + weights[layer] * self.state(states, layer)
        return total


class FusedTap(Tap):
    """Low, middle and high features, projected together."""

    def __init__(self, num_layers: int, hidden_size: int, normalize: bool) -> None:
        layers = {min(2, num_layers), num_layers // 2, max(num_layers - 3, 0)}
        super().__init__(tuple(sorted(layers)), normalize)
        self.projection = nn.Linear(len(self.layers) * hidden_size, hidden_size, bias=False)

    def forward(self, states: States, depth: int) -> Tensor:
        read = [self.state(states, layer) for layer in self.layers]
        features = torch.cat(read, dim=-1)  # (B, T, layers·D)
        return cast(Tensor, self.projection(features.to(self.projection.weight.dtype)))


def make_tap(
    name: str | int, num_layers: int, hidden_size: int, depths: int, normalize: bool
) -> Tap:
    """The tap called `name` on a backbone of `num_layers` blocks, read at `depths` depths."""
    match check_tap(name):
        case "final":
            return LayerTap(FINAL, normalize)
        case "trunk":
            return LayerTap(num_layers - 1, normalize)
        case "last":
            return LayerTap(num_layers, normalize)
        case "weighted":
            return WeightedTap(num_layers, depths, normalize)
        case "fused":
            return FusedTap(num_layers, hidden_size, normalize)
        case layer if int(layer) <= num_layers:
            return LayerTap(int(layer), normalize)
        case layer:
            raise HeadError(
                f"tap {layer} lies past the backbone's last layer: it has {num_layers} blocks."
            )


def check_tap(name: str | int) -> str | int:
    """Return `name` if it is written like a tap, else raise `InputError`."""
    if name in TAPS or (isinstance(name, int) and not isinstance(name, bool) and name >= 0):
        return name
    raise InputError(f"tap {name!r} is unknown; use {', '.join(TAPS)}, or a layer number from 0.")
