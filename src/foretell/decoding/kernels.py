"""Kernels for passes over a few tokens, whose shape changes from step to step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from foretell.backbone import Backbone
from foretell.backbone.products import Products


class Kernels:
    """Those of a backbone and of what drafts for it, if that says which modules it runs."""

    def __init__(self, backbone: Backbone, drafter: object = None) -> None:
        drafting: tuple[nn.Module, ...] = getattr(drafter, "modules", ())
        self.products = Products(backbone.decoder, backbone.output, *drafting)

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Compute with them, within."""
        with unplanned(), self.products.quick():
            yield


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
