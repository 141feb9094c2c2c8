"""The layout of Qwen3-Next and Qwen3.5: `mtp.*` beside the backbone.

vLLM 0.32, `qwen3_next_mtp.py` and `qwen3_5_mtp.py`: [embedding, hidden]; the state after the final
norm; `mtp.norm` before it is handed on; nothing zeroed; one module, run for every step, whose block
is a full-attention block.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from foretell.formats.base import InPlace
from foretell.formats.contract import Chain
from foretell.formats.names import ModuleNames
from foretell.model import MTPModel


class Qwen3Next(InPlace):
    """One module below `mtp.`."""

    name = "qwen3_next"
    contract = Chain(engine="vLLM 0.32", concat="embedding, hidden")
    serve = (
        "vllm serve {out} --speculative-config "
        """'{{"method": "mtp", "num_speculative_tokens": {depth}}}'"""
    )
    names = ModuleNames(
        hidden_norm="mtp.pre_fc_norm_hidden",
        embedding_norm="mtp.pre_fc_norm_embedding",
        projection="mtp.fc",
        norm="mtp.norm",
        block="mtp.layers.{i}.",
        embedding_first=True,
    )
    families: ClassVar[tuple[str, ...]] = ("qwen3_next",)
    counts = "num_nextn_predict_layers"
    most = 1

    def refusals(self, model: MTPModel, base: Mapping[str, Any]) -> list[str]:
        kinds = base.get("layer_types") or ["full_attention"]
        if kinds[-1] != "full_attention":
            return [
                "its module has a full-attention block, and the backbone's last layer is not one"
            ]
        return super().refusals(model, base)


class Qwen35(Qwen3Next):
    """The same names; another field in the config."""

    name = "qwen3_5"
    families = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
    counts = "mtp_num_hidden_layers"
