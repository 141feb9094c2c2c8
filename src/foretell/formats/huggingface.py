"""What `generate(use_mtp=True)` of plain transformers reads: the family's native names.

transformers 5.23, `MtpModel` in `modeling_layers.py`: one module per depth, each with its own past
(as DeepSeek-V3 trained them); [embedding, hidden]; the state after the final norm; the module's own
norm before it is handed on; nothing zeroed; batch 1. Modules are found by the tensors that the
family ignores on load, which name a layer by its number: 61 for DeepSeek-V3, 46 or 92 for GLM-4.5.
"""

from collections.abc import Mapping
from typing import Any

from foretell.formats.base import InPlace
from foretell.formats.contract import Chain
from foretell.formats.deepseek_v3 import DeepSeekV3
from foretell.model import MTPModel

LAYERS = {"deepseek_v3": (61,), "glm4_moe": (46, 92)}
"""The numbers of layers with which transformers finds a family's modules."""


class TransformersLayout(InPlace):
    """DeepSeek-V3's names, under the contract of transformers."""

    name = "transformers"
    contract = Chain(
        engine="transformers 5.23",
        concat="embedding, hidden",
        modules="depth",
        rollout="depth",
        depths="as many as there are modules",
    )
    serve = (
        'python -c "from transformers import AutoModelForCausalLM as M; '
        "M.from_pretrained('{out}').generate(ids, use_mtp=True)\""
    )
    names = DeepSeekV3.names
    families = tuple(LAYERS)
    counts = "num_nextn_predict_layers"
    behind = True

    def refusals(self, model: MTPModel, base: Mapping[str, Any]) -> list[str]:
        if wrong := super().refusals(model, base):
            return wrong
        layers, found = base.get("num_hidden_layers"), LAYERS[str(base["model_type"])]
        if layers not in found:
            numbers = " or ".join(map(str, found))
            return [
                f"transformers looks for modules after {numbers} layers of this family, and the "
                f"backbone has {layers}"
            ]
        if model.depth > 1:
            return ["transformers finds the first module alone: its pattern names one layer"]
        return []

    def recognises(self, base: Any) -> bool:
        return False  # the family's own layout is
