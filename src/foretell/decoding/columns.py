"""How weights lie in memory: what a product with a few rows of float32 costs depends on it.

A verify pass multiplies a few rows with every matrix. PyTorch's library for float32 on a CPU does
that faster for matrices stored column by column, as long as they fit into the caches: 4 rows then
cost little more than one (`benchmarks/verify_cost.py`).
"""

import torch
from torch import nn

LARGEST = 1 << 20
"""Numbers in a matrix, from which on rows are as fast (4 MiB in float32)."""


@torch.no_grad()
def store_by_columns(model: nn.Module) -> None:
    """Store the small float32 matrices of `model` on a CPU column by column, in place.

    Shapes and values stay, so that everything goes on as before; sums are rounded in another order.
    Other types and devices are left alone. transformers cannot save such weights; our
    `save_pretrained` can, `store_by_rows` brings them back.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            served = weight.device.type == "cpu" and weight.dtype == torch.float32
            if served and weight.numel() < LARGEST:
                weight.data = weight.t().contiguous().t()


@torch.no_grad()
def store_by_rows(model: nn.Module) -> None:
    """Undo `store_by_columns`, in place."""
    for weight in model.parameters():
        if not weight.is_contiguous():
            weight.data = weight.contiguous()
