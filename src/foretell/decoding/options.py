"""How a batch is decoded: what proposes tokens, what of it stands, and how tokens are chosen."""

from dataclasses import dataclass, field

from transformers import GenerationConfig

from foretell.backbone import Backbone
from foretell.decoding.acceptance import AcceptanceRule, SpeculativeSampling
from foretell.decoding.batch import Batch
from foretell.decoding.cache import takes_masks
from foretell.decoding.drafters import Drafter, NoDrafter
from foretell.decoding.length import AutoLength, Measured
from foretell.decoding.numbers import whole
from foretell.decoding.passes import capacity
from foretell.decoding.sampling import WIDEST, Sampling
from foretell.errors import BackboneError, InputError


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """What is the same for all rows of a batch; where each begins and ends is in the `Batch`.

    Attributes:
        sampling: how tokens are chosen; greedily by default.
        drafter: what proposes tokens; nothing by default.
        rule: what of a draft stands; by default what leaves the output as it is.
        auto_length: choose how deep every draft goes, by what brings most tokens per second.
        pass_width: make every pass but the first this many tokens wide, whatever is drafted (see
            `foretell.decoding.invariance`).
        compiled: run every pass but the first in few shapes, see `compile_fixed`.
        config: whose penalties, suppressed and forced tokens are obeyed; None: the model's own.

    Raises:
        InputError: passes cannot be that wide, or something is none of these.
    """

    sampling: Sampling = field(default_factory=Sampling)
    drafter: Drafter = field(default_factory=NoDrafter)
    rule: AcceptanceRule = field(default_factory=SpeculativeSampling)
    auto_length: bool = False
    pass_width: int | None = None
    compiled: bool = False
    config: GenerationConfig | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sampling, Sampling):
            raise InputError(f"sampling is {self.sampling!r}; give a foretell.decoding.Sampling.")
        if not callable(getattr(self.drafter, "draft", None)):
            raise InputError(f"drafter is {self.drafter!r}; give one, or its name.")
        if not callable(self.rule):
            raise InputError(f"rule is {self.rule!r}; give an acceptance rule, or its name.")
        if self.pass_width is not None and not 1 <= whole("pass_width", self.pass_width) <= WIDEST:
            raise InputError(
                f"pass_width is {self.pass_width}; a pass is 1 to {WIDEST} tokens wide."
            )

    def require_trees(self, backbone: Backbone, batch: Batch) -> None:
        """Check that a backbone can verify what the drafter proposes.

        Raises:
            BackboneError: they are trees, and it takes no mask that tells their branches apart.
        """
        if (shape := getattr(self.drafter, "shape", None)) is None:
            return
        if not (masked := takes_masks(backbone, capacity(batch) + shape.size)):
            raise BackboneError(
                f"{type(backbone.model).__name__} cannot verify trees: it takes no attention mask "
                f"that tells branches apart ({masked.lacking}); draft chains."
            )

    def lengths(self, backbone: Backbone, batch: Batch) -> AutoLength | None:
        """What chooses the draft lengths of a batch, by what earlier ones like it have measured.

        They are alike with the same drafter, which remembers it, as many rows, about the same
        temperature, passes as wide, and compiled or not as these. None where the drafter chooses.
        """
        if not self.auto_length:
            return None
        warmth = (self.sampling.greedy, round(self.sampling.temperature, 1))
        alike = (id(backbone), len(batch), warmth, self.pass_width, self.compiled)
        measured = self.drafter.measured.setdefault(alike, Measured())
        return AutoLength(self.drafter.longest, measured, len(batch), batch.room)
