"""Low-rank adapters on a backbone (LoRA: Hu et al. 2021, arXiv 2106.09685), by peft.

peft changes the model in place: the backbone stays the object that it was, with adapters inside.
"""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from foretell.errors import CheckpointError, InputError, not_installed


@dataclass(frozen=True)
class Adapters:
    """Adapters inside a model.

    Attributes:
        peft_model: peft's wrapper around the model.
    """

    peft_model: Any

    @classmethod
    def add(
        cls,
        model: PreTrainedModel,
        *,
        rank: int,
        alpha: float,
        dropout: float,
        targets: str | list[str],
    ) -> "Adapters":
        """Put new adapters into `model`; from now on they learn, and nothing else of it.

        Raises:
            InputError: peft is not installed, or `targets` name nothing in the model.
        """
        peft = _peft()
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        try:
            with warnings.catch_warnings():  # peft asks transformers in words of yesterday
                warnings.simplefilter("ignore", FutureWarning)
                return cls(peft.get_peft_model(model, config))
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"adapters do not fit {type(model).__name__}: {reason}") from None

    @classmethod
    def load(cls, model: PreTrainedModel, path: Path) -> "Adapters":
        """Put the adapters saved at `path` into `model`; they learn, and nothing else of it.

        Raises:
            CheckpointError: they are missing or do not fit.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                load = _peft().PeftModel.from_pretrained
                return cls(load(model, str(path), is_trainable=True))
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path}: adapters cannot be loaded ({reason}).") from None

    def save(self, path: Path) -> None:
        """Write them, without their base, as peft does."""
        self.peft_model.save_pretrained(str(path))

    def merge(self) -> None:
        """Add them to the weights and take them out: the model is an ordinary one again."""
        self.peft_model.merge_and_unload()

    def remove(self) -> None:
        """Take them out of the model, which is as it was before."""
        self.peft_model.unload()


def adapters_inside(model: nn.Module) -> str | None:
    """The class of an adapter inside or around `model`, whoever put it there; None without any."""
    if "peft" not in sys.modules:  # which makes them all
        return None
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (PeftModel, BaseTunerLayer, AuxiliaryTrainingWrapper)
    return next((type(part).__name__ for part in model.modules() if isinstance(part, kinds)), None)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise not_installed("peft", "train") from None
    return peft
