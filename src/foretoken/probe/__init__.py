"""The probe: what a model already knows about its future tokens, before any training."""

from foretoken.probe.marginal import Marginal, marginalize

__all__ = ["Marginal", "marginalize"]
