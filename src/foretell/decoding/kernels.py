"""Kernels for passes whose shape changes from step to step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def unplanned() -> Iterator[None]:
    """Attention without cuDNN, within.

    cuDNN makes a plan for every new number of tokens, and decoding has a new one in every step.
    Making it took 50 ms on an H200, where the rest of a pass through 30 small layers took 20.
    """
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    if not enabled:
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
