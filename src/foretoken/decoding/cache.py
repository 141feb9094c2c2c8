"""The backbone's cache: full-length keys and values, from whose end tokens can be removed.

Sliding-window layers keep everything too (the window is in the attention mask), because what a
window has dropped could not be brought back when a draft is rejected.
"""

from transformers import Cache, DynamicCache

from foretoken.backbone import Backbone
from foretoken.errors import BackboneError


def new_cache() -> Cache:
    """An empty cache of attention layers."""
    return DynamicCache()


def rollback(cache: Cache, count: int) -> None:
    """Forget the last `count` tokens."""
    if count:
        cache.crop(-count)


def require_rollback(backbone: Backbone) -> None:
    """Refuse a backbone that keeps a state from which tokens cannot be removed, by name."""
    kinds = getattr(backbone.config, "layer_types", None) or ()
    recurrent = sorted({kind for kind in kinds if "attention" not in kind or "linear" in kind})
    stateful = getattr(backbone.model, "_is_stateful", False)
    if recurrent or stateful:
        what = f"layers of type {', '.join(recurrent)}" if recurrent else "a recurrent state"
        raise BackboneError(
            f"{type(backbone.model).__name__} cannot be decoded in drafts yet: its cache has "
            f"{what}, which cannot be rolled back when a draft is rejected; "
            "use transformers' generate."
        )
