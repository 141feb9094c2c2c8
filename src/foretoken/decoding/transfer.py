"""Numbers on their way from the host to the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """A tensor of integers on `device`, for which the host does not wait.

    `torch.tensor(numbers, device=device)` on a GPU waits until that has done all it was given.
    """
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)
