"""foretoken's heads in a stock vLLM: `vllm.general_plugins` calls `register` in every process.

vLLM's `mtp` method runs a draft model of `model_type: mtp` on the final hidden states of whatever
backbone it serves, its `medusa` method one without a past. What is registered is that model type
and an architecture for each; the layout `vllm` (`foretoken.formats.vllm`) writes the directory.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

ARCHITECTURES = ("ForetokenHeads", "ForetokenStatelessHeads")


class ForetokenConfig(PreTrainedConfig):
    """A draft model's config; its fields are those that the layout writes."""

    model_type = "mtp"


def register() -> None:
    """Tell vLLM about foretoken's heads."""
    from vllm import ModelRegistry

    AutoConfig.register("mtp", ForetokenConfig, exist_ok=True)
    registry: Any = ModelRegistry
    for name in ARCHITECTURES:
        if name not in registry.get_supported_archs():
            registry.register_model(name, f"foretoken.engines.vllm_model:{name}")
