"""What was found in a model, in words."""

from foretell.backbone import isolates_documents
from foretell.decoding.cache import decodes, takes_masks
from foretell.model import MTPModel


def facts_of(model: MTPModel) -> dict[str, str]:
    """What was found in a model and its heads, each fact by its name, in words."""
    backbone, head = model.backbone, model.head
    isolated = isolates_documents(backbone)
    facts = {
        "architecture": type(model.lm).__name__,
        "family": str(backbone.config.model_type),
        "layers": str(backbone.num_layers),
        "hidden size": str(backbone.hidden_size),
        "vocabulary": str(backbone.vocab_size),
        "context": str(backbone.context or "not stated"),
        "positions": str(backbone.max_length or "any number"),
        "backbone parameters": f"{sum(p.numel() for p in model.lm.parameters()):,}",
        "weights": f"packed ({backbone.packed_by})" if backbone.packed_by else str(backbone.dtype),
        "embedding scale": _scale(backbone.embed_scale),
        "logit scale": _scale(backbone.logit_scale),
        "logit soft-cap": str(backbone.softcap or "none"),
        "fingerprint": backbone.fingerprint(),
        "packed documents": "kept apart" if isolated else "leak into each other",
        "drafts": _drafts(model),
        "batches and trees": _batches(model),
    }
    if head is not None:
        facts["head"] = ", ".join(f"{k} {v}" for k, v in head.config.changed().items())
        facts["head parameters"] = f"{sum(p.numel() for p in head.parameters()):,}"
    else:
        facts["head"] = "none; train one with `foretell train`"
    return facts


def _scale(scale: object) -> str:
    factor = getattr(scale, "factor", 1.0)
    return f"÷ {factor:g}" if getattr(scale, "divides", False) else f"× {factor:g}"


def _drafts(model: MTPModel) -> str:
    decoded = decodes(model.backbone)
    return "supported" if decoded else f"refused: {decoded.lacking}"


def _batches(model: MTPModel) -> str:
    """Whether rows share passes, and so whether there are trees and marginals too."""
    if not decodes(model.backbone):
        return "refused, as drafts are"
    masked = takes_masks(model.backbone, 0)
    return "rows share passes" if masked else f"row by row: {masked.lacking}"
