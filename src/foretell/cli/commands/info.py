"""`foretell info`: what it can be told."""

from dataclasses import dataclass

from foretell.cli import options


@dataclass(frozen=True)
class Info(options.Command):
    """Show what foretell finds in a model.

    Its family and shape, its heads, and what it can be used for.

    Example: foretell info tiny-mtp
    """

    model: options.Model
    backbone: options.Backbone = None
    device: options.Device = "cpu"
    dtype: options.Dtype = "auto"
    json: options.Json = None
