"""Whether draws follow a distribution."""

import torch
from torch import Tensor


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Of a chi-square test; what cannot happen must not have happened."""
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0].double(), expected[expected > 0].double()
    expected = expected * counts.sum()
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum().unsqueeze(0)])
        expected = torch.cat([expected[~rare], expected[rare].sum().unsqueeze(0)])
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(
        torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2.0).double(), statistic / 2)
    )
