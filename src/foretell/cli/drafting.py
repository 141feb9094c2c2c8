"""How a continuation is drafted, judged and drawn: the options, and what their texts mean."""

from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Any, Literal, cast

from torch import Tensor

from foretell.cli import common
from foretell.decoding import (
    AcceptanceRule,
    Distance,
    Drafter,
    Exact,
    LookupDrafter,
    MinimumBlock,
    ModelDrafter,
    NoDrafter,
    Sampling,
    SpeculativeSampling,
    TopK,
    TreeShape,
    Typical,
    drafter_for,
)
from foretell.decoding.cache import takes_masks
from foretell.decoding.constraints import left_out, obeyed
from foretell.errors import CheckpointError, InputError
from foretell.loading import load_tokenizer
from foretell.model import MTPModel

DRAFT_LENGTH = 4
"""Tokens per draft of prompt lookup and of draft models, unless asked for otherwise."""

LOSSLESS: dict[str, Callable[[], AcceptanceRule]] = {
    "exact": Exact,
    "speculative": SpeculativeSampling,
}
LOSSY: dict[str, Callable[[float], AcceptanceRule]] = {
    "top-k": lambda number: TopK(_whole(number)),
    "distance": lambda number: Distance(_whole(number)),
    "typical": lambda number: Typical(epsilon=number),
    "minimum-block": lambda number: MinimumBlock(_whole(number)),
}
LOSSY_DEFAULTS = {"top-k": 2.0, "distance": 1.0, "typical": 0.09, "minimum-block": 1.0}


def parse_rule(text: str | None) -> AcceptanceRule:
    """`top-k:3` → `TopK(3)`; the lossless default where nothing was asked for."""
    name, colon, number = (text or "speculative").partition(":")
    if name in LOSSLESS:
        if colon:
            raise InputError(f"--rule {text}: {name} takes no number.")
        return LOSSLESS[name]()
    if name not in LOSSY:
        known = ", ".join([*LOSSLESS, *LOSSY])
        raise InputError(f"--rule {text}: the rule {name!r} is unknown; use one of {known}.")
    try:
        return LOSSY[name](float(number) if colon else LOSSY_DEFAULTS[name])
    except InputError:  # a number, but not one for this rule
        raise
    except (ValueError, OverflowError):
        example = f"{name}:{LOSSY_DEFAULTS[name]:g}"
        raise InputError(f"--rule {text}: give a number, such as {example}.") from None


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError(number)
    return int(number)


def parse_length(text: str | None) -> int | Literal["auto"] | None:
    """`3` → 3; None is the drafter's own."""
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--draft-length {text}: give a number of tokens, or auto.") from None


def parse_tree(text: str | None, pass_width: int | None = None) -> TreeShape | None:
    """`4,2,1` → children by depth, `12` → so many nodes; None drafts chains."""
    if text is None:
        return None
    if pass_width is not None:
        raise InputError("passes of one width verify chains; leave out --tree or --pass-width.")
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--tree {text}: give children by depth, such as 4,2,1, or a number of nodes, such as "
            "12."
        ) from None
    if min(numbers) < 1:
        raise InputError(f"--tree {text}: every number is at least 1.")
    return TreeShape(widths=tuple(numbers)) if len(numbers) > 1 else TreeShape(nodes=numbers[0])


def sampling(
    temperature: float,
    seed: int,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float | None = None,
) -> Sampling:
    """What the options ask for, refusing those that would do nothing."""
    if temperature == 0 and (top_k, top_p, min_p) != (0, 1.0, 0.0):
        raise InputError("top-k, top-p and min-p choose what is drawn from; add --temperature 1.")
    return Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seeds=seed,
    )


def drafter_name(name: str | None, model: MTPModel, *, plain: bool = False) -> str:
    """Which drafter was asked for: heads, none, lookup, or a draft model by name."""
    if plain and name not in (None, "none"):
        raise InputError(f"--plain decodes without a drafter; leave out --drafter {name}.")
    if plain:
        return "none"
    return name or ("none" if model.head is None else "heads")


def drafter(
    name: str,
    model: MTPModel,
    length: int | Literal["auto"] | None = None,
    shape: TreeShape | None = None,
) -> Drafter:
    """The drafter of that name, see `drafter_name`; with `auto` it drafts as far as by default."""
    if shape is not None:
        if name in ("none", "lookup"):
            raise InputError(f"drafter {name} makes no trees; leave out --tree.")
        if not takes_masks(model.backbone, 0):  # longer texts are tried when there are some
            raise InputError(
                f"{type(model.lm).__name__} cannot verify trees, only chains; leave out --tree."
            )
    if name == "none":
        if length is not None:
            raise InputError("without a drafter there is no draft; leave out --draft-length.")
        return NoDrafter()
    if length == "auto":
        length = None
    if name == "lookup":
        return LookupDrafter(DRAFT_LENGTH if length is None else length)
    if name == "heads":
        return drafter_for(model.backbone, model.require_head(), length, shape)
    draft, length = load_draft_model(name, model), DRAFT_LENGTH if length is None else length
    return ModelDrafter(model.backbone, draft.backbone, length, shape)


