"""GLM-4.5's layout: DeepSeek-V3's names on another family.

vLLM 0.32, `glm4_moe_mtp.py`, runs it as DeepSeek-V3's, except that the residual stream is
handed on, before `shared_head.norm`.
"""

from foretell.formats.contract import Chain
from foretell.formats.deepseek_v3 import DeepSeekV3


class Glm4Moe(DeepSeekV3):
    """Modules below `model.layers.{L+i}.`."""

    name = "glm4_moe"
    contract = Chain(
        engine="vLLM 0.32", concat="embedding, hidden", recycle="stream", zero_first=True
    )
    families = ("glm4_moe",)
