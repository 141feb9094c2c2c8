"""What each acceptance rule would accept of greedy drafts, teacher-forced.

The rules are those that decode (`foretell.decoding.acceptance`), asked about the head's likeliest
tokens with the backbone's distributions after the true ones. Speculative sampling, which draws its
drafts, has a closed form instead (`speculative` in `foretell.probe.scores`).

Shapes: N positions, K depths, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from foretell.decoding import AcceptanceRule, Distance, Draft, Exact, MinimumBlock, TopK, Typical

ASKED: dict[str, AcceptanceRule] = {
    "exact": Exact(),
    "top-k:2": TopK(2),
    "distance:1": Distance(1),
    "typical:0.09": Typical(0.09),
    "minimum-block:1": MinimumBlock(1),
}
"""Named as `--rule` of the command line has them."""

RULES: dict[str, bool] = {
    "speculative": True,
    **{name: rule.lossless for name, rule in ASKED.items()},
}
"""Every rule that is reported, and whether it is lossless."""


def accepted_by_rule(drafts: Tensor, own: Sequence[Tensor]) -> dict[str, Tensor]:
    """How many of the drafted tokens stand.

    Args:
        drafts: (N, K).
        own: K of (N, V), the backbone's distributions where the drafted tokens are judged.

    Returns:
        (N,) by rule; empty for K = 0.
    """
    if not own:
        return {}
    logits = torch.stack([*own, own[-1]], dim=1).log()  # what follows the last one is not asked
    draft = Draft(drafts)
    return {name: rule(draft, logits).accepted for name, rule in ASKED.items()}
