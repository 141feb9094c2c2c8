"""foretell's heads in a stock vLLM: `vllm.general_plugins` calls `register` in every process.

vLLM's `mtp` method runs a draft model of `model_type: mtp` on the final hidden states of whatever
backbone it serves, its `medusa` method one without a past. What is registered is that model type
and an architecture for each; the layout `vllm` (`foretell.formats.vllm`) writes the directory.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

ARCHITECTURES = ("ForetellHeads", "ForetellStatelessHeads")


class ForetellConfig(PreTrainedConfig):
    """A draft model's config; its fields are those that the layout writes."""

    model_type = "mtp"


def register() -> None:
    """Tell vLLM about foretell's heads."""
    from vllm import ModelRegistry

    AutoConfig.register("mtp", ForetellConfig, exist_ok=True)
    registry: Any = ModelRegistry
    for name in ARCHITECTURES:
        if name not in registry.get_supported_archs():
            registry.register_model(name, f"foretell.engines.vllm_model:{name}")