def load_draft_model(name: str, model: MTPModel) -> MTPModel:
    """A draft model on the device and in the type of the model that it drafts for.

    Where their tokenizers agree and their vocabularies differ in size all the same, the rows of one
    embedding are padded further than those of the other (Qwen2.5 has 151,936 or 152,064 of them, by
    size): the draft model's are cut, or filled up with their mean.

    Raises:
        InputError: their tokenizers give a token different numbers, or do not show that
            vocabularies of different sizes are the same.
    """
    common.quiet_transformers()
    backbone = model.backbone
    draft = MTPModel.from_pretrained(name, dtype=backbone.dtype, device=backbone.device)
    size = draft.backbone.vocab_size
    own, its = _numbers(model), _numbers(draft)
    apart = next((token for token in own if its.get(token, own[token]) != own[token]), None)
    if apart is not None:
        raise InputError(
            f"{name}: token {apart!r} has number {its[apart]} there and {own[apart]} in the model; "
            "a draft model needs the same vocabulary."
        )
    if size == backbone.vocab_size:
        return draft
    if not own or own != its:
        raise InputError(
            f"{name} has a vocabulary of {size} tokens, the model one of {backbone.vocab_size}, "
            "and no tokenizers show that the difference is padding."
        )
    return _resized(draft, backbone.vocab_size)


def _resized(draft: MTPModel, size: int) -> MTPModel:
    """With so many rows of embeddings, and without heads."""
    rows = draft.backbone.vocab_size
    draft.merge_adapters()
    draft.lm.resize_token_embeddings(size, mean_resizing=False)  # that mean takes a covariance
    resized = MTPModel(draft.lm).eval()
    for table in (resized.backbone.embedding, resized.backbone.output):
        weight = cast(Tensor, table.weight).data
        weight[rows:] = weight[:rows].mean(0)
    return resized


def _numbers(model: MTPModel) -> dict[str, int]:
    """Of the tokens of the tokenizer beside a model, if there is one, but not of those added."""
    if model.tokenizer_path is None:
        return {}
    try:
        tokenizer = load_tokenizer(model.tokenizer_path)
    except CheckpointError:
        return {}
    added = tokenizer.get_added_vocab()
    return {token: n for token, n in tokenizer.get_vocab().items() if token not in added}


def method_name(drafter: str, model: MTPModel) -> str:
    """The `method` of result files: what a drafter is called there."""
    if drafter == "heads":
        return str(model.require_head().config.kind)
    return {"none": "plain", "lookup": "prompt-lookup"}.get(drafter, "draft-model")


def describe_lengths(shares: Mapping[int, float]) -> str:
    """Of the passes, by how many tokens they drafted: 'drafted 0: 25.0 %, 3: 75.0 % of passes'."""
    found = ", ".join(f"{length}: {common.percent(share)}" for length, share in shares.items())
    return f"drafted {found} of passes"


def describe_config(model: MTPModel, sampling: Sampling) -> list[str]:
    """What is taken from the model's generation config, and what is not; nothing where it is bare.

    Args:
        model: that decodes.
        sampling: that was asked for.
    """
    lines, followed, drawn = [], obeyed(model.lm), left_out(model.lm)
    if sampling.repetition_penalty is not None:
        followed.pop("repetition_penalty", None)
    if followed:
        lines.append(f"From its generation config: {_listed(followed)}.")
    if drawn:
        lines.append(
            f"Not from its generation config: {_listed(drawn)}; to draw, give --temperature and "
            "the like."
        )
    return lines


def _listed(fields: Mapping[str, Any]) -> str:
    """'repetition_penalty 1.1, suppress_tokens [5, 7]', each at most a line's part long."""
    return ", ".join(f"{name} {shorten(str(value), 60)}" for name, value in fields.items())


def describe(rule: AcceptanceRule, temperature: float) -> str:
    """What kind of output this is, as 'greedy, lossless'."""
    chosen = f"sampled at temperature {temperature:g}" if temperature else "greedy"
    return f"{chosen}, {'lossless' if rule.lossless else 'LOSSY'}"
