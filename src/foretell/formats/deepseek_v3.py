"""DeepSeek-V3's layout: modules as further layers after the backbone's last one.

vLLM 0.32, `deepseek_mtp.py`: [embedding, hidden]; the state after the final norm;
`shared_head.norm` before it is handed on; zeros for the embedding at position 0; the first module,
run for every step.
Embedding and output head are stored again in every module, as in the published checkpoint.
"""

from typing import Any

from foretell.formats.base import EMBEDDING, OUTPUT, InPlace
from foretell.formats.contract import Chain
from foretell.formats.files import Checkpoint
from foretell.formats.names import ModuleNames

_LAYER = "model.layers.{i}."


class DeepSeekV3(InPlace):
    """Modules below `model.layers.{L+i}.`."""

    name = "deepseek_v3"
    contract = Chain(engine="vLLM 0.32", concat="embedding, hidden", zero_first=True)
    serve = (
        "vllm serve {out} --speculative-config "
        """'{{"method": "mtp", "num_speculative_tokens": {depth}}}'"""
    )
    names = ModuleNames(
        hidden_norm=_LAYER + "hnorm",
        embedding_norm=_LAYER + "enorm",
        projection=_LAYER + "eh_proj",
        norm=_LAYER + "shared_head.norm",
        block=_LAYER,
        embedding_first=True,
        copies=(
            (_LAYER + "embed_tokens.weight", EMBEDDING),
            (_LAYER + "shared_head.head.weight", OUTPUT),
        ),
    )
    families = ("deepseek_v3",)
    counts = "num_nextn_predict_layers"
    behind = True

    def config(self, base: Checkpoint, modules: int) -> dict[str, Any]:
        """With how experts are chosen, which vLLM asks for and transformers does not write."""
        config = super().config(base, modules)
        if base.model_type != "deepseek_v3":
            return config
        return {"topk_method": "noaux_tc", "scoring_func": "sigmoid", **config}
