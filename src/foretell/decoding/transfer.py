"""Numbers on their way from the host to the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(
    numbers: Sequence[int] | Sequence[Sequence[int]] | Tensor, device: torch.device
) -> Tensor:
    """Numbers of the host, integers unless they are a tensor already, on `device`.

    `torch.tensor(numbers, device=device)` waits until a GPU has done all that it was given. CUDA
    takes a copy of what it is to fetch, so that nobody need wait; Apple's does not.
    """
    tensor = numbers if isinstance(numbers, Tensor) else torch.tensor(numbers, dtype=torch.long)
    return tensor.to(device, non_blocking=device.type == "cuda")
