"""What a model can do, tried out on the model itself.

No list of families knows it. A *trial* has the model do something and compares with what it says
when it is asked plainly. Each is made once, and what uses the ability (decoding, the probe,
training, `foretell info`) asks for the same one:

    @ability
    def counts_to_ten(backbone: Backbone) -> str | None:
        ...  # None: it can; else what went wrong
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Concatenate, ParamSpec
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from foretell.backbone.masks import last_threshold
from foretell.backbone.trying import evaluating, near, same, told
from foretell.backbone.view import Backbone
from foretell.errors import ForetellError


@dataclass(frozen=True)
class Ability:
    """Whether a model can do something: true or false.

    Attributes:
        lacking: why it cannot, a clause whose subject is the model; empty where it can.
    """

    lacking: str = ""

    def __bool__(self) -> bool:
        return not self.lacking


Asked = ParamSpec("Asked")
Trial = Callable[Concatenate[Backbone, Asked], str | None]

_known: "WeakKeyDictionary[PreTrainedModel, dict[Hashable, Ability]]" = WeakKeyDictionary()


def ability(trial: Trial[Asked]) -> Callable[Concatenate[Backbone, Asked], Ability]:
    """Make `trial` once for each model, its attention implementation, and each of its arguments."""

    def ask(backbone: Backbone, /, *args: Asked.args, **kwargs: Asked.kwargs) -> Ability:
        known = _known.setdefault(backbone.model, {})
        attention = getattr(backbone.config, "_attn_implementation", None)
        asked = (trial, attention, args, tuple(sorted(kwargs.items())))
        if asked not in known:
            known[asked] = _attempt(backbone, lambda: trial(backbone, *args, **kwargs))
        return known[asked]

    update_wrapper(ask, trial)
    return ask


def _attempt(backbone: Backbone, trial: Callable[[], str | None]) -> Ability:
    """Make a trial in evaluation mode, in the type of the weights, without gradients.

    A model's own code may raise anything in it: then the model cannot do what is tried, and the
    error is the reason. Our own errors are none.
    """
    try:
        with evaluating(backbone.model), torch.autocast(backbone.device.type, enabled=False):
            return Ability(trial() or "")
    except ForetellError:
        raise
    except Exception as error:
        return Ability(f"it raises {told(error)}")


def forget_abilities(model: PreTrainedModel) -> None:
    """Try everything again when it is asked for: the model has changed."""
    _known.pop(model, None)


@ability
def _isolates(backbone: Backbone, length: int) -> str | None:
    """A second document, longer than `length`, must come out as it does alone."""
    first, second = 4, length + 4
    tokens = torch.arange(2 * (first + second), device=backbone.device)
    tokens = tokens.remainder(backbone.vocab_size).view(2, -1)
    tokens[1, first:] = tokens[0, first:]
    positions = torch.cat([torch.arange(first), torch.arange(second)]).to(tokens.device)
    final = backbone(tokens, position_ids=positions.expand(2, -1)).final[:, first:]
    alone = backbone(tokens[:, first:]).final
    # In half precision rows tell what differences to a pass alone cannot.
    isolated = same(final[0], final[1]) and near(final, alone)
    return None if isolated else "it lets packed documents see each other"


def isolates_documents(backbone: Backbone, length: int = 0) -> Ability:
    """Whether packed documents are kept apart by position ids that restart.

    Some families build their mask without looking at the positions, and a recurrent state knows no
    documents. Tried out on documents that are longer than what changes attention within `length`
    tokens: windows and chunks.
    """
    short = _isolates(backbone, 0)
    threshold = last_threshold(backbone.config, length)
    return _isolates(backbone, threshold) if short and threshold else short


@ability
def rehearses(backbone: Backbone) -> str | None:
    """Whether a block can be called apart from a pass of the model, see `Backbone.block_call`.

    Blocks may be handed what earlier ones computed: keys, routing, another stream. The last block,
    called on what entered it in a pass, must give what it gave there, in packed documents too.
    """
    tokens = torch.arange(16, device=backbone.device).remainder(backbone.vocab_size).reshape(2, 8)
    positions = torch.arange(8, device=backbone.device).remainder(5).expand(2, 8)
    last = backbone.num_layers - 1
    output = backbone(tokens, layers=(last, last + 1), position_ids=positions)
    more = "its last block is handed more than follows from tokens and positions"
    try:
        call = backbone.block_call(tokens, positions, None)
        again = call(backbone.blocks[-1], output.states[last])
    except Exception as error:  # of the model's own code, which misses something
        return f"{more} ({type(error).__name__}: {' '.join(str(error).split())})"
    return None if near(again, output.states[last + 1]) else more
