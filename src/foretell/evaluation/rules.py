"""What each acceptance rule would accept of greedy drafts, teacher-forced.

The rules are those that decode (`foretell.decoding.acceptance`), asked about the head's likeliest
tokens with the backbone's distributions after the true ones. Speculative sampling, which draws its
drafts, has a closed form instead (`speculative` in `foretell.probe.scores`).

Shapes: N positions, K depths, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from foretell.decoding import RULES, AcceptanceRule, Draft

SPECULATIVE = "speculative"


def reported() -> dict[str, bool]:
    """Every rule that is reported, as `--rule` has it, and whether it is lossless."""
    return {SPECULATIVE: True, **{name: rule.lossless for name, rule in _asked().items()}}


def _asked() -> dict[str, AcceptanceRule]:
    """The rules that are asked, each with its number where it takes one."""
    return {
        name if rule.number is None else f"{name}:{rule.number:g}": rule.of(rule.number)
        for name, rule in RULES.items()
        if name != SPECULATIVE
    }


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
    return {name: rule(draft, logits).accepted for name, rule in _asked().items()}
